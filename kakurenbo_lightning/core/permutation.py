"""A uniformly random order of very many indices, in linear time."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    piles = -(-len(indices) // block)
    thrown = []
    for part in indices.split(block):
        pile = torch.randint(piles, (len(part),), generator=generator, dtype=torch.int32)
        thrown.append(_mixed(part, generator).split(torch.bincount(pile, minlength=piles).tolist()))
    mixed, done = torch.empty_like(indices), 0
    for pile in zip(*thrown, strict=True):
        size = sum(map(len, pile))
        mixed[done : done + size] = _mixed(torch.cat(pile), generator)
        done += size
    return mixed


def _mixed(indices: Tensor, generator: torch.Generator) -> Tensor:
    # int32 gives the same permutation with half the cache misses; index_select gathers faster than indexing
    dtype = torch.int32 if len(indices) < 1 << 31 else torch.int64
    return indices.index_select(0, torch.randperm(len(indices), generator=generator, dtype=dtype))
