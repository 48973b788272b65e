"""FORGET: remove the samples that are forgotten least often.

Mariya Toneva, Alessandro Sordoni, Remi Tachet des Combes, Adam Trischler, Yoshua Bengio, Geoffrey J. Gordon: "An Empirical Study of
Example Forgetting during Deep Neural Network Learning", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Literal

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.statistics import Column, SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod, refresh_setting
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, choice, epoch_or_share, integer, proportion, require_epochs, setting
from kakurenbo_lightning.methods.topk import as_decimal, in_epochs, lowest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Forgetting(HideMethod):
    """Hides the samples of fewest forgetting events; what ``forget`` and ``forget_online`` share.

    A forgetting event: correct when the sample was last recorded, wrong now.
    """

    max_fraction: float = setting(
        0.3, proportion(), "F, the share of the data set that is hidden; read as a decimal", fix="For example: 0.3 hides 30 %."
    )
    never_learned: Literal["last", "first"] = setting(
        "last",
        choice("last", "first"),
        "when samples that were never correct are hidden: last of all, or first, as never forgotten (published comparison code)",
        fix="'last' hides them last of all; 'first' counts them as never forgotten, as published code does.",
    )

    paper: ClassVar[str] = "Toneva et al., ICLR 2019"
    reads: ClassVar[tuple[str, ...]] = ("loss", "correct")
    columns: ClassVar[tuple[Column, ...]] = (Column("events", "int16", 0), Column("learned", "bool", False))
    needs_all_rows: ClassVar[str] = ""

    def observe(self, statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:
        """Count the samples that were correct when last recorded and are wrong now."""
        events, learned = statistics.extra["events"], statistics.extra["learned"]
        forgotten = statistics.correct[rows] & ~values["correct"]
        events.index_copy_(0, rows, events[rows] + forgotten)
        learned.index_copy_(0, rows, learned[rows] | values["correct"])

    @property
    def largest_fraction(self) -> Fraction:
        """F, the setting ``max_fraction``, as a decimal."""
        return as_decimal(self.max_fraction)

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """The ``floor(max_fraction * N)`` of fewest events; ties are drawn."""
        events = statistics.extra["events"].float()
        if self.never_learned == "last":
            events = torch.where(statistics.extra["learned"], events, torch.iinfo(torch.int16).max)
        eligible = statistics.measured & statistics.loss.isfinite()
        hidden = self.hidden_count(statistics.total, epoch)
        return Choice(lowest(events, hidden, eligible, ties=epoch.generator(), spread=statistics.spread))


@register_method("forget")
@dataclass(frozen=True)
class Forget(Forgetting):
    """FORGET as published (Toneva et al., ICLR 2019): count, remove once, and train again on the rest.

    Events are counted in epochs on everything; then model, optimizer and schedules go back to their initial state and the full schedule
    of ``max_epochs`` begins.
    """

    static_epochs: int | float = setting(
        0.1,
        epoch_or_share(1),
        "epochs of counting, at least one; 0.1 are the published 20 of 200; at most `max_epochs`",
        fix="For example: 20, or 0.1.",
    )

    needs_places: ClassVar[str] = "it chooses once and starts the training again, with a data set that is known"
    summary: ClassVar[str] = "removes the least often forgotten samples once, and starts the training again on the rest"

    def check_settings(self) -> None:
        """Refuse a ``fraction_schedule``, because there is only one choice."""
        super().check_settings()
        checker(self)(not self.fraction_schedule, "fraction_schedule", "empty, because forget chooses once", "Use forget_online.")

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """Refuse a counting that is longer than the training."""
        super().check_run(max_epochs, num_samples)
        require_epochs(checker(self), "static_epochs", [self.static_epochs], max_epochs)

    def scoring_epochs(self, max_epochs: int | None) -> int:
        """The setting ``static_epochs`` as a number of epochs, at least one."""
        return max(1, in_epochs(self.static_epochs, max_epochs))

    def observe(self, statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:
        """Count forgetting events, until the training starts again."""
        if epoch.index < self._scoring(epoch):
            super().observe(statistics, rows, values, epoch)


@register_method("forget_online")
@dataclass(frozen=True)
class ForgetOnline(Forgetting):
    """FORGET while training: each epoch hides the samples of fewest events so far, and those of hidden samples keep counting."""

    _: KW_ONLY
    start_epoch: int = setting(2, integer(), "the first epoch that hides; an event takes two presentations")
    refresh_mode: Literal["eval", "train"] = refresh_setting()

    summary: ClassVar[str] = "hides the samples forgotten least often so far; refreshes them by a scoring pass"
