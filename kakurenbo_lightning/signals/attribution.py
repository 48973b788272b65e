"""A test, made once: does row i of the recorded values depend on sample i alone?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kakurenbo_lightning.core.batch_rows import slice_batch
from kakurenbo_lightning.core.random import same_rng_state
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.cut import Cut, Made, Part, Term, raw_of, terms_of, values_of
from kakurenbo_lightning.signals.graph import leaves
from kakurenbo_lightning.signals.watching import LossCall, Recording

MOST_NOISE = 5.0  # a difference up to this many times that of two equal passes may be noise
NOISE_PASSES = 8  # repeat up to this often: with dropout two passes may agree by chance
CLOSE = 1e-2  # relative difference up to which two values count as the same
ROUNDING = 1e-4  # a smaller relative difference is floating-point rounding


@dataclass(frozen=True)
class Verdict:
    """The outcome of the test.

    Attributes:
        outcome: ``"verified"``, ``"skipped"``, ``"permuted"`` (the same numbers in another order) or ``"batch"`` (a sample's value depends
            on the rest of its batch).
        reason: why the test was skipped; empty otherwise.
        cut: the first cut that passed, if cuts were tested.
        own: the test was skipped, but with the same random numbers and other samples beside it a sample keeps its value.
    """

    outcome: str
    reason: str = ""
    cut: Cut | None = None
    own: bool = False


ONE_SAMPLE = "the batch has one sample"
NOISY = Verdict("skipped", "two equal passes differ: the step draws random numbers")
ALIKE = Verdict("skipped", "all losses of the first batch are the same, or nearly, so they do not show whose they are")


@dataclass(frozen=True)
class Halved:
    """The first half of a batch, with its number of samples.

    Attributes:
        batch: in the form that the step takes.
        size: number of samples in it.
    """

    batch: Any
    size: int


def halve(batch: Any, size: int) -> Halved | str:
    """Return the first half of a batch, or a text that says why it cannot be sliced."""
    if size < 2:
        return ONE_SAMPLE
    half = size // 2
    try:
        part = slice_batch(batch, torch.arange(half), size)
    except (ValueError, TypeError) as error:
        return f"the batch cannot be sliced ({error})"
    # slice_batch leaves unknown containers as they are, so check that the tensors have really become shorter
    before, after = ([len(leaf) for leaf in leaves(b) if leaf.dim()] for b in (batch, part))
    if after == before or size in after:
        return f"the batch, a {type(batch).__name__}, cannot be sliced"
    return Halved(part, half)


def beside_others(batch: Any, size: int) -> Any:
    """Return the batch with the rows of its second half replaced by rows of the first half, rotated by one."""
    half = size // 2
    return slice_batch(batch, torch.cat([torch.arange(half), torch.arange(1, size - half + 1) % half]), size)


def compare(whole: Tensor, half: Tensor, again: Callable[[int], Tensor], tolerance: float = CLOSE) -> Verdict:
    """Compare the values of a whole batch, ``[B]``, with those of its first half alone, ``[B // 2]``; waits for the device.

    If they differ by more than ``tolerance``, ``again(k)`` is called for k = 1, 2, ...: it returns the values of the whole batch with the
    k-th other set of random numbers, by which the noise of dropout is known from a dependence on the batch.
    """
    scale, first = whole.abs().nanmean(), whole[: len(half)]
    if _same(half, first, scale, tolerance):
        # equal losses would agree whatever the order: they prove nothing about whose value is whose
        spread = (whole - whole.mean()).abs().max()
        if not spread <= 2 * tolerance * scale + 2e-6:
            return Verdict("verified")
        least = (ROUNDING if tolerance <= CLOSE else 3 * CLOSE) * scale + 2e-6
        finer = bool(spread > least) and _same(half, first, scale, 0.3 * float(spread / scale))
        return Verdict("verified") if finer else ALIKE
    once_more = again(1)
    if _same(once_more, whole, scale, 1e-4):
        return Verdict("permuted" if _all_among(half, whole) else "batch")
    ordered = once_more.sort().values, whole.sort().values
    # two passes that agree closely have the same order, only noise between them
    if _same(*ordered, scale, 1e-3) and not _same(once_more, whole, scale, 1e-2):
        return Verdict("permuted")
    # lazily, because each pass runs the user's step once more
    passes = (once_more if number == 1 else again(number) for number in range(1, NOISE_PASSES + 1))
    if any(other.shape != whole.shape or _distance(half, first) <= MOST_NOISE * _distance(other, whole) for other in passes):
        return NOISY
    return Verdict("batch")


def _same(one: Tensor, other: Tensor, scale: Tensor, tolerance: float) -> bool:
    """Whether two tensors hold the same values, relative to their largest absolute value and to ``scale``; less than 1e-6 counts as
    rounding.
    """
    if one.shape != other.shape:
        return False
    near = (one - other).abs() <= tolerance * torch.maximum(other.abs(), scale) + 1e-6
    return bool((near | (one == other) | (one.isnan() & other.isnan())).all())


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().nan_to_num(0.0).max())


def _all_among(part: Tensor, whole: Tensor) -> bool:
    """Whether every value of ``part`` is one of ``whole``."""
    distance = (part[:, None] - whole).abs().amin(1)
    spread = whole.max() - whole.min()
    return bool((distance <= 1e-3 * spread / len(whole)).all())


# of a batch, its size, and the number of another random seed (0: the same numbers)
Run = Callable[[Any, int, int], tuple[Recording, Tensor]]


@torch.no_grad()
def try_cuts(cuts: Sequence[Cut], run: Run, batch: Any, size: int, half: Halved) -> Verdict:
    """Test the possible cuts one after the other until one passes.

    Args:
        cuts: ways to split the loss into parts, the best first.
        run: runs the step forward only and returns the recorded calls and the loss.
        batch: the first batch.
        size: B, its number of samples.
        half: the first half of the batch.
    """
    runs = [Tried(*run(batch, size, 0), size), Tried(*run(half.batch, half.size, 0), half.size)]
    if any(tried.recording.batch_statistics for tried in runs):
        return Verdict(
            "skipped", "a BatchNorm without running statistics makes every sample depend on its batch, in eval mode too"
        )
    again = cache(lambda others: Tried(*run(beside_others(batch, size) if others is None else batch, size, others or 0), size))
    verdicts = [_tried(cut, runs, again) for cut in cuts]
    outcomes = ("verified", "alike", "own", "permuted", "batch", "skipped")
    names = ("alike" if v.reason == ALIKE.reason else "own" if v.own else v.outcome for v in verdicts)
    ranks = [outcomes.index(name) for name in names]
    # prefer parts that add up to the loss even if all values are equal (a clamp above the whole batch); others may be no losses at all
    likely = [n for n, cut in enumerate(cuts) if cut.exact and ranks[n] <= 1] or range(len(cuts))
    return verdicts[min(likely, key=ranks.__getitem__)]


class Tried(NamedTuple):
    """One run of the step: the recorded calls, the loss, and the number of samples."""

    recording: Recording
    loss: Tensor
    size: int


Again = Callable[["int | None"], Tried]  # number of another random seed; None: the same random numbers, beside other samples


def _tried(cut: Cut, runs: Sequence[Tried], again: Again) -> Verdict:
    found = [terms_of(cut, tried.recording, tried.loss) for tried in runs]
    terms = [one.terms for one in found if one is not None and len(one.terms) == len(cut.parts)]
    if len(terms) < len(found):
        return Verdict("skipped", "in a scoring pass (eval mode) the step makes its loss in another way")
    whole, half = terms

    def once_more(number: int, others: int | None) -> Tensor:
        tried = again(others)
        made = terms_of(cut, tried.recording, tried.loss)
        return raw_of(made.terms[number], tried.size).float() if made else torch.empty(0)

    if runs[0].size > runs[1].size and any(_are_no_samples(*parts) for parts in zip(whole, half, strict=True)):
        return Verdict("batch")
    verdicts: list[Verdict] = []
    for number, parts in enumerate(zip(whole, half, strict=True)):
        try:
            values = [raw_of(term, tried.size).float() for term, tried in zip(parts, runs, strict=True)]
        except OutputsError:
            return Verdict("batch")
        tolerance = 10 * CLOSE if any(tried.recording.low_precision for tried in runs) else CLOSE
        verdict = compare(values[0], values[1], partial(once_more, number), tolerance)
        if verdict is NOISY:
            verdict = _with_the_same_numbers(values[0], partial(once_more, number), again, tolerance)
        if verdict.outcome != "verified" and verdict is not ALIKE and not verdict.own:
            return verdict
        verdicts.append(verdict)
    if any(verdict.own for verdict in verdicts):  # other random numbers do not show how a part scales
        return replace(NOISY, own=True, cut=cut)
    counts = _counts(*runs)
    parts = [_scaled(one, other, runs[0].size, runs[1].size, counts) for one, other in zip(whole, half, strict=True)]
    # equal losses cannot decide between cuts: take the likeliest
    made = replace(cut, parts=tuple(parts), guess="", constant=_constant(found, runs) if cut.constant else "")
    return replace(ALIKE if all(verdict is ALIKE for verdict in verdicts) else Verdict("verified"), cut=made)


def _with_the_same_numbers(whole: Tensor, once_more: Callable[[int | None], Tensor], again: Again, tolerance: float) -> Verdict:
    """Judge values of a step with random numbers by a run that draws the same numbers but has other samples in the second half.

    This says nothing about a step whose number of draws depends on its samples, or which draws from a generator of its own.
    """
    same, other = once_more(0), once_more(None)
    scale, half = whole.abs().nanmean(), len(whole) // 2
    states = [again(others).recording.random for others in (0, None)]
    if other.shape != whole.shape or not (same_rng_state(*states) and _same(same, whole, scale, ROUNDING)):
        return NOISY
    if _same(other[:half], whole[:half], scale, tolerance):
        return replace(NOISY, own=True)
    return Verdict("batch")


def _constant(found: Sequence[Made | None], runs: Sequence[Tried]) -> str:
    """Compare the batch with its half: does the constant of a loss beside its parts belong to each sample or to the batch?"""
    rests = [float(made.rest) for made in found if made is not None and made.rest is not None]
    rounding = 10 * CLOSE if any(tried.recording.low_precision for tried in runs) else 1e-5
    error = rounding * max(abs(float(tried.loss)) for tried in runs)
    for constant, sizes in (("each", (1, 1)), ("divided", [tried.size for tried in runs])):
        one, other = (rest / size for rest, size in zip(rests, sizes, strict=True))
        if abs(one - other) <= 1e-3 * abs(one) + error / max(sizes):
            return constant
    return ""


def _are_no_samples(whole: Term, half: Term) -> bool:
    """Whether half of the samples gave as many rows as all of them, so that rows are not samples but, for example, classes."""
    rows = [term.call.rows for term in (whole, half)]
    return rows[0] is not None and rows[1] is not None and rows[0].dim() > 0 and len(rows[0]) == len(rows[1])


def _scaled(whole: Term, half: Term, size: int, half_size: int, counts: Sequence[tuple[LossCall, LossCall]]) -> Part:
    """Return the part with the scale by which a sample's value does not depend on which other samples are in the batch.

    Args:
        whole: the part in the whole batch.
        half: the part in the first half.
        size: B, samples in the batch.
        half_size: B // 2, samples in the half.
        counts: pairs of calls whose result the loss may have been divided by, in the batch and in its half.
    """
    part = whole.part
    if part.plain:
        return part

    def error(scale: str, one: Tensor | None = None, other: Tensor | None = None) -> float:
        tried = replace(part, scale=scale, weight_sum=None)
        alone = values_of([whole._replace(part=tried, counts=one)], size)[:half_size]
        again = values_of([half._replace(part=tried, counts=other)], half_size)
        return float((alone - again).abs().max() / alone.abs().max().clamp(min=1e-12))

    scales = ("mean", "weights", "sum") if part.has_rows else ("alone", "times", "over", "counted")
    errors = {scale: error(scale) for scale in dict.fromkeys((part.scale, *scales))}
    best = min(errors.values())
    takes_some = part.picked and whole.gradient is not None and bool((whole.gradient == 0).any())
    if best <= CLOSE and not takes_some:  # agreement proves nothing if all picked samples are in the first half
        scale = next(scale for scale, e in errors.items() if e <= 2 * best + 1e-5)
        return replace(part, picked=False, **({} if scale == part.scale else {"scale": scale, "weight_sum": None}))
    for one, other in counts if part.has_rows else ():
        if error("count", one.rows, other.rows) <= 1e-4:
            return replace(part, scale="count", weight_sum=None, count=one.key, picked=False)
    # the batch decides which samples count, as in hard-example mining
    return replace(part, scale="mean" if part.has_rows else part.scale, weight_sum=None, picked=part.picked or best > 10 * CLOSE)


def _counts(whole: Tried, half: Tried) -> list[tuple[LossCall, LossCall]]:
    """Pair the sums over samples that have no graph (numbers of valid positions, for example) in the whole batch with those in its
    half.
    """
    known = {call.key: call for call in half.recording.calls}
    found = [call for call in whole.recording.calls if call.kind == "reduction" and call.edge is None and call.key in known]
    pairs = [(call, known[call.key]) for call in found if call.result.dim() == 0]
    return [(one, other) for one, other in pairs if len(one.known_rows) * half.size == len(other.known_rows) * whole.size]
