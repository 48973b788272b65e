"""Hide a random half of the samples whose loss, averaged over epochs, is low."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kakurenbo_lightning import Choice, Column, Epoch, HideMethod, SampleStatistics, register_method
from kakurenbo_lightning.methods.settings import proportion, setting
from kakurenbo_lightning.methods.topk import exact_floor, lowest, mask_of, some_of


@register_method("mean_loss")
@dataclass(frozen=True)
class MeanLoss(HideMethod):
    """Draws half of the samples of lowest mean loss, and hides them."""

    pool: float = setting(0.6, proportion(), "share of the data set, of lowest mean loss, from which half is hidden")
    decay: float = setting(0.5, proportion(), "the moving mean is `decay` mean + (1 - `decay`) loss")

    summary: ClassVar[str] = "hides a random half of the samples of low mean loss"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    columns: ClassVar[tuple[Column, ...]] = (Column("mean_loss", torch.float32, float("nan")),)
    knows_keep_probability: ClassVar[bool] = True

    def observe(self, statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:
        """Average the loss; a mean that is not finite starts again."""
        mean = statistics.extra["mean_loss"]
        before, loss = mean[rows], values["loss"].to(mean.dtype)
        mean.index_copy_(0, rows, torch.where(before.isfinite(), self.decay * before + (1 - self.decay) * loss, loss))

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Half of the pool; every sample of the pool is kept with the same probability."""
        total = len(statistics)
        mean = statistics.extra["mean_loss"]
        pool = lowest(mean, exact_floor(self.pool, total), eligible=statistics.measured).cpu()
        rows = pool.nonzero().squeeze(1)
        hidden = some_of(rows, len(rows) // 2, epoch.generator())
        keep_probability = torch.ones(total).masked_fill_(pool, 1 - len(hidden) / max(1, len(rows)))
        return Choice(mask_of(hidden, total), keep_probability, metrics={"candidates": float(len(rows))})
