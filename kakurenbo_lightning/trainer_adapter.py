"""The only file that touches Lightning's private attributes.

Tested against the oldest and the newest supported Lightning (``make test-all``). When a release moves one of them,
:meth:`TrainerAdapter.missing` names it, and :meth:`SampleSelection.wrap` still works, through public API only.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import lightning
import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

from kakurenbo_lightning.sampler import SelectionSampler

# dotted paths from the trainer; looked up by TrainerAdapter.missing
_PRIVATE = (
    "fit_loop._data_source.dataloader",
    "fit_loop._combined_loader",
    "fit_loop._data_fetcher",
    "fit_loop.max_batches",
    "fit_loop.epoch_loop.batch_progress",
    "fit_loop.epoch_loop.restarting",
    "fit_loop.reset_restart_stage",
    "fit_loop.epoch_loop.reset_restart_stage",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop._should_accumulate",
    "val_check_batch",
    "strategy.training_step",
)


class ConflictError(ValueError):
    """A Trainer, loader or data set setting that sample selection cannot work with."""


class TrainerAdapter:
    """Swaps the train loader, keeps the epoch's length true, repairs restarts and wraps the training step."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer

    def missing(self) -> list[str]:
        """The private attributes this Lightning version lacks."""
        absent = []
        for path in _PRIVATE:
            try:
                functools.reduce(getattr, path.split("."), self._trainer)
            except AttributeError:
                absent.append(f"trainer.{path}")
        return absent

    def missing_message(self) -> str:
        """What to do when :meth:`missing` is not empty."""
        return (
            f"Lightning {lightning.__version__} has no {', '.join(self.missing())}, which the loader swap needs. Return "
            "selection.wrap(DataLoader(...)) from train_dataloader (public API only), or install a Lightning release "
            "named in the README"
        )

    # --- the loader

    def install_loader_swap(self, swap: Callable[[Any], Any]) -> None:
        """From now on the train loader Lightning asks for passes through ``swap``; replaces an earlier one."""
        source = self._trainer.fit_loop._data_source
        source.dataloader = lambda: swap(type(source).dataloader(source))

    def remove_loader_swap(self) -> None:
        """Undo :meth:`install_loader_swap`."""
        vars(self._trainer.fit_loop._data_source).pop("dataloader", None)

    # --- the training step

    def wrap_training_step(self, wrapper: Callable[..., Any]) -> None:
        """``wrapper(step, *args)`` runs in place of ``strategy.training_step``, outside the DDP wrapper; replaces an earlier one."""
        strategy = self._trainer.strategy
        strategy.training_step = functools.partial(wrapper, functools.partial(type(strategy).training_step, strategy))

    def unwrap_training_step(self) -> None:
        """Undo :meth:`wrap_training_step`."""
        vars(self._trainer.strategy).pop("training_step", None)

    # --- the epoch

    def resumed_batches(self) -> int | None:
        """Batches of the current epoch done before the checkpoint this run resumes from, ``None`` when it does not."""
        epoch_loop = self._trainer.fit_loop.epoch_loop
        return epoch_loop.batch_progress.current.processed if epoch_loop.restarting else None

    def begin_fresh_epoch(self) -> None:
        """The checkpoint was taken on an epoch's last batch: begin the next epoch as if nothing had been interrupted.

        Lightning would compare the counters of the finished epoch with the length of the next one.
        """
        fit_loop = self._trainer.fit_loop
        epoch_loop = fit_loop.epoch_loop
        if epoch_loop.restarted_on_train_batch_end:
            epoch_loop.batch_progress.increment_completed()
        if not epoch_loop._should_accumulate() and (epoch_loop.restarted_on_train_batch_end or not epoch_loop.restarted_on_last):
            epoch_loop._batches_that_stepped += 1
        fit_loop.reset_restart_stage()
        epoch_loop.reset_restart_stage()
        epoch_loop.restarting = False

    def refresh_lengths(self) -> None:
        """Tell Lightning the length of the epoch that is about to begin."""
        trainer = self._trainer
        fit_loop = trainer.fit_loop
        combined = fit_loop._combined_loader
        combined.limits = [self.limited(len(loader)) for loader in combined.flattened]
        fit_loop.max_batches = combined.limits[0]
        interval = trainer.val_check_interval
        if isinstance(interval, float):
            trainer.val_check_batch = max(1, int(fit_loop.max_batches * interval))
        elif isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and trainer.val_check_batch is not None:
            trainer.val_check_batch = min(interval, fit_loop.max_batches)

    def limited(self, batches: int) -> int:
        """``batches`` under the Trainer's ``limit_train_batches``."""
        limit = self._trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))

    def reiterate_if_needed(self) -> None:
        """Lightning makes a new iterator for each epoch but the first one and a resumed one: make that one."""
        fit_loop = self._trainer.fit_loop
        if self._trainer.current_epoch == 0 or getattr(fit_loop, "is_resuming", False) or fit_loop.epoch_loop.restarting:
            iter(fit_loop._data_fetcher)

    # --- batches outside the loop

    def to_device(self, batch: Any) -> Any:
        """Everything Lightning does to a train batch between the loader and ``training_step``."""
        trainer = self._trainer
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def is_compiled(self, module: pl.LightningModule) -> bool:
        """Whether the LightningModule itself went through ``torch.compile``."""
        return getattr(module, "_compiler_ctx", None) is not None


def follow_sampler(loader: DataLoader, sampler: SelectionSampler, *, sized: bool = True) -> DataLoader:
    """A copy of ``loader`` that follows ``sampler``: same class, attributes, workers and collation, the user's is untouched.

    Args:
        loader: checked by :func:`read_loader`.
        sampler: becomes both sampler and batch sampler.
        sized: ``False`` hides the length, so that Lightning asks each epoch's iterator for its end instead.
    """
    follower = copy.copy(loader)
    changes: dict[str, Any] = {
        "batch_sampler": sampler,
        "sampler": sampler,
        "_iterator": None,
        # its own stream: drawing worker seeds must not move the training's random numbers
        "generator": torch.Generator(),
    }
    if loader.num_workers > 0:
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
    if type(loader.batch_sampler) is not BatchSampler:
        raise ConflictError(
            f"batch_sampler={type(loader.batch_sampler).__name__} is not allowed: sample selection decides what is in a batch; "
            "use DataLoader(batch_size=..., shuffle=True)"
        )
    sampler = loader.sampler
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


