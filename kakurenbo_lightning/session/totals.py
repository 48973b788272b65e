"""How many samples a session trained, hid and refreshed, how long that took, and how much time it may have saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kakurenbo_lightning.core.durations import StepTimes, time_factor


@dataclass
class Totals:
    """Sums over the epochs of a session. Counts are over all ranks; seconds are wall time of this rank.

    Attributes:
        samples_trained: samples that went through a training step.
        samples_hidden: samples that were hidden, summed over epochs.
        samples_spared: how many more samples plain training would have trained. Fewer than were hidden if ``limit_train_batches`` or
            ``max_steps`` would have cut it off, and negative while a static method scores.
        moved_back: hiding candidates that stayed in training, summed over epochs.
        samples_refreshed: samples scored in forward-only passes.
        samples_scored: samples that a backprop method scored before it chose.
        samples_rejected: those of ``samples_scored`` that it did not train.
        scoring_epochs: epochs of a static method before its restart; their samples count as trained.
        train_seconds: training steps with loading and hooks, without validation.
        refresh_seconds: forward-only scoring passes.
        select_seconds: merging statistics, planning and sharding.
        score_seconds: the part of ``train_seconds`` spent on selecting forward passes and choices.
        forward_seconds: the part spent on forward passes of training steps (only measured for backprop and streaming methods).
        backward_seconds: the part spent on backward passes (likewise).
        data_seconds: the part spent waiting for the next batch (likewise).
        step_seconds: median time of a training step, without the wait for its batch. If steps do different things (some only score),
            the mean of the medians. This and the next four are 0 if not known: in a training resumed from a checkpoint that does not
            hold them.
        wait_seconds: waiting for batches, without stalls of the machine.
        steady_train_seconds: ``step_seconds`` times the number of steps, plus ``wait_seconds``: what training would have taken
            without stalls of the machine; load beside more than half of the steps is in it.
        steady_error_seconds: standard error of ``steady_train_seconds``.
        steady_refresh_seconds: forward-only passes, by their median time per sample.
        times: the durations from which the last five are computed. It is no sum, and checkpoints store it separately.
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
    step_seconds: float = 0.0
    wait_seconds: float = 0.0
    steady_train_seconds: float = 0.0
    steady_error_seconds: float = 0.0
    steady_refresh_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.times = StepTimes()

    def add(self, counts: Mapping[str, float], phases: Mapping[str, float]) -> None:
        """Add the counts of samples and the seconds by phase of one epoch."""
        self.samples_trained += int(counts["trained"])
        self.samples_scored += int(counts.get("scored", 0))
        self.samples_rejected += int(counts.get("rejected", 0))
        for name, seconds in phases.items():
            setattr(self, name, getattr(self, name) + seconds)
        vars(self).update(self.times.figures())

    def take_over(self, other: Totals) -> None:
        """Continue from the totals of a checkpoint."""
        self.times.load_state_dict(other.times.state_dict())
        vars(self).update(vars(other) | {"times": self.times})

    def as_dict(self) -> dict[str, float]:
        """The sums and the figures derived from them, by name."""
        return {**asdict(self), **{name: getattr(self, name) for name in ("steady_seconds", "saved_seconds", "ideal")}}

    @property
    def seconds(self) -> float:
        """Wall time of training, forward-only passes and selection, without validation."""
        return self.train_seconds + self.refresh_seconds + self.select_seconds

    @property
    def steady_seconds(self) -> float:
        """:attr:`seconds` without stalls of the machine (see :attr:`steady_train_seconds`); the wall time if steps were not timed."""
        if not self.steady_train_seconds:
            return self.seconds
        return self.steady_train_seconds + self.steady_refresh_seconds + self.select_seconds

    @property
    def saved_seconds(self) -> float:
        """Estimate of the time saved: what hidden and rejected samples would have cost, minus refreshing, scoring and selecting."""
        if not self.samples_trained:
            return 0.0
        is_known = self.steady_train_seconds > 0
        steady = self.steady_train_seconds / self.train_seconds if is_known and self.train_seconds else 1.0
        refresh = self.steady_refresh_seconds if is_known else self.refresh_seconds
        cost = (self.train_seconds - self.score_seconds - self.data_seconds) / self.samples_trained
        loading = self.data_seconds / max(self.samples_trained, self.samples_scored)
        left_out = cost * (self.samples_spared + self.samples_rejected) + loading * self.samples_spared
        return steady * (left_out - self.score_seconds) - refresh - self.select_seconds

    @property
    def ideal(self) -> float:
        """The largest share of time that could be saved: samples not trained, minus the cost of forward-only passes
        (:func:`time_factor`).
        """
        plain = self.samples_trained + self.samples_spared + self.samples_rejected
        return 1 - self.samples_trained / plain * time_factor(asdict(self)) if self.samples_trained and plain > 0 else 0.0

    @property
    def summary_of_saving(self) -> str:
        """The estimated and the ideal saving, in words."""
        saved, whole = self.saved_seconds, self.steady_seconds + self.saved_seconds
        share = f" ({saved / whole:.1%}, ideal {self.ideal:.1%})" if whole > 0 else ""
        return f"estimated saving {saved:.1f} s of {whole:.1f} s{share}"

    def _shares_of(self, family: str) -> tuple[int, int, str]:
        """The counts from which shares are computed.

        Returns:
            The samples that plain training would have trained, at least 1; how many of them were hidden; and a remark on hidden
            samples that it would not have trained, because ``limit_train_batches`` or ``max_steps`` cuts it off too.
        """
        hidden = self.samples_hidden
        if family not in ("backprop", "draw") and not self.scoring_epochs:
            hidden = max(0, min(hidden, self.samples_spared))
        cut = self.samples_hidden - hidden
        remark = f"; the Trainer's limits would have cut off {cut:,} of them anyway" if cut else ""
        return max(1, self.samples_trained + hidden + self.samples_rejected), hidden, remark

    def table(self, family: str = "") -> list[str]:
        """What :meth:`summary` says as the lines of a small table, without counts of which there are none."""
        left_out, plural = self.samples_hidden + self.samples_rejected, "" if self.scoring_epochs == 1 else "s"
        known, hidden, cut = self._shares_of(family)
        again = f", {self.scoring_epochs} epoch{plural} of them before it started again" if self.scoring_epochs else ""
        counts = {
            "trained": (self.samples_trained, f"{self.samples_trained / known:.1%}{again}"),
            "hidden": (self.samples_hidden, f"{hidden / known:.1%}{cut}"),
            "rejected": (self.samples_rejected, f"{self.samples_rejected / known:.1%}"),
            "scored": (self.samples_scored, "forward passes to choose by"),
            "refreshed": (self.samples_refreshed, "forward passes only"),
            "moved back": (self.moved_back, "trained all the same: wrong, or less sure than tau"),
        }
        if family == "draw":
            counts["trained"] = (self.samples_trained, "drawn by probability")
        rows = [(name, f"{count:,}", "samples", said) for name, (count, said) in counts.items() if count or name == "trained"]
        saving = self.summary_of_saving if left_out and family != "draw" else ""
        rows.append(("time", f"{self.steady_seconds:,.1f}", "s", saving))
        return [f"{name:<10} {figure:>12} {unit:<7}  {said}".rstrip() for name, figure, unit, said in rows]

    def summary(self, family: str = "") -> str:
        """One line for the end of a session with a method of ``family``."""
        known, hidden, cut = self._shares_of(family)
        plural = "" if self.scoring_epochs == 1 else "s"
        scored = f" ({self.scoring_epochs} epoch{plural} of them before it started again)" if self.scoring_epochs else ""
        done = f"trained {self.samples_trained:,} samples{scored}"
        if self.samples_scored:
            done += (
                f", scored {self.samples_scored:,} and rejected {self.samples_rejected:,} ({self.samples_rejected / known:.1%})"
            )
        if self.samples_hidden:
            done += f", hid {self.samples_hidden:,} ({hidden / known:.1%}{cut})"
            done += f", refreshed {self.samples_refreshed:,}" * (self.samples_refreshed > 0)
        if family == "draw":
            passes = f"; scored {self.samples_refreshed:,} in {self.refresh_seconds:.1f} s of {self.seconds:.1f} s"
            return f"{done}, drawn by probability{passes * (self.samples_refreshed > 0)}"
        if not self.samples_hidden and not self.samples_rejected:
            back = (
                f": {self.moved_back:,} candidates were all moved back (wrong, or less sure than tau)" if self.moved_back else ""
            )
            return f"{done} and hid none{back}"
        return f"{done}; {self.summary_of_saving}"
