"""The user's train loader: which can be followed, and the copy that follows."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
)

from kakurenbo_lightning.core.sampler import SelectionSampler


def follow_sampler(loader: DataLoader, sampler: SelectionSampler, *, sized: bool = True, ahead: int | None = None) -> DataLoader:
    """A copy of ``loader`` that follows ``sampler``: same class, attributes, workers and collation, the user's is untouched.

    Args:
        loader: checked by :func:`read_loader`.
        sampler: becomes both sampler and batch sampler.
        sized: ``False`` hides the length, so that Lightning asks each epoch's iterator for its end instead.
        ahead: workers take at most so many batches of indices ahead; ``None``: as many as the loader has it.
    """
    follower = copy.copy(loader)
    changes: dict[str, Any] = {
        "batch_sampler": sampler,
        "sampler": sampler,
        "_iterator": None,
        # its own stream: drawing worker seeds must not move the training's random numbers
        "generator": torch.Generator(),
    }
    workers = loader.num_workers
    if ahead is not None and workers * (loader.prefetch_factor or 0) > ahead:
        workers = min(workers, ahead)
        changes.update(num_workers=workers, prefetch_factor=ahead // workers if workers else None)
        if not workers:
            changes.update(persistent_workers=False, timeout=0)
    if workers > 0:
        # one pool for all epochs and refresh passes: forking again under DDP can hang (CPython)
        changes["persistent_workers"] = True
    vars(follower).update(changes)
    if not sized:
        follower.__class__ = type(f"Unsized{type(loader).__name__}", (type(loader),), {"__len__": _no_length})
    return follower


def _no_length(self: DataLoader) -> int:
    raise TypeError("the length of a selected epoch is known when it is planned")
