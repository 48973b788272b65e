"""IES: hide a sample while its loss has stopped to bend.

Suqin Yuan, Runqi Lin, Lei Feng, Bo Han, Tongliang Liu: "Instance-dependent Early Stopping", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.statistics import Column, SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod, refresh_setting
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, integer, number, proportion, setting
from kakurenbo_lightning.methods.topk import exact_floor, lowest

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 32  # window


def earlier_losses(window: int) -> tuple[Column, ...]:
    """Columns of the losses before the last one, newest first, as many as :class:`IES` needs of them."""
    return tuple(Column(f"loss_before_{age}", "float32", float("nan")) for age in range(1, window + 3))


@register_method("ies")
@dataclass(frozen=True)
class IES(HideMethod):
    """IES (Yuan et al., ICLR 2025).

    A sample is hidden while the mean size of its last ``window`` second differences of the loss is below ``threshold``. Hidden samples are
    scored each epoch, so that one whose loss moves again returns.
    """

    threshold: float = setting(
        1e-3, number(0), "hidden below this mean size of the second differences; published 1e-3, for CIFAR-100 2e-3"
    )
    window: int = setting(3, integer(1), "so many second differences are averaged", fix="For example: 3.")
    max_fraction: float = setting(
        0.95,
        proportion(),
        "most of the data set that may be hidden, the lowest means first, so that something is left to train",
        fix="For example: 0.9 trains at least 10 %.",
    )
    _: KW_ONLY
    refresh_mode: Literal["eval", "train"] = refresh_setting()

    summary: ClassVar[str] = "hides samples whose loss has stopped to bend; refreshes them by a scoring pass"
    paper: ClassVar[str] = "Yuan et al., ICLR 2025"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    unforeseen: ClassVar[str] = "it hides losses that have stopped to bend, and when they do is not known beforehand"
    needs_all_rows: ClassVar[str] = ""
    share_setting: ClassVar[str | None] = None  # max_fraction only caps what the threshold hides
    columns: ClassVar[tuple[Column, ...]] = earlier_losses(3)  # of the default window

    def check_settings(self) -> None:
        """Keep as many losses as the window needs."""
        super().check_settings()
        fix = "Each loss takes 4 bytes per sample and is moved in each step."
        checker(self)(self.window <= LONGEST, "window", f"an integer from 1 to {LONGEST}", fix)
        object.__setattr__(self, "columns", earlier_losses(self.window))

    def observe(self, statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:
        """Move the losses of the recorded samples on by one column."""
        newest_first = [statistics.loss, *(statistics.extra[column.name] for column in self.columns)]
        for age in range(len(newest_first) - 1, 0, -1):
            newest_first[age].index_copy_(0, rows, newest_first[age - 1][rows])

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """The samples of low mean; one difference more than the window must be known."""
        # on the CPU in double precision, where every device has the same sums
        losses = [statistics.loss.cpu(), *(statistics.extra[column.name].cpu() for column in self.columns)]
        bend = torch.zeros(len(statistics), dtype=torch.float64)
        for newest, middle, oldest in zip(losses[: self.window], losses[1:], losses[2:], strict=False):
            bend += (newest.double() - 2 * middle.double() + oldest.double()).abs()
        bend /= self.window
        settled = (bend < self.threshold).logical_and_(losses[-1].isfinite())
        spread = statistics.spread
        hidden = lowest(bend, exact_floor(self.max_fraction, statistics.total), settled, spread=spread)
        return Choice(hidden, metrics={"settled": float(spread.count(settled))})
