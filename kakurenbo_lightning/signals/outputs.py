"""Where the per-sample loss, confidence and correctness of a training step come from.

The first of these that applies, decided on the first batch:

1. ``training_step`` returns them in its dict;
2. ``sample_outputs(batch) -> dict``, a method of the module or a function given to the callback;
3. the calls that made the loss are seen, and say what each sample has of it.

What is recorded is verified on that batch to be the loss that is trained, and each sample's own.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals import refusals
from kakurenbo_lightning.signals.attribution import Verdict, try_cuts
from kakurenbo_lightning.signals.captured import CapturedLoss
from kakurenbo_lightning.signals.predictions import Values
from kakurenbo_lightning.signals.report import Report
from kakurenbo_lightning.signals.returned import check_ranges, from_returned, loss_of, scaled, with_loss
from kakurenbo_lightning.signals.verification import Rehearsal, eagerly, replayed, verify_returned, weighable
from kakurenbo_lightning.signals.watching import CRITERIA_BY_NAME, EVERYTHING, NOTHING, Recording, Sight, Watcher

__all__ = ["SampleOutputs", "Values", "from_returned", "scaled"]

Scoring = Callable[[], Any]
Replay = Callable[[Any], Any]
logger = logging.getLogger(__name__)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


class SampleOutputs:
    """Observes training steps and returns what each sample's loss, confidence and correctness were.

    Args:
        reads: the values the method needs, of ``loss``, ``confidence``, ``correct``, ``el2n``, ``entropy``, ``target``. Nothing is required
            where it is empty: values are then recorded where they cost nothing.
        sample_outputs: ``sample_outputs(batch) -> dict`` (way 2), or ``None``.
        weighs: there may be loss weights later; that they cannot be applied is then said on the first batch, not hours later.
        manual: the module optimizes by itself, so a step that returns nothing has trained all the same.
        check_attribution: a loss whose rows are permuted, or depend on their batch, is an error.
        unweighted_rest: what else is in the loss is no sample's (a penalty on weights), and loss weights leave it as it is.

    Attributes:
        device: where the module is and values must be.
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
    ) -> None:
        self._reads, self._sample_outputs = reads, sample_outputs
        self._may_weigh, self._manual = weighs, manual
        self._check_attribution, self._unweighted_rest = check_attribution, unweighted_rest
        self._watcher, self._captured = Watcher(), CapturedLoss()
        self._way: str | None = None
        self._warned: set[str] = set()
        self._weighs = False  # weights wait for the backward pass
        self._in_training = False  # the way was decided in a training step, not in a scoring pass
        self.report: Report | None = None
        self.device = torch.device("cpu")

    def of_module(self, module: nn.Module) -> SampleOutputs:
        """The same values of another module's steps, checked in the same way; loss weights do not enter there."""
        other = SampleOutputs(self._reads, getattr(module, "sample_outputs", None), check_attribution=self._check_attribution)
        other.device = self.device
        return other

    def also_read(self, name: str) -> None:
        """One more value is needed."""
        self._reads = (*self._reads, name)

    @property
    def source(self) -> str | None:
        """One line saying where values come from; ``None`` before the first batch."""
        if self._way == "returned":
            return "the dict that training_step returns"
        if self._way == "function":
            return (
                "sample_outputs(batch), one more forward pass per training batch "
                "(return the values from training_step to save it)"
            )
        if self._way == "captured":
            return f"the step's call of {' + '.join(self._captured.calls)}, seen {self._captured.manner}"
        return "nowhere (the method needs none)" if self._way == "none" else None

    @property
    def has_function(self) -> bool:
        """Whether way 2 is there, so that samples can be scored without running ``training_step``."""
        return self._sample_outputs is not None

    @property
    def _free(self) -> bool:
        """Nothing is required of the step."""
        return not self._reads and not self._may_weigh

    # --- a training step

    def observe(
        self,
        step: Callable[[], Any],
        batch: Any,
        size: int,
        scoring: Scoring,
        weights: Tensor | None = None,
        replay: Replay | None = None,
    ) -> tuple[Any, Values | None]:
        """Run one training step and return its outputs and the values of its samples.

        Args:
            step: runs the training step.
            batch: what the step is given.
            size: number of samples in the batch.
            scoring: makes the context in which the module may run without changing the training.
            weights: ``float32[size]``, how often each sample counts in the step's loss; ``None`` for once.
            replay: runs the step of the module itself, outside of any wrapper, on another batch; by default ``step`` is given the other
                batch, where it is a ``functools.partial`` that holds this one.

        Returns:
            The step's outputs, unchanged but for the weights, and the values (each ``[size]``, detached), or ``None`` when there are none.

        Raises:
            OutputsError: the values are missing, are not one per sample, or are not the loss that is trained.
        """
        values = self._call_function(batch, size, scoring) if self._way == "function" else None
        recording = self._captured.recording(size, graph=weights is not None)
        with self._watcher.watching(self._sight(), recording):
            outputs = step()
        if self._skips(outputs) and not self._trained(values, recording):
            return outputs, None
        if not self._in_training:
            if replay is None and not _distributed():  # a strategy's wrapper must not run on its own
                replay = replayed(step, batch)
            values = self._decide(outputs, recording, batch, Rehearsal(scoring, replay, self._tests_attribution))
            self._in_training = True
        if self._free and weights is None:
            return outputs, self._free_values(outputs, recording)
        terms = self._captured.terms(recording, loss_of(outputs), batch) if self._way == "captured" else None
        values = self._read(outputs, recording, batch, terms) if values is None else values
        if weights is not None and outputs is not None:
            outputs = with_loss(outputs, self._weighted(outputs, terms, weights))
        self._check(values, size)
        return outputs, values

    def _sight(self) -> Sight:
        """What to watch in the next training step."""
        if self._in_training:
            return self._captured.sight if self._way == "captured" else NOTHING
        return CRITERIA_BY_NAME if self._free else EVERYTHING

    @property
    def _tests_attribution(self) -> bool:
        return self._check_attribution and not self._free and not (self._manual and not self.has_function)

    def _skips(self, outputs: Any) -> bool:
        """Whether the user skips this batch: nothing is returned, or a loss that is made of nothing."""
        if isinstance(outputs, Mapping) and "sample_loss" in outputs:
            return False
        loss = loss_of(outputs)
        return not isinstance(loss, Tensor) or (loss.requires_grad and loss.is_leaf)

    def _trained(self, values: Values | None, recording: Recording) -> bool:
        """Whether a step that returned nothing has trained: one that optimizes by itself, and whose values are there all the same."""
        return self._manual and (values is not None or bool(recording.calls))

    def _read(self, outputs: Any, recording: Recording, batch: Any, terms: Any = None) -> Values:
        """The values of a step that was run."""
        if self._way == "returned":
            return from_returned(outputs, recording.size, reads=self._reads)
        if self._way == "none":
            raise OutputsError(refusals.none_found((), ()))
        terms = terms or self._captured.terms(recording, loss_of(outputs), batch)
        return self._captured.values(terms, recording, self._reads)

    def _call_function(self, batch: Any, size: int, scoring: Scoring) -> Values:
        assert self._sample_outputs is not None
        with scoring():
            return from_returned(self._sample_outputs(batch), size, "sample_outputs", self._reads)

    def _free_values(self, outputs: Any, recording: Recording) -> Values | None:
        """Values of a step of which nothing is required: those that are there, right, and cost nothing."""
        if self._way not in ("returned", "captured"):
            return None
        try:
            values = self._read(outputs, recording, None)
            self._check(values, recording.size)
        except OutputsError:
            return None
        return values

    def _weighted(self, outputs: Any, terms: Any, weights: Tensor) -> Tensor:
        if self._way == "captured":
            return self._captured.weighted(terms, loss_of(outputs), weights)
        if self._way != "returned":
            raise OutputsError(refusals.not_weighable(str(self.source)))
        self._weighs = True

        def weigh(gradient: Tensor) -> Tensor:
            self._weighs = False
            return gradient * weights.to(gradient.dtype)

        weighable(outputs, len(weights)).register_hook(weigh)
        return loss_of(outputs)

    def check_weighed(self) -> None:
        """The backward pass is over: did it come through the ``sample_loss`` that carries the weights?

        Raises:
            OutputsError: it did not.
        """
        if self._weighs:
            self._weighs = False
            raise OutputsError(refusals.NOT_MADE_FROM_IT)

    # --- a scoring pass

    def score(self, step: Callable[[], Any], batch: Any, size: int, replay: Replay | None = None) -> Values:
        """Values of a batch that is not trained; the caller provides the no-grad context.

        Args:
            step: runs ``training_step`` on the batch; not called when way 2 is there.
            batch: the batch.
            size: number of samples in it.
            replay: as for :meth:`observe`.

        Raises:
            OutputsError: as :meth:`observe`.
        """
        if self._sample_outputs is not None:
            values = self._call_function(batch, size, nullcontext)
        elif self._way is None:  # a resumed run scores before it trains
            recording = self._captured.recording(size)
            with torch.inference_mode(False), torch.no_grad():
                with torch.enable_grad(), eagerly(), self._watcher.watching(EVERYTHING, recording):
                    outputs = step()
                self._decide(
                    outputs, recording, batch, Rehearsal(nullcontext, replay or replayed(step, batch), self._tests_attribution)
                )
                values = self._read(outputs, recording, batch)
        else:
            recording = self._captured.recording(size, scoring=True)
            with self._captured.scoring(), self._watcher.watching(self._scoring_sight, recording):
                outputs = step()
            values = self._read(outputs, recording, batch)
        self._check(values, size)
        return values

    @property
    def _scoring_sight(self) -> Sight:
        return self._captured.sight if self._way == "captured" else NOTHING

    # --- the first batch

    def _decide(self, outputs: Any, recording: Recording, batch: Any, rehearsal: Rehearsal) -> Values | None:
        """Choose the way, and verify what it gives; the values, where a function gave them."""
        if isinstance(outputs, Mapping) and "sample_loss" in outputs:
            self._way = "returned"
            self.report = self._verified_returned(outputs, batch, recording.size, rehearsal)
        elif self._free:
            self._way = "captured" if self._captured.decide_freely(recording, loss_of(outputs)) else "none"
            self.report = Report(self._way, str(self.source), self._captured.calls)
        elif self._sample_outputs is not None:
            self._way = "function"
            return self._verified_function(batch, recording.size, rehearsal)
        else:
            self.report = self._verified_captured(outputs, recording, batch, rehearsal)
        return None

    def _verified_captured(self, outputs: Any, recording: Recording, batch: Any, rehearsal: Rehearsal) -> Report:
        captured, loss, size = self._captured, loss_of(outputs), recording.size
        before = captured.cut
        cuts = captured.decide(recording, loss, batch, rehearsal.possible, self._manual)
        if before is not None and self.report is not None:  # scored before: what was proved then holds of the same parts
            verdict = captured.again(before, cuts, self.report.attribution)
        else:
            leaves = frozenset().union(*(cut.leaves for cut in cuts))
            run = rehearsal.recorded(self._watcher, lambda count: Recording(count, leaves=leaves, clone=True))
            verdict = rehearsal.test(batch, size, lambda half: try_cuts(cuts, run, batch, size, half))
        captured.settle(cuts, recording, loss, verdict)
        self._way = "captured"
        cut = captured.cut
        names = " + ".join(captured.calls)
        if self._may_weigh and not (cut.complete or self._unweighted_rest):
            raise OutputsError(refusals.rest_unweighted(names, cut.share) if cut.verified else refusals.unverified(names))
        if not cut.verified:
            self._warn(refusals.not_verified(names))
        elif not cut.complete and not cut.exact:
            self._warn(refusals.part_of_loss(names, cut.share))
        values = self._read(outputs, recording, batch)
        return Report(
            "captured",
            str(self.source),
            captured.calls,
            tuple(values),
            cut.share if cut.verified else None,
            cut.complete if cut.verified else None,
            self._said(verdict),
            "exact" if cut.complete else "they would act on a part of the loss" if cut.verified else "not verified",
        )

    def _verified_returned(self, outputs: Mapping[str, Any], batch: Any, size: int, rehearsal: Rehearsal) -> Report:
        if self._free:
            return Report("returned", str(self.source))
        values = from_returned(outputs, size, reads=self._reads)
        self._check(values, size)
        check_ranges(outputs, "training_step")
        made = verify_returned(outputs)
        if self._may_weigh:
            weighable(outputs, size)
            if made.complete is False and made.share is None:
                raise OutputsError(refusals.NOT_MADE_FROM_IT)
            if made.complete is False and not self._unweighted_rest:
                raise OutputsError(refusals.rest_unweighted("the returned sample_loss", made.share))
        verdict = rehearsal.values(batch, size, lambda part, count: from_returned(rehearsal.replay(part), count)["loss"])
        self._refuse_permuted(verdict)
        weights = "exact" if made.complete else "sample_loss is not all of the loss" if made.complete is False else "not verified"
        return Report("returned", str(self.source), (), tuple(values), made.share, made.complete, self._said(verdict), weights)

    def _verified_function(self, batch: Any, size: int, rehearsal: Rehearsal) -> Values:
        if self._may_weigh:
            raise OutputsError(refusals.not_weighable(str(self.source)))
        function = self._sample_outputs
        with rehearsal.scoring():
            outputs = function(batch)
        values = from_returned(outputs, size, "sample_outputs", self._reads)
        self._check(values, size)
        check_ranges(outputs, "sample_outputs")
        rehearsal = replace(rehearsal, replay=function)
        verdict = rehearsal.values(batch, size, lambda part, count: from_returned(function(part), count)["loss"])
        self._refuse_permuted(verdict)
        weights = "they cannot enter through sample_outputs"
        self.report = Report("function", str(self.source), (), tuple(values), attribution=self._said(verdict), weights=weights)
        return values

    def _refuse_permuted(self, verdict: Verdict) -> None:
        """What a user returns on purpose may depend on its batch, but not be another sample's."""
        if verdict.outcome == "permuted":
            raise OutputsError(refusals.attribution(verdict.outcome))

    def _said(self, verdict: Verdict) -> str:
        """The outcome in words, which the log gets too where nothing was proved."""
        said = f"skipped: {verdict.reason}" if verdict.outcome == "skipped" else verdict.outcome
        if verdict.outcome != "verified":
            logger.info(
                "SampleSelection: the test of attribution (does a value depend on its own sample alone?) was not passed: %s", said
            )
        return said

    def _warn(self, text: str) -> None:
        if text not in self._warned and not (_distributed() and dist.get_rank()):
            warnings.warn(text, stacklevel=2)
        self._warned.add(text)

    def _check(self, values: Values | None, size: int) -> None:
        assert values is not None
        for name, value in values.items():
            if value.shape != (size,):
                raise OutputsError(
                    f"per-sample values: {name} has shape {list(value.shape)}, but the batch trains {size} samples: it must be "
                    f"[{size}]. Return one value per sample, in the order of the batch. {refusals.WAYS}"
                )
            if value.device != self.device:
                raise OutputsError(
                    f"per-sample values: {name} is on {value.device}, the module is on {self.device}; return every value on the "
                    "module's device"
                )
        missing = [name for name in self._reads if name not in values]
        if missing:
            raise OutputsError(refusals.missing_values(missing, list(values), str(self.source), size))
