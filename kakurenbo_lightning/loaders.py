"""The user's train loader: which can be followed, and the copy that follows."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from kakurenbo_lightning.sampler import SelectionSampler


class ConflictError(ValueError):
    """A Trainer, loader or data set setting that sample selection cannot work with."""


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


def only_loader(loaders: Any) -> DataLoader:
    """The one DataLoader of what ``train_dataloader`` returned.

    Raises:
        ConflictError: several loaders, or none that is a map-style ``DataLoader`` with batches.
    """
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.iterables
    if isinstance(loaders, DataLoader):
        return loaders
    kind = type(loaders).__name__
    raise ConflictError(
        f"train_dataloader={kind}: sample selection needs one torch.utils.data.DataLoader, not a {kind}; "
        "join the data sets with torch.utils.data.ConcatDataset and return one loader"
    )


def check_length(total: int, before: int) -> None:
    """Raise ``ConflictError`` when a data set of ``before`` samples has ``total`` now."""
    if total != before:
        raise ConflictError(
            f"the train data set has {total} samples now and had {before} before; samples are known by their index, so the data set must "
            "keep its length and order; use a new Trainer and SampleSelection for new data"
        )


def read_loader(loader: DataLoader) -> bool:
    """Check that a loader's order can be replaced, and return whether it shuffles.

    Raises:
        ConflictError: naming the setting, its value and the fix.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise ConflictError(
            f"dataset={type(loader.dataset).__name__} is an IterableDataset; samples are selected by index, so a map-style "
            "data set with __len__ and __getitem__ is needed"
        )
    if loader.batch_sampler is None:
        raise ConflictError(
            "DataLoader(batch_size=None) is not allowed: samples must be batched by the loader; set batch_size, for example 128"
        )
    if getattr(loader, "in_order", True) is False:
        raise ConflictError(
            "DataLoader(in_order=False) is not allowed: the index of a sample comes from the order of the batches; "
            "use in_order=True"
        )
    if hasattr(loader, "load_state_dict"):
        raise ConflictError(
            f"{type(loader).__name__} keeps its own position, and the selection keeps it too; use torch.utils.data.DataLoader, a "
            "resumed run goes on at the right batch"
        )
    if type(loader.batch_sampler) is not BatchSampler:
        kind = type(loader.batch_sampler)
        raise ConflictError(
            f"batch_sampler={kind.__module__}.{kind.__qualname__} is not allowed: sample selection decides what is in a batch; "
            "use DataLoader(batch_size=..., shuffle=True)"
        )
    sampler = loader.batch_sampler.sampler
    if type(sampler) is SequentialSampler:
        return False
    if type(sampler) is DistributedSampler:
        return sampler.shuffle
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(loader.dataset):
        return True
    raise ConflictError(
        f"sampler={type(sampler).__name__} is not allowed: sample selection decides which samples an epoch has and in which "
        "order; use DataLoader(shuffle=True) without a sampler, or sampler=None"
    )
