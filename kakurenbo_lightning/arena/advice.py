""":func:`advise` profiles some steps of the user's training and forecasts what each method would save."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.cli.text_table import aligned, terminal_width
from kakurenbo_lightning.core.flavour import is_instance
from kakurenbo_lightning.core.statistics import TARGET, SampleStatistics
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods import available_methods, get_method
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.course import StepCost, Table, Work, learned, play
from kakurenbo_lightning.methods.registry import method_class
from kakurenbo_lightning.methods.saving import share_setting
from kakurenbo_lightning.methods.settings import shown
from kakurenbo_lightning.session.profiling import Profile, profiled
from kakurenbo_lightning.session.trial import run_trial

PAYS = 0.01  # a method that saves less than this share of the training time does not pay
EASY = 1000  # number of made-up easy samples
NOT_SCORED = "no scoring pass, or no finite loss in it: what methods that select by values save now is not known"
PLAYED = {"selective_backprop": [{"beta": 1}, {"beta": 2}], "stale_sb": [{"beta": 1}, {"beta": 2}]}


@dataclass(frozen=True)
class Offer:
    """The forecast of what one method would save in a training.

    Attributes:
        method: name and settings of the method.
        family: family of the method.
        now: share of the training time that it saves if samples stay as they are after the profiled steps; NaN if it cannot be used,
            if it selects by values and no sample could be scored, or if this cannot be forecast.
        most: the share if every sample is predicted correctly and confidently, which is the most for methods that hide such samples;
            NaN if it cannot be used.
        memory: bytes that each rank keeps about the samples.
        traffic: bytes that each rank sends in an epoch; 0 on one rank.
        why: why it does not pay, cannot be used, or cannot be forecast; empty if it pays.
    """

    method: str
    family: str
    now: float
    most: float
    memory: int
    traffic: int
    why: str


@dataclass(frozen=True)
class Advice:
    """The forecast of what each method would save; ``print`` it for a table.

    Attributes:
        profile: the measured times that the forecast is based on.
        max_epochs: epochs of the training.
        world_size: ranks of the training.
        offers: one for every method: first those that save most, then those that cannot be forecast, then those that cannot be used.
    """

    profile: Profile
    max_epochs: int
    world_size: int
    offers: tuple[Offer, ...]

    def __str__(self) -> str:
        profile, cost = self.profile, self.profile.cost
        parts = ", ".join(f"{phase} {seconds / profile.step_seconds:.0%}" for phase, seconds in profile.seconds.items())
        ranks = "" if self.world_size == 1 else f" on {self.world_size} ranks"
        head = [
            f"{profile.steps_said}, {1000 * profile.step_seconds:.3g} ms each: {parts}",
            f"a scoring pass (eval mode, without gradients, with its wait for data) takes {cost.scored:.0%} of such a step, by sample"
            if profile.values
            else NOT_SCORED,
            f"{profile.num_samples:,} samples, {self.max_epochs} epochs{ranks}",
            "",
        ]
        rows = [_row(offer) for offer in self.offers]
        note = (
            "Saves: the share of the training time, validation apart: now, if samples stay as they are after these steps, and when all are "
            "right and sure. What it does to accuracy is not forecast: kakurenbo_lightning.compare measures it."
        )
        names = ("method", "saves now", "all sure", "memory", "sent", "will not pay here, or is not forecast, because")
        return "\n".join([*head, *aligned(names, rows, terminal_width(130)), "", note])


def _row(offer: Offer) -> tuple[str, ...]:
    shares = ["-" if math.isnan(share) else f"{share:.0%}" for share in (offer.now, offer.most)]
    return (offer.method, *shares, _bytes(offer.memory), _bytes(offer.traffic) if offer.traffic else "-", offer.why)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def advise(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: Any,
    *,
    steps: int = 50,
    sample: int = 1000,
    world_size: int | None = None,
) -> Advice:
    """Profile some steps of a training, score some samples, and forecast what each method would save.

    The steps run in a Trainer of their own, on one device of the kind that ``trainer`` has, in its precision, as the first steps of a
    training of the same length. Afterwards the module and all random streams are as before (see
    :func:`~kakurenbo_lightning.session.trial.fit_aside`). Callbacks are not run.

    Args:
        trainer: the Trainer of the training, from which length, ranks, precision and accumulation are read.
        model: the module.
        data: a LightningDataModule, or a train DataLoader.
        steps: number of steps to profile; at most those of an epoch.
        sample: number of samples to score.
        world_size: ranks of the training; ``None`` for those of ``trainer``.

    Raises:
        ValueError: the module or the data cannot be used with sample selection at all, a number is no int >= 1, or the training is not
            counted in whole epochs.
    """
    world_size = trainer.world_size if world_size is None and is_instance(trainer, pl.Trainer) else world_size
    max_epochs = _checked_epochs(trainer, steps=steps, sample=sample, world_size=world_size)
    settings = {
        "accelerator": {"cuda": "gpu"}.get(trainer.strategy.root_device.type, trainer.strategy.root_device.type),
        "precision": trainer.precision,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "max_epochs": max_epochs,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about such a short training would confuse
        trial = run_trial(SampleSelection("baseline"), model, data, None, settings)
        given = () if trial.values is None else trial.values.gives
        profile = profiled(SampleSelection("baseline"), model, data, settings, given, steps, sample)
    offers = [
        _offer(name, chosen, info.family, trial.methods[name], profile, max_epochs, world_size or 1)
        for name, info in available_methods().items()
        if name != "baseline"
        for chosen in _settings(name)
    ]
    ranked = sorted(
        offers,
        key=lambda offer: (math.isnan(offer.most), bool(offer.why) and math.isnan(offer.now), -_best(offer), offer.method),
    )
    return Advice(profile, max_epochs, world_size or 1, tuple(ranked))


def _checked_epochs(trainer: pl.Trainer, **counts: Any) -> int:
    """Return the number of epochs of the training.

    Raises:
        ConflictError: one of ``counts`` is no int >= 1, or the training is not counted in whole epochs.
    """
    if not is_instance(trainer, pl.Trainer):
        raise ConflictError(f"advise: trainer={shown(trainer)} is not allowed; it must be the Trainer of the training")
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ConflictError(f"advise: {name}={shown(count)} is not allowed; it must be an int >= 1")
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        raise ConflictError(f"advise: Trainer(max_epochs={trainer.max_epochs}) has no end in epochs; set max_epochs")
    for name, usual in (("max_steps", -1), ("limit_train_batches", 1.0)):
        if (value := getattr(trainer, name)) != usual or type(value) is not type(usual):
            raise ConflictError(
                f"advise: Trainer({name}={value}): hidden samples shorten whole epochs, and what they save is forecast of these alone; "
                f"leave {name} out"
            )
    return trainer.max_epochs


def _best(offer: Offer) -> float:
    """The largest forecast saving of an offer, for sorting."""
    return max((share for share in (offer.now, offer.most) if not math.isnan(share)), default=0.0)


def _settings(name: str) -> list[dict[str, Any]]:
    """The settings with which a method is simulated; several if it is simulated more than once, and each preset of it."""
    presets = [{"preset": preset} for preset in method_class(name).presets]
    try:
        share = share_setting(get_method(name))
    except (TypeError, ValueError):  # some settings have no default
        return [{}, *presets]
    return [*(PLAYED.get(name) or ([{share: 0.3}, {share: 0.5}] if share else [{}])), *presets]


def _offer(
    name: str, settings: Mapping[str, Any], family: str, problem: str, profile: Profile, max_epochs: int, world_size: int
) -> Offer:
    label = " ".join([name, *(f"{key}={value}" for key, value in settings.items())])
    try:
        method = get_method(name, **settings)
        method.check_run(max_epochs, profile.num_samples)
    except (TypeError, ValueError) as error:
        problem = problem or str(error)
    if problem:
        return Offer(label, family, math.nan, math.nan, 0, 0, problem.partition("\n")[0].partition(". ")[0])
    easy = _work(method, max_epochs, learned(EASY), profile)
    most = now = easy.saving(profile.cost)
    if method.reads:
        values = profile.values
        now = _work(method, max_epochs, values, profile).saving(profile.cost) if values and not method.unforeseen else math.nan
    columns = (*method.columns, *([TARGET] if method.needs_classes else []))
    statistics = SampleStatistics(1000, columns=columns)
    held = sum(each.nbytes for each in (*vars(statistics).values(), *statistics.extra.values()) if isinstance(each, torch.Tensor))
    sent = 4 * (3 + len(columns)) * profile.num_samples * 2 * (world_size - 1) // world_size
    offer = Offer(label, family, now, most, held * profile.num_samples // 1000, sent, "")
    return replace(offer, why=method.unforeseen if _best(offer) > PAYS else _why(method, easy, profile.cost))


def _work(method: Method, max_epochs: int, values: Table, profile: Profile) -> Work:
    """Simulate the training on a data set as small as ``values``, with the real number of steps per epoch, but at most 20."""
    steps = max(2, min(20, profile.num_samples // max(1, profile.batch_size)))
    count = len(values["loss"])
    batch_size = min(count, max(2, count // steps))
    whole = {name: each[: count // batch_size * batch_size] for name, each in values.items()}  # full batches only
    return play(method, max_epochs, whole, batch_size)


def _why(method: Method, work: Work, cost: StepCost) -> str:
    """Explain why a method saves nothing even if all samples are easy."""
    if method.family == "draw":
        return "its epochs are as long as before: it can pay only by needing fewer of them"
    if work.extra:
        return f"its {work.extra} scoring epochs come on top"
    if sum(work.rated):
        return f"scoring a batch within its step, with its wait for data, costs {cost.forward + cost.data:.0%} of a step that trains it"
    hidden = len(work.trained) - sum(work.trained)
    if not hidden:
        return "in so few epochs it never hides"
    return f"a scoring pass over what is hidden costs {cost.scored:.0%} of training it"
