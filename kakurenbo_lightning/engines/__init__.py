"""The engines: what happens within an epoch, one for each family of methods."""

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
    adapter: TrainerAdapter,
    method: Method,
    statistics: SampleStatistics,
    scorer: pl.LightningModule | None,
    mean_over_samples: bool | None,
) -> Engine:
    """The engine of a method's family; for one that only plans epochs, the base engine. The one place that asks ``isinstance``.

    ``mean_over_samples=None`` is ``True`` for methods that change batches, where their sizes are known before.
    """
    by_samples = method.changes_batches and not statistics.grows if mean_over_samples is None else mean_over_samples
    if isinstance(method, BackpropMethod):
        return BackpropEngine(adapter, method, statistics, scorer)
    if isinstance(method, StreamMethod):
        return StreamEngine(adapter, method, statistics, by_samples)
    return Engine(adapter, method, statistics, by_samples)
