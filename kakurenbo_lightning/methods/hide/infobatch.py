"""InfoBatch: prune a random part of the samples of below-average loss, and give those that are left a higher loss weight.

Ziheng Qin, Kai Wang, Zangwei Zheng, Jianyang Gu, Xiangyu Peng, Zhaopan Xu, Daquan Zhou, Lei Shang, Baigui Sun, Xuansong Xie,
Yang You: "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import flag_or_choice, integer, proportion, setting
from kakurenbo_lightning.methods.topk import as_decimal, exact_floor


@register_method("infobatch")
@dataclass(frozen=True)
class InfoBatch(HideMethod):
    """InfoBatch (Qin et al., ICLR 2024): prunes some samples of below-average loss, and re-weights those of them that stay."""

    prune_ratio: float = setting(
        0.5,
        proportion(),
        "r, the probability with which a sample of below-average loss is pruned",
        fix="For example: 0.5 prunes a half of them.",
    )
    _: KW_ONLY
    start_epoch: int = setting(1, integer(), "the first epoch that may prune; nothing is measured before epoch 1")
    end_fraction: float = setting(
        0.125, proportion(), "1 - delta of the paper: share of `max_epochs`, at the end, that trains on everything"
    )
    unbiased: bool | Literal["epoch", "step"] = setting(
        True,
        flag_or_choice("epoch", "step"),
        "`'epoch'`, or True: the samples of below-average loss that stay carry the weight 1 / (1 - r), which keeps the expected sum of an "
        "epoch's gradients; `'step'`: all weights times the share kept, which keeps the expected gradient of each step",
        fix="True adds weights.",
    )

    summary: ClassVar[str] = (
        "prunes a random part of the samples of below-average loss and gives the rest of them a higher weight"
    )
    paper: ClassVar[str] = "Qin et al., ICLR 2024"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    knows_keep_probability: ClassVar[bool] = True
    share_setting: ClassVar[str | None] = "prune_ratio"
    needs_all_rows: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.unbiased:
            object.__setattr__(self, "summary", "prunes a random part of the samples of below-average loss")

    @property
    def largest_fraction(self) -> Fraction:
        """r, the setting ``prune_ratio``, as a decimal; a share of the candidates."""
        return as_decimal(self.prune_ratio)

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Draw among the samples whose last loss is below the mean; one not measured yet counts as 1.0."""
        spread = statistics.spread
        score = torch.where(statistics.measured, statistics.loss, 1.0).cpu()
        finite = score.isfinite()
        # rounded once, so that it does not depend on the order of the samples, and on which rank they are
        mean = float(spread.exact_sum(score, finite) / max(1, spread.count(finite)))
        well_learned = (score.double() < mean).logical_and_(finite)
        candidates, keep = spread.count(well_learned), 1 - self.hidden_share(epoch)
        pruned = spread.some(well_learned, candidates - exact_floor(keep, candidates), epoch.generator())
        probability = torch.ones(len(score)).masked_fill_(well_learned, float(keep) or 1.0)  # 0: none is kept
        return Choice(pruned, probability, {"candidates": float(candidates)})
