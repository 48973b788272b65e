"""EL2N: remove the samples of lowest error norm, once.

Mansheej Paul, Surya Ganguli, Gintare Karolina Dziugaite: "Deep Learning on a Data Diet: Finding Important Examples Early in Training",
NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kakurenbo_lightning.core.statistics import Column, SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, is_epoch_or_share, require, require_epochs, require_fraction
from kakurenbo_lightning.methods.topk import as_decimal, exact_floor, in_epochs, lowest


@register_method("el2n")
@dataclass(frozen=True)
class El2n(HideMethod):
    """EL2N (Paul et al., NeurIPS 2021): score, remove once, and train anew on the rest.

    A sample's score is the mean over the scoring epochs of ``||softmax(logits) - onehot(target)||_2``.

    Args:
        max_fraction: share of the data set of lowest score that is removed, in [0, 1).
        score_epochs: ``(first, end)``: epochs first to end - 1 are scored; after ``end`` epochs on everything, model, optimizer and
            schedules go back to their initial state and the full schedule of ``max_epochs`` begins. Integers, or floats: shares of
            ``max_epochs`` ((0.05, 0.1) are epochs 10 to 20 of 200), at least one epoch.
        keep_hardest: ``False`` removes the ``drop_hardest`` share of highest score too (noisy labels).
        drop_hardest: that share, in [0, 1).

    Raises:
        ValueError: a setting out of range.
    """

    max_fraction: float = 0.3
    score_epochs: tuple[int | float, int | float] = (0.05, 0.1)
    keep_hardest: bool = True
    drop_hardest: float = 0.1

    summary: ClassVar[str] = "removes the samples of lowest error norm once, and starts the training again on the rest"
    paper: ClassVar[str] = "Paul et al., NeurIPS 2021"
    reads: ClassVar[tuple[str, ...]] = ("loss", "el2n")
    columns: ClassVar[tuple[Column, ...]] = (Column("el2n_sum", torch.float32, 0.0), Column("el2n_count", torch.int16, 0))

    def __post_init__(self) -> None:
        super().__post_init__()
        check = checker(self)
        given = isinstance(self.score_epochs, Sequence) and len(self.score_epochs) == 2
        check(
            given
            and all(map(is_epoch_or_share, self.score_epochs))
            and (self.score_epochs[0] == 0 or type(self.score_epochs[0]) is type(self.score_epochs[1]))
            and self.score_epochs[0] < self.score_epochs[1],
            "score_epochs",
            "(first, end) with first < end, two epochs (integers >= 0) or two shares of max_epochs (floats in (0, 1))",
            "For example: [10, 20] scores epochs 10 to 19.",
        )
        object.__setattr__(self, "score_epochs", tuple(self.score_epochs))
        check(isinstance(self.keep_hardest, bool), "keep_hardest", "True or False", "False removes the hardest too.")
        require_fraction(self.name, "max_fraction", self.max_fraction)
        require_fraction(self.name, "drop_hardest", self.drop_hardest)
        removed = float(as_decimal(self.max_fraction) + as_decimal(self.drop_hardest)) if not self.keep_hardest else 0.0
        require(
            removed < 1,
            self.name,
            "max_fraction + drop_hardest",
            removed,
            "a number in [0, 1)",
            "Something must be left to train.",
        )

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """The scoring is no longer than the training."""
        super().check_run(max_epochs, num_samples)
        require_epochs(checker(self), "score_epochs", self.score_epochs, max_epochs)

    def _window(self, max_epochs: int | None) -> tuple[int, int]:
        first, end = (in_epochs(epoch, max_epochs) for epoch in self.score_epochs)
        return first, max(first + 1, end)

    def scoring_epochs(self, max_epochs: int | None) -> int:
        """Until the last scored one."""
        return self._window(max_epochs)[1]

    def observe(self, statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:
        """Add up the scores."""
        first, _ = self._window(epoch.max_epochs)
        end = self._scoring(epoch)
        if min(first, end - 1) <= epoch.index < end:
            total, count = statistics.extra["el2n_sum"], statistics.extra["el2n_count"]
            total.index_copy_(0, rows, total[rows] + values["el2n"])
            count.index_copy_(0, rows, count[rows] + 1)

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """The lowest scores; ties are drawn."""
        count = statistics.extra["el2n_count"]
        score = statistics.extra["el2n_sum"] / count
        eligible = (count > 0) & statistics.loss.isfinite()
        hidden = lowest(score, exact_floor(self.max_fraction, len(score)), eligible, ties=epoch.generator())
        if not self.keep_hardest:
            hidden |= lowest(-score, exact_floor(self.drop_hardest, len(score)), eligible & ~hidden, ties=epoch.generator())
        return Choice(hidden)
