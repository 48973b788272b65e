"""The DistributedSampler that follows an :class:`~kakurenbo_lightning.core.plan.EpochPlan`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import cast

from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from kakurenbo_lightning.core.order import Order
from kakurenbo_lightning.core.plan import EpochPlan, Plan
from kakurenbo_lightning.core.shard import Layout, Shard, same_batches


class SelectionSampler(DistributedSampler):
    """A batch sampler whose epoch is one rank's shard of an :class:`EpochPlan`.

    It serves as the ``batch_sampler`` *and* the ``sampler`` of a ``DataLoader``: subclassing ``DistributedSampler`` keeps
    Lightning from wrapping it again and lets Lightning call :meth:`set_epoch` before each epoch. It also works in a
    plain PyTorch loop::

        method = get_method("kakurenbo", max_fraction=0.3, tau=0.7)
        sampler = SelectionSampler(len(dataset), batch_size=128)
        loader = DataLoader(dataset, batch_sampler=sampler)
        statistics = SampleStatistics(len(dataset))
        for epoch in range(max_epochs):
            plan = method.plan(statistics, Epoch(epoch, max_epochs, seed=0))
            sampler.follow(plan, epoch)
            for step, (x, y) in enumerate(loader):
                ...
                statistics.record(sampler.step(step), {"loss": l, "correct": c, "confidence": p}, epoch)
            # a forward-only pass over plan.hidden records them too, then:
            statistics.merge()

    Args:
        num_samples: length of the data set.
        batch_size: samples per rank and step.
        world_size: number of ranks.
        rank: this process.
        drop_last: drop an incomplete last step, as in ``DataLoader``.
        shuffle: train in random order (else ascending index).
        seed: seed of the order; the same on every rank.
        order: function of an epoch and a seed that returns the order of the epoch's samples, in place of a random one.
        extra: one more batch, of a single sample, ends each epoch: the step in which a backprop method trains what is left.
        on_set_epoch: called with the epoch by :meth:`set_epoch`; how the callback plans in time.
        plan: followed first; ``None`` for every sample.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        world_size: int = 1,
        rank: int = 0,
        *,
        drop_last: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        extra: bool = False,
        order: Callable[[int, int], Order] | None = None,
        on_set_epoch: Callable[[int], None] | None = None,
        plan: Plan | None = None,
    ) -> None:
        data = cast(Dataset, range(num_samples))  # only the length of the data set is read
        super().__init__(data, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed, drop_last=drop_last)
        self.batch_size = batch_size
        self.start = 0
        self.extra = extra
        self._order = order
        self._listed: tuple[tuple[int, int], Order | None] = (-1, -1), None  # the order of the epoch and seed asked for last
        self._on_set_epoch = on_set_epoch
        self._begun: tuple[Shard, int, bool] | None = None
        self.follow(plan or EpochPlan.everything(num_samples), epoch=0)

    def layout(self, epoch: int, done: tuple[int, int] = (0, 0)) -> Layout:
        """How ``epoch`` is laid out, of which ``done`` (steps, samples) are trained already."""
        order = self._order_of(epoch)
        return Layout(self.batch_size, self.num_replicas, self.rank, self.drop_last, self.shuffle, self.seed, epoch, done, order)

    def _order_of(self, epoch: int) -> Order | None:
        """The order of an epoch; ``None`` for a random one."""
        epoch = max(0, epoch)  # before the first one, too, it is asked for
        if self._order is not None and self._listed[0] != (epoch, self.seed):
            self._listed = (epoch, self.seed), self._order(epoch, self.seed)
        return self._listed[1]

    def follow(self, plan: Plan | Shard, epoch: int = 0, start: int = 0) -> None:
        """Make ``plan``, or this rank's part of one, the current epoch; iteration begins at step ``start``."""
        self.shard: Shard = plan.shard(self.layout(epoch)) if isinstance(plan, Plan) else plan
        self.start = start

    @property
    def was_iterated(self) -> bool:
        """Whether an iterator was ever made."""
        return self._begun is not None

    @property
    def has_begun(self) -> bool:
        """Whether the iterator that was made last goes over the batches that are followed now."""
        if self._begun is None or self._begun[1:] != (self.start, self.extra):
            return False
        return same_batches(self._begun[0], self.shard)

    def step(self, number: int) -> Tensor:
        """The data set indices that step ``number`` trains, ``int64[b]`` on the CPU."""
        return self.shard.step(number)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch; the callback plans the epoch in it."""
        super().set_epoch(epoch)
        if self._on_set_epoch is not None:
            self._on_set_epoch(epoch)

    def __len__(self) -> int:
        return self.shard.steps + self.extra

    def __iter__(self) -> Iterator[list[int]]:
        self._begun = self.shard, self.start, self.extra
        # a fresh iterator each time: DataLoader asks twice when it has workers
        batches = self.shard.batches(self.start)
        return itertools.chain(batches, [self._filler()]) if self.extra and self.start <= self.shard.steps else batches

    def _filler(self) -> list[int]:
        """The indices that the extra batch loads: any sample will do, because the step trains chosen ones in its place."""
        return self.shard.step(self.shard.steps - 1)[-1:].tolist() or [0]
