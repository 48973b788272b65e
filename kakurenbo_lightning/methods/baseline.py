"""Observe every sample and hide nothing: the control for overhead and for every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kakurenbo_lightning.methods.base import Epoch, RefreshMode
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.plan import EpochPlan
from kakurenbo_lightning.statistics import SampleStatistics


@register_method("baseline")
@dataclass(frozen=True)
class Baseline:
    """Train on everything; statistics are recorded all the same."""

    name: ClassVar[str]
    family: ClassVar[str] = "hide"
    summary: ClassVar[str] = "trains on every sample and only observes"
    paper: ClassVar[str] = "-"
    reads: ClassVar[tuple[str, ...]] = ()
    refresh_mode: ClassVar[RefreshMode | None] = None

    def check_run(self, max_epochs: int | None) -> None:
        """Any run will do."""

    def plan(self, statistics: SampleStatistics, epoch: Epoch) -> EpochPlan:
        """Everything, once."""
        return EpochPlan.everything(len(statistics))
