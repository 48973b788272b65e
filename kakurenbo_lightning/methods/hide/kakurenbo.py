"""KAKURENBO: hide the samples of lowest loss that the network already gets right with confidence.

Truong Thao Nguyen, Balazs Gerofi, Edgar Josafat Martinez-Noriega, François Trahay, Mohamed Wahib: "KAKURENBO: Adaptively
Hiding Samples in Deep Neural Network Training", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch, RefreshMode
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, is_count, is_epoch_or_share, is_number, require_fraction
from kakurenbo_lightning.methods.topk import as_decimal, exact_floor, lowest


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
) -> Selection:
    """Choose the samples to hide.

    Args:
        loss: ``float32[N]``. A sample whose loss is not finite is never a candidate.
        correct: ``bool[N]``.
        confidence: ``float32[N]``.
        measured: ``bool[N]``; only these can be hidden.
        max_hidden: number of candidates: those of lowest loss, ties by lower index.
        tau: a candidate is hidden iff it is correct and ``confidence >= tau``; the others are moved back into training
            and nothing takes their place.
        drop_top: also hide this many of highest finite loss.
    """
    candidates = lowest(loss, max_hidden, measured)
    # tau is compared in float32, so that a confidence of 0.7 hides at tau 0.7
    threshold = torch.tensor(tau, dtype=confidence.dtype, device=confidence.device)
    hidden = (confidence >= threshold).logical_and_(correct).logical_and_(candidates)
    counts = torch.stack([candidates.count_nonzero(), hidden.count_nonzero()]).tolist()
    if drop_top:
        hidden = hidden | lowest(-loss, drop_top, measured)
    return Selection(hidden, counts[0], counts[0] - counts[1])


@register_method("kakurenbo")
@dataclass(frozen=True)
class Kakurenbo(HideMethod):
    """KAKURENBO (Nguyen et al., NeurIPS 2023).

    Args:
        max_fraction: F, the largest share of the data set that may be hidden, in [0, 1). Read as a decimal.
        tau: confidence from which a correct candidate is hidden, in [0, 1].
        fractions: F is multiplied by the first of these, and by the next one after each milestone; each in [0, 1].
        milestones: increasing; integers are epochs, floats in (0, 1) are shares of ``max_epochs``. One fewer than ``fractions``.
        drop_top: also hide this share of the data set, of highest finite loss (DeepCAM: 0.02), in [0, 1).
        warmup_epochs: the learning rate is not scaled in the first so many epochs.
        lr_fraction: the learning rate is divided by one minus the share really hidden (``"hidden"``) or minus F times the
            schedule's factor even when less is hidden (``"max"``, the published code).
        refresh_mode: mode of the pass over the hidden samples: ``"eval"``, or ``"train"`` as in the published code, which
            changes BatchNorm's running statistics.
        start_epoch: the first epoch that may hide, >= 0; nothing is measured before epoch 1.

    Raises:
        ValueError: a setting out of range.
    """

    max_fraction: float = 0.3
    tau: float = 0.7
    fractions: tuple[float, ...] = (1.0, 0.8, 0.6, 0.4)
    milestones: tuple[int | float, ...] = (0.3, 0.6, 0.8)
    drop_top: float = 0.0
    warmup_epochs: int = 0
    lr_fraction: Literal["hidden", "max"] = "hidden"
    refresh_mode: RefreshMode = "eval"
    _: KW_ONLY
    start_epoch: int = 1

    summary: ClassVar[str] = "hides correct, confident samples of lowest loss; refreshes them by a forward-only pass"
    paper: ClassVar[str] = "Nguyen et al., NeurIPS 2023"
    reads: ClassVar[tuple[str, ...]] = ("loss", "confidence", "correct")

    def __post_init__(self) -> None:
        super().__post_init__()
        check = checker(self)
        require_fraction(self.name, "max_fraction", self.max_fraction)
        require_fraction(self.name, "drop_top", self.drop_top)
        require_fraction(self.name, "max_fraction + drop_top", float(as_decimal(self.max_fraction) + as_decimal(self.drop_top)))
        check(is_number(self.tau) and 0 <= self.tau <= 1, "tau", "a number in [0, 1]", "For example: 0.7.")
        for name in ("fractions", "milestones"):
            value = getattr(self, name)
            check(isinstance(value, Sequence) and not isinstance(value, str), name, "a list", "For example: [0.3, 0.6, 0.8].")
        # Hydra hands over lists
        object.__setattr__(self, "fractions", tuple(self.fractions))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        check(
            all(is_number(f) and 0 <= f <= 1 for f in self.fractions), "fractions", "numbers in [0, 1]", "For example: [1, 0.8]."
        )
        check(
            len(self.milestones) == len(self.fractions) - 1,
            "milestones",
            f"one shorter than fractions ({len(self.fractions)} values)",
            "Each milestone moves on to the next fraction.",
        )
        check(
            all(is_epoch_or_share(m) and m > 0 for m in self.milestones),
            "milestones",
            "epochs (positive integers) or shares of max_epochs (floats in (0, 1))",
            "For example: [60, 120, 160] or [0.3, 0.6, 0.8].",
        )
        kinds = {type(m) for m in self.milestones}
        check(
            len(kinds) <= 1 and all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False)),
            "milestones",
            "strictly increasing and of one kind, all epochs or all shares",
            "For example: [60, 120, 160].",
        )
        check(
            is_count(self.warmup_epochs),
            "warmup_epochs",
            "an integer >= 0",
            "For example: 5.",
        )
        check(
            self.lr_fraction in ("hidden", "max"),
            "lr_fraction",
            "'hidden' or 'max'",
            "Use 'hidden' unless you reproduce the paper's code.",
        )
        check(
            self.refresh_mode in ("eval", "train"),
            "refresh_mode",
            "'eval' or 'train'",
            "Use 'eval' unless you reproduce the paper's code.",
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

    def fraction(self, epoch: Epoch) -> Fraction:
        """F_e: the largest share that may be hidden in ``epoch``, exactly."""
        self._check_end(epoch.max_epochs)
        passed = 0
        for milestone in self.milestones:
            at = as_decimal(milestone) * epoch.max_epochs if isinstance(milestone, float) else milestone
            passed += epoch.index >= at
        return as_decimal(self.max_fraction) * as_decimal(self.fractions[passed])

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Choose anew from the last seen loss, confidence and correctness; no memory of earlier choices."""
        total = len(statistics)
        chosen = select_hidden(
            statistics.loss,
            statistics.correct,
            statistics.confidence,
            statistics.measured,
            exact_floor(self.fraction(epoch), total),
            self.tau,
            exact_floor(self.drop_top, total),
        )
        return Choice(chosen.hidden, metrics={"candidates": float(chosen.candidates), "moved_back": float(chosen.moved_back)})

    def lr_factor(self, statistics: SampleStatistics, epoch: Epoch, hidden_share: Fraction) -> float:
        """1 / (1 - share), unless nothing was measured yet or this is a warm-up epoch."""
        if epoch.index < self.warmup_epochs or not bool(statistics.measured.any()):
            return 1.0
        return float(1 / (1 - (hidden_share if self.lr_fraction == "hidden" else self.fraction(epoch))))
