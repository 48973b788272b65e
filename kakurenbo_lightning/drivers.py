"""Which driver a method has."""

from __future__ import annotations

import lightning.pytorch as pl

from kakurenbo_lightning.backprop import BackpropDriver
from kakurenbo_lightning.driver import Driver
from kakurenbo_lightning.methods.backprop import BackpropMethod
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.pod import StreamMethod
from kakurenbo_lightning.statistics import SampleStatistics
from kakurenbo_lightning.stream import StreamDriver
from kakurenbo_lightning.trainer_adapter import TrainerAdapter


def driver_for(
    trainer: pl.Trainer, adapter: TrainerAdapter, method: Method, statistics: SampleStatistics, scorer: pl.LightningModule | None
) -> Driver | None:
    """The driver of a method that does something within the epoch; ``None`` for one that only plans it."""
    if isinstance(method, BackpropMethod):
        return BackpropDriver(trainer, adapter, method, statistics, scorer)
    if isinstance(method, StreamMethod):
        return StreamDriver(method, statistics, trainer.world_size, trainer.global_rank)
    return None
