"""The order of a sampler, or a batch sampler, of the user's own: an epoch is trained in it, without what is hidden."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from kakurenbo_lightning.core.random import isolated_rng, seed_everything, stream_seed
from kakurenbo_lightning.core.seeded_dataset import num_samples
from kakurenbo_lightning.core.shard import Order
from kakurenbo_lightning.core.universe import Universe
from kakurenbo_lightning.errors import ConflictError

Listing = tuple[np.ndarray, list[int]]  # int64 [n], and the sizes of its batches
LISTED = 4  # epochs that show which samples share batches


class ListedOrder:
    """What a sampler of the user's lists in each epoch, as a function of the epoch and a seed: equal on every rank and after a resume.

    The user's sampler is not touched. Each listing is by a copy of it (which has the data set itself, not a copy), whose
    ``set_epoch`` is called, whose own generators are seeded, and around which the global random streams are set aside and seeded.

    Args:
        loader: whose sampler, or batch sampler if it is not torch's, is listed.
        world_size: of the Trainer.

    Attributes:
        name: of the sampler, for errors.
        batch_size: of a batch sampler its largest batch.
        drop_last: whether an incomplete last step is dropped.
        universe: the samples that are listed.

    Raises:
        ConflictError: it cannot be listed, or not as an epoch of samples that may be hidden.
    """

    def __init__(self, loader: DataLoader, world_size: int) -> None:
        batches: Any = loader.batch_sampler
        self._batched = type(batches) is not torch.utils.data.BatchSampler
        self._sampler = batches if self._batched else batches.sampler
        self._dataset, self._total = loader.dataset, num_samples(loader.dataset)
        self.name = f"{'batch_' if self._batched else ''}sampler={type(self._sampler).__name__}"
        self.drop_last = bool(getattr(batches, "drop_last", False))
        if getattr(self._sampler, "num_replicas", 1) not in (1, None):
            raise ConflictError(
                f"{self.name}(num_replicas={self._sampler.num_replicas}) lists the samples of one rank; the selection shards the epoch, "
                "so give it a sampler that lists the samples of all ranks"
            )
        listings = [self._list(epoch, 0) for epoch in range(LISTED if self._batched else 2)]
        (first, sizes), (second, _) = listings[:2]
        self.batch_size = self._size_of(sizes) if self._batched else batches.batch_size
        inside = np.unique(np.concatenate([first, second]))
        left_out = 2 * len(inside) - len(first) - len(second)
        if left_out >= 2 * self.batch_size * world_size:
            raise ConflictError(
                f"{self.name} lists other samples in each epoch ({left_out // 2} of {len(inside)} are left out), and the selection must "
                "know which samples there are; list the same ones in each epoch, and let the method choose"
            )
        self.universe = Universe(self._total, None if len(inside) == self._total else torch.from_numpy(inside))
        self._groups = groups_of(listings, self._total) if self._batched else None

    def __call__(self, epoch: int, seed: int) -> Order:
        """The samples of the universe in the order of an epoch; what it leaves out (its ``drop_last``) comes last.

        Raises:
            ConflictError: it lists others than before.
        """
        listed, _ = self._list(epoch, seed)
        left = np.ones(self._total, dtype=bool)
        left[listed] = False
        known = np.arange(self._total) if self.universe.indices is None else self.universe.indices.numpy()
        missing = known[left[known]]
        if len(listed) + len(missing) != len(known):
            raise ConflictError(
                f"{self.name} lists samples in epoch {epoch} that it did not list before; it must list the same ones in each epoch"
            )
        return Order(torch.from_numpy(np.concatenate([listed, missing])), self._groups)

    def _list(self, epoch: int, seed: int) -> Listing:
        """What the sampler lists, checked: samples of the data set, each at most once."""
        with isolated_rng():
            sampler = self._copy(stream_seed(seed, epoch, "user order"))
            seed_everything(stream_seed(seed, epoch, "user order"))
            for each in _with_inner(sampler):
                if callable(set_epoch := getattr(each, "set_epoch", None)):
                    set_epoch(epoch)
            # one more than there can be: a sampler without an end has an error too
            found = list(islice(sampler, self._total + 1))
        batches = [list(batch) for batch in found] if self._batched else [found]
        sizes = [len(batch) for batch in batches]
        flat = [index for batch in batches for index in batch]
        listed = np.asarray(flat) if flat else np.empty(0, dtype=np.int64)
        if not len(listed) or listed.ndim != 1 or listed.dtype.kind not in "iu":
            what = "nothing" if not len(listed) else f"{type(found[0]).__name__}, as {str(found[0])[:60]}"
            kind = "lists of indices" if self._batched else "indices"
            raise ConflictError(
                f"{self.name} yields {what} in epoch {epoch}; it must yield {kind} of samples, 0 to {self._total - 1}"
            )
        if listed.min() < 0 or listed.max() >= self._total:
            wrong = listed.min() if listed.min() < 0 else listed.max()
            raise ConflictError(f"{self.name} yields sample {wrong} in epoch {epoch}; samples are 0 to {self._total - 1}")
        counts = np.bincount(listed, minlength=self._total)
        if counts.max() > 1:
            raise ConflictError(
                f"{self.name} yields sample {counts.argmax()} more than once in epoch {epoch}; each may be there once: which samples an "
                'epoch repeats is decided by the method. For draws by weights: SampleSelection("weighted", weights=...)'
            )
        return listed.astype(np.int64), sizes

    def _size_of(self, sizes: list[int]) -> int:
        """The size of a full batch."""
        size, count = max(sizes), Counter(sizes)
        if 2 * count[size] < len(sizes):
            raise ConflictError(
                f"{self.name} yields batches of {min(sizes)} to {size} samples; hidden samples make room for others, so that batches must "
                "have one size (but for the last ones of a part); use batches of one size"
            )
        return size

    def _copy(self, seed: int) -> Any:
        """A copy of the sampler with seeded generators; the data set is not copied."""
        memo: dict[int, Any] = {id(self._dataset): self._dataset}
        for each in _with_inner(self._sampler):
            for value in vars(each).values():
                if (seeded := _seeded(value, seed)) is not None:
                    memo[id(value)] = seeded
        try:
            return copy.deepcopy(self._sampler, memo)
        except Exception as error:
            raise ConflictError(
                f"{self.name} cannot be copied ({type(error).__name__}: {error}), and each epoch is listed by a copy, so that a resumed "
                "run has the same order; let it keep indices and settings only"
            ) from None


def groups_of(listings: list[Listing], total: int) -> Tensor | None:
    """Which of ``total`` samples share a batch in one of some epochs, directly or through others: ``int64[total]``; ``None``: all do."""
    groups, before = np.arange(total), None
    while before is None or (groups != before).any():
        before = groups.copy()
        for listed, sizes in listings:
            lengths = np.array([size for size in sizes if size])
            lowest = np.minimum.reduceat(groups[listed], np.cumsum(lengths) - lengths)
            np.minimum.at(groups, groups[listed], np.repeat(lowest, lengths))  # also of those that are in other batches
            groups[listed] = np.minimum(groups[listed], np.repeat(lowest, lengths))
    used = groups[np.unique(np.concatenate([listed for listed, _ in listings]))]
    return None if (used == used[0]).all() else torch.from_numpy(groups)


def _with_inner(sampler: Any) -> Iterator[Any]:
    """The sampler and those that it is made of."""
    yield sampler
    for value in list(vars(sampler).values()):
        if isinstance(value, Sampler):
            yield from _with_inner(value)


def _seeded(generator: object, seed: int) -> object | None:
    """A new generator of the same kind; ``None`` for something else."""
    if isinstance(generator, torch.Generator):
        return torch.Generator().manual_seed(seed)
    if isinstance(generator, np.random.Generator):
        return np.random.default_rng(seed)
    if isinstance(generator, np.random.RandomState):
        return np.random.RandomState(seed % 2**32)
    return random.Random(seed) if isinstance(generator, random.Random) else None
