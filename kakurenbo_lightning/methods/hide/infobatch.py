"""InfoBatch: prune a random part of the samples of below-average loss, and weigh up those that are left.

Ziheng Qin, Kai Wang, Zangwei Zheng, Jianyang Gu, Xiangyu Peng, Zhaopan Xu, Daquan Zhou, Lei Shang, Baigui Sun, Xuansong Xie,
Yang You: "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch

from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import require_fraction
from kakurenbo_lightning.methods.topk import as_decimal, exact_floor, mask_of, some_of


@register_method("infobatch")
@dataclass(frozen=True)
class InfoBatch(HideMethod):
    """InfoBatch (Qin et al., ICLR 2024).

    Args:
        prune_ratio: r, the probability with which a sample of below-average loss is pruned, in [0, 1).
        start_epoch: the first epoch that may prune, >= 0; nothing is measured before epoch 1.
        end_fraction: 1 - delta of the paper: the last epochs train on everything, in [0, 1).
        unbiased: those that are left carry the weight 1 / (1 - r).

    Raises:
        ValueError: a setting out of range.
    """

    prune_ratio: float = 0.5
    _: KW_ONLY
    start_epoch: int = 1
    end_fraction: float = 0.125
    unbiased: bool = True

    summary: ClassVar[str] = "prunes a random part of the samples of below-average loss and weighs up the others"
    paper: ClassVar[str] = "Qin et al., ICLR 2024"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    knows_keep_probability: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(self.name, "prune_ratio", self.prune_ratio)

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Draw among the samples whose last loss is below the mean; one not seen yet counts as 1.0."""
        score = torch.where(statistics.measured, statistics.loss, 1.0).cpu().double()
        finite = score.isfinite()
        mean = float(score[finite].numpy().mean()) if finite.any() else 0.0
        well_learned = (score < mean).logical_and_(finite)
        rows = well_learned.nonzero().squeeze(1)
        keep = 1 - as_decimal(self.prune_ratio)
        pruned = some_of(rows, len(rows) - exact_floor(keep, len(rows)), epoch.generator())
        probability = torch.ones(len(score)).masked_fill_(well_learned, float(keep))
        return Choice(mask_of(pruned, len(score)), probability, {"candidates": float(len(rows))})
