"""What happens within an epoch, by family."""

from __future__ import annotations

import lightning.pytorch as pl

from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.engines.backprop import BackpropEngine
from kakurenbo_lightning.engines.base import Engine
from kakurenbo_lightning.engines.stream import StreamEngine
from kakurenbo_lightning.methods.backprop.base import BackpropMethod
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.draw.base import StreamMethod
from kakurenbo_lightning.trainer.adapter import TrainerAdapter


def engine_for(
    trainer: pl.Trainer, adapter: TrainerAdapter, method: Method, statistics: SampleStatistics, scorer: pl.LightningModule | None
) -> Engine | None:
    """The engine of a method that does something within the epoch; ``None`` for one that only plans it."""
    if isinstance(method, BackpropMethod):
        return BackpropEngine(trainer, adapter, method, statistics, scorer)
    if isinstance(method, StreamMethod):
        return StreamEngine(method, statistics, trainer.world_size, trainer.global_rank)
    return None
