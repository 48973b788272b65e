"""Every refusal of a Trainer, loader or module setting."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from kakurenbo_lightning.errors import ConflictError


def refuse_conflicts(trainer: pl.Trainer) -> None:
    """Refuse Trainer settings that cannot work, before anything has started.

    Raises:
        ConflictError: naming the setting, its value and the fix.
    """
    if trainer.overfit_batches:
        raise ConflictError(
            f"Trainer(overfit_batches={trainer.overfit_batches}) is not allowed with sample selection: both decide what an epoch "
            "trains; remove one, or use limit_train_batches"
        )
    strategy = type(trainer.strategy).__name__
    if any(name in strategy for name in ("FSDP", "DeepSpeed", "ModelParallel", "XLA")):
        raise ConflictError(
            f"Trainer(strategy={strategy}) is not supported: the refresh pass runs the module outside the strategy's wrapper; "
            "use strategy='ddp' or one device"
        )


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
