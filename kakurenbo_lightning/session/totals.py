"""What a run trained, hid and refreshed, and the time it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class Totals:
    """Sums over the epochs of a run; counts are over all ranks, seconds are this rank's wall time.

    Attributes:
        samples_trained: samples that went through a training step.
        samples_hidden: samples left out, summed over epochs.
        samples_spared: of them, the ones that would have been trained: fewer where ``limit_train_batches`` cuts epochs off.
        moved_back: candidates that stayed in training, summed over epochs.
        samples_refreshed: samples that went through a forward-only pass.
        samples_scored: samples that a backprop method scored before it chose.
        samples_rejected: of these, the ones it did not train.
        scoring_epochs: epochs of a static method before it started again; their samples count as trained.
        train_seconds: training batches, their loading and what hooks do, without validation.
        refresh_seconds: the forward-only passes.
        select_seconds: merging statistics, planning and sharding.
        score_seconds: of ``train_seconds``, selecting forward passes and choices.
        forward_seconds: of them, the forward passes of training steps (measured for backprop and streaming methods).
        backward_seconds: of them, the backward passes (likewise).
        data_seconds: of them, waiting for the next batch (likewise).
    """

    samples_trained: int = 0
    samples_hidden: int = 0
    samples_spared: int = 0
    moved_back: int = 0
    samples_refreshed: int = 0
    samples_scored: int = 0
    samples_rejected: int = 0
    scoring_epochs: int = 0
    train_seconds: float = 0.0
    refresh_seconds: float = 0.0
    select_seconds: float = 0.0
    score_seconds: float = 0.0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    data_seconds: float = 0.0

    def add(self, counts: Mapping[str, float], phases: Mapping[str, float]) -> None:
        """Add an epoch: its counts of samples, and seconds of its phases."""
        self.samples_trained += int(counts["trained"])
        self.samples_scored += int(counts.get("scored", 0))
        self.samples_rejected += int(counts.get("rejected", 0))
        for name, seconds in phases.items():
            setattr(self, name, getattr(self, name) + seconds)

    def take_over(self, other: Totals) -> None:
        """Go on from those of a checkpoint."""
        vars(self).update(vars(other))

    @property
    def saved_seconds(self) -> float:
        """Estimated: what hidden and rejected samples would have cost to train, less refreshing, scoring and selecting."""
        if not self.samples_trained:
            return 0.0
        cost = (self.train_seconds - self.score_seconds - self.data_seconds) / self.samples_trained
        loading = self.data_seconds / max(self.samples_trained, self.samples_scored)
        left_out = cost * (self.samples_spared + self.samples_rejected) + loading * self.samples_spared
        return left_out - self.refresh_seconds - self.select_seconds - self.score_seconds

    def summary(self, family: str = "") -> str:
        """One line for the end of a run with a method of ``family``."""
        known = max(1, self.samples_trained + self.samples_hidden + self.samples_rejected)
        spent = self.train_seconds + self.refresh_seconds + self.select_seconds
        scored = f" ({self.scoring_epochs} epochs of them before it started again)" if self.scoring_epochs else ""
        done = f"trained {self.samples_trained:,} samples{scored}"
        if self.samples_scored:
            done += (
                f", scored {self.samples_scored:,} and rejected {self.samples_rejected:,} ({self.samples_rejected / known:.1%})"
            )
        if self.samples_hidden:
            done += f", hid {self.samples_hidden:,} ({self.samples_hidden / known:.1%}), refreshed {self.samples_refreshed:,}"
        if family == "draw":
            return f"{done}, drawn by probability; scored {self.samples_refreshed:,} in {self.refresh_seconds:.1f} s of {spent:.1f} s"
        if not self.samples_hidden and not self.samples_rejected:
            back = (
                f": {self.moved_back:,} candidates were all moved back (wrong, or less sure than tau)" if self.moved_back else ""
            )
            return f"{done} and hid none{back}"
        return f"{done}; estimated saving {self.saved_seconds:.1f} s of {spent + self.saved_seconds:.1f} s"
