"""The first batch: which calls of the step made the loss, proved by adding them up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.signals import refusals
from kakurenbo_lightning.signals.cut import Cut, Part, Term, by_edge, counts_of, numbers_of, shares_of, weights_of
from kakurenbo_lightning.signals.graph import (
    Edge,
    depends_on_parameters_alone,
    edge_of,
    frontier,
    gradients,
    leaves,
    reduced_by,
    root_of,
)
from kakurenbo_lightning.signals.linearity import KINKED, Kinks, kinks, why_not_linear
from kakurenbo_lightning.signals.watching import Key, LossCall

# kinds of calls to try as parts, cheapest to watch in later steps first
LEVELS = (("criterion",), ("criterion", "reduction"), ("criterion", "reduction", "module"))


@dataclass
class Finding:
    """What was found out about the loss of a step.

    Attributes:
        cuts: ways to split the loss into parts with values per sample, the best first.
        reasons: why calls are no such parts, in words.
        partial: for criteria whose number of rows is no multiple of B: that number, by name and key of the call.
    """

    cuts: list[Cut] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    partial: dict[str, dict[Key, int]] = field(default_factory=dict)

    def add(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)


def tolerance_of(*tensors: Tensor) -> float:
    """Relative error up to which numbers of these precisions count as equal."""
    return max({torch.bfloat16: 3e-2, torch.float16: 4e-3}.get(tensor.dtype, 1e-4) for tensor in tensors)


def find(calls: Sequence[LossCall], loss: Tensor, batch: Any, size: int, provable: bool) -> Finding:
    """Find the parts of a loss; waits for the device.

    Args:
        calls: the calls that the step made.
        loss: the loss that it returned.
        batch: the batch that it was given.
        size: B, samples in the batch.
        provable: whether a test of attribution follows, so that rows may be grouped by a guess.
    """
    finding = Finding()
    root = root_of(loss)
    if root is None:
        finding.add("the loss has no graph (its requires_grad is False)")
        return finding
    search = _Search(finding, loss, root, batch, size, provable, calls)
    cuts: list[Cut] = []
    for level in LEVELS:
        cuts += [cut for cut in search.cuts(level) if cut not in cuts]
        full = [cut for cut in cuts if cut.complete]
        # a kink (abs, clamp) of the whole batch's loss: no other calls nearer to the loss can have values per sample
        if any(cut.plain for cut in full) or (full and "reduction" in level) or search.kinked:
            break
    if full:
        finding.cuts = sorted(full, key=lambda cut: (not cut.exact, not cut.constant, not cut.plain))
    else:
        finding.cuts = sorted(cuts, key=lambda cut: (not cut.exact, -abs(cut.share)))
    return finding


@dataclass
class _Search:
    finding: Finding
    loss: Tensor
    root: Edge
    batch: Any
    size: int
    provable: bool
    calls: Sequence[LossCall]
    kinked: bool = False

    def cuts(self, kinds: tuple[str, ...]) -> Iterator[Cut]:
        """Yield ways to split the loss into calls of these kinds."""
        calls = [call for call in self.calls if call.kind in kinds]
        ignored: set[Key] = set()
        while True:
            known = by_edge([call for call in calls if call.key not in ignored])
            edges, complete, _ = frontier(self.root, known.keys())
            unfit = {known[edge].key for edge in edges if not self._fits(known[edge])}
            if not unfit:
                break
            ignored |= unfit
        parts = [known[edge] for edge in edges]
        for order, guess in self._orders(parts) if parts else ():
            cut = self._cut(parts, order, complete)
            if cut is not None:
                yield replace(cut, ignored=frozenset(ignored), guess=guess, numbers=numbers_of(self.calls))

    def _fits(self, call: LossCall) -> bool:
        """Whether a call has values for each sample."""
        rows = call.rows if call.rows is not None else self._elements(call)
        if rows is None or not rows.dim():
            if rows is not None and self.size > 1 and call.kind == "criterion":
                self.finding.partial.setdefault(call.name, {})[call.key] = 1
            return rows is not None and self.size == 1 and (call.rows is not None or self._adds_up(call))
        if len(rows) % self.size:
            if call.kind == "criterion":
                self.finding.partial.setdefault(call.name, {})[call.key] = len(rows)
            else:
                self.finding.add(f"{call.name} has shape {list(rows.shape)}, but the batch trains {self.size} samples")
            return False
        if call.kind == "reduction":
            return not depends_on_parameters_alone(call.known_rows) and not self._is_of_the_batch(call)
        if len(rows) != self.size and not self._orders([call]):
            k = len(rows) // self.size
            self.finding.add(
                f"{call.described} has {len(rows)} rows, {k} for each of {self.size} samples, but the batch holds no tensor of {k} for each"
            )
            return False
        return call.rows is not None or self._adds_up(call)

    def _elements(self, call: LossCall) -> Tensor | None:
        if call.kind == "module":
            reason = call.module.verify(call.values, tolerance_of(call.values))
            if reason is not None:
                self.finding.add(f"{call.name} {reason}")
                return None
        try:
            return call.evaluate()
        except Exception as error:  # the user's arguments may not allow reduction="none"
            self.finding.add(f"{call.name} has no values by element ({type(error).__name__}: {error})")
            return None

    def _adds_up(self, call: LossCall) -> bool:
        """Whether the samples' values of a call that gave one number add up to that number."""
        shares = call.given.shares(call.evaluate(), self.size, "samples").detach()
        if _close(shares.double().sum(), call.values.detach().double(), tolerance_of(call.values)):
            return True
        self.finding.add(f"{call.name} is not the {call.given.reduction} of values of its samples")
        return False

    def _is_of_the_batch(self, call: LossCall) -> bool:
        """Whether all of ``call.rows`` was summed over samples before, so that its rows are something else."""
        sums = {edge_of(c.result) for c in self.calls if c.kind == "reduction" and c is not call and c.result.dim()}
        found = frontier(call.known_edge, {edge for edge in sums if edge is not None})
        return bool(found.edges) and found.complete

    def _orders(self, calls: Sequence[LossCall]) -> list[tuple[str, str]]:
        """Possible orders of the rows, each with the error to raise if it is a guess that turns out to be wrong."""
        if self.size == 1:
            return [("samples", "")]
        counts = {call.described: len(call.evaluate() if call.rows is None else call.rows) // self.size for call in calls}
        counts = {name: k for name, k in counts.items() if k > 1}
        if not counts:
            return [("samples", "")]
        seen = set.intersection(*(set(_shapes(self.batch, self.size, k)) for k in counts.values()))
        known = [(order, "") for order in ("samples", "positions") if order in seen]
        if known or not self.provable:
            return known
        reasons = [
            f"{name} has {k * self.size} rows, {k} for each of {self.size} samples, but nothing shows which are whose"
            for name, k in counts.items()
        ]
        guess = refusals.none_found(list(counts), reasons)
        return [("samples", guess), ("positions", guess)]

    def _cut(self, calls: Sequence[LossCall], order: str, complete: bool) -> Cut | None:
        edges = [call.known_edge for call in calls]
        parts = [Part(call.key, call.rows is not None, self._plain(calls, call, complete), order=order) for call in calls]
        found = gradients(self.loss, edges)
        if any(gradient is None for gradient in found):
            return None
        plain = parts[0].plain is not None
        values = [call.values for call in calls]
        finite = bool(self.loss.isfinite())  # NaN or infinity: only the graph can be checked, no numbers
        if not plain and finite and (reason := why_not_linear(self.loss, edges, values, self.size)):
            self.kinked |= KINKED in reason
            self.finding.add(f"the loss is made of {_names(calls)}, but does not add up from them sample by sample ({reason})")
            return None
        terms = [Term(part, call, None if plain else g) for part, call, g in zip(parts, calls, found, strict=True)]
        loss = self.loss.detach().double()
        with torch.no_grad():
            shares = torch.stack([shares_of([term], self.size).double().sum() for term in terms])
        exact = not finite or _close(shares.sum(), loss, tolerance_of(self.loss, *values))
        of_loss = [float(share / loss) if float(loss) else 1.0 / len(shares) for share in shares]
        parts = [_described(term, share, self.size) for term, share in zip(terms, of_loss, strict=True)]
        kinked = Kinks() if plain else kinks(self.loss, edges, values, self.size)
        parts = [replace(part, picked=bool(kinked.picks)) for part in parts]
        if exact or not complete or kinked.anywhere:
            return Cut(tuple(parts), complete, exact)
        return Cut(tuple(parts), complete, exact, constant="divided" if all(part.scale == "sum" for part in parts) else "each")

    def _plain(self, calls: Sequence[LossCall], call: LossCall, complete: bool) -> str | None:
        if len(calls) != 1 or not complete:
            return None
        if call.rows is None:
            return "result" if call.edge == self.root else None
        how = reduced_by(self.root)
        return how[0] if how is not None and how[1] == call.edge else None


def _described(term: Term, share: float, size: int) -> Part:
    """Return the part with the scale that its gradient suggests, until a test of attribution shows more."""
    part, call, gradient = term.part, term.call, term.gradient
    part = replace(part, share=share, module=call.module.findings if call.kind == "module" else None)
    if gradient is None:
        return part
    part = replace(part, sign=sign_of(gradient))
    if not part.has_rows:
        return replace(part, scale=_divided_by(call, float(gradient), size))
    if bool((gradient.abs() == 1).all()):
        return replace(part, scale="sum")
    weights = weights_of(term, size).double()
    together = float(weights.sum())
    if float(weights.max() - weights.min()) <= 1e-5 * abs(together) / size:
        mean = call.name != "sum" or min(abs(abs(together) - n) for n in (1, gradient.numel() // size)) < 1e-4
        return replace(part, scale="mean" if mean else "sum", weight_sum=together if mean else None)
    return replace(part, scale="weights" if abs(together - 1) < 1e-4 else "mean")


def sign_of(gradient: Tensor) -> int:
    """The common sign of all elements that are not 0; 0 if both signs occur or all are 0; waits for the device."""
    return int((gradient > 0).any()) - int((gradient < 0).any())


def _divided_by(call: LossCall, gradient: float, size: int) -> str:
    """The scale of a part that gave one number: a sum may have been divided by B, or by the number of targets that are not ignored."""
    if call.given.reduction != "sum":
        return "alone"
    if abs(gradient * size - 1) < 1e-4:
        return "times"
    counts = counts_of(call)
    return "counted" if counts is not None and abs(gradient * float(counts.sum()) - 1) < 1e-4 else "alone"


def _names(calls: Sequence[LossCall]) -> str:
    return " and ".join(dict.fromkeys(call.described for call in calls))


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return bool((one - other).abs() <= tolerance * other.abs() + 1e-9) or bool(torch.isnan(one) & torch.isnan(other))


def _shapes(batch: Any, size: int, k: int) -> Iterator[str]:
    """Orders in which a tensor of the batch has ``k`` positions for each sample."""
    for leaf in leaves(batch):
        if leaf.dim() > 1 and len(leaf) == size:
            positions = leaf.numel() // size
            # language models shift targets by one position
            if positions == k or (positions == k + 1 and leaf.dim() == 2 and not leaf.is_floating_point()):
                yield "samples"
        elif leaf.dim() > 1 and len(leaf) == k and leaf.shape[1] == size:
            yield "positions"
