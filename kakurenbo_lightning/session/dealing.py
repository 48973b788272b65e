"""How a planned epoch reaches the loader, the optimizers and the schedules."""

from __future__ import annotations

from math import ceil

from kakurenbo_lightning.core.seeded_dataset import set_dataset_epoch
from kakurenbo_lightning.core.shard import EpochShard
from kakurenbo_lightning.core.stream_shard import StreamShard
from kakurenbo_lightning.methods.draw.base import StreamMethod


class Dealing:
    """The part of :class:`~kakurenbo_lightning.run.Session` that deals a plan."""

    def _follow(self, epoch: int, start: int) -> None:
        """Make the plan what the loader and the trainer go by."""
        self._deal(epoch, start)
        self.announced = False
        set_dataset_epoch(self.loader.dataset, epoch)
        if not self._public:
            self.adapter.refresh_lengths()
            self.adapter.reiterate_if_needed()

    def _deal(self, epoch: int, start: int) -> None:
        """Make the plan what the sampler, the optimizers and the schedules go by."""
        self._sampler.follow(self._share(epoch), start=start)
        self._shard = self._sampler.shard.to(self.statistics.device)
        self.step = start
        self.factor.value = self.plan.lr_factor
        self._align_from = start
        if self.engine is not None:
            self.engine.begin_epoch(self._epoch(epoch), self._shard, start, self.outputs)

    def _share(self, epoch: int) -> EpochShard | StreamShard:
        """This rank's share of the plan of ``epoch``, without what is behind."""
        if isinstance(self._method, StreamMethod) and self._method.streams(self._epoch(epoch)):
            return self._streamed(self._sampler.batch_size, self._sampler.num_replicas, self._done, draws=True)
        return self._sampler.deal(self.plan, epoch, self._done)

    def _streamed(self, batch_size: int, world_size: int, done: tuple[int, int] = (0, 0), draws: bool = False) -> StreamShard:
        total, rank, device = len(self.statistics), self._trainer.global_rank, self.statistics.device
        draw, drawn = (self.engine.draw, self.engine.drawn) if draws else (None, None)
        samples = self._epoch_samples or self._method.epoch_batches(total, batch_size) * batch_size
        return StreamShard(samples, total, batch_size, world_size, rank, draw, drawn, device, done)

    def _schedules_follow_epochs(self) -> bool:
        """Whether schedules are to be aligned: not when ``max_steps`` counts the steps they were built for."""
        trainer = self._trainer
        if not self._align_schedules or not trainer.lightning_module.automatic_optimization:
            return False
        steps = ceil(self._full_batches / trainer.accumulate_grad_batches)
        return trainer.max_steps < 0 or ((trainer.max_epochs or 0) > 0 and trainer.max_steps >= steps * trainer.max_epochs)
