"""The order of a sampler, or a batch sampler, of the user's own: an epoch is trained in it, without what is hidden."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from kakurenbo_lightning.core.flavour import is_instance
from kakurenbo_lightning.core.order import Order
from kakurenbo_lightning.core.random import isolated_rng, seed_everything, stream_seed
from kakurenbo_lightning.core.seeded_dataset import num_samples
from kakurenbo_lightning.core.universe import Universe
from kakurenbo_lightning.errors import ConflictError

LISTED = 3  # epochs that show which samples there are, and which of them share batches
MOST_LISTED, SURE = 24, 6  # where epochs leave some out: until each sample that is listed at all was in so many
FEW = 0.1  # of an epoch's samples: so many it may leave out, or repeat to fill batches
NESTED = 100  # items of a list, or a dict, in which parts of a sampler are looked for at most
_APART = (type, ModuleType, Dataset, DataLoader, torch.nn.Module, torch.Tensor)  # no parts of a sampler that refers to them


@dataclass(frozen=True)
class Listing:
    """What a sampler lists in one epoch.

    Attributes:
        indices: ``int64[n]`` data set indices, each once.
        sizes: ``int64[m]`` of its batches; one for a sampler that yields single indices.
    """

    indices: np.ndarray
    sizes: np.ndarray

    @property
    def batches(self) -> np.ndarray:
        """``int64[n]``, the number of the batch that each index is in."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


class ListedOrder:
    """The order in which a sampler of the user's lists samples, as a function of epoch and seed: equal on every rank and after a
    resume.

    The user's sampler is not touched. Each listing is by a copy of it (which has the data sets, modules and Trainer themselves, no
    copies), whose ``set_epoch`` is called, whose own generators are seeded, and around which the global random streams are set aside and
    seeded. One that counts its epochs itself is listed as often as it would have been.

    Args:
        loader: whose sampler, or batch sampler if it is not torch's, is listed.
        world_size: how many ranks train.

    Attributes:
        name: name of the sampler, for errors.
        batch_size: the loader's, or the largest batch of a batch sampler.
        drop_last: whether an incomplete last step is dropped.
        universe: the samples that are listed.

    Raises:
        ConflictError: it cannot be listed, or not as an epoch of samples that may be hidden.
    """

    def __init__(self, loader: DataLoader, world_size: int) -> None:
        batches: Any = loader.batch_sampler
        self._batched = getattr(type(batches), "__iter__", None) is not BatchSampler.__iter__
        self._sampler = batches if self._batched else batches.sampler
        self._dataset, self._total = loader.dataset, num_samples(loader.dataset)
        self.name = f"{'batch_' if self._batched else ''}sampler={type(self._sampler).__name__}"
        self.drop_last = bool(getattr(batches, "drop_last", False))
        if getattr(self._sampler, "num_replicas", 1) not in (1, None):
            raise ConflictError(
                f"{self.name}(num_replicas={self._sampler.num_replicas}) lists the samples of one rank; the selection shards the epoch, "
                "so give it a sampler that lists the samples of all ranks"
            )
        self._counting: tuple[Any, int, int] | None = None  # a copy that counts its epochs, the seed, and the next one
        self._counts = False
        listings = self._first_listings()
        self.batch_size = max(int(each.sizes.max()) for each in listings) if self._batched else batches.batch_size
        for epoch, listing in enumerate(listings):
            self._check_sizes(listing, epoch)
        self.universe = self._universe(listings, world_size)
        self._shared = self._batches_of(listings[:LISTED]) if self._batched else None

    def __call__(self, epoch: int, seed: int) -> Order:
        """The samples of the universe in the order of an epoch; what it leaves out (its ``drop_last``) comes last.

        Raises:
            ConflictError: it lists others than before, or in larger batches.
        """
        listing = self._list(epoch, seed)
        self._check_sizes(listing, epoch)
        left = np.ones(self._total, dtype=bool)
        left[listing.indices] = False
        known = np.arange(self._total) if self.universe.indices is None else self.universe.indices.numpy()
        missing = known[left[known]]
        if len(listing.indices) + len(missing) != len(known):
            raise ConflictError(
                f"{self.name} lists samples in epoch {epoch} that it did not list before; it must list the same ones in each epoch"
            )
        indices = torch.from_numpy(np.concatenate([listing.indices, missing]))
        if self._shared is None:
            return Order(indices)
        alone = len(listing.sizes) + np.arange(len(missing))  # filled up from others that are alike
        return Order(indices, torch.from_numpy(np.concatenate([listing.batches, alone])), self._shared)

    def _first_listings(self) -> list[Listing]:
        """A few epochs; where they leave out some samples, as many as it takes to be sure that no other is ever listed."""
        listings = [self._list(0, 0), self._list(1, 0)]
        if np.array_equal(listings[0].indices, listings[1].indices):
            self._counts = True
            listings[1] = self._list(1, 0)
            self._counts = not np.array_equal(listings[0].indices, listings[1].indices)
        counts = np.zeros(self._total, dtype=np.int64)
        for epoch in range(MOST_LISTED):
            if epoch >= len(listings):
                listings.append(self._list(epoch, 0))
            counts[listings[epoch].indices] += 1
            listed = counts[counts > 0]
            each_has_all = len(listed) == self._total or all(len(each.indices) == len(listed) for each in listings)
            if epoch + 1 >= (LISTED if self._batched else 2) and (each_has_all or listed.min() >= SURE):
                break
        return listings

    def _universe(self, listings: list[Listing], world_size: int) -> Universe:
        """All that was listed, or the whole data set where each epoch leaves out so much that chance may have left out some in all."""
        counts = np.bincount(np.concatenate([each.indices for each in listings]), minlength=self._total)
        inside = np.flatnonzero(counts)
        left_out = max(len(inside) - len(each.indices) for each in listings)
        if left_out >= max(self.batch_size * world_size, FEW * len(inside)):
            raise ConflictError(
                f"{self.name} lists other samples in each epoch (as many as {left_out} of {len(inside)} are left out), and the selection "
                "must know which samples there are; list the same ones in each epoch (drop_last=False, if it has that), and let the "
                "method choose"
            )
        whole = len(inside) == self._total or (counts[inside].min() < SURE and self._total - len(inside) <= left_out)
        return Universe(self._total, None if whole else torch.from_numpy(inside))

    def _batches_of(self, listings: list[Listing]) -> torch.Tensor:
        """The batch of each data set index in each of some epochs, ``int32[E, N]``, -1 for none."""
        found = np.full((len(listings), self._total), -1, dtype=np.int32)
        for row, listing in zip(found, listings, strict=True):
            row[listing.indices] = listing.batches
        return torch.from_numpy(found)

    def _list(self, epoch: int, seed: int) -> Listing:
        """Ask the sampler for an epoch, and check it: samples of the data set, each at most once."""
        found = self._counted(epoch, seed) if self._counts else self._listed_by(self._copy(), epoch, seed)
        batches = [list(batch) for batch in found] if self._batched else [found]
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
        sizes = np.array([len(batch) for batch in batches])
        return self._without_repeats(listed.astype(np.int64), sizes, epoch)

    def _listed_by(self, sampler: Any, epoch: int, seed: int) -> list[Any]:
        """List what ``sampler``, a copy, yields in ``epoch``; at most one more than there can be, so that one without an end is
        an error."""
        seed = stream_seed(seed, epoch, "user order")
        with isolated_rng():
            seed_everything(seed)
            for each in _parts(sampler)[0]:
                _seed(each, seed)
                if callable(set_epoch := getattr(each, "set_epoch", None)):
                    set_epoch(epoch)
            return list(islice(sampler, self._total + 1))

    def _counted(self, epoch: int, seed: int) -> list[Any]:
        """List ``epoch`` by a copy that has listed the epochs before it too, for a sampler that counts them itself."""
        sampler, of, following = self._counting or (None, 0, 0)
        if sampler is None or of != seed or following > epoch:
            sampler, following = self._copy(), 0
        found: list[Any] = []
        for each in range(following, epoch + 1):
            found = self._listed_by(sampler, each, seed)
        self._counting = sampler, seed, epoch + 1
        return found

    def _without_repeats(self, listed: np.ndarray, sizes: np.ndarray, epoch: int) -> Listing:
        """Each sample where it is first: a batch sampler repeats a few to fill its last batches, which the selection fills itself.

        Raises:
            ConflictError: they are more than a few, or single indices.
        """
        firsts = np.sort(np.unique(listed, return_index=True)[1])
        repeated = len(listed) - len(firsts)
        if not repeated:
            return Listing(listed, sizes)
        if not self._batched or repeated > FEW * len(firsts):
            counts = np.bincount(listed, minlength=self._total)
            raise ConflictError(
                f"{self.name} yields sample {counts.argmax()} more than once in epoch {epoch}; each may be there once: which samples an "
                'epoch repeats is decided by the method. For draws by weights: SampleSelection("weighted", weights=...)'
            )
        batches = Listing(listed, sizes).batches[firsts]
        return Listing(listed[firsts], np.bincount(batches, minlength=len(sizes)))

    def _check_sizes(self, listing: Listing, epoch: int) -> None:
        """Raise ``ConflictError`` when less than half of the batches are full ones, or some are larger."""
        if not self._batched:
            return
        sizes, size = listing.sizes.tolist(), self.batch_size
        if 2 * Counter(sizes)[size] < len(sizes) or max(sizes) > size:
            before = f", and of {size} in another" if max(sizes) != size else ""
            raise ConflictError(
                f"{self.name} yields batches of {min(sizes)} to {max(sizes)} samples in epoch {epoch}{before}; hidden samples make room "
                "for others, so that batches must have one size (but for the last ones of a part); use batches of one size"
            )

    def _copy(self) -> Any:
        """A copy of the sampler; data sets, modules and the Trainer are not copied."""
        parts, others = _parts(self._sampler)
        memo: dict[int, Any] = {id(each): each for each in (self._dataset, *others) if not isinstance(each, torch.Tensor)}
        for each in parts:
            if isinstance(each, torch.Generator):  # which cannot be copied in older releases
                memo[id(each)] = torch.Generator()
        try:
            return copy.deepcopy(self._sampler, memo)
        except Exception as error:
            raise ConflictError(
                f"{self.name} cannot be copied ({type(error).__name__}: {error}), and each epoch is listed by a copy, so that a resumed "
                "run has the same order; let it keep indices and settings only"
            ) from None


def _attributes(value: object) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _parts(sampler: Any) -> tuple[list[Any], list[Any]]:
    """The sampler and the objects that it is made of, and others that these refer to."""
    pending, known, parts, others = [sampler], set(), [], []
    while pending:
        each = pending.pop()
        if id(each) in known:
            continue
        known.add(id(each))
        if isinstance(each, _APART) or is_instance(each, pl.Trainer):
            others.append(each)
        elif isinstance(each, (list, tuple)):
            pending += each if len(each) <= NESTED else ()
        elif isinstance(each, Mapping):
            pending += each.values() if len(each) <= NESTED else ()
        else:
            parts.append(each)
            pending += _attributes(each).values()
    return parts, others


def _seed(part: object, seed: int) -> None:
    """Seed a generator of random numbers; anything else stays as it is."""
    if isinstance(part, torch.Generator):
        part.manual_seed(seed)
    elif isinstance(part, np.random.Generator):
        part.bit_generator.state = type(part.bit_generator)(seed).state
    elif isinstance(part, np.random.RandomState):
        part.seed(seed % 2**32)
    elif isinstance(part, random.Random):
        part.seed(seed)
