"""A train loader of iterable data, between the user's and Lightning: it counts what arrives, and ends on every rank at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from kakurenbo_lightning.core.arrivals import UNKNOWN, ArrivingShard
from kakurenbo_lightning.core.batch_rows import plain
from kakurenbo_lightning.core.distributed import collective, gather, rank_zero_warn, world_size
from kakurenbo_lightning.core.key_filter import KeyFilter
from kakurenbo_lightning.core.shard import Layout
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.trainer.loader_place import LoaderPlaces

_END = object()  # in place of a batch
_NO_ROWS, _NO_KEYS = -1, -2  # in place of the size of a batch


def is_iterable_data(loader: object) -> bool:
    """Whether a train loader gives batches of samples that have no index."""
    if isinstance(loader, DataLoader):
        return isinstance(loader.dataset, IterableDataset)
    return isinstance(loader, Iterable) and not isinstance(loader, (Tensor, str, bytes))


class Arrivals:
    """In the place of a ``SelectionSampler``, for a loader whose samples have no index: every batch that arrives is followed.

    Lightning calls :meth:`set_epoch` before each epoch, as of a sampler. With several ranks the sizes of each batch are exchanged when it
    is loaded, on the host: an epoch ends on every rank when the first one has no more.

    Args:
        loader: the user's.
        num_replicas: number of ranks.
        rank: this process.
        seed: of choices.
        extra: one more batch ends each epoch, in which a backprop method trains what is left.
        max_batches: of the training, where ``max_steps`` says it: an epoch without a length may be as long.
        epoch: that is trained first.
        on_set_epoch: called with the epoch by :meth:`set_epoch`.
        keep: knows which keys an epoch leaves out, where samples have keys; how many batches are left is not known then.

    Attributes:
        held: no batch is loaded, because a checkpoint will say where to begin.
        places: where the loader stands.
        loader: what Lightning gets.
    """

    drop_last = shuffle = False

    def __init__(
        self,
        loader: Any,
        num_replicas: int,
        rank: int,
        seed: int,
        extra: bool,
        max_batches: int | None,
        epoch: int,
        on_set_epoch: Callable[[int], None],
        keep: KeyFilter | None = None,
    ) -> None:
        self.num_replicas, self.rank, self.seed, self.extra = num_replicas, rank, seed, extra
        self._source, self._max_batches, self._on_set_epoch, self._keep = loader, max_batches, on_set_epoch, keep
        self.announced = _agreed_length(loader) if keep is None else None
        self.places = LoaderPlaces(loader)
        self._begun: ArrivingShard | None = None
        self._warned: set[str] = set()
        self._group: Any = None  # on the host, where the ranks' own is not
        self.held = False
        self.shard = self._shard_of(epoch, 0)
        self.loader = ArrivingLoader(self, loader)

    # --- what a session asks of a sampler

    @property
    def batch_size(self) -> int:
        """Samples of a full batch; 0 before the first one where the loader does not say."""
        return self.shard.batch_size

    @property
    def expected(self) -> int | None:
        """Loaded batches of an epoch, as far as anything says; ``None`` where nothing does."""
        known = self.places.length if self.announced is None else self.announced
        return self._max_batches if known is None else known

    @property
    def was_iterated(self) -> bool:
        """Whether an iterator was ever made."""
        return self._begun is not None

    @property
    def has_begun(self) -> bool:
        """Whether the iterator that was made last goes over the batches that are followed now."""
        return self._begun is self.shard

    def layout(self, epoch: int, done: tuple[int, int] = (0, 0)) -> Layout:
        """How ``epoch`` is laid out; there is no order to tell."""
        return Layout(self.batch_size, self.num_replicas, self.rank, shuffle=False, seed=self.seed, epoch=epoch, done=done)

    def of_epoch(self, epoch: int) -> ArrivingShard:
        """The shard of ``epoch``, which is that of now if its batches have begun to arrive."""
        return self.shard if self.shard.epoch == epoch else self._shard_of(epoch, 0)

    def follow(self, shard: Any, start: int = 0) -> None:
        """Follow ``shard``, which is one of :meth:`of_epoch`, from batch ``start`` on."""
        self.held = False
        self.shard = shard if shard.first == start else self._shard_of(shard.epoch, start)

    def _shard_of(self, epoch: int, start: int) -> ArrivingShard:
        size = getattr(self._source, "batch_size", None)
        expected = UNKNOWN if self.expected is None else self.expected
        return ArrivingShard(
            epoch,
            start,
            self.num_replicas,
            self.rank,
            size if type(size) is int else 0,
            self.places.samples_before(start) if start else 0,
            expected,
        )

    def set_epoch(self, epoch: int) -> None:
        """Lightning's call before each epoch."""
        self._on_set_epoch(epoch)

    def __len__(self) -> int:
        return UNKNOWN if self.announced is None else self.announced + self.extra

    # --- what Lightning asks of a loader

    def __iter__(self) -> Iterator[Any]:
        self._begun = self.shard
        self.shard.clear()
        return self._batches(self.shard)

    def _batches(self, shard: ArrivingShard) -> Iterator[Any]:
        """The batches of an epoch; the first is loaded when it is asked for."""
        if self.held:
            return
        places, number, last = self.places, shard.first, _END
        iterator, steps = places.begin(shard.epoch, number, self.seed)
        shard.end(steps or self.announced or UNKNOWN)
        while iterator is not None and number < shard.steps:
            batch = next(iterator, _END)
            size, keys, weights, error = self._read(batch, shard.epoch, number)
            sizes = self._exchange(size, error, shard, number)
            if not all(sizes):
                self._end_early(sizes, number)
                shard.end(number)
                places.end(number, exhausted=batch is _END, extra=self.extra)
                break
            shard.arrive(number, sizes, keys, weights)
            places.took(number, shard.samples_until(number + 1))
            number += 1
            if number == shard.steps:  # before the last one is trained, so that a checkpoint saved then knows of the end
                places.end(number, exhausted=next(iterator, _END) is _END, extra=self.extra)
            last = batch
            yield batch
        if self.extra and number <= shard.steps:  # any batch will do, the step trains chosen samples in its place
            yield places.filler() if last is _END else last

    def _read(self, batch: Any, epoch: int, number: int) -> tuple[int, Tensor | None, Tensor | None, ConflictError | None]:
        """Size, keys and loss weights of a batch; or what is wrong with it, which the other ranks must know of first."""
        size = 0 if batch is _END else rows_of(batch)
        if not size or self._keep is None:
            return _NO_ROWS if size is None else size, None, None, None
        try:
            keys = self._keep.field.of_batch(batch, size)
            weights = self._keep.weights(keys)
            if weights is not None and not bool(weights.all()):
                raise ConflictError(
                    f"{int((weights == 0).sum())} of {size} samples of batch {number} are to be left out of epoch {epoch}, and have come "
                    "all the same: put selection.keep into the data's pipeline, before decoding and before what outlives an epoch (for "
                    "example .select(selection.keep) of webdataset, dataset.filter(selection.keep), or in __iter__: if keep(key)), with "
                    f"the key that the batch has ({self._keep.field})"
                )
        except ConflictError as error:
            return _NO_KEYS, None, None, error
        return size, keys, weights, None

    def _exchange(self, size: int, error: ConflictError | None, shard: ArrivingShard, number: int) -> list[int]:
        """The sizes that batch ``number`` has on the ranks. Collective.

        Raises:
            ConflictError: on every rank, when one does not know the size of its batch, or there is an ``error``.
        """
        sizes = [size]
        if world_size() > 1:
            if self._group is None and "gloo" not in dist.get_backend():
                self._group = dist.new_group(backend="gloo")  # its numbers are on the host: nothing waits for the device
            mine = torch.tensor([self.rank, sizes[0]])
            found = [torch.empty_like(mine) for _ in range(world_size())]
            position = f"rank {self.rank}, in epoch {shard.epoch} before batch {number},"
            with collective("say how many samples their next batch has", position):
                dist.all_gather(found, mine, group=self._group)
            sizes = self._by_rank([each.tolist() for each in found], number)
        if _NO_KEYS in sizes:
            raise error or ConflictError(
                f"batch {number} of rank {sizes.index(_NO_KEYS)} has no valid keys; its own error says why"
            )
        if min(sizes) < 0:
            raise ConflictError(
                f"batch {number} of the train loader holds no tensor or list with one row per sample, so it is not known how many samples "
                "it has; let the loader, or the pipeline, make batches of tensors whose first axis is the samples (batch_size=..., or "
                ".batched(...) in a pipeline)"
            )
        return sizes

    def _by_rank(self, found: list[list[int]], number: int) -> list[int]:
        """The sizes by rank; under tensor parallelism several processes are one, and are given the same samples."""
        known = {pair[0]: pair[1] for pair in found}
        if any(known[rank] != size for rank, size in found):
            raise ConflictError(
                f"processes of one tensor-parallel group read batches of different sizes ({found}, each rank and size) as batch {number}; "
                "split the data by trainer.distributed_sampler_kwargs (rank, num_replicas), not by the process"
            )
        return [known[rank] for rank in range(self.num_replicas)]

    def _end_early(self, sizes: list[int], number: int) -> None:
        """The stream of a rank has ended before batch ``number``: that is the epoch's end on every rank.

        Raises:
            ConflictError: on every rank, when one has no batch at all.
        """
        ended = [rank for rank, size in enumerate(sizes) if not size]
        who = "the train loader" if len(sizes) == 1 else f"the train loader of rank {ended[0]}"
        if number == 0:
            raise ConflictError(
                f"{who} has no batch at all, so there is nothing to train; check where its data set reads from, and how it is split over "
                "ranks and workers: each needs a part of its own (at least one shard per rank and worker)"
                + (", of which the epoch leaves something, so hide less where all of it is hidden" if self._keep else "")
            )
        if len(ended) < len(sizes):
            self._warn(
                "uneven",
                f"{who} ended after {number} batches and those of other ranks had more: epochs end on every rank with the shortest one, "
                "and what others had is not trained. Give the ranks streams of one length (as many shards per rank, or a stream that is "
                "repeated and cut to a length)"
                + ("; what an epoch leaves out by key=... makes them differ a little, so shuffle" if self._keep else ""),
            )
        if self.announced is not None and number < self.announced:
            self._warn(
                "short",
                f"{who} ended after {number} batches and had said that it has {self.announced} (len()); from the next epoch on its length "
                "counts as unknown. Let __len__ count what this rank's workers yield, or leave it out",
            )
            self.announced = None

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            rank_zero_warn(text)


class ArrivingLoader:
    """What Lightning gets in place of the user's ``loader``: the batches of ``sampler``; its length only where it is known."""

    def __init__(self, sampler: Arrivals, loader: Any) -> None:
        self.sampler, self._loader = sampler, loader

    @property
    def dataset(self) -> Any:
        """The user's data set; the loader itself where it has none."""
        return getattr(self._loader, "dataset", self._loader)

    @property
    def worker_init_fn(self) -> Any:
        """Of the user's loader: Lightning's ``seed_everything(workers=True)`` sets one."""
        return self._loader.worker_init_fn  # an AttributeError where it has none, as Lightning expects

    @worker_init_fn.setter
    def worker_init_fn(self, function: Any) -> None:
        self._loader.worker_init_fn = function

    @property
    def num_workers(self) -> int:
        """Worker processes of the user's loader; 0 where it does not say."""
        return getattr(self._loader, "num_workers", 0)

    def __len__(self) -> int:
        if self.sampler.announced is None:
            raise TypeError(f"a {type(self._loader).__name__} of iterable data has no length")
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.sampler)


def rows_of(batch: Any) -> int | None:
    """How many samples a batch has: rows of its first tensor, or length of its first list where it has no tensor; ``None``: unknown."""
    known = plain(batch)
    for leaf in tree_leaves(known):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    if isinstance(known, (list, tuple)) and not any(isinstance(part, (dict, list, tuple, str)) for part in known):
        return None  # numbers: the parts of one sample
    return next((len(part) for part in _lists(known)), None)


def _lists(batch: Any) -> Iterator[Any]:
    """Lists and tuples of plain values in a batch, outermost first."""
    if isinstance(batch, dict):
        for part in batch.values():
            yield from _lists(part)
    elif isinstance(batch, (list, tuple)):
        inner = [part for part in batch if isinstance(part, (dict, list, tuple))]
        if inner:
            for part in inner:
                yield from _lists(part)
        else:
            yield batch


def _agreed_length(loader: Any) -> int | None:
    """Batches of an epoch where the loaders of all ranks say it, the shortest one; ``None`` where one does not. Collective.

    Raises:
        ConflictError: it is 0.
    """
    try:
        mine = len(loader)
    except (TypeError, NotImplementedError):
        mine = None
    lengths = gather(mine)
    if None in lengths:
        return None
    if not min(lengths):
        raise ConflictError(
            f"the train loader has length 0{f' on rank {lengths.index(0)}' if len(lengths) > 1 else ''}, so there is nothing to train; "
            "check where its data set reads its samples from, and what it filters out"
        )
    return min(lengths)
