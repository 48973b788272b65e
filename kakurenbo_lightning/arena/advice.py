""":func:`advise` profiles some steps of the user's own training, and says what each method would save in it."""

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
from kakurenbo_lightning.methods.saving import share_setting
from kakurenbo_lightning.methods.settings import shown
from kakurenbo_lightning.session.profiling import Profile, profiled
from kakurenbo_lightning.session.trial import run_trial

PAYS = 0.01  # of the training time: what saves less does not pay
EASY = 1000  # made-up samples
NOT_SCORED = "no scoring pass, or no finite loss in it: what methods save that go by values is not known of now"
PLAYED = {"selective_backprop": [{"beta": 1}, {"beta": 2}], "stale_sb": [{"beta": 1}, {"beta": 2}]}


@dataclass(frozen=True)
class Offer:
    """What one method would do in a training.

    Attributes:
        method: its name and settings.
        family: of the method.
        now: the share of the training time that it saves if samples stay as they are after the profiled steps; NaN where it cannot be used,
            goes by values and no sample could be scored, or where that does not say it.
        most: the share when every sample is right and sure, the most for methods that hide such samples; NaN where it cannot be used.
        memory: bytes that each rank keeps of the samples.
        traffic: bytes that each rank sends in an epoch; 0 on one rank.
        why: it does not pay, cannot be used, or cannot be forecast; empty where it pays.
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
    """What each method would save; ``print`` it for a table.

    Attributes:
        profile: what it goes by.
        max_epochs: of the training.
        world_size: ranks of the training.
        offers: of every method, those that save most first, then those that cannot be forecast, then those that cannot be used.
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
    """Profile some steps of a training, score some samples, and say what each method would save, before anything is trained in earnest.

    The steps run in a Trainer of their own, on one device of the kind that ``trainer`` has, in its precision and as the first ones of a
    training as long; the module and all random numbers are afterwards what they were (see
    :func:`~kakurenbo_lightning.session.trial.fit_aside`). Callbacks are left out.

    Args:
        trainer: of the training; its length, ranks, precision and accumulation count.
        model: the module.
        data: a LightningDataModule, or a train DataLoader.
        steps: how many are profiled; at most those of an epoch.
        sample: how many samples are scored.
        world_size: ranks of the training; ``None``: those of ``trainer``.

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
        warnings.simplefilter("ignore")  # of so short a training
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
    """How many epochs the training has.

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
    """The most that is forecast."""
    return max((share for share in (offer.now, offer.most) if not math.isnan(share)), default=0.0)


def _settings(name: str) -> list[dict[str, Any]]:
    """With which settings a method is played."""
    try:
        share = share_setting(get_method(name))
    except (TypeError, ValueError):  # it needs settings of the user's
        return [{}]
    return PLAYED.get(name) or ([{share: 0.3}, {share: 0.5}] if share else [{}])


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
    """Of a data set as small as ``values``, in as many steps as the real one has, up to a few."""
    steps = max(2, min(20, profile.num_samples // max(1, profile.batch_size)))
    count = len(values["loss"])
    batch_size = min(count, max(2, count // steps))
    whole = {name: each[: count // batch_size * batch_size] for name, each in values.items()}  # full batches alone
    return play(method, max_epochs, whole, batch_size)


def _why(method: Method, work: Work, cost: StepCost) -> str:
    """Why a method saves nothing even of easy samples."""
    if method.family == "draw":
        return "its epochs are as long as before: it can pay in fewer epochs alone"
    if work.extra:
        return f"its {work.extra} scoring epochs come on top"
    if sum(work.rated):
        return f"scoring a batch within its step, with its wait for data, costs {cost.forward + cost.data:.0%} of a step that trains it"
    hidden = len(work.trained) - sum(work.trained)
    if not hidden:
        return "in so few epochs it never hides"
    return f"a scoring pass over what is hidden costs {cost.scored:.0%} of training it"
