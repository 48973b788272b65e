"""KAKURENBO: hide the samples of lowest loss that the network already gets right with confidence.

Truong Thao Nguyen, Balazs Gerofi, Edgar Josafat Martinez-Noriega, François Trahay, Mohamed Wahib: "KAKURENBO: Adaptively
Hiding Samples in Deep Neural Network Training", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.spread import ALONE, Spread
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod, refresh_setting
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import (
    checker,
    choice,
    epoch_or_share,
    integer,
    number,
    proportion,
    require,
    setting,
    several,
)
from kakurenbo_lightning.methods.topk import as_decimal, exact_floor, lowest

if TYPE_CHECKING:
    from torch import Tensor


class Selection(NamedTuple):
    """What :func:`select_hidden` chose.

    Attributes:
        hidden: ``bool[N]``.
        candidates: how many samples of lowest loss were considered.
        moved_back: how many of them stay in training because they are wrong or unsure.
    """

    hidden: Tensor
    candidates: int
    moved_back: int


def select_hidden(
    loss: Tensor,
    correct: Tensor,
    confidence: Tensor,
    measured: Tensor,
    max_hidden: int,
    tau: float,
    drop_top: int = 0,
    spread: Spread = ALONE,
) -> Selection:
    """Choose the samples to hide from their last loss, correctness and confidence.

    Args:
        loss: ``float32[N]``. A sample whose loss is not finite is never a candidate.
        correct: ``bool[N]``.
        confidence: ``float32[N]``.
        measured: ``bool[N]``; only these can be hidden.
        max_hidden: number of candidates: those of lowest loss, ties by lower index.
        tau: a candidate is hidden iff it is correct and ``confidence >= tau``; the others are moved back into training
            and nothing takes their place.
        drop_top: also hide this many of highest finite loss.
        spread: where the rows of all samples are; numbers are of all.
    """
    candidates = lowest(loss, max_hidden, measured, spread=spread)
    # tau is compared in float32, so that a confidence of 0.7 hides at tau 0.7
    threshold = torch.tensor(tau, dtype=confidence.dtype, device=confidence.device)
    hidden = (confidence >= threshold).logical_and_(correct).logical_and_(candidates)
    count, left = spread.count(candidates), spread.count(hidden)
    if drop_top:
        hidden = hidden | lowest(-loss, drop_top, measured, spread=spread)
    return Selection(hidden, count, count - left)


@register_method("kakurenbo")
@dataclass(frozen=True)
class Kakurenbo(HideMethod):
    """KAKURENBO (Nguyen et al., NeurIPS 2023)."""

    max_fraction: float = setting(
        0.3,
        proportion(),
        "F, the largest share of the data set that may be hidden; read as a decimal, 0.29 of 100 is 29; with `drop_top` below 1",
        fix="For example: 0.3 hides 30 %.",
    )
    tau: float = setting(
        0.7, number(0, 1), "confidence from which a correct candidate is hidden; compared in float32: 0.7 hides at 0.7"
    )
    fractions: tuple[float, ...] = setting(
        (1.0, 0.8, 0.6, 0.4),
        several(number(0, 1), "a list of numbers in [0, 1]"),
        "factor on F in each interval between milestones",
        fix="For example: [1, 0.8].",
    )
    milestones: tuple[int | float, ...] = setting(
        (0.3, 0.6, 0.8),
        several(epoch_or_share(1), "a list of epochs (positive integers) or of shares of max_epochs (floats in (0, 1))"),
        "where the next fraction begins; strictly increasing, of one kind, one fewer than `fractions`",
        fix="For example: [60, 120, 160] or [0.3, 0.6, 0.8].",
    )
    drop_top: float = setting(
        0.0,
        proportion(),
        "also hide this share of the data set, of highest finite loss; 0.02 for DeepCAM in the paper",
        fix="For example: 0.02 hides 2 %.",
    )
    warmup_epochs: int = setting(
        0, integer(), "the learning rate is not scaled in these first epochs", unit="epochs", fix="For example: 5."
    )
    lr_fraction: Literal["hidden", "max"] = setting(
        "hidden",
        choice("hidden", "max"),
        "the learning rate is divided by 1 - the share really hidden, or (`'max'`, the published code) by 1 - F_e even when less is hidden",
        fix="Use 'hidden' unless you reproduce the paper's code.",
    )
    refresh_mode: Literal["eval", "train"] = refresh_setting()
    _: KW_ONLY
    start_epoch: int = setting(1, integer(), "the first epoch that may hide; nothing is measured before epoch 1")

    summary: ClassVar[str] = "hides correct, confident samples of lowest loss; refreshes them by a scoring pass"
    paper: ClassVar[str] = "Nguyen et al., NeurIPS 2023"
    reads: ClassVar[tuple[str, ...]] = ("loss", "confidence", "correct")
    needs_all_rows: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # the arena's settings that beat both controls on CIFAR-10 (recipes/benchmarks/README.md)
        "fast": {"max_fraction": 0.5, "fractions": (1.0,), "milestones": (), "every_n_epochs": 3},
    }

    def check_settings(self) -> None:
        """The shares leave something to train, and the schedule of fractions is one."""
        super().check_settings()
        check = checker(self)
        highest = max(map(as_decimal, self.fraction_schedule), default=Fraction(1))
        hidden = float(as_decimal(self.max_fraction) * highest + as_decimal(self.drop_top))
        what = "max_fraction" + " x the highest of fraction_schedule" * bool(self.fraction_schedule) + " + drop_top"
        require(hidden < 1, self.name, what, hidden, "a number in [0, 1)", "Something must be left to train.")
        check(
            len(self.milestones) == len(self.fractions) - 1,
            "milestones",
            f"one shorter than fractions ({len(self.fractions)} values)",
            "Each milestone moves on to the next fraction.",
        )
        kinds = {type(m) for m in self.milestones}
        check(
            len(kinds) <= 1 and all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False)),
            "milestones",
            "strictly increasing and of one kind, all epochs or all shares",
            "For example: [60, 120, 160].",
        )

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """Shares of ``max_epochs`` need a run that has an end."""
        super().check_run(max_epochs, num_samples)
        self._check_end(max_epochs)

    def _check_end(self, max_epochs: int | None) -> None:
        if max_epochs is None and any(isinstance(m, float) for m in self.milestones):
            raise ValueError(
                f"{self.name}: milestones={self.milestones} are shares of max_epochs, but this run has no end; set "
                "Trainer(max_epochs=...) or give the milestones in epochs, for example milestones=(30, 60, 80)"
            )

    @property
    def largest_fraction(self) -> Fraction:
        """F, the setting ``max_fraction``, as a decimal."""
        return as_decimal(self.max_fraction)

    def fraction(self, epoch: Epoch) -> Fraction:
        """F_e: the largest share that may be hidden in ``epoch``, exactly; ``fraction_schedule`` comes on top."""
        self._check_end(epoch.max_epochs)
        passed = 0
        for milestone in self.milestones:
            at = as_decimal(milestone) * (epoch.max_epochs or 0) if isinstance(milestone, float) else milestone
            passed += epoch.index >= at
        return as_decimal(self.max_fraction) * as_decimal(self.fractions[passed])

    def fixed_fraction(self, epoch: Epoch) -> Fraction:
        """F_e, the setting ``max_fraction`` times the factor of the milestones passed."""
        return self.fraction(epoch)

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Choose from the last loss, confidence and correctness; no memory of earlier choices."""
        total = statistics.total
        chosen = select_hidden(
            statistics.loss,
            statistics.correct,
            statistics.confidence,
            statistics.measured,
            self.hidden_count(total, epoch),
            self.tau,
            exact_floor(self.drop_top, total),
            statistics.spread,
        )
        return Choice(chosen.hidden, metrics={"candidates": float(chosen.candidates), "moved_back": float(chosen.moved_back)})

    def lr_factor(self, statistics: SampleStatistics, epoch: Epoch, hidden_share: Fraction) -> float:
        """1 / (1 - share), unless nothing was measured yet or this is a warm-up epoch."""
        if epoch.index < self.warmup_epochs or not statistics.spread.count(statistics.measured):
            return 1.0
        return float(1 / (1 - (hidden_share if self.lr_fraction == "hidden" else self.hidden_share(epoch))))
