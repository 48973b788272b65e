"""FORGET: remove the samples that are forgotten least often.

Mariya Toneva, Alessandro Sordoni, Remi Tachet des Combes, Adam Trischler, Yoshua Bengio, Geoffrey J. Gordon: "An Empirical Study of
Example Forgetting during Deep Neural Network Learning", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kakurenbo_lightning.core.statistics import Column, SampleStatistics
from kakurenbo_lightning.methods.base import Epoch, RefreshMode
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, is_epoch_or_share, require_epochs, require_fraction
from kakurenbo_lightning.methods.topk import exact_floor, in_epochs, lowest


@dataclass(frozen=True)
class Forgetting(HideMethod):
    """Hides the samples of fewest forgetting events; what ``forget`` and ``forget_online`` share.

    A forgetting event: correct when the sample was last seen, wrong now.
    """

    max_fraction: float = 0.3
    never_learned: Literal["last", "first"] = "last"

    paper: ClassVar[str] = "Toneva et al., ICLR 2019"
    reads: ClassVar[tuple[str, ...]] = ("loss", "correct")
    columns: ClassVar[tuple[Column, ...]] = (Column("events", torch.int16, 0), Column("learned", torch.bool, False))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(self.name, "max_fraction", self.max_fraction)
        checker(self)(
            self.never_learned in ("last", "first"),
            "never_learned",
            "'last' or 'first'",
            "'last' hides samples that were never right last of all; 'first' counts them as never forgotten, as published code does.",
        )

    def observe(self, statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:
        """Count what was forgotten."""
        events, learned = statistics.extra["events"], statistics.extra["learned"]
        forgotten = statistics.correct[rows] & ~values["correct"]
        events.index_copy_(0, rows, events[rows] + forgotten)
        learned.index_copy_(0, rows, learned[rows] | values["correct"])

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """The ``floor(max_fraction * N)`` of fewest events; ties are drawn."""
        events = statistics.extra["events"].float()
        if self.never_learned == "last":
            events = torch.where(statistics.extra["learned"], events, torch.iinfo(torch.int16).max)
        eligible = statistics.measured & statistics.loss.isfinite()
        return Choice(lowest(events, exact_floor(self.max_fraction, len(statistics)), eligible, ties=epoch.generator()))


@register_method("forget")
@dataclass(frozen=True)
class Forget(Forgetting):
    """FORGET as published (Toneva et al., ICLR 2019): count, remove once, and train anew on the rest.

    Args:
        max_fraction: share of the data set that is removed, in [0, 1).
        never_learned: a sample that was never right is removed ``"last"`` of all, or counts as never forgotten and goes ``"first"``
            (published comparison code).
        static_epochs: epochs on everything, in which events are counted; then model, optimizer and schedules go back to their
            initial state and the full schedule of ``max_epochs`` begins. An integer >= 1, or a float: a share of ``max_epochs`` (0.1 are
            the published 20 of 200), at least one epoch.

    Raises:
        ValueError: a setting out of range.
    """

    static_epochs: int | float = 0.1

    summary: ClassVar[str] = "removes the least often forgotten samples once, and starts the training again on the rest"

    def __post_init__(self) -> None:
        super().__post_init__()
        checker(self)(
            is_epoch_or_share(self.static_epochs) and self.static_epochs > 0,
            "static_epochs",
            "epochs (an integer >= 1) or a share of max_epochs (a float in (0, 1))",
            "For example: 20, or 0.1.",
        )

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """The counting is no longer than the training."""
        super().check_run(max_epochs, num_samples)
        require_epochs(checker(self), "static_epochs", [self.static_epochs], max_epochs)

    def scoring_epochs(self, max_epochs: int | None) -> int:
        """``static_epochs``, in epochs."""
        return max(1, in_epochs(self.static_epochs, max_epochs))

    def observe(self, statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:
        """Count until the restart."""
        if epoch.index < self._scoring(epoch):
            super().observe(statistics, rows, values, epoch)


@register_method("forget_online")
@dataclass(frozen=True)
class ForgetOnline(Forgetting):
    """FORGET while training: each epoch hides the samples of fewest events so far.

    Args:
        max_fraction: share of the data set hidden in every epoch, in [0, 1).
        never_learned: as in :class:`Forget`.
        start_epoch: the first epoch that hides, >= 0.
        refresh_mode: mode of the pass over the hidden samples, whose events keep counting.

    Raises:
        ValueError: a setting out of range.
    """

    _: KW_ONLY
    start_epoch: int = 2
    refresh_mode: RefreshMode = "eval"

    summary: ClassVar[str] = "hides the samples forgotten least often so far; refreshes them by a forward-only pass"

    def __post_init__(self) -> None:
        super().__post_init__()
        checker(self)(self.refresh_mode in ("eval", "train"), "refresh_mode", "'eval' or 'train'", "Use 'eval'.")
