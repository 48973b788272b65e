"""A copy of the user's train loader that follows the selection."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from kakurenbo_lightning.core.plan import Plan, StreamPlan
from kakurenbo_lightning.core.sampler import SelectionSampler
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.loader_compatibility import LoaderOrder

SETTINGS = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator"),
    *("prefetch_factor", "persistent_workers", "pin_memory_device", "in_order"),
)


def without_position(loader: DataLoader) -> DataLoader:
    """A torch ``DataLoader`` in place of torchdata's ``StatefulDataLoader``, with its settings; any other loader as it is.

    The selection keeps the position in the epoch, and two that keep it would both skip what is done.
    """
    if not type(loader).__module__.startswith("torchdata.stateful_dataloader"):
        return loader
    batches, sampler = loader.batch_sampler, loader.sampler
    place: dict[str, Any] = {"batch_sampler": batches}
    if loader.batch_size is not None or batches is None:  # else the batch sampler is the user's
        if type(sampler).__module__.startswith("torchdata.stateful_dataloader"):
            own: Any = sampler
            sampler = RandomSampler(own.data_source, own.replacement, own._num_samples, own.generator)
        place = {"batch_size": loader.batch_size, "sampler": sampler, "drop_last": loader.drop_last}
    return DataLoader(loader.dataset, **place, **{name: getattr(loader, name) for name in SETTINGS})


def sampler_for(
    order: LoaderOrder,
    adapter: TrainerAdapter,
    method: Method,
    seed: int,
    on_set_epoch: Callable[[int], None],
    everything: Plan,
) -> tuple[SelectionSampler, int]:
    """The sampler that takes the place of the user's, and the steps of the longest epoch, whose length Lightning hears of first.

    Args:
        order: what :func:`read_loader` said of the user's loader.
        adapter: the Trainer's adapter.
        method: the selection method.
        seed: seed of the order.
        on_set_epoch: called when Lightning sets the epoch.
        everything: the plan that trains every sample.
    """
    universe = order.universe
    sampler = SelectionSampler(
        universe.num_samples,
        order.batch_size,
        adapter.ranks.size,
        adapter.ranks.rank,
        drop_last=order.drop_last,
        shuffle=order.shuffle,
        seed=seed,
        order=order.listed,
        extra=method.ends_short and not adapter.passive,
        on_set_epoch=on_set_epoch,
        plan=everything,
    )
    longest = len(sampler)
    samples = method.stream_samples(universe.num_samples, order.batch_size)
    if samples is not None:
        stream = StreamPlan(universe.num_samples, samples).shard(sampler.layout(0))
        longest = max(longest, stream.steps)
        if stream.steps == longest and not adapter.passive:
            sampler.follow(stream)
    return sampler, longest


def follow_sampler(
    loader: DataLoader, sampler: SelectionSampler, seed: int, *, sized: bool = True, ahead: int | None = None
) -> DataLoader:
    """A copy of ``loader`` that follows ``sampler``: same class, attributes, workers and collation, the user's is untouched.

    It differs in its generator. An iterator of a DataLoader takes the seed of its workers from there, or from the global stream where there
    is none; here it is seeded for each epoch and each scoring pass, so that workers draw the same in a resumed session, and that making an
    iterator moves no random number of training.

    Args:
        loader: checked by :func:`read_loader`.
        sampler: becomes both sampler and batch sampler.
        seed: seed of the first workers.
        sized: ``False`` hides the length, so that Lightning asks each epoch's iterator for its end instead.
        ahead: workers take at most so many batches of indices ahead; ``None``: as many as the loader has it.
    """
    # a copy, because making a loader of the same class again fails where its __init__ has arguments of its own
    follower = copy.copy(loader)
    changes: dict[str, Any] = {
        "batch_sampler": sampler,
        "sampler": sampler,
        "_iterator": None,
        "generator": torch.Generator().manual_seed(seed),
    }
    workers = loader.num_workers
    if ahead is not None and workers * (loader.prefetch_factor or 0) > ahead:
        workers = min(workers, ahead)
        changes.update(num_workers=workers, prefetch_factor=ahead // workers if workers else None)
        if not workers:
            changes.update(persistent_workers=False, timeout=0)
    vars(follower).update(changes)  # past DataLoader.__setattr__, which refuses another sampler after __init__
    if not sized:
        follower.__class__ = type(f"Unsized{type(loader).__name__}", (type(loader),), {"__len__": _no_length})
    return follower


def seed_workers(follower: DataLoader, seed: int) -> None:
    """Workers that are started from now on draw other random numbers with another ``seed``."""
    if follower.generator is not None:
        follower.generator.manual_seed(seed)


def _no_length(self: DataLoader) -> int:
    raise TypeError("the length of a selected epoch is known when it is planned")
