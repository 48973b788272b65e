"""A uniformly random order of very many indices, in linear time, and parts of that order without the whole of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from kakurenbo_lightning.core.index_set import IndexSet, index_dtype
from kakurenbo_lightning.core.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 18  # indices that a core's cache holds
_DIRECTLY = 16  # up to so many blocks one permutation is faster


def shuffled(indices: Tensor, generator: torch.Generator, block: int = BLOCK) -> Tensor:
    """``indices`` (``int64[n]`` on the CPU) in a uniformly random order.

    Many are first thrown into piles at random and then mixed pile by pile, so that no step is larger than a core's cache: one
    permutation of 100 million misses the cache for every index.
    """
    if len(indices) <= _DIRECTLY * block:
        return _mixed(indices, generator)
    thrown = [
        part.index_select(0, order).split(counts.tolist())
        for part, (counts, order) in zip(indices.split(block), _throws(len(indices), block, generator), strict=True)
    ]
    mixed, done = torch.empty_like(indices), 0
    for pile in zip(*thrown, strict=True):
        size = sum(map(len, pile))
        mixed[done : done + size] = _mixed(torch.cat(pile), generator)
        done += size
    return mixed


def _throws(total: int, block: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """How many of each block of ``total`` indices are thrown to each pile (``int64[piles]``), and in which order they are thrown."""
    piles = -(-total // block)
    for begin in range(0, total, block):
        size = min(block, total - begin)
        pile = torch.randint(piles, (size,), generator=generator, dtype=torch.int32)
        yield torch.bincount(pile, minlength=piles), _order(size, generator)


def _mixed(indices: Tensor, generator: torch.Generator) -> Tensor:
    return indices.index_select(0, _order(len(indices), generator))  # it gathers faster than indexing


def _order(size: int, generator: torch.Generator) -> Tensor:
    # int32 gives the same permutation with half the cache misses
    return torch.randperm(size, generator=generator, dtype=torch.int32 if size < 1 << 31 else torch.int64)


def first_of_shuffled(total: int, count: int, generator: torch.Generator, block: int = BLOCK) -> IndexSet:
    """The first ``count`` of :func:`shuffled` of the indices below ``total``, as a set; the generator moves on as there.

    It takes a bit for each index and a few blocks of memory: the random numbers are drawn twice.
    """
    if total <= _DIRECTLY * block:
        mask = torch.zeros(total, dtype=torch.bool)
        return IndexSet.of_mask(mask.index_fill_(0, shuffled(torch.arange(total), generator, block)[:count], True))
    thrown, done = _Thrown(total, block, generator), 0
    last, chosen = len(thrown.sizes), np.empty(0, dtype=bool)  # the pile that only a part is taken of, and which of its places
    for pile, (size, order) in enumerate(thrown.piles(generator)):
        if done <= count < done + size:
            last, chosen = pile, np.zeros(size, dtype=bool)
            chosen[order[: count - done].numpy()] = True
        done += size
    mask, begin = np.zeros(-(-total // 8), dtype=np.uint8), 0
    part = np.empty(0, dtype=bool)
    for counts, order in thrown.again():
        ends = counts.cumsum(0)
        full = int(ends[last - 1]) if last else 0
        taken = np.zeros(len(order), dtype=bool)
        taken[order[:full].numpy()] = True
        if last < len(ends):
            here, chosen = chosen[: int(counts[last])], chosen[int(counts[last]) :]
            taken[order[full : int(ends[last])].numpy()[here]] = True
        part = np.concatenate([part, taken])
        whole = len(part) - len(part) % 8
        mask[begin // 8 : (begin + whole) // 8] = np.packbits(part[:whole])
        begin, part = begin + whole, part[whole:]
    mask[begin // 8 :] = np.packbits(part)
    return IndexSet(mask, total)


def share_of_shuffled(members: IndexSet, generator: torch.Generator, places: range, block: int = BLOCK) -> Tensor:
    """The members at ``places`` of what :func:`shuffled` makes of ``members``: ``int32[len(places)]``, or int64 for larger
    indices.

    It takes 12 bytes for each place, 4 of them returned, and a few blocks of memory: the random numbers are drawn twice.

    Args:
        members: the indices to shuffle.
        generator: the source of the random order.
        places: an ascending range of places in the shuffled order, within ``len(members)``.
        block: how many indices are thrown at a time, as in :func:`shuffled`.
    """
    total = len(members)
    if total <= _DIRECTLY * block:
        order = _order(total, generator)[places.start : places.stop : places.step]
        return members.tensor().to(torch.int32 if members.size < 1 << 31 else torch.int64)[order.long()]
    thrown = _Thrown(total, block, generator)
    starts = np.concatenate([[0], thrown.sizes.cumsum()])  # of the piles
    bounds = np.array([len(range(places.start, min(int(start), places.stop), places.step)) for start in starts])
    # of each place: where in the piles, laid side by side, its index is thrown to; ascending, and which place of its pile it was
    spots, origins = np.empty(len(places), dtype=index_dtype(total)), np.empty(len(places), dtype=np.int32)
    for pile, (size, order) in enumerate(thrown.piles(generator)):
        begin, end, start = bounds[pile], bounds[pile + 1], int(starts[pile])
        mine = order.numpy()[places.start + int(begin) * places.step - start :][:: places.step][: end - begin]
        at = np.full(size, -1, dtype=np.int32)
        at[mine] = np.arange(len(mine))
        here = np.flatnonzero(at >= 0)
        spots[begin:end], origins[begin:end] = here + start, at[here]
    found = _caught(members, thrown, starts, bounds, spots)
    for begin, end in pairwise(bounds):
        caught = found[begin:end].copy()
        found[begin:end][origins[begin:end]] = caught
    return torch.from_numpy(found)


def _caught(members: IndexSet, thrown: _Thrown, starts: np.ndarray, bounds: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """The members that are thrown to ``spots`` (ascending); ``starts`` of the piles, and ``bounds`` of each pile's spots."""
    found = np.empty(len(spots), dtype=index_dtype(members.size))
    reached, next_spot = starts[:-1].copy(), bounds[:-1].copy()  # of each pile: how far it is filled, and the first spot beyond
    for piece, (counts, order) in zip(members.pieces(thrown.block), thrown.again(), strict=True):
        sizes = counts.numpy()
        after = np.searchsorted(spots, (reached + sizes).astype(spots.dtype))  # of another type, all spots would be converted
        lengths = after - next_spot
        ends = lengths.cumsum()
        which = np.arange(ends[-1]) + np.repeat(next_spot - ends + lengths, lengths)
        # where a pile's part of this block begins, less where the pile is filled to
        offset = np.repeat(sizes.cumsum() - sizes - reached, lengths)
        found[which] = piece[order.numpy()[spots[which] + offset]]
        reached, next_spot = reached + sizes, after
    return found


class _Thrown:
    """The throws of :func:`shuffled`, without what is thrown; they can be made again.

    Args:
        total: how many indices are thrown.
        block: how many of them are thrown at a time.
        generator: the source of the throws; it is left where the piles are mixed next.

    Attributes:
        sizes: ``int64[piles]``, how many indices each pile has got.
    """

    def __init__(self, total: int, block: int, generator: torch.Generator) -> None:
        self._total, self.block, self._state = total, block, generator.get_state()
        self.sizes = np.zeros(-(-total // block), dtype=np.int64)
        for counts, _ in _throws(total, block, generator):
            self.sizes += counts.numpy()

    def again(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Make the throws again, as :func:`_throws` yielded them the first time."""
        generator = torch.Generator()
        generator.set_state(self._state)
        return _throws(self._total, self.block, generator)

    def piles(self, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
        """The size of each pile, and the order that it is mixed to."""
        for size in self.sizes.tolist():
            yield size, _order(size, generator)
