"""Selection of some of many samples in linear time."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.permutation import shuffled
from kakurenbo_lightning.core.spread import ALONE, Spread

if TYPE_CHECKING:
    from torch import Tensor


def exact_floor(fraction: float | Fraction, count: int) -> int:
    """``floor(fraction * count)``, with ``fraction`` taken as its shortest decimal, so that 0.29 of 100 is 29 and not 28."""
    return int(as_decimal(fraction) * count)


@lru_cache(maxsize=256)
def as_decimal(value: float | Fraction) -> Fraction:
    """``value`` as an exact fraction of its shortest decimal: 0.3 becomes 3/10."""
    return value if isinstance(value, Fraction) else Fraction(str(value))


def in_epochs(value: int | float, max_epochs: int | None) -> int:
    """Convert an epoch (int), or a share of ``max_epochs`` (float, rounded down), to a number of epochs."""
    return exact_floor(value, max_epochs or 0) if isinstance(value, float) else value


def lowest(values: Tensor, count: int, eligible: Tensor, ties: torch.Generator | None = None, spread: Spread = ALONE) -> Tensor:
    """Mask of the eligible samples with the lowest finite values. Linear in N, without a sort.

    Args:
        values: ``float[N]``.
        count: number of samples to mark, on all ranks together; fewer are marked if fewer are eligible.
        eligible: ``bool[N]``, samples that may be marked.
        ties: random stream that decides among equal values; without it the lower index comes first.
        spread: where the values of all samples are.

    Returns:
        ``bool[N]``.
    """
    infinity = float("inf")
    # comparisons with infinity instead of isfinite: they are false for NaN too, and in-place ands save memory at large N
    eligible = (values < infinity).logical_and_(values > -infinity).logical_and_(eligible)
    count = min(count, spread.count(eligible))
    if count <= 0:
        return torch.zeros_like(eligible)
    threshold = spread.kth_smallest(values, eligible, count)
    chosen = (values < threshold).logical_and_(eligible)
    missing = count - spread.count(chosen)
    # several samples may equal the k-th value, of which only some are needed
    return chosen.logical_or_(spread.some((values == threshold).logical_and_(eligible), missing, ties))


def some_of(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` of ``rows`` (``int64[n]``, any device) uniformly without replacement."""
    order = shuffled(torch.arange(len(rows)), generator)
    return rows[order[:count].to(rows.device)]


def mask_of(rows: Tensor, size: int) -> Tensor:
    """Convert row numbers to a mask, ``bool[size]``, which is true at ``rows``."""
    return torch.zeros(size, dtype=torch.bool, device=rows.device).index_fill_(0, rows, True)
