"""The parts of a loss that have one value per sample, and how the loss adds them up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.criteria import grouped, mean, total
from kakurenbo_lightning.signals.criterion_module import Findings
from kakurenbo_lightning.signals.graph import FEW_NODES, Edge, frontier, gradients, reduced_by, root_of
from kakurenbo_lightning.signals.watching import Key, LossCall, Recording


@dataclass(frozen=True)
class Part:
    """One call that makes the loss or a part of it, and how its rows enter the loss.

    Attributes:
        key: identifies the call among those of the step.
        has_rows: the call has one row or more per sample; otherwise it gave one number (see :class:`LossCall`).
        plain: the loss is nothing but the call's result (``"result"``), or the ``"mean"`` or ``"sum"`` of its rows; ``None``: there is
            more between them, a weight, a mask, a sign, another part.
        scale: how the loss of a sample alone follows from its part of the batch's loss. For rows: the sample's share of the loss
            itself (``"sum"``), B times the share (``"mean"``), the share divided by the sample's share of the weights (``"weights"``,
            the loss is a weighted mean), or by its share of the divisor of the loss (``"count"``). For one number: the sample's own
            number times the loss's factor on it (``"alone"``), also times B or divided by B (``"times"``, ``"over"``), or times the
            number of targets of the batch that are not ignored, divided by that of the sample (``"counted"``).
        order: how the rows are ordered, see :func:`grouped`.
        weight_sum: sum of all weights in the batch that was verified; ``None``: not compared.
        count: key of the call whose result the loss was divided by.
        divided: the largest gradient times that divisor, in the batch that was verified.
        module: findings about the loss module, if the call is of one.
        share: fraction of the loss that the part made up in the batch that was verified.
        sign: sign of the loss's gradient at the part in the batch that was verified: 1, -1, or 0 if rows differ in it.
        picked: the other samples of the batch decide how much a sample counts, as in hard-example mining.
    """

    key: Key
    has_rows: bool
    plain: str | None = None
    scale: str = "mean"
    order: str = "samples"
    weight_sum: float | None = None
    count: Key | None = None
    divided: float | None = None
    module: Findings | None = None
    share: float = 1.0
    picked: bool = False
    sign: int = 1


Numbers = frozenset[tuple[tuple[str, str], int, int]]  # (kind, name), number of such calls, and how many of them have a graph


def numbers_of(calls: Sequence[LossCall], names: Collection[tuple[str, str]] | None = None) -> Numbers:
    """Count the calls of each name in a step (only of ``names``, if given). If the counts have changed, the number of a call no longer
    identifies it.
    """
    names = {call.key[:2] for call in calls} if names is None else names
    alike = {name: [call for call in calls if call.key[:2] == name] for name in names}
    return frozenset((name, len(found), sum(call.edge is not None for call in found)) for name, found in alike.items() if found)


@dataclass(frozen=True)
class Cut:
    """One way to split a loss into parts.

    Attributes:
        parts: one or more parts.
        complete: whether the loss depends on parameters through the parts alone.
        exact: whether the parts add up to the loss.
        constant: what the loss contains besides the parts, without a gradient: ``"each"``, a number that each sample alone has too, as
            in ``1 - cos.mean()``; ``"divided"``, a number of which each sample has a share, as in ``len(cos) - cos.sum()``; empty,
            nothing, or another number in every batch. Only a guess if attribution was not tested.
        ignored: keys of calls of the same kinds that are no parts.
        verified: whether there was a graph of the loss to prove the cut by.
        guess: the error to raise unless a test of attribution proves that the values belong to their samples; empty if nothing is
            guessed.
        numbers: how many calls the verified step made, see :func:`numbers_of`; ``None``: not known.
    """

    parts: tuple[Part, ...]
    complete: bool
    exact: bool
    ignored: frozenset[Key] = frozenset()
    verified: bool = True
    guess: str = ""
    numbers: Numbers | None = None
    constant: str = ""

    @property
    def plain(self) -> bool:
        return self.parts[0].plain is not None

    @property
    def share(self) -> float:
        """Fraction of the loss that the parts, together with the constant, make up."""
        return 1.0 if self.constant else sum(part.share for part in self.parts)

    @cached_property
    def kinds(self) -> frozenset[str]:
        return frozenset(part.key[0] for part in self.parts)

    def is_numbered(self, recording: Recording, names: Collection[tuple[str, str]], graphs: bool = False) -> bool:
        """Whether a step made as many calls of ``names`` as the verified one, and, with ``graphs``, as many with a graph."""
        if self.numbers is None:
            return True
        known = {entry for entry in self.numbers if entry[0] in names}
        found = numbers_of(recording.calls, names)
        if not graphs or recording.leaves:  # in a scoring pass a graph starts at the leaves only, so counts of graphs differ
            return {entry[:2] for entry in known} == {entry[:2] for entry in found}
        return known == found

    @property
    def leaves(self) -> frozenset[Key]:
        """Keys of the calls at which a scoring pass must start a graph."""
        return frozenset() if self.plain else frozenset(part.key for part in self.parts)


class Term(NamedTuple):
    """A part of the loss of one step.

    Attributes:
        part: the part.
        call: the call of this step that made it.
        gradient: gradient of the loss with respect to the part; ``None`` if the part is plain.
        counts: rows of the call whose result the loss was divided by; ``None`` if there is none.
    """

    part: Part
    call: LossCall
    gradient: Tensor | None
    counts: Tensor | None = None


# --- finding the parts again


Form = tuple[str, ...]  # names of the operations between the parts and the loss; (): a plain mean or sum, or not searched


class Made(NamedTuple):
    """How the loss of one step was made from its parts.

    Attributes:
        terms: the parts of this step.
        form: names of the operations between the parts and the loss.
        rest: what the loss contains besides the parts, ``[]``; ``None`` if that is nothing or belongs to no sample.
        constant: whose the rest is, see :class:`Cut`.
    """

    terms: list[Term]
    form: Form
    rest: Tensor | None = None
    constant: str = ""

    def values(self, size: int) -> Tensor:
        """The loss of each sample alone, ``[size]``, detached; to be called without gradients."""
        values = values_of(self.terms, size)
        if self.rest is None:
            return values
        return values + (self.rest if self.constant == "each" else self.rest / size)

    def shares(self, size: int) -> Tensor:
        """What each sample adds to the loss, ``[size]``, with its graph."""
        shares = shares_of(self.terms, size)
        return shares if self.rest is None else shares + self.rest / size


def terms_of(cut: Cut, recording: Recording, loss: Tensor, forms: Collection[Form] | None = None) -> Made | None:
    """Find the parts of the loss that a step has returned. Synchronises with the host only if the number of calls has changed.

    Args:
        cut: the verified parts.
        recording: the calls of the step.
        loss: the loss that the step returned.
        forms: forms of the loss that were verified; ``None`` accepts any.

    Returns:
        How the loss was made; ``None`` if it was made in another way.
    """
    names = {part.key[:2] for part in cut.parts}
    numbered = cut.is_numbered(recording, names | {key[:2] for key in cut.ignored})
    calls = [call for call in recording.calls if call.key[0] in cut.kinds and not (numbered and call.key in cut.ignored)]
    root = root_of(loss)
    if cut.plain:
        (part,) = cut.parts
        for call in reversed(calls):
            if _is_plain(part, call, loss, root):
                return Made([Term(part, _with_findings(part, call), None)], ())
        if root is None and part.plain != "result" and (call := _by_key(part.key, calls)) is not None:
            return Made([Term(part, _with_findings(part, call), None)], ())  # without a graph the key is all there is to go by
        return None
    if root is None:
        return None
    numbered = numbered and cut.is_numbered(recording, names, graphs=True)
    chosen, form = _by_keys(cut, calls) if numbered else None, ()
    if cut.complete or chosen is None:  # else the search would go far down towards the parameters
        known = by_edge(calls)
        limit = None  # no limit the first time; later searches stay about as long, so as not to walk the whole network
        if forms is not None and (numbered or cut.complete):
            limit = FEW_NODES + max(map(len, forms), default=0)
        edges, _, form = frontier(root, known.keys(), limit)
        chosen = _in_order(cut, [known[edge] for edge in edges])
        if chosen is None:
            return _only_one(cut, calls, root)
        if cut.complete and forms is not None and form not in forms:
            return None
    found = gradients(loss, [call.known_edge for call in chosen])
    if any(gradient is None for gradient in found):
        return None
    terms = [Term(p, _with_findings(p, c), g) for p, c, g in zip(cut.parts, chosen, found, strict=True)]
    if any(part.count is not None for part in cut.parts):
        counts = [_divisor(cut, term, recording) if term.part.count else None for term in terms]
        if any(term.part.count and call is None for term, call in zip(terms, counts, strict=True)):
            return None
        terms = [term._replace(counts=None if call is None else call.rows) for term, call in zip(terms, counts, strict=True)]
    return Made(terms, form, _rest_of(terms, loss, recording.size) if cut.constant else None, cut.constant)


@torch.no_grad()
def _rest_of(terms: Sequence[Term], loss: Tensor, size: int) -> Tensor:
    return loss.detach() - shares_of(terms, size).detach().sum()


def _divisor(cut: Cut, term: Term, recording: Recording) -> LossCall | None:
    """Find the call whose result the loss was divided by: by its number, or by its value if the number of calls has changed."""
    part = term.part
    assert part.count is not None and term.gradient is not None
    if part.divided is None or cut.is_numbered(recording, {part.count[:2]}):
        return _by_key(part.count, recording.calls)
    alike = [call for call in recording.calls if call.key[:2] == part.count[:2] and call.edge is None and not call.result.dim()]
    largest = term.gradient.detach().abs().max().double()
    fits = [call for call in alike if abs(float(largest * call.result) - part.divided) <= 1e-4 * abs(part.divided)]
    one = fits[0] if fits else None
    return one if one and all(_are_equal(call.known_rows, one.known_rows) for call in fits) else None


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.double(), other.double())


def with_divisors(cut: Cut, terms: Sequence[Term]) -> Cut:
    """Return the cut with the value of each divisor, by which later steps find it again; waits for the device."""
    known = {
        term.part.key: float(term.gradient.abs().max() * term.counts.sum())
        for term in terms
        if term.counts is not None and term.gradient is not None
    }
    return replace(cut, parts=tuple(replace(part, divided=known.get(part.key)) for part in cut.parts)) if known else cut


def _in_order(cut: Cut, found: Sequence[LossCall]) -> list[LossCall] | None:
    """Sort the calls that a loss was found to be made of like the parts of ``cut``; ``None`` if they are of other kinds."""
    found, parts = sorted(found, key=lambda call: call.key), sorted(cut.parts, key=lambda part: part.key)
    if [(call.key[:2], call.rows is not None) for call in found] != [(part.key[:2], part.has_rows) for part in parts]:
        return None
    by_part = {part.key: call for part, call in zip(parts, found, strict=True)}
    return [by_part[part.key] for part in cut.parts]


def _by_keys(cut: Cut, calls: Sequence[LossCall]) -> list[LossCall] | None:
    """Find the calls of a cut's parts by their keys; ``None`` if they are missing or of other kinds."""
    pairs = [(_by_key(part.key, calls), part) for part in cut.parts]
    chosen = [call for call, part in pairs if call and call.edge is not None and (call.rows is not None) == part.has_rows]
    return chosen if len(chosen) == len(pairs) else None


def _only_one(cut: Cut, calls: Sequence[LossCall], root: Edge) -> Made | None:
    """Find the single part that the loss has in eval mode, if it has auxiliary losses only in training."""
    for part in cut.parts:
        call = _by_key(part.key, calls)
        if call is not None and not part.has_rows and call.edge == root:
            return Made([Term(replace(part, plain="result"), _with_findings(part, call), None)], ())
    return None


def _is_plain(part: Part, call: LossCall, loss: Tensor, root: Any) -> bool:
    if call.name != part.key[1] or (call.rows is not None) != part.has_rows:
        return False
    if root is None or call.edge is None:
        return call.gave(loss) and (not part.has_rows or call.kind == "reduction")
    if not part.has_rows:
        return call.edge == root or call.gave(loss)  # the second case is a compiled step
    return reduced_by(root) == (part.plain, call.edge)


def by_edge(calls: Sequence[LossCall]) -> dict[Edge, LossCall]:
    """Calls by their edge. If a reduction or module has the edge of a criterion's result, the criterion is taken."""
    return {call.edge: call for call in sorted(calls, key=lambda call: call.kind, reverse=True) if call.edge is not None}


def _by_key(key: Key, calls: Sequence[LossCall]) -> LossCall | None:
    return next((call for call in calls if call.key == key), None)


def _with_findings(part: Part, call: LossCall) -> LossCall:
    if part.module is not None:
        call.module.findings = part.module
    return call


# --- what they say


def values_of(terms: Sequence[Term], size: int) -> Tensor:
    """The loss of each sample alone, ``[size]``, detached; to be called without gradients."""
    parts = [_values(term, size) for term in terms]
    return parts[0].detach() if len(parts) == 1 else torch.stack(parts).sum(0)


def shares_of(terms: Sequence[Term], size: int) -> Tensor:
    """What each sample adds to the loss, ``[size]``, with its graph."""
    parts = [_shares(term, size) for term in terms]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def raw_of(term: Term, size: int) -> Tensor:
    """What a part's call gave for each sample, before the loss scales it, ``[size]``."""
    part, call = term.part, term.call
    with torch.no_grad():
        if part.has_rows:
            return mean(grouped(_rows(call), size, part.order).nan_to_num(0, 0, 0))
        return call.given.values(call.evaluate(), size, part.order)


def weights_of(term: Term, size: int) -> Tensor:
    """How much the rows of each sample count in the loss, ``[size]``: the sum of their gradients."""
    assert term.gradient is not None, "it is plain: all count alike"
    return total(grouped(term.gradient, size, term.part.order))


def _rows(call: LossCall) -> Tensor:
    if call.rows is call.original and call.changed_in_place:
        raise OutputsError(
            f"per-sample values: what {call.name} was given or gave was changed in place later in the step, so it is not what the loss was "
            "made of; make a new tensor (loss = loss * mask, not loss *= mask)"
        )
    return call.known_rows


def counts_of(call: LossCall) -> Tensor | None:
    """Which elements count in a sum over classes with an ignored one; ``None`` if all do, or for another criterion."""
    return call.criterion.counted(call.evaluate()) if call.kind == "criterion" and call.given.reduction == "sum" else None


def _values(term: Term, size: int) -> Tensor:
    part, call = term.part, term.call
    if not part.has_rows:
        values = call.given.values(call.evaluate(), size, part.order)
        if part.plain:
            return values
        assert term.gradient is not None, "it is not plain"
        counts = counts_of(call) if part.scale == "counted" else None
        if counts is not None:
            own = total(grouped(counts, size, part.order))
            return values / own.clamp(min=1) * (term.gradient * own.sum())
        factor = {"alone": 1.0, "times": size, "counted": size, "over": 1.0 / size}[part.scale]
        return values * (term.gradient * factor)
    if part.plain:
        rows = grouped(_rows(call), size, part.order)
        return mean(rows) if part.plain == "mean" else total(rows)
    share = _shares(term, size)
    if part.scale == "sum":
        return share
    if part.scale == "mean" and part.weight_sum is None:
        return share * size
    weight = weights_of(term, size) if term.counts is None else total(grouped(term.counts.float(), size, part.order))
    together = weight.sum()
    alone = share / torch.where(weight == 0, 1.0, weight) * together
    if part.scale != "mean":
        return alone
    # all weights were equal in the first batch, so it may be a weighted mean: that keeps the sum of the weights
    assert part.weight_sum is not None
    same = (together - part.weight_sum).abs() <= 1e-4 * abs(part.weight_sum)
    return torch.where(same, alone, share * size)


def _shares(term: Term, size: int) -> Tensor:
    part, call, gradient = term.part, term.call, term.gradient
    if not part.has_rows:
        share = call.given.shares(call.evaluate(), size, part.order)
        return share if gradient is None else share * gradient
    rows = _rows(call)
    if gradient is None:
        return total(grouped(rows, size, part.order)) / (rows.numel() if part.plain == "mean" else 1)
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows, gradient = rows.float(), gradient.float()
    weighted = torch.where(gradient == 0, 0.0, gradient * rows)  # masked elements may be NaN, and 0 * NaN is NaN
    return total(grouped(weighted, size, part.order))
