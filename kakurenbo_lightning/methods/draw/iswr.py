"""ISWR: importance sampling with replacement, planned once per epoch.

A comparison in the paper of :mod:`kakurenbo_lightning.methods.hide.kakurenbo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import EpochPlan, Plan
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch, RefreshMode
from kakurenbo_lightning.methods.draw.base import DrawMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import flag, setting

if TYPE_CHECKING:
    from torch import Tensor


@register_method("iswr")
@dataclass(frozen=True)
class ISWR(DrawMethod):
    """ISWR (Nguyen et al., NeurIPS 2023, where it is compared with KAKURENBO).

    Before each epoch but the first, N samples are drawn with replacement, in proportion to their last loss; the first epoch trains every
    sample once.
    """

    refresh: bool = setting(
        True,
        flag(),
        "score the samples that the previous epoch did not draw; `False`: their losses are left as they are",
        fix="True scores those not drawn.",
    )

    summary: ClassVar[str] = "draws as many samples as there are, by their loss, with replacement"
    paper: ClassVar[str] = "Nguyen et al., NeurIPS 2023"

    @property
    def refresh_mode(self) -> RefreshMode | None:
        """Eval mode if there is a scoring pass, else ``None``."""
        return "eval" if self.refresh else None

    def plan(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None = None) -> EpochPlan:
        """Plan every sample once in the first epoch, and N draws in later ones."""
        total = len(statistics)
        if epoch.index == 0:
            return EpochPlan.everything(total)
        values = self.all_values(statistics).double()
        probability = values.mul_((1 - self.mix) / float(values.sum())).add_(self.mix / total)
        drawn = drawn_by(probability, total, epoch.generator())
        weights = (1 / (total * probability)).float() if self.unbiased else None
        distinct = float(len(torch.unique_consecutive(drawn)))
        return EpochPlan(drawn, torch.empty(0, dtype=torch.int64), weights, metrics={"drawn_share": distinct / total})

    def rows_to_score(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None) -> Tensor:
        """Samples that the previous epoch did not draw."""
        if not self.refresh or epoch.index < 1:
            return super().rows_to_score(statistics, epoch, previous)
        return (statistics.epoch_seen.cpu() < epoch.index - 1).nonzero().squeeze(1)  # epoch_seen is -1 for samples never seen


def drawn_by(probability: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` samples with replacement, sorted ascending, ``int64[count]``. Linear in N and ``count``.

    Args:
        probability: ``float64[N]`` on the CPU; its sum need not be 1.
        count: number of draws.
        generator: random stream on the CPU.
    """
    # sorted uniforms, made as cumulative sums of exponentials: no sort is needed, and the search runs through memory in order
    gaps = torch.empty(count + 1, dtype=torch.float64).exponential_(generator=generator).cumsum(0)
    ordered = gaps[:-1] / gaps[-1]
    sums = probability.cumsum(0).numpy()
    drawn = np.searchsorted(sums, ordered.numpy() * sums[-1], side="right")
    # rounding may place the last draw behind the last sample with a probability above 0
    return torch.from_numpy(np.minimum(drawn, np.flatnonzero(probability.numpy())[-1]))
