"""Where the rows of the statistics are, and what concerns all of them: here, or on every rank its share."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from kakurenbo_lightning.core.collectives import Collectives
from kakurenbo_lightning.core.index_set import WINDOW, IndexSet
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.permutation import first_of_shuffled, shuffled
from kakurenbo_lightning.core.plan import EpochPlan, Plan, SetPlan

if TYPE_CHECKING:
    from torch import Tensor

DIGIT = 16  # bits of a key that one round counts: 65,536 counters, with which two passes over the rows do
_EXPONENTS = 256  # of float32


class Spread:
    """All rows are here: one process, or statistics that every rank has. A method asks it for what concerns all samples."""

    def total(self, rows: int) -> int:
        """How many samples there are, of which ``rows`` are here."""
        return rows

    def count(self, mask: Tensor) -> int:
        """How many samples ``mask`` (``bool[n]``, of the rows here) has on all ranks."""
        return int(mask.count_nonzero())

    def kth_smallest(self, values: Tensor, eligible: Tensor, k: int) -> Tensor:
        """The ``k``-th smallest, counted from 1, of the ``values`` (``float[n]``) that are ``eligible`` (``bool[n]``, at least k)."""
        values = torch.where(eligible, values, float("inf"))
        if values.device.type == "cpu":  # NumPy's partition is 18 times as fast as torch.kthvalue there
            values.numpy().partition(k - 1)
            return values[k - 1].clone()
        # not kthvalue, which torch 2.6 refuses on CUDA under deterministic algorithms
        return values.topk(k, largest=False, sorted=False).values.max()

    def some(self, mask: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """The ``count`` samples of ``mask`` (``bool[n]``) that have the lowest index, or are drawn uniformly, over all ranks.

        A draw takes from ``generator`` what a permutation of all samples in ``mask`` takes.
        """
        rows = _rows(mask)
        if generator is not None:
            order = shuffled(torch.arange(len(rows)), generator)[:count]
            rows = rows[order.to(rows.device)]
        return torch.zeros_like(mask).index_fill_(0, rows[:count], True)

    def exact_sum(self, values: Tensor, mask: Tensor) -> Fraction:
        """The sum of the ``values`` (``float32[n]``, finite) in ``mask``, without a rounding: it is the same in whatever order."""
        return _from_parts(_sums_by_exponent(values[mask]))

    def everything(self, total: int) -> EpochPlan | SetPlan:
        """The plan that trains all of ``total`` samples."""
        return EpochPlan.everything(total)

    def plan(self, hidden: Tensor, metrics: dict[str, float], weights: Tensor | None) -> EpochPlan | SetPlan:
        """The plan that leaves out the rows ``hidden`` (``bool[n]``); ``weights``: ``float32[n]``, or ``None`` for 1."""
        return EpochPlan.hide(hidden, metrics=metrics, weights=weights)

    def adopted(self, plan: Plan, total: int) -> Plan:
        """A ``plan`` of ``total`` samples, which a checkpoint has, as plans are kept here."""
        return plan


ALONE = Spread()


class Share(Spread):
    """Each rank has a share of the rows: that of index i is row i // R of rank i % R.

    Its methods return what those of :class:`Spread` do, and are collective.

    Args:
        ranks: the R ranks that share the rows.
        size: N, how many indices there are.
        rows: ``int64[n]``, which of this rank's rows are asked for, ascending; ``None`` for all.
        among: how many rows of all ranks together are asked for.
    """

    def __init__(self, ranks: Collectives, size: int, rows: Tensor | None = None, among: int | None = None) -> None:
        self.ranks, self.size, self._rows = ranks, size, rows
        self._among = size if among is None else among

    def total(self, rows: int) -> int:
        return self._among

    def count(self, mask: Tensor) -> int:
        return int(self.ranks.sum(np.array([int(mask.count_nonzero())]))[0])

    def kth_smallest(self, values: Tensor, eligible: Tensor, k: int) -> Tensor:
        """Found digit by digit by counting, without a sort: the same value as in a stable sort of all ranks' values."""
        return _values(self._kth_key(_keys(values), eligible, k), values.dtype).to(values.device)

    def _kth_key(self, keys: Tensor, eligible: Tensor, k: int) -> int:
        """The ``k``-th smallest of some integer ``keys``, digit by digit: counters of the digit are summed over the ranks."""
        prefix, bits = 0, 8 * keys.element_size()
        for shift in range(bits - DIGIT, -1, -DIGIT):
            first = shift == bits - DIGIT
            counts = torch.zeros(1 << DIGIT, dtype=torch.int64, device=keys.device)
            for part, allowed in zip(keys.split(WINDOW), eligible.split(WINDOW), strict=True):
                high = part >> shift
                inside = allowed if first else allowed & (high >> DIGIT == prefix)
                digit = high[inside] + (1 << (DIGIT - 1)) if first else high[inside] & ((1 << DIGIT) - 1)  # the sign comes first
                counts += torch.bincount(digit, minlength=1 << DIGIT)
            until = self.ranks.sum(counts.cpu().numpy()).cumsum()
            found = int(np.searchsorted(until, k))
            k -= int(until[found - 1]) if found else 0
            prefix = found - (1 << (DIGIT - 1)) if first else (prefix << DIGIT) + found
        return prefix

    def some(self, mask: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        if generator is not None:
            members = self.gathered(mask)
            chosen = first_of_shuffled(len(members), count, generator)
            return self._mine(chosen if len(members) == self.size else members.within(chosen)).to(mask.device)
        if count == 0:
            return torch.zeros_like(mask)
        rows = _rows(mask)
        there = rows if self._rows is None else self._rows.to(rows.device)[rows]
        indices = there * self.ranks.size + self.ranks.rank
        last = self._kth_key(indices, torch.ones_like(indices, dtype=torch.bool), count)
        return torch.zeros_like(mask).index_fill_(0, rows[indices <= last], True)

    def exact_sum(self, values: Tensor, mask: Tensor) -> Fraction:
        return _from_parts(self.ranks.sum(_sums_by_exponent(values[mask])))

    def everything(self, total: int) -> EpochPlan | SetPlan:
        return SetPlan(IndexSet.everything(total))

    def plan(self, hidden: Tensor, metrics: dict[str, float], weights: Tensor | None) -> EpochPlan | SetPlan:
        """The plan as two sets of bits, gathered from all ranks.

        Raises:
            ValueError: ``weights`` take more than two values.
        """
        kept, levels, heavy = self.gathered(hidden).complement(), (1.0,), None
        if weights is not None:
            levels = tuple(sorted(set().union(*self.ranks.gather_objects(weights.unique().tolist()[:3]))))
            heavy = self.gathered(weights == levels[-1]) if len(levels) == 2 else None
        return SetPlan(kept, levels, heavy, metrics=metrics)

    def adopted(self, plan: Plan, total: int) -> Plan:
        return SetPlan.of(plan, total) if isinstance(plan, EpochPlan) else plan

    def gathered(self, mask: Tensor) -> IndexSet:
        """The indices of ``mask`` (``bool[n]``, of the rows here) on all ranks."""
        rank, ranks = self.ranks.rank, self.ranks.size
        if self._rows is not None:
            whole = torch.zeros(len(range(rank, self.size, ranks)), dtype=torch.bool, device=mask.device)
            mask = whole.index_copy_(0, self._rows.to(mask.device), mask)
        rows = -(-self.size // ranks)  # of the first rank; the others' last one may be missing
        mine = np.zeros(rows, dtype=bool)
        mine[: len(mask)] = mask.cpu().numpy()
        parts = self.ranks.gather(np.packbits(mine))
        packed, step = np.zeros(-(-self.size // 8), dtype=np.uint8), max(8, WINDOW // ranks // 8 * 8)
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            columns = [np.unpackbits(part[begin // 8 : -(-end // 8)], count=end - begin) for part in parts]
            bits = np.packbits(np.stack(columns, axis=1))
            first = begin * ranks // 8
            packed[first : first + len(bits)] = bits[: len(packed) - first]
        return IndexSet(packed, self.size)

    def _mine(self, members: IndexSet) -> Tensor:
        """Whether each row here is in ``members``, ``bool[n]`` on the CPU."""
        mask = torch.from_numpy(members.mask(self.ranks.rank, self.ranks.size))
        return mask if self._rows is None else mask[self._rows.cpu()]


def _rows(mask: Tensor) -> Tensor:
    """``int64[k]``, where a mask is true; NumPy is nine times as fast as ``nonzero`` of torch."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.device.type == "cpu" else mask.nonzero().squeeze(1)


def _keys(values: Tensor) -> Tensor:
    """Integers of the same width, whose order is that of the ``values`` (``float32`` or ``float64``); integers as they are."""
    if not values.is_floating_point():
        return values
    whole, sign = (torch.int32, 31) if values.dtype is torch.float32 else (torch.int64, 63)
    bits = values.contiguous().view(whole)
    return bits ^ ((bits >> sign) & ((1 << sign) - 1))


def _values(key: int, dtype: torch.dtype) -> Tensor:
    """The floating-point value (or integer) that :func:`_keys` made into ``key``."""
    if not dtype.is_floating_point:
        return torch.tensor(key, dtype=dtype)
    whole, sign = (torch.int32, 31) if dtype is torch.float32 else (torch.int64, 63)
    return torch.tensor(key ^ ((key >> sign) & ((1 << sign) - 1)), dtype=whole).view(dtype)


def _sums_by_exponent(values: Tensor) -> np.ndarray:
    """``int64[256]``: the sum of the mantissas of finite ``values`` (``float32[n]``) that have each exponent."""
    sums = np.zeros(_EXPONENTS, dtype=np.int64)
    for part in values.cpu().split(WINDOW):
        bits = part.contiguous().numpy().view(np.int32)
        exponent = (bits >> 23) & (_EXPONENTS - 1)
        mantissa = (bits & ((1 << 23) - 1)) | ((exponent > 0).astype(np.int32) << 23)
        signed = np.where(bits < 0, -mantissa, mantissa)
        sums += np.bincount(exponent, signed, _EXPONENTS).astype(np.int64)  # in float64, which holds 2**29 of them exactly
    return sums


def _from_parts(sums: np.ndarray) -> Fraction:
    """The exact sum whose parts :func:`_sums_by_exponent` collected."""
    whole = sum(part << (max(exponent, 1) - 1) for exponent, part in enumerate(sums.tolist()))
    return Fraction(whole, 1 << 149)
