"""Loss weights by key, in a hash table whose memory may be shared: samples of a stream are known by keys of 64 bits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

USUAL = 1.0  # the weight of every key that is not in a table
PIECE = 1 << 16  # keys at a time, so that their places stay in the processor's cache
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / the golden ratio: neighbouring keys get places far apart
_WORD = (1 << 64) - 1


class KeyTable:
    """Weights of some keys, by open addressing with linear probing; all other keys have weight 1.

    Args:
        keys: ``int64[m]``, each once.
        weights: ``float32[m]``, none of them 1.

    Attributes:
        bits: there are ``2**bits`` places, at least twice as many as keys.
        count: m.
        places: the keys, ``uint64[2**bits]``; where the weight is 1 there is none.
        weights: ``float32[2**bits]``.
    """

    def __init__(self, keys: np.ndarray, weights: np.ndarray) -> None:
        self.count = len(keys)
        self.bits = max(4, (2 * self.count - 1).bit_length())
        self.places = np.zeros(1 << self.bits, dtype=np.uint64)
        self.weights = np.full(1 << self.bits, USUAL, dtype=np.float32)
        for begin in range(0, self.count, PIECE):
            self._insert(keys[begin : begin + PIECE].view(np.uint64), weights[begin : begin + PIECE])

    def _insert(self, keys: np.ndarray, weights: np.ndarray) -> None:
        mask, place, left = (1 << self.bits) - 1, self._home(keys), np.arange(len(keys))
        while len(left):
            there = place[left]
            free = left[self.weights.take(there) == USUAL]
            self.places[place[free]] = keys[free]  # of several for one place the last one stays
            won = free[self.places.take(place[free]) == keys[free]]
            self.weights[place[won]] = weights[won]
            lost = np.ones(len(keys), dtype=bool)
            lost[won] = False
            left = left[lost[left]]
            place[left] = (place[left] + 1) & mask

    def _home(self, keys: np.ndarray) -> np.ndarray:
        return ((keys * np.uint64(_GOLDEN)) >> np.uint64(64 - self.bits)).view(np.int64)

    def look_up(self, keys: np.ndarray) -> np.ndarray:
        """The weights of ``keys`` (``int64[n]``), ``float32[n]``."""
        if len(keys) > PIECE:
            return np.concatenate([self.look_up(keys[begin : begin + PIECE]) for begin in range(0, len(keys), PIECE)])
        keys, mask = keys.view(np.uint64), (1 << self.bits) - 1
        place = self._home(keys)
        weights = self.weights.take(place)
        left = np.flatnonzero(weights != USUAL)  # most places are free, and what is there needs not to be read
        left = left[self.places.take(place[left]) != keys[left]]
        while len(left):
            place[left] = there = (place[left] + 1) & mask
            weights[left] = found = self.weights.take(there)
            left = left[(self.places.take(there) != keys[left]) & (found != USUAL)]
        return weights


def weight_at(places: Sequence[int], weights: Sequence[float], bits: int, key: int) -> float:
    """The weight of one ``key`` in the memory of a table; ten times as fast as an array of one."""
    key &= _WORD
    place, mask = (key * _GOLDEN & _WORD) >> (64 - bits), (1 << bits) - 1
    while (weight := weights[place]) != USUAL and places[place] != key:
        place = (place + 1) & mask
    return weight


def key_of(*parts: Any) -> int:
    """The 64-bit key, as an ``int64``, of what names a sample: an integer is its own, strings are hashed, several parts as one.

    Raises:
        TypeError: a part is neither an integer nor a string.
    """
    parts = tuple(map(_plain, parts))
    if len(parts) == 1 and isinstance(parts[0], int) and -(1 << 63) <= parts[0] < 1 << 63:
        return parts[0]
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _plain(part: Any) -> int | str:
    if type(part) in (str, int):
        return part
    if isinstance(part, bytes):
        return part.decode("utf-8", "surrogateescape")
    if getattr(part, "ndim", None) == 0:  # of NumPy or torch
        return _plain(part.item())
    if isinstance(part, str):  # NumPy's
        return str(part)
    raise TypeError(f"a key must be an integer or a string, not a {type(part).__name__}")
