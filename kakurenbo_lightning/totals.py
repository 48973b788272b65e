"""What a run trained, hid and refreshed, and the time it took."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class RunTotals:
    """Sums over the epochs of a run; counts are over all ranks, seconds are this rank's wall time.

    Attributes:
        samples_trained: samples that went through a training step.
        samples_hidden: samples left out, summed over epochs.
        samples_refreshed: samples that went through a forward-only pass.
        scoring_epochs: epochs of a static method before it started again; their samples count as trained.
        train_seconds: training batches, their loading and what hooks do, without validation.
        refresh_seconds: the forward-only passes.
        select_seconds: merging statistics, planning and dealing.
    """

    samples_trained: int = 0
    samples_hidden: int = 0
    samples_refreshed: int = 0
    scoring_epochs: int = 0
    train_seconds: float = 0.0
    refresh_seconds: float = 0.0
    select_seconds: float = 0.0

    @property
    def saved_seconds(self) -> float:
        """Estimated: the hidden samples at the measured cost of a trained one, less refreshing and selecting."""
        if not self.samples_trained:
            return 0.0
        cost = self.train_seconds / self.samples_trained
        return cost * self.samples_hidden - self.refresh_seconds - self.select_seconds

    def summary(self) -> str:
        """One line for the end of a run."""
        looked_at = max(1, self.samples_trained + self.samples_hidden)
        spent = self.train_seconds + self.refresh_seconds + self.select_seconds
        scored = f" ({self.scoring_epochs} epochs of them before it started again)" if self.scoring_epochs else ""
        if not self.samples_hidden:
            return f"trained {self.samples_trained:,} samples{scored} and hid none"
        return (
            f"trained {self.samples_trained:,} samples{scored}, hid {self.samples_hidden:,} ({self.samples_hidden / looked_at:.1%}), "
            f"refreshed {self.samples_refreshed:,}; estimated saving {self.saved_seconds:.1f} s "
            f"of {spent + self.saved_seconds:.1f} s"
        )


class Stopwatch:
    """Seconds of wall time that can be paused."""

    def __init__(self, running: bool = False) -> None:
        self._elapsed = 0.0
        self._since: float | None = None
        if running:
            self.start()

    def start(self) -> None:
        """Run, if it does not already."""
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop running and keep what has elapsed."""
        if self._since is not None:
            self._elapsed += time.perf_counter() - self._since
            self._since = None

    def take(self) -> float:
        """Pause, return what has elapsed and begin again at 0."""
        self.pause()
        elapsed, self._elapsed = self._elapsed, 0.0
        return elapsed
