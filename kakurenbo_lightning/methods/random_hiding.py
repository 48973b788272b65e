"""Hide a random part: the first control of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kakurenbo_lightning.methods.base import Epoch, RefreshMode, exact_floor, require_fraction
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.plan import EpochPlan
from kakurenbo_lightning.statistics import SampleStatistics


@register_method("random")
@dataclass(frozen=True)
class RandomHiding:
    """Each epoch hides a uniform ``floor(max_fraction * N)`` of the samples, from epoch 0 on.

    Args:
        max_fraction: share of the data set hidden in every epoch, in [0, 1).

    Raises:
        ValueError: a setting out of range.
    """

    max_fraction: float = 0.3

    name: ClassVar[str]
    family: ClassVar[str] = "hide"
    summary: ClassVar[str] = "hides a uniformly drawn part of the samples"
    paper: ClassVar[str] = "-"
    reads: ClassVar[tuple[str, ...]] = ()
    refresh_mode: ClassVar[RefreshMode | None] = None

    def __post_init__(self) -> None:
        require_fraction(self.name, "max_fraction", self.max_fraction)

    def check_run(self, max_epochs: int | None) -> None:
        """Any run will do."""

    def plan(self, statistics: SampleStatistics, epoch: Epoch) -> EpochPlan:
        """A new draw from the epoch's own stream."""
        total = len(statistics)
        hidden = torch.randperm(total, generator=epoch.generator())[: exact_floor(self.max_fraction, total)]
        return EpochPlan.hide(torch.zeros(total, dtype=torch.bool).index_fill_(0, hidden, True))
