"""The first batch: verifies that recorded values are the loss that is trained, and that each value belongs to its sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.core.statistics import TARGET
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals import refusals
from kakurenbo_lightning.signals.attribution import Verdict, try_cuts
from kakurenbo_lightning.signals.captured import CapturedLoss
from kakurenbo_lightning.signals.predictions import Reads, Values
from kakurenbo_lightning.signals.report import Report
from kakurenbo_lightning.signals.returned import check_ranges, from_returned, loss_of
from kakurenbo_lightning.signals.verification import Rehearsal, verify_returned, weighable
from kakurenbo_lightning.signals.watching import Recording, Watcher

Function = Callable[[Any], Mapping[str, Tensor]]
logger = logging.getLogger(__name__)
LEAST_SHARE = 0.5  # of the loss: a smaller part does not stand for what is trained


@dataclass
class Needs:
    """What the method needs from a training step.

    Attributes:
        reads: names of the values that it reads, of ``loss``, ``confidence``, ``correct``, ``el2n``, ``entropy``, ``target``.
        weighs: whether there may be loss weights.
        unweighted_rest: whether the rest of the loss belongs to no sample (a weight penalty, for example) and is left unweighted.
        manual: manual optimization: the graph of the loss is gone when the step returns.
        device: the device on which values must be.
        classes: the message for when ``target``, each sample's class, is read from the step because the data set does not give it, and
            the step does not either; empty if classes are not needed from the step.
    """

    reads: Reads
    weighs: bool = False
    unweighted_rest: bool = False
    manual: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    classes: str = ""

    @property
    def nothing(self) -> bool:
        """Whether the method requires nothing from the step."""
        return not self.reads and not self.weighs

    def check(self, values: Values, size: int, source: str) -> None:
        """Raise ``OutputsError`` unless ``values`` from ``source`` hold all that is read, each ``[size]`` and on the module's
        device.
        """
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
        self.check_all(values, lambda names: refusals.missing_values(names, list(values), source, size))

    def check_all(self, values: Values, said: Callable[[list[str]], str]) -> None:
        """Raise ``OutputsError`` unless ``values`` hold all that is read. ``said`` makes the message from the missing names."""
        missing = [name for name in self.reads if name not in values]
        if missing:
            own = [name for name in missing if name != TARGET.name or not self.classes]
            raise OutputsError(self.with_classes(said(own) if own else ""))

    def named(self, verify: Callable[[Rehearsal], Any], given: bool, rehearsal: Rehearsal) -> Any:
        """Call ``verify(rehearsal)``. If it fails while classes are needed from the step, the error says so too.

        Args:
            verify: is called with ``rehearsal``.
            given: the user returns values. Otherwise, if classes are all that is read, the error speaks of them alone.
            rehearsal: runs the step.
        """
        try:
            return verify(rehearsal)
        except OutputsError as error:
            if not self.classes or self.classes in str(error):
                raise
            alone = not given and self.reads == (TARGET.name,)
            raise OutputsError(self.with_classes("" if alone else str(error))) from error

    def with_classes(self, text: str) -> str:
        """Append to ``text`` that the classes are not known, because that would be the next error."""
        return "\n".join(part for part in (text, self.classes) if part)


RETURNED = "the dict that training_step returns"
BY_THE_BATCH = "they would act only on samples that count in their batch"
FUNCTION = "sample_outputs(batch), one more forward pass per training batch (return the values from training_step to save it)"


def verified_returned(needs: Needs, outputs: Mapping[str, Any], batch: Any, size: int, rehearsal: Rehearsal) -> Report:
    """Verify the ``sample_loss`` of the dict that a step has returned.

    Raises:
        OutputsError: something is missing or out of range, weights cannot act, or a value is another sample's.
    """
    if needs.nothing:
        return Report("returned", RETURNED)
    values = from_returned(outputs, size, reads=needs.reads)
    needs.check(values, size, RETURNED)
    check_ranges(outputs, "training_step")
    made = verify_returned(outputs)
    if needs.weighs:
        weighable(outputs, size)
        if made.complete is False and made.share is None:
            raise OutputsError(refusals.NOT_MADE_FROM_IT)
        if made.complete is False and made.share is not None and not needs.unweighted_rest:
            raise OutputsError(refusals.rest_unweighted("the returned sample_loss", made.share))
    verdict = rehearsal.values(batch, size, lambda part, count: from_returned(rehearsal.run(part, count), count)["loss"])
    _refuse_permuted(verdict)
    weights = "exact" if made.complete else "sample_loss is not all of the loss" if made.complete is False else "not verified"
    return Report("returned", RETURNED, (), tuple(values), made.share, made.complete, said(verdict), weights)


def verified_function(needs: Needs, function: Function, batch: Any, size: int, rehearsal: Rehearsal) -> tuple[Values, Report]:
    """Verify what ``sample_outputs(batch)`` returns. Returns the batch's values, each ``[size]``, and the report.

    Raises:
        OutputsError: something is missing or out of range, there may be weights, or a value is another sample's.
    """
    if needs.weighs:
        raise OutputsError(refusals.not_weighable(FUNCTION))
    with rehearsal.scoring():
        outputs = function(batch)
    values = from_returned(outputs, size, "sample_outputs", needs.reads)
    needs.check(values, size, FUNCTION)
    check_ranges(outputs, "sample_outputs")
    rehearsal = replace(rehearsal, replay=function)
    verdict = rehearsal.values(batch, size, lambda part, count: from_returned(rehearsal.run(part, count), count)["loss"])
    _refuse_permuted(verdict)
    weights = "they cannot enter through sample_outputs"
    return values, Report("function", FUNCTION, (), tuple(values), attribution=said(verdict), weights=weights)


def verified_captured(
    needs: Needs,
    captured: CapturedLoss,
    outputs: Any,
    recording: Recording,
    batch: Any,
    rehearsal: Rehearsal,
    before: Report | None,
) -> Report:
    """Verify what the recorded calls say about the loss. Afterwards ``captured`` can read later steps.

    Args:
        needs: what the method needs.
        captured: decides how the loss is split, and keeps it.
        outputs: what the step returned.
        recording: the calls of the step.
        batch: the batch that it was given.
        rehearsal: runs the step again.
        before: the report of a scoring pass or an earlier batch; ``None`` if there was none.

    Raises:
        OutputsError: the loss is not made of values of samples, one depends on other samples, or weights would act on a part of the loss.
    """
    loss, size, known = loss_of(outputs), recording.size, captured.known
    cuts = captured.decide(recording, loss, batch, rehearsal.possible, needs.manual)
    if known is not None and before is not None and not before.is_open:  # the same parts were proved before
        verdict = captured.again(known, cuts, before.attribution)
    else:
        leaves = frozenset[Any]().union(*(cut.leaves for cut in cuts))
        run = rehearsal.recorded(Watcher(), lambda count: Recording(count, leaves=leaves, clone=True))
        verdict = rehearsal.test(batch, size, lambda half: try_cuts(cuts, run, batch, size, half))
    captured.settle(cuts, recording, loss, verdict)
    cut, names = captured.cut, " + ".join(captured.calls)
    picked = any(part.picked for part in cut.parts)
    if needs.weighs and not (cut.complete or needs.unweighted_rest):
        raise OutputsError(refusals.rest_unweighted(names, cut.share) if cut.verified else refusals.unverified(names))
    if needs.weighs and picked and rehearsal.wanted:
        raise OutputsError(refusals.picked_unweighted(names))
    rest = "they would act on a part of the loss" if cut.verified else "not verified"
    weights = BY_THE_BATCH if picked else "exact" if cut.complete else rest
    if before is None or before.weights != weights:
        if not cut.verified:
            rank_zero_warn(refusals.not_verified(names))
        elif not (cut.exact or cut.constant):
            if cut.share < LEAST_SHARE and not (cut.complete or needs.unweighted_rest):
                raise OutputsError(refusals.small_part(names, cut.share, len(cut.parts)))
            rank_zero_warn(refusals.part_of_loss(names, cut.share, cut.complete))
        if picked:
            rank_zero_warn(refusals.picked(names))
    values = captured.values(captured.made(recording, loss, batch), recording, needs.reads)
    return Report(
        "captured",
        captured.source,
        captured.calls,
        tuple(values),
        cut.share if cut.verified else None,
        cut.complete if cut.verified else None,
        said(verdict),
        weights,
    )


def _refuse_permuted(verdict: Verdict) -> None:
    """Refuse values in another order. Returned values may depend on their batch, but never belong to another sample."""
    if verdict.outcome == "permuted":
        raise OutputsError(refusals.attribution(verdict.outcome))


def said(verdict: Verdict) -> str:
    """The outcome in words. Anything but "verified" is logged too."""
    words = f"skipped: {verdict.reason}" if verdict.outcome == "skipped" else verdict.outcome
    if verdict.outcome != "verified":
        logger.info(
            "SampleSelection: the test of attribution (does a value depend on its own sample alone?) was not passed: %s", words
        )
    return words
