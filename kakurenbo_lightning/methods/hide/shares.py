"""Which samples a method chooses from, in which parts, and how many each part and each epoch of a schedule hides: pure functions.

Atif Hassan, Swanand Khare, Jiaul H. Paik: "RCAP: Robust, Class-Aware, Probabilistic Dynamic Dataset Pruning", UAI 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import log
from typing import TYPE_CHECKING

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.methods.topk import as_decimal

if TYPE_CHECKING:
    from torch import Tensor

Part = tuple[int, slice]  # its number, see Epoch.part, and its place among the samples that are chosen from

LEAST_LOSS = 1e-12  # of a class, so that it keeps a sample
BISECTIONS = 200  # from 1e14 down to the last bit


def number_of(classes: np.ndarray) -> int:
    """How many classes are known among those of all samples, ``int[N]``; -1 is unknown."""
    return int((np.unique(classes) >= 0).sum())


def parts_of(
    total: int, classes: np.ndarray | None, protected: Sequence[int], protected_classes: Sequence[int], by_class: bool
) -> tuple[Tensor | None, list[Part]]:
    """The samples that are chosen from (``int64[n]``; ``None``: all), and the parts of them that are by themselves.

    Args:
        total: N.
        classes: the class of each sample, ``int[N]``, -1 where unknown; ``None`` where neither of the next two needs them.
        protected: samples that are left out.
        protected_classes: whose samples are left out.
        by_class: each class is a part; else all are one.
    """
    if not protected and classes is None:
        return None, [(-1, slice(None))]
    free = np.ones(total, dtype=bool)
    free[list(protected)] = False
    if classes is not None and protected_classes:
        free &= ~np.isin(classes, protected_classes)
    rows = np.flatnonzero(free)
    if not len(rows):
        return torch.from_numpy(rows), []
    if classes is None or not by_class:
        return torch.from_numpy(rows), [(-1, slice(None))]
    key = classes[rows] + 1  # class -1 is unknown
    if key.max() < 1 << 16:
        key = key.astype(np.uint16)  # sorted in linear time
    order = np.argsort(key, kind="stable")
    present, starts = np.unique(key[order], return_index=True)
    places = map(slice, starts.tolist(), [*starts[1:].tolist(), len(rows)])
    return torch.from_numpy(rows[order]), list(zip(present.tolist(), places, strict=True))


def alternated(counts: Sequence[int], factors: Sequence[float], place: int) -> int:
    """How many samples choice number ``place`` of a period hides, so that all of them together hide ``sum(counts)``.

    Args:
        counts: how many each of the period's choices hides at a constant fraction.
        factors: one factor for each choice; their shares of the sum are in this proportion, rounded down together.
        place: which choice, from 0.
    """
    exact = [as_decimal(factor) for factor in factors]
    before, whole = sum(exact[:place]), sum(exact)
    return int(sum(counts) * (before + exact[place]) / whole) - int(sum(counts) * before / whole)


def clipped_losses(loss: np.ndarray, classes: int | None) -> np.ndarray:
    """Losses between 0 and that of a guess among so many classes, log(classes), ``float64[N]``; one that is not finite is the highest."""
    highest = log(max(1, classes or 1))
    return np.where(np.isfinite(loss), loss, highest).astype(np.float64).clip(0, highest)


def rcap_fractions(loss: np.ndarray, parts: Sequence[Part], kept: int) -> list[Fraction]:
    """The share of each part to hide, see :func:`kept_by_class`.

    Args:
        loss: ``float64[n]`` >= 0, the losses of all parts.
        parts: which lie side by side.
        kept: how many samples all parts keep together.
    """
    starts = np.array([place.start for _, place in parts])
    sizes = np.diff(starts, append=len(loss))
    hidden = sizes - kept_by_class(np.add.reduceat(loss, starts) / sizes, sizes, kept)
    return [Fraction(count, size) for count, size in zip(hidden.tolist(), sizes.tolist(), strict=True)]


def kept_by_class(loss: np.ndarray, sizes: np.ndarray, kept: int) -> np.ndarray:
    """How many samples each class keeps, by RCAP: in proportion to sqrt(its mean loss x its share of all samples).

    At least one each where there are enough, at most what it has; the rest goes to the others in the same proportion. Largest remainders
    are rounded up, of equal ones the lower class's, so that the sum is exact.

    Args:
        loss: ``float64[C]``, mean loss of each class, >= 0.
        sizes: ``int64[C]``, samples of each class, >= 1.
        kept: how many all classes keep together, at most ``sizes.sum()``.

    Returns:
        ``int64[C]``.
    """
    weights = np.sqrt(np.maximum(loss, LEAST_LOSS) * sizes / sizes.sum())
    least = int(kept >= len(sizes))
    low, high = 0.0, float((sizes / weights).max())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = np.clip(middle * weights, least, sizes).sum() >= kept
        low, high = (low, middle) if enough else (middle, high)
    shares = np.clip(high * weights, least, sizes)
    counts = np.floor(shares).astype(np.int64)
    up = np.argsort(counts - shares, kind="stable")[: kept - int(counts.sum())]
    counts[up] += 1
    return counts
