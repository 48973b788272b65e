"""Where the per-sample loss, confidence and correctness of a training step come from.

The first of these that applies, decided on the first batch:

1. ``training_step`` returns them in its dict;
2. ``sample_outputs(batch) -> dict``, a method of the module or a function given to the callback;
3. the criterion calls that made the loss, from which the value of each sample is computed.

On that batch it is verified that the values are the loss that is trained, and that each belongs to its own sample. With
``values="bls"`` (the loss has no value per sample) ``batch_loss.py`` takes the place of this class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kakurenbo_lightning.core.random import isolated_rng, rng_state, set_rng_state
from kakurenbo_lightning.core.statistics import TARGET, SampleStatistics
from kakurenbo_lightning.core.worker_errors import worker_errors_wait
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals import refusals
from kakurenbo_lightning.signals.captured import CapturedLoss
from kakurenbo_lightning.signals.first_batch import Needs, verified_captured, verified_function, verified_returned
from kakurenbo_lightning.signals.occasions import Occasions
from kakurenbo_lightning.signals.predictions import Values
from kakurenbo_lightning.signals.report import Report
from kakurenbo_lightning.signals.returned import from_returned, loss_of, scaled, with_loss
from kakurenbo_lightning.signals.verification import Rehearsal, eagerly, replayed, weighable
from kakurenbo_lightning.signals.watching import CRITERIA_BY_NAME, EVERYTHING, NOTHING, Recording, Sight, Watcher

__all__ = ["SampleOutputs", "Values", "from_returned", "scaled"]

Scoring = Callable[[], Any]
Replay = Callable[[Any], Any]
NOWHERE = "nowhere (the method needs none)"


class SampleOutputs:
    """Runs training steps and returns the loss, confidence and correctness of each sample.

    Args:
        reads: names of the values that the method needs, of ``loss``, ``confidence``, ``correct``, ``el2n``, ``entropy``, ``target``.
            If empty, nothing is required, and values are recorded only where they cost nothing.
        sample_outputs: ``sample_outputs(batch) -> dict`` (way 2), or ``None``.
        weighs: whether there may be loss weights. If these cannot be applied, the first batch already raises the error.
        manual: whether the module uses manual optimization, so that a step that returns nothing may have trained.
        check_attribution: whether a loss whose rows are permuted, or depend on their batch, is an error.
        unweighted_rest: whether the rest of the loss belongs to no sample (a weight penalty), so that loss weights leave it as it is.
        scores: whether there are scoring passes, in eval mode. If the step gives no values there, the first batch already raises the error.

    Attributes:
        report: what was verified; ``None`` before the first batch.
    """

    def __init__(
        self,
        reads: tuple[str, ...],
        sample_outputs: Callable[[Any], Mapping[str, Tensor]] | None = None,
        weighs: bool = False,
        manual: bool = False,
        check_attribution: bool = True,
        unweighted_rest: bool = False,
        scores: bool = False,
    ) -> None:
        self._needs = Needs(reads, weighs, unweighted_rest, manual)
        self._sample_outputs, self._check_attribution = sample_outputs, check_attribution
        self._scores = scores and sample_outputs is None
        self._watcher, self._captured = Watcher(), CapturedLoss()
        self._way: str | None = None
        self._weighs = False  # weights are registered and wait for the backward pass
        self._in_training = False  # the way was decided in a training step, not in a scoring pass
        self._occasions = Occasions()
        self.report: Report | None = None

    @property
    def device(self) -> torch.device:
        """Device of the module, on which values must be."""
        return self._needs.device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._needs.device = device

    def of_module(self, module: nn.Module) -> SampleOutputs:
        """Return the same for the steps of another module, with the same checks but without loss weights."""
        other = SampleOutputs(
            self._needs.reads, getattr(module, "sample_outputs", None), check_attribution=self._check_attribution
        )
        other.device = self.device
        return other

    def need_classes(self, said: str) -> None:
        """Read each sample's class from the step, as the data set does not give it. ``said``: the error if neither does."""
        self._needs.reads, self._needs.classes = (*self._needs.reads, TARGET.name), said

    @property
    def source(self) -> str | None:
        """One line that says where values come from; ``None`` before the first batch."""
        return None if self.report is None else self.report.source

    def averaged(self, statistics: SampleStatistics, rows: Tensor, values: Values) -> Values:
        """Return the values to record for the samples ``rows`` (``int64[b]``) of a step: here ``values`` unchanged."""
        return values

    # --- a training step

    def observe(
        self,
        step: Callable[[], Any],
        batch: Any,
        size: int,
        scoring: Scoring,
        weights: Tensor | None = None,
        replay: Replay | None = None,
        kept: Scoring = nullcontext,
        frozen: Scoring = nullcontext,
    ) -> tuple[Any, Values | None]:
        """Run one training step and return its outputs and the values of its samples.

        Args:
            step: runs the training step.
            batch: the batch that the step is given.
            size: number of samples in the batch.
            scoring: makes the context in which the module may run without changing the training.
            weights: ``float32[size]``, how often each sample counts in the step's loss; ``None`` if each counts once.
            replay: runs the module's own step, outside of any wrapper, on another batch. By default ``step`` is used, if it is a
                ``functools.partial`` that holds this batch.
            kept: makes a context around such a second run that restores what else it changes.
            frozen: makes a context in which no parameter requires a gradient.

        Returns:
            The step's outputs, unchanged but for the weights, and the values (each ``[size]``, detached), or ``None`` when there are none.

        Raises:
            OutputsError: the values are missing, are not one per sample, or are not the loss that is trained.
        """
        values = self._call_function(batch, size, scoring) if self._way == "function" else None
        due, captured = self._occasions.is_due(size, self.report), self._captured
        if due and self._in_training:
            self._captured = CapturedLoss()
        decides = due or not self._in_training
        recording = self._captured.recording(size, graph=weights is not None)
        with self._watcher.watching(self._sight(decides), recording):
            outputs = step()
        # with manual optimization a step that returned nothing has trained, if its values are known nevertheless
        skips = _skips(outputs) and not (self._needs.manual and (values is not None or bool(recording.calls)))
        if decides:
            # a strategy's wrapper must not run on its own
            if replay is None and not (dist.is_available() and dist.is_initialized()):
                replay = replayed(step, batch)
            tries = self._scores and not self._in_training
            rehearsal = Rehearsal(scoring, replay, self._tests_attribution, kept, frozen, tries)
            # one sample proves nothing, but other ranks may have more and need this one
            idle = skips or (self._in_training and size == 1)
            values = self._decide(None if idle else outputs, recording, batch, rehearsal, "training", idle) or values
            self._captured = captured if idle else self._captured
            self._in_training |= not idle
        if skips:
            return outputs, None
        if self._needs.nothing and weights is None:
            return outputs, self._free_values(outputs, recording)
        made = self._captured.made(recording, loss_of(outputs), batch) if self._way == "captured" else None
        values = self._read(outputs, recording, batch, made) if values is None else values
        if weights is not None and outputs is not None:
            outputs = with_loss(outputs, self._weighted(outputs, made, weights))
        self._needs.check(values, size, str(self.source))
        return outputs, values

    def _sight(self, decides: bool) -> Sight:
        """Which calls to watch in the next training step."""
        if not decides:
            return self._captured.sight if self._way == "captured" else NOTHING
        return CRITERIA_BY_NAME if self._needs.nothing else EVERYTHING

    @property
    def _tests_attribution(self) -> bool:
        return self._check_attribution and not self._needs.nothing and not (self._needs.manual and self._sample_outputs is None)

    def _read(self, outputs: Any, recording: Recording, batch: Any, made: Any = None) -> Values:
        """Return the values of a step that has run."""
        if self._way == "returned":
            return from_returned(outputs, recording.size, reads=self._needs.reads)
        if self._way == "none":
            raise OutputsError(refusals.none_found((), ()))
        made = made or self._captured.made(recording, loss_of(outputs), batch)
        return self._captured.values(made, recording, self._needs.reads)

    def _call_function(self, batch: Any, size: int, scoring: Scoring) -> Values:
        assert self._sample_outputs is not None
        with scoring():
            return from_returned(self._sample_outputs(batch), size, "sample_outputs", self._needs.reads)

    def _free_values(self, outputs: Any, recording: Recording) -> Values | None:
        """Return the values of a step that need not give any, if they are there, valid, and cost nothing."""
        if self._way not in ("returned", "captured"):
            return None
        try:
            values = self._read(outputs, recording, None)
            self._needs.check(values, recording.size, str(self.source))
        except OutputsError:
            return None
        return values

    def _weighted(self, outputs: Any, made: Any, weights: Tensor) -> Tensor:
        if self._way == "captured":
            return self._captured.weighted(made, loss_of(outputs), weights)
        if self._way != "returned":
            raise OutputsError(refusals.not_weighable(str(self.source)))
        self._weighs = True

        def weigh(gradient: Tensor) -> Tensor:
            self._weighs = False
            return gradient * weights.to(gradient.dtype)

        weighable(outputs, len(weights)).register_hook(weigh)
        return loss_of(outputs)

    def check_weighed(self) -> None:
        """Check, after the backward pass, that it went through the ``sample_loss`` that carries the weights.

        Raises:
            OutputsError: it did not, so the weights have had no effect.
        """
        if self._weighs:
            self._weighs = False
            raise OutputsError(refusals.NOT_MADE_FROM_IT)

    # --- a scoring pass

    def score(
        self,
        step: Callable[[], Any],
        batch: Any,
        size: int,
        replay: Replay | None = None,
        kept: Scoring = nullcontext,
        frozen: Scoring = nullcontext,
    ) -> Values:
        """Return the values of a batch that is not trained. The caller provides the no-grad context.

        Args:
            step: runs ``training_step`` on the batch; not called if ``sample_outputs`` is given.
            batch: the batch.
            size: number of samples in it.
            replay: as for :meth:`observe`.
            kept: as for :meth:`observe`.
            frozen: as for :meth:`observe`.

        Raises:
            OutputsError: as :meth:`observe`.
        """
        if self._sample_outputs is not None:
            values = self._call_function(batch, size, nullcontext)
            self._needs.check(values, size, str(self.source))
            return values
        again = not self._in_training and size > 1 and self.report is not None and self.report.had_one_sample
        try:
            if self._way is None or again:  # a resumed session scores before it trains
                replay = replay or replayed(step, batch)
                self._decide_scoring(step, batch, size, Rehearsal(nullcontext, replay, self._tests_attribution, kept, frozen))
            return self._scored(batch, size, frozen, step)
        except OutputsError as error:
            raise OutputsError(refusals.in_scoring_pass(str(error))) from error

    def _scored(self, batch: Any, size: int, frozen: Scoring, step: Callable[[], Any]) -> Values:
        """Run a step that is not trained, and return the values of its samples."""
        values = self._read(*self._run_scoring(step, size, frozen), batch)
        self._needs.check(values, size, str(self.source))
        return values

    def _run_scoring(self, step: Callable[[], Any], size: int, frozen: Scoring) -> tuple[Any, Recording]:
        """Run a step that is not trained; returns its outputs and the recorded calls."""
        captured = self._captured
        before = rng_state() if captured.throughout is None else None
        sight = captured.sight if self._way == "captured" else NOTHING

        def run() -> tuple[Any, Recording]:
            recording = captured.recording(size, scoring=True)
            with captured.scoring(frozen), self._watcher.watching(sight, recording):
                return step(), recording

        outputs, recording = run()
        if not captured.throughout:
            captured.throughout = recording.lost(loss_of(outputs))
            if captured.throughout:  # repeat with gradients on throughout; later scoring passes start this way
                if before is not None:
                    set_rng_state(before)
                outputs, recording = run()
        return outputs, recording

    def _decide_scoring(self, step: Callable[[], Any], batch: Any, size: int, rehearsal: Rehearsal) -> None:
        """Choose the way by a discarded run with a graph, because the scoring pass itself makes none."""
        recording = self._captured.recording(size)
        with torch.inference_mode(False), torch.no_grad():
            with (
                rehearsal.kept(),
                isolated_rng(),
                torch.enable_grad(),
                eagerly(),
                self._watcher.watching(EVERYTHING, recording),
            ):
                outputs = step() if rehearsal.replay is None else rehearsal.run(batch, size)
            self._decide(outputs, recording, batch, rehearsal, "scoring")

    # --- the first batch

    def _decide(
        self, outputs: Any, recording: Recording, batch: Any, rehearsal: Rehearsal, phase: str, idle: bool = False
    ) -> Values | None:
        """Choose the way and verify it; returns the values if a function gave them. ``idle``: only other ranks need this."""
        returned = isinstance(outputs, Mapping) and "sample_loss" in outputs
        function = None if returned else self._sample_outputs
        runs, given = rehearsal if function is None else replace(rehearsal, replay=function), returned or function is not None
        device, inner = None if self._needs.nothing else self.device, partial(self._verify, outputs, recording, batch)
        verify = None if idle else partial(self._needs.named, inner, given)
        with worker_errors_wait():  # a failed DataLoader worker would else be reported as an error of the step
            made = self._occasions.verify(phase, runs, batch, recording.size, device, verify)
        return None if made is None else made[0]

    def _verify(self, outputs: Any, recording: Recording, batch: Any, rehearsal: Rehearsal) -> tuple[Values | None, Report]:
        """Do the work of :meth:`_decide` on this rank."""
        needs, values = self._needs, None
        if isinstance(outputs, Mapping) and "sample_loss" in outputs:
            self.report = verified_returned(needs, outputs, batch, recording.size, rehearsal)
        elif needs.nothing:
            free = self._captured.decide_freely(recording, loss_of(outputs))
            self.report = Report("captured", self._captured.source, self._captured.calls) if free else Report("none", NOWHERE)
        elif self._sample_outputs is not None:
            values, self.report = verified_function(needs, self._sample_outputs, batch, recording.size, rehearsal)
        else:
            if hasattr(loss_of(outputs), "to_local"):
                raise OutputsError(refusals.DISTRIBUTED)
            self.report = verified_captured(needs, self._captured, outputs, recording, batch, rehearsal, self.report)
        self._way = self.report.way
        if self.report.attribution.startswith("skipped"):  # else the step has run in eval mode, and has given its values
            rehearsal.try_scoring(batch, recording.size, partial(self._scored, batch, recording.size, rehearsal.frozen))
        return values, self.report


def _skips(outputs: Any) -> bool:
    """Whether the user skips a batch: the step returns nothing, or a loss that was made from nothing (a leaf)."""
    if isinstance(outputs, Mapping) and "sample_loss" in outputs:
        return False
    loss = loss_of(outputs)
    return not isinstance(loss, Tensor) or (loss.requires_grad and loss.is_leaf)
