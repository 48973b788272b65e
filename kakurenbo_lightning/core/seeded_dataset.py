"""Random augmentation that is the same in every run, worker and resumption."""

from __future__ import annotations

import random
from collections.abc import Sized
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from kakurenbo_lightning.core.random import stream_seed


def num_samples(dataset: Dataset) -> int:
    """``len(dataset)``: torch's ``Dataset`` does not declare the length that map-style data sets have."""
    return len(cast(Sized, dataset))


def set_dataset_epoch(dataset: Dataset, epoch: int) -> None:
    """Call ``set_epoch`` of a data set, and of those inside it (``Subset``, ``ConcatDataset``, ...), where there is one."""
    pending = [dataset]
    while pending:
        current = pending.pop()
        if callable(set_epoch := getattr(current, "set_epoch", None)):
            set_epoch(epoch)
        inner = (getattr(current, "dataset", None), *(getattr(current, "datasets", None) or ()))
        pending += [part for part in inner if isinstance(part, Dataset)]


class SeededDataset(Dataset):
    """Seeds Python, NumPy and torch by ``(seed, epoch, index)`` before each sample of a map-style data set is made.

    Workers of a ``DataLoader`` carry random streams that a checkpoint cannot hold, so a run resumed within an epoch augments
    otherwise than the one that was not interrupted. Wrapped, it augments the same, with any number of workers and ranks::

        DataLoader(SeededDataset(dataset), batch_size=128, shuffle=True, num_workers=4)

    :class:`~kakurenbo_lightning.SampleSelection` calls :meth:`set_epoch`; in a plain loop call it before each epoch. The process's own
    random streams are as before after each sample.

    Args:
        dataset: with ``__len__`` and ``__getitem__``.
        seed: seed of the augmentation.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed
        # shared, so that workers that live on see the next epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the samples made from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return num_samples(self.dataset)

    def __getitem__(self, index: int) -> Any:
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed = stream_seed(self.seed, int(self._epoch), f"sample:{index}")
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            return self.dataset[index]
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])
