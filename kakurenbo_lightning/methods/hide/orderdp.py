"""OrderDP: of a random part of the samples train those of highest loss.

Chenhan Jin, Shengze Xu, Qingsong Wang, Fan Jia, Dingshuo Chen, Tieyong Zeng: "OrderDP: A Theoretically Guaranteed Lossless Dynamic Data
Pruning Framework", ICLR 2026.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import ClassVar

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import number, proportion, setting
from kakurenbo_lightning.methods.topk import as_decimal, exact_floor, lowest

UNSEEN = 3.0  # the loss that a sample counts with before it was measured


@register_method("orderdp")
@dataclass(frozen=True)
class OrderDP(HideMethod):
    """OrderDP (Jin et al., ICLR 2026).

    Each epoch draws a uniform part of the samples and trains those of it whose last loss is highest; ties are drawn. A drawn sample whose
    loss is not finite is always trained.
    """

    random_fraction: float = setting(
        0.75, number(0, 1, above=True), "r, the share of the data set that is drawn; read as a decimal, 0.29 of 100 is 29"
    )
    top_fraction: float = setting(
        0.85, number(0, 1, above=True), "q, the share of the drawn samples, of highest loss, that is trained"
    )
    _: KW_ONLY
    end_fraction: float = setting(
        0.125, proportion(), "1 - delta of the paper: share of `max_epochs`, at the end, that trains on everything"
    )

    summary: ClassVar[str] = "draws a part of the samples and trains those of it of highest loss"
    paper: ClassVar[str] = "Jin et al., ICLR 2026"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    needs_all_rows: ClassVar[str] = ""

    @property
    def largest_fraction(self) -> Fraction:
        """1 - r q: what is left when r of the samples are drawn and q of these trained."""
        return 1 - as_decimal(self.random_fraction) * as_decimal(self.top_fraction)

    def _drawn(self, total: int) -> int:
        return max(1, exact_floor(self.random_fraction, total))

    def fixed_count(self, total: int, epoch: Epoch) -> int:
        """How many of ``total`` are hidden: all but the top of those that are drawn."""
        return total - max(1, exact_floor(self.top_fraction, self._drawn(total)))

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """All that is not drawn, and of the drawn those of lowest loss; of another number in the proportion of the two."""
        total, spread, generator = statistics.total, statistics.spread, epoch.generator()
        hidden, fixed = self.hidden_count(total, epoch), self.fixed_count(total, epoch)
        drawn = total - hidden * (total - self._drawn(total)) // max(1, fixed)
        top = total - hidden
        among = spread.some(torch.ones_like(statistics.correct), drawn, generator)
        loss = torch.where(statistics.measured, statistics.loss, UNSEEN)
        return Choice(lowest(loss, drawn - top, among, ties=generator, spread=spread) | ~among)
