"""Hide a random part: the first control of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.checks import require_fraction
from kakurenbo_lightning.methods.choosing import exact_floor, mask_of, some_of
from kakurenbo_lightning.methods.hiding import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.statistics import SampleStatistics


@register_method("random")
@dataclass(frozen=True)
class RandomHiding(HideMethod):
    """Each epoch hides a uniform ``floor(max_fraction * N)`` of the samples.

    Args:
        max_fraction: share of the data set hidden in every epoch, in [0, 1).

    Raises:
        ValueError: a setting out of range.
    """

    max_fraction: float = 0.3

    summary: ClassVar[str] = "hides a uniformly drawn part of the samples"
    reads: ClassVar[tuple[str, ...]] = ()
    knows_keep_probability: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(self.name, "max_fraction", self.max_fraction)

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """A new draw from the epoch's own stream."""
        total = len(statistics)
        hidden = exact_floor(self.max_fraction, total)
        rows = some_of(torch.arange(total), hidden, epoch.generator())
        return Choice(mask_of(rows, total), keep_probability=(total - hidden) / total)
