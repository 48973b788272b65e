"""EL2N: remove the samples of lowest error norm, once.

Mansheej Paul, Surya Ganguli, Gintare Karolina Dziugaite: "Deep Learning on a Data Diet: Finding Important Examples Early in Training",
NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.statistics import Column, SampleStatistics
from kakurenbo_lightning.methods.base import Epoch, RefreshMode
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import (
    checker,
    epoch_or_share,
    flag,
    proportion,
    require,
    require_epochs,
    setting,
    several,
)
from kakurenbo_lightning.methods.topk import as_decimal, exact_floor, in_epochs, lowest

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = "(first, end) with first < end, two epochs (integers >= 0) or two shares of max_epochs (floats in (0, 1))"


@register_method("el2n")
@dataclass(frozen=True)
class El2n(HideMethod):
    """EL2N (Paul et al., NeurIPS 2021): score, remove once, and train again on the rest.

    A sample's score is the mean over the scoring epochs of ``||softmax(logits) - onehot(target)||_2``, or that of one scoring pass after
    them. After ``end`` epochs on everything, model, optimizer and schedules go back to their initial state and the full schedule of
    ``max_epochs`` begins.
    """

    max_fraction: float = setting(
        0.3,
        proportion(),
        "F, the share of the data set of lowest score that is removed; read as a decimal",
        fix="For example: 0.3 removes 30 %.",
    )
    score_epochs: tuple[int | float, int | float] = setting(
        (0.05, 0.1),
        several(epoch_or_share(), WINDOW),
        "epochs first to end - 1 are scored, at least one; (0.05, 0.1) are epochs 10 to 20 of 200; end at most `max_epochs`",
        fix="For example: [10, 20] scores epochs 10 to 19.",
    )
    keep_hardest: bool = setting(
        True, flag(), "`False` removes the highest scores too (noisy labels)", fix="False removes the hardest too."
    )
    drop_hardest: float = setting(
        0.1,
        proportion(),
        "share of the data set of highest score that is removed by `keep_hardest=False`; with `max_fraction` below 1",
        fix="For example: 0.1 removes 10 %.",
    )
    score_pass: bool = setting(
        False,
        flag(),
        "`True`, as the authors' code: all samples are scored once, by the network as it is after epoch end - 1, in a scoring pass in eval "
        "mode; first does not count then",
        fix="True scores once, in a scoring pass.",
    )

    summary: ClassVar[str] = "removes the samples of lowest error norm once, and starts the training again on the rest"
    paper: ClassVar[str] = "Paul et al., NeurIPS 2021"
    reads: ClassVar[tuple[str, ...]] = ("loss", "el2n")
    columns: ClassVar[tuple[Column, ...]] = (Column("el2n_sum", "float32", 0.0), Column("el2n_count", "int16", 0))
    needs_all_rows: ClassVar[str] = ""
    needs_places: ClassVar[str] = "it chooses once and starts the training again, with a data set that is known"

    def check_settings(self) -> None:
        """Refuse a window that is none, and fractions that leave nothing to train."""
        super().check_settings()
        window = self.score_epochs
        checker(self)(
            len(window) == 2 and (window[0] == 0 or type(window[0]) is type(window[1])) and window[0] < window[1],
            "score_epochs",
            WINDOW,
            "For example: [10, 20] scores epochs 10 to 19.",
        )
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
        """Refuse a scoring that is longer than the training."""
        super().check_run(max_epochs, num_samples)
        require_epochs(checker(self), "score_epochs", self.score_epochs, max_epochs)

    def _window(self, max_epochs: int | None) -> tuple[int, int]:
        first, end = (in_epochs(epoch, max_epochs) for epoch in self.score_epochs)
        return first, max(first + 1, end)

    def scoring_epochs(self, max_epochs: int | None) -> int:
        """The number of epochs up to the last one that is scored."""
        return self._window(max_epochs)[1]

    @property
    def refresh_mode(self) -> RefreshMode | None:
        """Eval mode, where all samples are scored in a pass; ``None`` where training's values count."""
        return "eval" if self.score_pass else None

    def rows_to_score(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None) -> Tensor | IndexSet:
        """All samples before the restart, with ``score_pass``; hidden ones are not refreshed."""
        scores = self.score_pass and epoch.index == self._scoring(epoch)
        return statistics.spread.everything(statistics.total).rows if scores else torch.empty(0, dtype=torch.int64)

    def observe(self, statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:
        """Add up the scores; of a scoring pass only the last, which is recorded after that of the training."""
        first, _ = self._window(epoch.max_epochs)
        end = self._scoring(epoch)
        if min(first, end - 1) <= epoch.index < end:
            total, count = statistics.extra["el2n_sum"], statistics.extra["el2n_count"]
            total.index_copy_(0, rows, values["el2n"].to(total.dtype) + (0 if self.score_pass else total[rows]))
            count.index_copy_(0, rows, torch.ones_like(count[rows]) if self.score_pass else count[rows] + 1)

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Hide the samples of lowest mean score; ties are drawn."""
        count = statistics.extra["el2n_count"]
        score = statistics.extra["el2n_sum"] / count
        eligible = (count > 0) & statistics.loss.isfinite()
        total, spread = statistics.total, statistics.spread
        hidden = lowest(score, exact_floor(self.max_fraction, total), eligible, epoch.generator(), spread)
        if not self.keep_hardest:
            count = exact_floor(self.drop_hardest, total)
            hidden |= lowest(-score, count, eligible & ~hidden, epoch.generator(), spread)
        return Choice(hidden)
