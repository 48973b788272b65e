"""Which samples of very many: one bit each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 1 << 20  # bits that are unpacked at a time, a multiple of 8


class IndexSet:
    """A set of indices below ``size``, ascending, in an eighth of a byte for each index there could be. It is never changed.

    Args:
        packed: ``uint8[ceil(size / 8)]``, as ``np.packbits`` makes it; bits beyond ``size`` are 0.
        size: how many indices there could be.
    """

    def __init__(self, packed: np.ndarray, size: int) -> None:
        self.packed, self.size = packed, size
        self._count = sum(int(np.count_nonzero(window)) for window in self._windows())

    @classmethod
    def of_mask(cls, mask: Tensor | np.ndarray) -> IndexSet:
        """The set of the indices at which ``mask`` (``bool[size]``, any device) is true."""
        found = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else mask
        return cls(np.packbits(found), len(found))

    @classmethod
    def of_windows(cls, windows: Iterator[np.ndarray], size: int) -> IndexSet:
        """The set of the indices at which ``windows``, laid end to end, are true: each ``bool[WINDOW]``, the last one shorter."""
        packed = np.zeros(-(-size // 8), dtype=np.uint8)
        for number, mask in enumerate(windows):
            bits, begin = np.packbits(mask), number * WINDOW // 8
            packed[begin : begin + len(bits)] = bits
        return cls(packed, size)

    @classmethod
    def everything(cls, size: int) -> IndexSet:
        """The set of all indices below ``size``."""
        packed = np.full(-(-size // 8), 255, dtype=np.uint8)
        if size % 8:
            packed[-1] = 256 - (1 << (8 - size % 8))
        return cls(packed, size)

    def complement(self) -> IndexSet:
        """The set of the indices that are not in this one."""
        return IndexSet(IndexSet.everything(self.size).packed & ~self.packed, self.size)

    def __len__(self) -> int:
        """How many indices the set holds."""
        return self._count

    def __le__(self, other: IndexSet) -> bool:
        """Whether all of its indices are in ``other``."""
        return not (self.packed & ~other.packed).any()

    def _windows(self) -> Iterator[np.ndarray]:
        """The set as masks of ``bool[WINDOW]``, one after the other; the last one is shorter."""
        for begin in range(0, self.size, WINDOW):
            bits = self.packed[begin // 8 : (begin + WINDOW) // 8]
            yield np.unpackbits(bits, count=min(WINDOW, self.size - begin)).view(bool)

    def pieces(self, length: int) -> Iterator[np.ndarray]:
        """The indices, ascending, in pieces of ``int64[length]``; the last piece is shorter."""
        rest = np.empty(0, dtype=np.int64)
        for number, window in enumerate(self._windows()):
            rest = np.concatenate([rest, np.flatnonzero(window) + number * WINDOW])
            full = len(rest) - len(rest) % length
            for begin in range(0, full, length):
                yield rest[begin : begin + length]
            rest = rest[full:]
        if len(rest):
            yield rest

    def some(self, numbers: range) -> Tensor:
        """The indices at these places of the ascending set: ``int64[n]``, or ``int32[n]`` where ``size`` allows."""
        found = np.empty(len(numbers), dtype=index_dtype(self.size))
        done = 0
        for number, piece in enumerate(self.pieces(WINDOW)):
            begin = number * WINDOW
            first = numbers.start + done * numbers.step - begin
            mine = piece[first : max(first, numbers.stop - begin) : numbers.step]
            found[done : done + len(mine)] = mine
            done += len(mine)
        return torch.from_numpy(found)

    def tensor(self) -> Tensor:
        """All indices of the set, ascending, ``int64[n]``."""
        return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *self.pieces(WINDOW)]))

    def mask(self, start: int = 0, step: int = 1) -> np.ndarray:
        """Whether each of the indices ``start``, ``start + step``, ... is in the set, ``bool[n]``."""
        parts, first = [np.empty(0, dtype=bool)], start
        for window in self._windows():
            parts.append(window[first::step])
            first += len(parts[-1]) * step - len(window)
        return np.concatenate(parts)

    def holds(self, indices: Tensor) -> Tensor:
        """Whether ``indices`` (``int[n]`` on the CPU) are in it, ``bool[n]``."""
        there = indices.numpy()
        return torch.from_numpy(((self.packed[there >> 3] >> (7 - (there & 7))) & 1).astype(bool))

    def within(self, numbers: IndexSet) -> IndexSet:
        """The indices whose place in this set (ascending, from 0) is in ``numbers``."""
        chosen, done = np.unpackbits(numbers.packed[:0]).view(bool), 0

        def windows() -> Iterator[np.ndarray]:
            nonlocal chosen, done
            for window in self._windows():
                there = np.flatnonzero(window)
                begin, end = done // 8, -(-(done + len(there)) // 8)
                chosen = np.unpackbits(numbers.packed[begin:end]).view(bool)[done - begin * 8 :][: len(there)]
                done += len(there)
                mask = np.zeros(len(window), dtype=bool)
                mask[there[chosen]] = True
                yield mask

        return IndexSet.of_windows(windows(), self.size)

    def checksum(self) -> int:
        """A number that differs when the set does."""
        words = np.zeros(-(-len(self.packed) // 8) * 8, dtype=np.uint8)
        words[: len(self.packed)] = self.packed
        values = words.view(np.uint64)
        with np.errstate(over="ignore"):
            return int((values * np.arange(1, 2 * len(values) + 1, 2, dtype=np.uint64)).sum()) ^ self.size


def index_dtype(size: int) -> type[np.integer]:
    """The smallest integer that holds an index below ``size``."""
    return np.int32 if size < 1 << 31 else np.int64
