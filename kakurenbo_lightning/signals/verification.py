"""Runs of the step that train nothing, by which values are proved on the first batch, and what loss weights need."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.core.batch_rows import slice_batch
from kakurenbo_lightning.core.random import isolated_rng, rng_state, seed_everything
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals import refusals
from kakurenbo_lightning.signals.attribution import Verdict, compare, halve
from kakurenbo_lightning.signals.graph import edge_of, from_the_beginning, frontier, gradients, root_of
from kakurenbo_lightning.signals.returned import loss_of
from kakurenbo_lightning.signals.watching import EVERYTHING, Recording, Watcher

OTHER_NUMBERS = 0x5EED  # runs that must draw other random numbers are seeded with this and the next numbers


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Run the user's compiled code uncompiled inside, so that its calls are seen and a new batch size compiles nothing."""
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def replayed(step: Callable[[], Any], batch: Any) -> Callable[[Any], Any] | None:
    """Return the step as a function of its batch, if it is a ``functools.partial`` that holds ``batch``; else ``None``."""
    if not isinstance(step, partial) or not any(argument is batch for argument in step.args):
        return None
    return lambda other: step.func(*(other if argument is batch else argument for argument in step.args), **step.keywords)


class StepFailed(Exception):
    """The user's step, or function, failed in a run that trains nothing."""


@contextlib.contextmanager
def _rehearsing(rehearsal: Rehearsal, size: int, others: int) -> Iterator[None]:
    """Context of one run of ``size`` samples that leaves no trace. ``others`` numbers another set of random numbers; 0 draws the same
    ones.
    """
    rehearsal.turn(size, others)
    try:
        with (
            rehearsal.scoring(),
            rehearsal.kept(),
            # a graph cannot be made from inference tensors, and Lightning validates in inference mode
            torch.inference_mode(False),
            torch.no_grad(),
            eagerly(),
            isolated_rng(),
        ):
            if others:
                seed_everything(OTHER_NUMBERS + others - 1)
            yield
    except Exception as error:
        said = refusals.without_lines(str(error), "in every mode")
        raise StepFailed(f"a scoring pass failed ({type(error).__name__}: {said})") from error


@dataclass(frozen=True)
class Rehearsal:
    """Runs the step without training anything.

    Attributes:
        scoring: makes the context in which the module may run without leaving a trace.
        replay: runs the step on a given batch; ``None`` if the step cannot be given another batch.
        wanted: whether attribution is to be tested.
        kept: makes a further context around the run, which restores what else it changes.
        frozen: makes a context in which no parameter of the network requires a gradient.
        scores: whether the method makes scoring passes, so that one is tried.
        turn: called before each run with its size and the number of its set of random numbers (0: the same), because other ranks may
            have to run the step at the same time.
    """

    scoring: Callable[[], Any]
    replay: Callable[[Any], Any] | None
    wanted: bool = True
    kept: Callable[[], Any] = contextlib.nullcontext
    frozen: Callable[[], Any] = contextlib.nullcontext
    scores: bool = False
    turn: Callable[[int, int], None] = lambda size, others: None

    def run(self, batch: Any, size: int) -> Any:
        """Run the step on a copy of ``batch``, because a step that changes its batch in place must not change what training sees."""
        assert self.replay is not None, "it is not possible"
        try:
            copied = slice_batch(batch, torch.arange(size), size)
        except (ValueError, TypeError):  # not a batch of rows: attribution is not tested
            copied = batch
        return self.replay(copied)

    def run_in_vain(self, batch: Any, size: int) -> None:
        """Run the step only because another rank does, whose step may wait for this one in a collective operation."""
        if self.replay is not None:
            with contextlib.suppress(StepFailed), _rehearsing(replace(self, turn=lambda size, others: None), size, 0):
                self.run(batch, size)

    def try_scoring(self, batch: Any, size: int, score: Callable[[Callable[[], Any]], object]) -> None:
        """Make a scoring pass of a batch, if the method makes any and the step can run again. ``score`` is called with the step.

        Raises:
            OutputsError: it failed, as all scoring passes would.
        """
        if not self.scores or self.replay is None:
            return
        try:
            with _rehearsing(self, size, 0):
                score(partial(self.run, batch, size))
        except StepFailed as failed:
            error = failed.__cause__
            # the graph of the training step, which holds memory now, is gone in a scoring pass
            if not isinstance(error, torch.OutOfMemoryError):
                said = str(error) if isinstance(error, OutputsError) else f"{type(error).__name__}: {error}"
                raise OutputsError(refusals.in_scoring_pass(said)) from error

    @property
    def possible(self) -> bool:
        """Whether attribution is to be tested and can be."""
        return self.wanted and self.replay is not None

    def test(self, batch: Any, size: int, tried: Callable[[Any], Verdict]) -> Verdict:
        """Test attribution: ``tried`` is called with the first half of the batch. If the step cannot run on it, the test is skipped
        with the reason.

        Raises:
            OutputsError: by ``tried``.
        """
        if not self.wanted:
            return Verdict("off")
        if not self.possible:
            return Verdict("skipped", "the step cannot be given another batch")
        half = halve(batch, size)
        if isinstance(half, str):
            return Verdict("skipped", half)
        try:
            return tried(half)
        except StepFailed as error:
            return Verdict("skipped", str(error))

    def values(self, batch: Any, size: int, values: Callable[[Any, int], Tensor]) -> Verdict:
        """Test the attribution of ``values(batch, size)``, a function that returns ``[size]``."""

        def run(part: Any, count: int, others: int) -> Tensor:
            with _rehearsing(self, count, others):
                return values(part, count).float()

        return self.test(
            batch,
            size,
            lambda half: compare(run(batch, size, 0), run(half.batch, half.size, 0), lambda others: run(batch, size, others)),
        )

    def recorded(self, watcher: Watcher, make: Callable[[int], Recording]) -> Callable[[Any, int, int], tuple[Recording, Tensor]]:
        """Return a function of (batch, size, number of the set of random numbers) that runs the step and returns its recording and
        loss.
        """

        def run(batch: Any, size: int, others: int) -> tuple[Recording, Tensor]:
            recording, loss = once(batch, size, others, torch.no_grad())
            if recording.lost(loss):
                return once(batch, size, others, from_the_beginning(self.frozen))
            return recording, loss

        def once(batch: Any, size: int, others: int, gradients: AbstractContextManager[Any]) -> tuple[Recording, Tensor]:
            recording = make(size)
            with _rehearsing(self, size, others), gradients, watcher.watching(EVERYTHING, recording):
                loss = loss_of(self.run(batch, size))
                recording.random = rng_state()
                # half precision needs a larger tolerance in the comparison of values
                recording.low_precision = torch.is_autocast_enabled(str(getattr(loss, "device", "cpu")).partition(":")[0])
            halves = (torch.float16, torch.bfloat16)
            recording.low_precision |= any(call.values.dtype in halves for call in recording.calls)
            if not isinstance(loss, Tensor):
                raise StepFailed(f"in a scoring pass the step returned a {type(loss).__name__} as its loss")
            return recording, loss

        return run


# --- a returned sample_loss


@dataclass(frozen=True)
class Returned:
    """How a returned loss depends on the ``sample_loss`` returned beside it.

    Attributes:
        share: share of the loss that ``sample_loss`` makes up; ``None`` if the loss is not made of it, or nothing shows it.
        complete: the loss depends on parameters through ``sample_loss`` alone; ``None``: not known.
    """

    share: float | None = None
    complete: bool | None = None


def verify_returned(outputs: Mapping[str, Any]) -> Returned:
    """Read the autograd graph between a returned loss and its ``sample_loss``; waits for the device."""
    loss, sample_loss = outputs.get("loss"), outputs["sample_loss"]
    if not isinstance(loss, Tensor) or (root := root_of(loss)) is None or (edge := edge_of(sample_loss)) is None:
        return Returned()
    try:
        (gradient,) = gradients(loss, [edge])
    except RuntimeError:  # manual optimization has freed the graph already
        return Returned()
    if gradient is None:
        return Returned(complete=False)
    made = float((gradient * sample_loss.detach()).double().nansum())
    whole = float(loss.detach())
    return Returned(made / whole if whole else 1.0, frontier(root, {edge}).complete)


def weighable(outputs: Mapping[str, Any], size: int) -> Tensor:
    """Return the ``sample_loss`` of ``outputs``, on whose gradient weights can act.

    Raises:
        OutputsError: it is missing or has no graph.
    """
    sample_loss = outputs["sample_loss"]
    if "loss" not in outputs or not (
        isinstance(sample_loss, Tensor) and sample_loss.requires_grad and sample_loss.shape == (size,)
    ):
        raise OutputsError(
            "loss weights: training_step must return 'loss' and 'sample_loss', the latter with its graph (not detached), one per "
            f"sample, [{size}]:{refusals.EXAMPLE}"
        )
    return sample_loss
