"""StaleSB: Selective-Backprop that looks only every few epochs. Source as in :mod:`kakurenbo_lightning.methods.selective_backprop`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from kakurenbo_lightning.methods.backprop import Memory
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.checks import checker, is_count
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.selective_backprop import SelectiveBackprop
from kakurenbo_lightning.plan import EpochPlan
from kakurenbo_lightning.statistics import SampleStatistics


@register_method("stale_sb")
@dataclass(frozen=True)
class StaleSB(SelectiveBackprop):
    """StaleSB (Jiang et al., 2019): in between, the stored losses decide when the epoch is planned, and what they reject is not loaded.

    Epochs 0, n, 2n, ... look at every batch (those in the warm-up train on it); in the others the percentile is taken among the stored
    losses of all samples, and a trained sample's loss is stored anew.

    Args:
        beta: as in :class:`SelectiveBackprop`.
        floor: as in :class:`SelectiveBackprop`.
        history: as in :class:`SelectiveBackprop`.
        score: ``"loss"`` only.
        staleness: n, >= 1; 1 is Selective-Backprop.

    Raises:
        ValueError: a setting out of range.
    """

    staleness: int = 3

    summary: ClassVar[str] = "Selective-Backprop that looks every few epochs and does not load what it rejects in between"

    def __post_init__(self) -> None:
        super().__post_init__()
        check = checker(self)
        check(is_count(self.staleness, 1), "staleness", "an integer >= 1", "For example: 3.")
        check(self.score == "loss", "score", "'loss'", "The controls are of selective_backprop.")

    def looks(self, epoch: Epoch, step: int, steps: int, memory: Memory) -> bool:
        """Every ``staleness`` epochs."""
        return super().looks(epoch, step, steps, memory) and epoch.index % self.staleness == 0

    def plan(self, statistics: SampleStatistics, epoch: Epoch, previous: EpochPlan | None = None) -> EpochPlan:
        """Everything, or what the stored losses choose."""
        if epoch.index < self.warmup_epochs or epoch.index % self.staleness == 0:
            return EpochPlan.everything(len(statistics))
        loss = statistics.loss.cpu().numpy()
        known = np.isfinite(loss)
        probability = np.ones(len(loss))
        probability[known] = np.maximum(self.floor, _share_below(loss[known]) ** self.beta)
        drawn = torch.rand(len(loss), generator=epoch.generator(), dtype=torch.float64).numpy()
        keep = drawn < probability
        return EpochPlan.hide(torch.from_numpy(~keep)) if keep.any() else EpochPlan.everything(len(loss))


def _share_below(values: np.ndarray) -> np.ndarray:
    """Share of ``values`` strictly below each of them; ``float64[n]``."""
    order = np.argsort(values)
    ordered = values[order]
    first = np.zeros(len(values), dtype=np.int64)
    first[1:] = np.where(ordered[1:] > ordered[:-1], np.arange(1, len(values)), 0)
    share = np.empty(len(values))
    share[order] = np.maximum.accumulate(first) / max(1, len(values))
    return share
