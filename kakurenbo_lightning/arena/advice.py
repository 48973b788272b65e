""":func:`advise` profiles some steps of the user's own training, and says what each method would save in it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.cli.text_table import aligned, terminal_width
from kakurenbo_lightning.core.durations import moment
from kakurenbo_lightning.core.flavour import join
from kakurenbo_lightning.core.statistics import TARGET, SampleStatistics
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods import available_methods, get_method
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.methods.course import StepCost, Table, Work, learned, play
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.saving import share_setting
from kakurenbo_lightning.session.trial import TrialReport, fit_aside, run_trial

PHASES = ("data", "forward", "backward", "update")
LONGEST = 0.05  # share of the longest that counts for nothing: a machine that stood still
PAYS = 0.01  # of the training time: what saves less does not pay
EASY = 1000  # made-up samples
PLAYED = {"selective_backprop": [{"beta": 1}, {"beta": 2}], "stale_sb": [{"beta": 1}, {"beta": 2}]}


@dataclass(frozen=True)
class Profile:
    """What some steps of a training took.

    Attributes:
        seconds: of a step, by phase: waiting for data, forward pass, backward pass, update and what else a step does.
        steps: how many were measured.
        batch_size: samples of a step.
        pass_seconds: of a scoring pass, per sample.
        values: what the pass measured of some samples, each ``[n]``.
        num_samples: of the data set.
    """

    seconds: Mapping[str, float]
    steps: int
    batch_size: int
    pass_seconds: float
    values: Table
    num_samples: int

    @property
    def step_seconds(self) -> float:
        """Of a whole step."""
        return sum(self.seconds.values())

    @property
    def cost(self) -> StepCost:
        """The same as shares of a step."""
        step = self.step_seconds
        return StepCost(self.seconds["data"] / step, self.seconds["forward"] / step, self.pass_seconds * self.batch_size / step)


@dataclass(frozen=True)
class Offer:
    """What one method would do in a training.

    Attributes:
        method: its name and settings.
        family: of the method.
        now: the share of the training time that it saves if samples stay as they are after the profiled steps; NaN where it cannot be used.
        most: the share when every sample is right and sure.
        memory: bytes that each rank keeps of the samples.
        traffic: bytes that each rank sends in an epoch; 0 on one rank.
        why: it does not pay, or cannot be used; empty where it pays.
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
        offers: of every method, those that save most first.
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
            f"{profile.steps} steps of {profile.batch_size} samples, {1000 * profile.step_seconds:.3g} ms each: {parts}",
            f"a scoring pass takes {cost.scored:.0%} of training a sample",
            f"{profile.num_samples:,} samples, {self.max_epochs} epochs{ranks}",
            "",
        ]
        rows = [_row(offer) for offer in self.offers]
        note = (
            "Saves: the share of the training time, validation apart: now, if samples stay as they are after these steps, and when all are "
            "right and sure. What it does to accuracy is not forecast: kakurenbo_lightning.compare measures it."
        )
        names = ("method", "saves now", "at most", "memory", "sent", "will not pay here, because")
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


@dataclass(frozen=True)
class _Probe(HideMethod):
    """Hides nothing; a scoring pass before the second epoch measures ``sample`` samples, all over the data set."""

    sample: int = 1000
    known: tuple[str, ...] = ("loss",)

    name: ClassVar[str] = "advise"
    summary: ClassVar[str] = "measures some samples"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "reads", self.known)

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Nothing."""
        return Choice(torch.zeros(len(statistics), dtype=torch.bool))

    def rows_to_score(self, statistics: SampleStatistics, epoch: Epoch, previous: Any) -> torch.Tensor:
        """Evenly spread ones."""
        count = min(self.sample, len(statistics))
        return torch.linspace(0, len(statistics) - 1, count).long() if epoch.index else torch.empty(0, dtype=torch.int64)


class _Done(Exception):
    """What is to be measured is measured."""


class _Watch(pl.Callback):
    """Notes when the parts of each step begin, and stops the training when the second epoch does."""

    def __init__(self) -> None:
        join(_Watch)
        self._cuda = False
        self._marks: list[list[Any]] = []  # of each step: begin, backward, update, end
        self._ended: Any = None
        self._phases: list[tuple[float, ...]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The device is known."""
        self._cuda = trainer.strategy.root_device.type == "cuda"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The scoring pass is over when the second epoch begins."""
        if trainer.current_epoch > 0:
            raise _Done
        self._ended = moment(self._cuda)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """The wait for data is over."""
        self._marks.append([self._ended, moment(self._cuda)])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """The forward pass is over."""
        self._marks[-1].append(moment(self._cuda))

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The backward pass is over."""
        self._marks[-1].append(moment(self._cuda))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over."""
        self._ended = moment(self._cuda)
        self._marks[-1].append(self._ended)

    def phases(self) -> tuple[dict[str, float], int]:
        """Seconds of each phase of a step, without the first steps and the longest ones; and of how many steps."""
        if self._cuda:
            torch.cuda.synchronize()
        whole = [marks for marks in self._marks if len(marks) == len(PHASES) + 1]
        kept = whole[min(5, len(whole) // 5) :]
        if not kept:
            raise ConflictError(
                "advise found no step with one forward and one backward pass to measure; modules that optimize by themselves with several "
                "backward passes a step are not profiled"
            )
        between = [[_seconds(one, other) for one, other in pairwise(marks)] for marks in kept]
        columns = list(zip(*between, strict=True))
        return {phase: _usual(column) for phase, column in zip(PHASES, columns, strict=True)}, len(kept)


def _seconds(begun: Any, ended: Any) -> float:
    return ended - begun if isinstance(begun, float) else begun.elapsed_time(ended) / 1000


def _usual(seconds: tuple[float, ...]) -> float:
    """The mean without the longest."""
    return fmean(sorted(seconds)[: max(1, round(len(seconds) * (1 - LONGEST)))])


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

    The steps run in a Trainer of their own, on one device of the kind that ``trainer`` has, in its precision; the module and all random
    numbers are afterwards what they were.

    Args:
        trainer: of the training; its length, ranks, precision and accumulation count.
        model: the module.
        data: a LightningDataModule, or a train DataLoader.
        steps: how many are profiled.
        sample: how many samples are scored.
        world_size: ranks of the training; ``None``: those of ``trainer``.

    Raises:
        ValueError: the module or the data cannot be used with sample selection at all, or the training has no end.
    """
    max_epochs = trainer.max_epochs
    if max_epochs is None or max_epochs < 1:
        raise ConflictError(f"advise: Trainer(max_epochs={max_epochs}) has no end in epochs; set max_epochs")
    settings = {
        "accelerator": {"cuda": "gpu"}.get(trainer.strategy.root_device.type, trainer.strategy.root_device.type),
        "precision": trainer.precision,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
    }
    trial = _trial(model, data, settings)
    given = trial.values.gives if trial.values is not None else ()
    profile = _profiled(model, data, settings, given, steps, sample)
    world_size = world_size or trainer.world_size
    offers = [
        _offer(name, chosen, trial.methods[name], profile, max_epochs, world_size)
        for name in available_methods()
        if name != "baseline"
        for chosen in _settings(name)
    ]
    ranked = sorted(
        offers, key=lambda offer: (offer.most != offer.most, -offer.most if offer.most == offer.most else 0, offer.method)
    )
    return Advice(profile, max_epochs, world_size, tuple(ranked))


def _trial(model: Any, data: Any, settings: Mapping[str, Any]) -> TrialReport:
    """What the first batch says of each method."""
    return run_trial(SampleSelection("baseline"), model, data, None, dict(settings))


def _profiled(
    model: pl.LightningModule,
    data: Any,
    settings: Mapping[str, Any],
    given: tuple[str, ...],
    steps: int,
    sample: int,
) -> Profile:
    """Train ``steps`` steps and score ``sample`` samples; nothing is left of it in the module."""
    known = tuple(name for name in ("loss", "confidence", "correct") if name in given)
    selection, watch = SampleSelection(_Probe(sample=sample, known=known)), _Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so short a training
        fit_aside(model, data, [selection, watch], _Done, {"max_epochs": 2, "limit_train_batches": steps, **settings})
    seconds, measured = watch.phases()
    totals, statistics = selection.totals, selection.statistics
    assert selection.session is not None and statistics is not None
    values = {name: getattr(statistics, name)[statistics.measured].cpu() for name in ("loss", "confidence", "correct")}
    batch_size = selection.session.data.sampler.batch_size
    spent = totals.refresh_seconds / max(1, totals.samples_refreshed)
    return Profile(seconds, measured, batch_size, spent, _filled(values, known), len(statistics))


def _filled(values: Table, known: tuple[str, ...]) -> Table:
    """With what was not measured in the place of what is most like it: a sample of high loss is hard in every sense."""
    loss = values["loss"]
    made = {**values, "el2n": loss, "entropy": loss, "target": torch.zeros(len(loss), dtype=torch.int64)}
    easy = learned(len(loss))
    return made | {name: easy[name] for name in ("confidence", "correct") if name not in known}


def _settings(name: str) -> list[dict[str, Any]]:
    """With which settings a method is played."""
    try:
        share = share_setting(get_method(name))
    except (TypeError, ValueError):  # it needs settings of the user's
        return [{}]
    return PLAYED.get(name) or ([{share: 0.3}, {share: 0.5}] if share else [{}])


def _offer(name: str, settings: Mapping[str, Any], problem: str, profile: Profile, max_epochs: int, world_size: int) -> Offer:
    family = available_methods()[name].family
    label = " ".join([name, *(f"{key}={value}" for key, value in settings.items())])
    try:
        method = get_method(name, **settings)
        method.check_run(max_epochs, profile.num_samples)
    except (TypeError, ValueError) as error:
        problem = problem or str(error)
    if problem:
        return Offer(label, family, math.nan, math.nan, 0, 0, problem.partition("\n")[0].partition(". ")[0])
    works = [_work(method, max_epochs, values, profile) for values in (profile.values, learned(EASY))]
    now, most = (work.saving(profile.cost) for work in works)
    columns = (*method.columns, *([TARGET] if method.needs_classes else []))
    statistics = SampleStatistics(1000, columns=columns)
    held = sum(each.nbytes for each in (*vars(statistics).values(), *statistics.extra.values()) if isinstance(each, torch.Tensor))
    sent = 4 * (3 + len(columns)) * profile.num_samples * 2 * (world_size - 1) // world_size
    why = "" if most > PAYS else _why(method, works[1], profile.cost)
    return Offer(label, family, now, most, held * profile.num_samples // 1000, sent, why)


def _work(method: Method, max_epochs: int, values: Table, profile: Profile) -> Work:
    """Of a data set as small as ``values``, in as many steps as the real one has, up to a few."""
    steps = max(2, min(20, profile.num_samples // max(1, profile.batch_size)))
    batch_size = max(2, len(values["loss"]) // steps)
    whole = {name: each[: len(each) // batch_size * batch_size] for name, each in values.items()}  # full batches alone
    return play(method, max_epochs, whole, batch_size)


def _why(method: Method, work: Work, cost: StepCost) -> str:
    """Why a method saves nothing even of easy samples."""
    if method.family == "draw":
        return "its epochs are as long as before: it can pay in fewer epochs alone"
    if work.extra:
        return f"its {work.extra} scoring epochs come on top"
    if sum(work.rated):
        return f"scoring each batch costs {cost.forward + cost.data:.0%} of training it"
    hidden = len(work.trained) - sum(work.trained)
    return "in so few epochs it never hides" if not hidden else f"scoring what is hidden costs {cost.scored:.0%} of training it"
