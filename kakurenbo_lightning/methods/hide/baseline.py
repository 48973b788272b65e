"""Observe every sample and hide nothing: the control for overhead and for every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method


@register_method("baseline")
@dataclass(frozen=True)
class Baseline(HideMethod):
    """Train on everything; statistics are recorded all the same. The common settings change nothing; those of a fraction are refused."""

    summary: ClassVar[str] = "trains on every sample and only observes"
    reads: ClassVar[tuple[str, ...]] = ()
    needs_index: ClassVar[bool] = False
    changes_batches: ClassVar[bool] = False  # steps as they would be without the callback
    knows_keep_probability: ClassVar[bool] = True
    needs_all_rows: ClassVar[str] = ""

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Hide nothing: every sample is kept with probability 1."""
        return Choice(torch.zeros(len(statistics), dtype=torch.bool), keep_probability=1.0)
