"""Profiles some steps of a training and scores some samples, without side effects, for :func:`~kakurenbo_lightning.advise`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
import torch

from kakurenbo_lightning.core.durations import moment
from kakurenbo_lightning.core.flavour import join
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.course import StepCost, Table, learned
from kakurenbo_lightning.session.followed_loader import FollowedLoader
from kakurenbo_lightning.session.trial import fit_aside
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values
from kakurenbo_lightning.trainer.forward_pass import score_samples

KNOWN = ("loss", "confidence", "correct")  # values that are measured of samples
PHASES = ("data", "forward", "backward", "update")
LONGEST = 0.05  # share of the longest durations that is dropped, because the machine may have stalled


@dataclass(frozen=True)
class Profile:
    """Measured times of some training steps, and values of some samples.

    Attributes:
        seconds: seconds of a step by phase: waiting for data, forward pass, backward pass, update, and the rest.
        steps: number of measured steps.
        batch_size: samples of a step.
        pass_seconds: seconds per sample of a scoring pass; 0 if none can be made.
        values: values that the pass measured, each ``[n]``; empty if no pass can be made or no loss was finite.
        num_samples: number of samples that can be trained.
        asked: number of steps that were to be run; 0 if not known.
        left_out: number of first steps that were run but not measured.
    """

    seconds: Mapping[str, float]
    steps: int
    batch_size: int
    pass_seconds: float
    values: Table
    num_samples: int
    asked: int = 0
    left_out: int = 0

    @property
    def steps_said(self) -> str:
        """How many steps were measured, in words, and why they are fewer than were asked for."""
        said = f"{self.steps} steps of {self.batch_size} samples"
        if self.steps >= self.asked:
            return said
        run = self.steps + self.left_out
        few = "" if run >= self.asked else f"an epoch has {run} of the {self.asked} steps asked for"
        first = f"the first {self.left_out} are not measured" if self.left_out else ""
        return f"{said} ({', and '.join(filter(None, (few, first)))})"

    @property
    def step_seconds(self) -> float:
        """Seconds of a whole step: the sum over its phases."""
        return sum(self.seconds.values())

    @property
    def cost(self) -> StepCost:
        """The times as shares of a whole step."""
        step = self.step_seconds
        return StepCost(self.seconds["data"] / step, self.seconds["forward"] / step, self.pass_seconds * self.batch_size / step)


def profiled(
    selection: Any,
    model: pl.LightningModule,
    data: Any,
    settings: dict[str, Any],
    given: tuple[str, ...],
    steps: int,
    sample: int,
) -> Profile:
    """Train some steps and score some samples. The module is as before afterwards.

    Args:
        selection: a ``SampleSelection`` that only observes.
        model: the module.
        data: a LightningDataModule, or a train loader.
        settings: arguments of the Trainer.
        given: values that the module's step gives for each sample.
        steps: number of steps to train; at most those of an epoch.
        sample: number of samples to score.

    Raises:
        ConflictError: no step has exactly one forward and one backward pass.
    """
    known = tuple(name for name in KNOWN if name in given)
    function, manual = getattr(model, "sample_outputs", None), not model.automatic_optimization
    # under manual optimization a scoring step would step the optimizers
    can_score = known and (function is not None or not manual)
    outputs = SampleOutputs(known, function, manual=manual) if can_score else None
    watch = _Watch(selection, steps, outputs, sample)
    fit_aside(model, data, [selection, watch], _Done, settings)
    phases, measured, left_out = watch.phases()
    size, count = watch.followed.sampler.batch_size, len(watch.followed.universe)
    return Profile(phases, measured, size, watch.pass_seconds, _filled(watch.values), count, steps, left_out)


def spread(count: int, sample: int) -> torch.Tensor:
    """At most ``sample`` of ``count`` indices, evenly spread, ``int64``."""
    return torch.arange(min(sample, count)) * count // min(sample, count)


def _filled(batches: Sequence[Values]) -> Table:
    """The values of all samples with a finite loss. If ``el2n`` or ``entropy`` was not measured, the loss stands in for it."""
    values = {name: torch.cat([each[name] for each in batches]) for name in KNOWN if batches and name in batches[0]}
    values = {name: each[values["loss"].isfinite()] for name, each in values.items()}
    if not values or not len(values["loss"]):
        return {}
    loss = values["loss"]
    made = {"el2n": loss, "entropy": loss, "target": torch.zeros(len(loss), dtype=torch.int64)}
    return {**learned(len(loss)), **made, **values}


class _Done(Exception):
    """Ends the fit: all measurements are made."""


class _Watch(pl.Callback):
    """Records when the phases of each step begin. After some steps of the first epoch it makes a scoring pass and ends the training.

    The epoch is cut off before its end, because hooks of the epoch's end may need a validation.

    Args:
        selection: a ``SampleSelection`` that comes before it in the Trainer's callbacks and only observes.
        steps: number of steps to measure.
        outputs: measures the samples; ``None`` for no pass.
        sample: number of samples to score.

    Attributes:
        pass_seconds: seconds per sample of the pass.
        values: values of each batch of the pass.
    """

    def __init__(self, selection: Any, steps: int, outputs: SampleOutputs | None, sample: int) -> None:
        join(_Watch)
        self.pass_seconds, self.values = 0.0, list[Values]()
        self._selection, self._steps, self._outputs, self._sample = selection, steps, outputs, sample
        self._cuda = False
        self._marks: list[list[Any]] = []  # for each step the marks of begin, backward, update and end
        self._ended: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set up the clock, now that the device is known.

        Raises:
            ConflictError: the loader gives iterable data.
        """
        if not len(self.followed.universe):
            raise ConflictError(
                "advise estimates what methods hide of a data set whose samples are known by their index, and the train loader's are not "
                "(iterable data); compare the methods that take them (kakurenbo-check names them) on a part of your training"
            )
        self._cuda = trainer.strategy.root_device.type == "cuda"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Mark the start of the wait for the first batch."""
        self._ended = moment(self._cuda)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Mark the end of the wait for data."""
        self._marks.append([self._ended, moment(self._cuda)])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Mark the end of the forward pass."""
        self._marks[-1].append(moment(self._cuda))

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Mark the end of the backward pass."""
        self._marks[-1].append(moment(self._cuda))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Mark the end of the step; after the last one, score the samples and end the fit."""
        self._ended = moment(self._cuda)
        self._marks[-1].append(self._ended)
        if batch_idx + 1 >= min(self._steps, trainer.num_training_batches):
            if self._outputs is not None:
                self._score(self._outputs)
            raise _Done

    @property
    def followed(self) -> FollowedLoader:
        """The train loader as the session follows it."""
        return self._selection.session.data

    def _score(self, outputs: SampleOutputs) -> None:
        """Make the scoring pass. A first batch is scored without timing, because it is verified, which takes longer."""
        outputs.device = self.followed.statistics.device
        rows = self.followed.universe.samples(spread(len(self.followed.universe), self._sample))
        for part in (rows[: self.followed.sampler.batch_size], rows):
            self.values.clear()
            seconds = score_samples(self._selection.session.adapter, self.followed.loader, part, outputs, self._keep, "eval", 0)
            self.pass_seconds = seconds / len(part)

    def _keep(self, rows: torch.Tensor, values: Values) -> None:
        self.values.append({name: value.cpu().clone() for name, value in values.items()})

    def phases(self) -> tuple[dict[str, float], int, int]:
        """Seconds of each phase of a step, without the first steps and the longest ones; the number of measured steps, and of those
        left out.
        """
        # CUDA events are only recorded so far; their times can be read after a synchronisation
        if self._cuda:
            torch.cuda.synchronize()
        whole = [marks for marks in self._marks if len(marks) == len(PHASES) + 1]
        # first steps pay for memory, kernels and workers that start
        kept = whole[min(5, len(whole) // 5) :]
        if not kept:
            raise ConflictError(
                "advise found no step with one forward and one backward pass to measure; modules that optimize by themselves with several "
                "backward passes a step are not profiled"
            )
        between = [[_seconds(one, other) for one, other in pairwise(marks)] for marks in kept]
        columns = list(zip(*between, strict=True))
        usual = {phase: _usual(column) for phase, column in zip(PHASES, columns, strict=True)}
        return usual, len(kept), len(self._marks) - len(kept)


def _seconds(begun: Any, ended: Any) -> float:
    return ended - begun if isinstance(begun, float) else begun.elapsed_time(ended) / 1000


def _usual(seconds: tuple[float, ...]) -> float:
    """The mean of durations without the longest ones."""
    return fmean(sorted(seconds)[: max(1, round(len(seconds) * (1 - LONGEST)))])
