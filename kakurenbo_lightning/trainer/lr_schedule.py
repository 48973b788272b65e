"""A learning-rate factor that exists only while the optimizer steps, and schedules that keep pace with shorter epochs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import LBFGS, Optimizer

from kakurenbo_lightning.core.arrivals import UNKNOWN
from kakurenbo_lightning.core.distributed import rank_zero_warn


def stepping(optimizer: Any) -> Optimizer:
    """The optimizer of torch that steps: itself, or the one that a wrapper of DeepSpeed's, which is none of torch's, holds."""
    return optimizer if hasattr(optimizer, "register_step_pre_hook") else optimizer.optimizer


class LearningRateFactor:
    """Multiplies the learning rate of every parameter group while ``optimizer.step`` updates, and puts it back afterwards.

    Lightning runs ``training_step`` and the backward pass inside ``optimizer.step``, as its closure; the rate is scaled when the closure
    returns. So the user's code, schedulers, loggers and checkpoints see only the unscaled value, and a rate set in ``training_step`` is
    the one that is scaled and kept. Tensor learning rates are changed in place, without a synchronisation. An optimizer without a learning
    rate (Adafactor with relative steps) is left alone, after a warning.

    Args:
        paused: asked at every step; the optimizer is left alone while it says so.

    Attributes:
        value: the factor; 1 leaves the optimizer alone.
    """

    def __init__(self, paused: Callable[[], bool] = lambda: False) -> None:
        self.value = 1.0
        self._paused = paused
        self._handles: list[Any] = []
        self._optimizers: list[Optimizer] = []
        self._saved: dict[int, list[Any]] = {}

    def attach(self, optimizers: Iterable[Optimizer]) -> None:
        """Act on these optimizers, and no longer on others."""
        self.release()
        for optimizer in optimizers:
            if any(group.get("lr") is None for group in optimizer.param_groups):
                rank_zero_warn(
                    f"{type(optimizer).__name__} has no learning rate, so a method's learning-rate factor (1 / (1 - hidden share)) "
                    "cannot act on it; give it an lr"
                )
            self._optimizers.append(stepping(optimizer))
            self._handles.append(stepping(optimizer).register_step_pre_hook(self._begin_step))
            self._handles.append(stepping(optimizer).register_step_post_hook(self._restore))

    def release(self) -> None:
        """Restore everything and let go of the optimizers."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizers = [], []

    def restore(self) -> None:
        """Put back what an exception inside ``optimizer.step`` left scaled."""
        for optimizer in self._optimizers:
            self._restore(optimizer)

    def unscale(self, optimizers: Iterable[Optimizer], states: Iterable[dict[str, Any]]) -> None:
        """Put the unscaled rates into optimizer states that were copied while an optimizer steps (a checkpoint saved then).

        A state is empty where sharded ones were put together in another process.
        """
        for optimizer, state in zip(optimizers, states, strict=False):
            for group, rate in zip(state.get("param_groups", ()), self._saved.get(id(optimizer), ()), strict=False):
                if rate is not None:
                    group["lr"] = rate.clone() if isinstance(rate, torch.Tensor) else rate

    def _begin_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Scale now, or whenever the closure returns: some optimizers call it several times. ``args`` begin with the optimizer."""
        by_name = "closure" in kwargs
        closure = kwargs["closure"] if by_name else next(iter(args[1:]), None)
        if not callable(closure) or isinstance(optimizer, LBFGS):  # which reads its rate before it calls its closure
            self._scale(optimizer)
            return None

        def then_scale() -> Any:
            self._restore(optimizer)
            result = closure()
            self._scale(optimizer)
            return result

        if by_name:
            return args, {**kwargs, "closure": then_scale}
        return (optimizer, then_scale, *args[2:]), kwargs

    def _scale(self, optimizer: Optimizer) -> None:
        if self.value == 1.0 or self._paused():
            return
        self._restore(optimizer)
        saved = self._saved[id(optimizer)] = []
        for group in optimizer.param_groups:
            rate = group.get("lr")
            if isinstance(rate, torch.Tensor):
                saved.append(rate.clone())
                rate.mul_(self.value)
            else:
                saved.append(rate)
                if rate is not None:
                    group["lr"] = rate * self.value

    def _restore(self, optimizer: Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._saved.pop(id(optimizer), ()), strict=False):
            if isinstance(rate, torch.Tensor):
                group["lr"].copy_(rate)
            elif rate is not None:
                group["lr"] = rate


def scheduler_steps(batches: int, accumulate: int, frequency: int, *, complete: bool = True) -> int:
    """How often Lightning steps a scheduler of interval "step" in ``batches`` batches.

    It does so after every optimizer step (each ``accumulate`` batches, and the last of the epoch) whose batch number is a
    multiple of ``frequency``. ``complete`` says that the last of ``batches`` is the last of the epoch.
    """
    if accumulate == 1:
        return batches // frequency
    last = complete and batches % accumulate != 0 and batches % frequency == 0
    return sum(batch % frequency == 0 for batch in range(accumulate, batches + 1, accumulate)) + last


class ScheduleAligner:
    """Moves step-interval schedulers so that they end each epoch where an epoch of the length they were built for would.

    Of the n steps of an epoch that was to have ``full``, the k-th (from 0) uses the rate at position ``round(k * (full - 1) / (n - 1))``:
    the first and the last step use the first and the last rate of a full epoch, and then the schedule stands at its end. After
    resharding, or with other accumulation, the same holds of what is left of the way, and of the steps that are left. Where there are
    fewer steps than positions the aligner adds steps to Lightning's; where there are more it takes them in Lightning's place. Schedulers
    without a ``last_epoch`` counter, ReduceLROnPlateau and "epoch" ones are left alone.
    """

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._batches = self._accumulate = 1
        self._paces: dict[str, Any] = {"anchor_step": 0, "anchors": [], "origins": [], "accumulate": 1}

    def begin_epoch(
        self,
        configs: Iterable[Any],
        batches: int,
        full_batches: int,
        accumulate: int,
        full_accumulate: int | None = None,
        done: int = 0,
        resumed: dict[str, Any] | None = None,
        skips: bool = False,
    ) -> None:
        """Start an epoch of ``batches`` instead of ``full_batches``, of which ``done`` are behind.

        ``configs`` are Lightning's ``trainer.lr_scheduler_configs``; ``full_accumulate`` of the full batches make a step, by default
        ``accumulate``; ``resumed`` is the :meth:`state_dict` of the aligner that did what is behind, of the way even where no batch is
        behind: an epoch that begins again; ``skips``: some batches make no step, and schedules go by the batches.
        """
        self.release()
        self._batches, self._accumulate = batches, accumulate
        configs = list(configs)
        now = positions(configs)
        self._paces = {"anchor_step": 0, "anchors": now, "origins": now, "accumulate": accumulate}
        if resumed is not None and len(resumed["anchors"]) == len(configs):
            self._paces |= resumed
            if self._paces["accumulate"] != accumulate or not done:
                self._paces |= {"anchor_step": done, "anchors": now, "accumulate": accumulate}
        for config, anchor, origin in zip(configs, self._paces["anchors"], self._paces["origins"], strict=True):
            if config.interval != "step" or config.reduce_on_plateau or anchor is None:
                continue
            end = origin + scheduler_steps(full_batches, full_accumulate or accumulate, config.frequency)
            before = scheduler_steps(self._paces["anchor_step"], accumulate, config.frequency, complete=False)
            steps = scheduler_steps(batches, accumulate, config.frequency) - before
            if anchor + steps != end or skips:
                behind = scheduler_steps(done, accumulate, config.frequency, complete=done == batches)
                self._tracks.append(_Track(config, anchor, end, steps, behind - before))

    def after_batch(self, batch_idx: int, step_scheduler: Callable[[Any], None]) -> None:
        """Take the steps that are due; ``step_scheduler`` steps a scheduler as the user's module does."""
        last = batch_idx + 1 == self._batches
        stepped = last or (batch_idx + 1) % self._accumulate == 0
        for track in self._tracks:
            track.catch_up(step_scheduler, stepped and (batch_idx + 1) % track.frequency == 0, last)

    def catch_up(self, done: int, step_scheduler: Callable[[Any], None]) -> None:
        """Take the steps that were due after ``done`` batches and are not taken yet."""
        for track in self._tracks:
            track.catch_up(step_scheduler, False, done == self._batches)

    def state_dict(self) -> dict[str, Any]:
        """Where the schedulers stood when the epoch, or this layout of it, began."""
        return {key: list(value) if isinstance(value, list) else value for key, value in self._paces.items()}

    def release(self) -> None:
        """Hand the schedulers back to Lightning."""
        for track in self._tracks:
            track.config.frequency = track.frequency
        self._tracks = []


def positions(configs: Iterable[Any]) -> list[int | None]:
    """``last_epoch`` of each scheduler, ``None`` for one that does not count."""
    found = (getattr(config.scheduler, "last_epoch", None) for config in configs)
    return [position if isinstance(position, int) else None for position in found]


class _Track:
    """One scheduler's way from ``start`` to ``end`` in ``steps`` steps, of which ``taken`` are behind."""

    def __init__(self, config: Any, start: int, end: int, steps: int, taken: int) -> None:
        self.config, self.start, self.end, self.steps, self.taken = config, start, end, steps, taken
        self.frequency = config.frequency
        if steps > end - start:
            config.frequency = (
                sys.maxsize
            )  # Lightning would take a step each time; a LearningRateMonitor still finds the "step" interval

    def catch_up(self, step_scheduler: Callable[[Any], None], due: bool, last: bool) -> None:
        self.taken += due
        if last or 0 < self.steps <= self.taken:
            target = self.end
        else:
            target = self.start + round(self.taken * max(0, self.end - self.start - 1) / max(1, self.steps - 1))
        scheduler = self.config.scheduler
        while scheduler.last_epoch < target:
            before = scheduler.last_epoch
            step_scheduler(scheduler)
            if scheduler.last_epoch == before:
                break  # the user's lr_scheduler_step does not advance it


@dataclass(frozen=True)
class Progress:
    """How far a training was that knows of no selection, when its checkpoint was saved.

    Attributes:
        full: batches of each epoch; ``None`` when that is not known.
        epochs: how many epochs were over.
        rest: batches of the one that was not; 0 when all were.
        steps: how many steps the optimizer had made.
    """

    full: int | None
    epochs: int
    rest: int
    steps: int

    def layout(self, full: int, accumulate: int) -> tuple[int, int]:
        """Batches of an epoch, and how many of them made a step; ``full`` and ``accumulate``, those of now, where it says nothing else."""
        full = self.full or full
        possible = (accumulate, *range(1, full + 1))
        fitting = (each for each in possible if self.epochs * ceil(full / each) + self.rest // each == self.steps)
        return full, next(fitting, accumulate)


class EpochSchedules:
    """The user's step schedules through a session: which epochs they keep pace with, and where they stand when one is resumed.

    Args:
        trainer: the Trainer.
        align: whether schedules are to keep pace with shortened epochs.

    Attributes:
        full_batches: batches of a full epoch of this session.
        built_for: batches of a full epoch that the schedules were built for, where that was with other ranks or batches.
        built_accumulate: how many of them made a step, where that was with another ``Trainer(accumulate_grad_batches=)``.
        beside: a module that is trained beside the Trainer's, and Lightning's configs of its schedules, which keep pace as well.
    """

    def __init__(self, trainer: pl.Trainer, align: bool) -> None:
        self._trainer, self._align = trainer, align
        self._aligner = ScheduleAligner()
        self.full_batches = 0
        self.built_for: int | None = None
        self.built_accumulate: int | None = None
        self.beside: tuple[pl.LightningModule, list[Any]] | None = None
        self._configured: int = trainer.accumulate_grad_batches  # before a GradientAccumulationScheduler changes it
        self._start: int | None = None  # the step that an epoch begins or goes on with, until it does
        self._resumed: dict[str, Any] | None = None  # where the schedules stood, in an epoch that goes on
        self._again: dict[str, Any] | None = None  # where they stood when one began that begins again

    @property
    def full(self) -> int:
        """Batches of a full epoch that the schedules were built for."""
        return self.built_for or self.full_batches

    @property
    def steps_per_epoch(self) -> int:
        """How many optimizer steps a full epoch has."""
        return ceil(self.full_batches / self._trainer.accumulate_grad_batches)

    def follow(self, start: int) -> None:
        """An epoch begins, or goes on, at step ``start``."""
        self._start = start

    def go_on(
        self, paces: dict[str, Any] | None = None, full_batches: int | None = None, resharded_at: int | None = None
    ) -> None:
        """Go on with an epoch that a checkpoint cut short.

        Args:
            paces: a saved :meth:`state_dict`; by default where the schedules stand now.
            full_batches: of a full epoch that the schedules were built for, as saved.
            resharded_at: step after which other ranks or batches go on, so that what is left of the way is spread over what is left of
                the epoch; ``None`` with the same ones.
        """
        self._resumed = self._aligner.state_dict() if paces is None else dict(paces)
        self._know(full_batches, self._resumed.pop("full_accumulate", None))
        if resharded_at is not None:
            self._resumed |= {"anchor_step": resharded_at, "anchors": positions(self._configs)}

    def _know(self, full_batches: int | None, full_accumulate: int | None) -> None:
        """Note what the schedules were built for, where it is known and differs from what is trained now."""
        if full_batches not in (None, self.full_batches):
            self.built_for = full_batches
        if full_accumulate not in (None, self._configured):
            self.built_accumulate = full_accumulate

    def go_on_from(self, progress: Progress) -> None:
        """A training without a selection goes on; :meth:`go_on` knows better, of one whose selection is forgotten."""
        if self._resumed is None:
            self._know(*progress.layout(self.full_batches, self._configured))

    def begin_again(self, done: int) -> None:
        """An epoch begins again whose checkpoint was saved after ``done`` batches: what is left of its way is spread over all of it.

        :meth:`go_on` says where the schedules stood when it began; if not, each batch was a batch of a full epoch. Those of a module
        beside the Trainer's begin now.
        """
        configs, accumulate = self._trainer.lr_scheduler_configs, self.built_accumulate or self._configured
        now = positions(configs)
        taken = [scheduler_steps(done, accumulate, config.frequency, complete=False) for config in configs]
        origins = [place if place is None else place - steps for place, steps in zip(now, taken, strict=True)]
        again = self._resumed or {"anchors": now, "origins": origins}
        new = positions(self._configs[len(configs) :])
        self._again = again | {name: again[name][: len(configs)] + new for name in ("anchors", "origins")}

    def begin_batch(self, batches: int, skips: bool) -> None:
        """Learn how long the epoch is from its first batch since :meth:`follow`, when every callback has set its accumulation.

        Args:
            batches: of the epoch, :data:`UNKNOWN` for iterable data without a length.
            skips: some batches make no step.
        """
        start, resumed = self._start, self._again or (self._resumed if self._start else None)
        self._start = self._resumed = self._again = None
        if start is not None and self._keep_pace():
            accumulate, full = self._trainer.accumulate_grad_batches, self.full
            if batches >= UNKNOWN:
                if not skips:
                    return  # one step of each for one of the optimizer, as Lightning takes them
                batches = full = UNKNOWN // 2  # one for each batch, without an end to reach
            self._aligner.begin_epoch(self._configs, batches, full, accumulate, self.built_accumulate, start, resumed, skips)

    def _keep_pace(self) -> bool:
        """Whether schedules are to be aligned: not when ``max_steps`` counts the steps they were built for."""
        trainer = self._trainer
        if not self._align or not trainer.lightning_module.automatic_optimization:
            return False
        return trainer.max_steps < 0 or 0 < self.steps_per_epoch * (trainer.max_epochs or 0) <= trainer.max_steps

    def end_batch(self, number: int) -> None:
        """Take the schedulers' steps that are due after batch ``number``."""
        self._aligner.after_batch(number, self._step_scheduler)

    def catch_up(self, done: int) -> None:
        """Take the steps that were due after ``done`` batches: the checkpoint was saved before they were taken."""
        self._aligner.catch_up(done, self._step_scheduler)

    @property
    def _configs(self) -> list[Any]:
        return self._trainer.lr_scheduler_configs + (self.beside[1] if self.beside is not None else [])

    def _step_scheduler(self, scheduler: Any) -> None:
        module = self._trainer.lightning_module
        if self.beside is not None and any(config.scheduler is scheduler for config in self.beside[1]):
            module = self.beside[0]
        module.lr_scheduler_step(scheduler, None)

    def release(self) -> None:
        """Hand the schedulers back to Lightning, which steps them by itself again."""
        self._aligner.release()

    def state_dict(self) -> dict[str, Any]:
        """Where the schedulers stood when the epoch, or this layout of it, began."""
        return {**self._aligner.state_dict(), "full_accumulate": self.built_accumulate or self._configured}


def estimated_epochs(max_epochs: int, max_steps: int, steps_per_epoch: int) -> int | None:
    """Length of a run in full epochs: Lightning's ``max_epochs`` (-1: none), bounded by ``max_steps`` (-1: none)."""
    limits = [max_epochs] if max_epochs >= 0 else []
    if max_steps >= 0:
        limits.append(ceil(max_steps / max(1, steps_per_epoch)))
    return min(limits) if limits else None
