"""What a run trained, hid and refreshed, the time it took, and what that can have saved at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kakurenbo_lightning.core.durations import StepTimes, time_factor


@dataclass
class Totals:
    """Sums over the epochs of a run; counts are over all ranks, seconds are this rank's wall time.

    Attributes:
        samples_trained: samples that went through a training step.
        samples_hidden: samples left out, summed over epochs.
        samples_spared: by how many samples plain training is longer: fewer than were hidden where ``limit_train_batches`` or ``max_steps``
            cuts it off, and less than none while a static method scores.
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
        step_seconds: the median training step, without waiting for its batch; where steps do different things (some only score), the mean
            of the medians. Like the next four 0 where it is not known: in a training resumed from a checkpoint that does not hold it.
        wait_seconds: waiting for batches, without stalls.
        steady_train_seconds: ``step_seconds`` times the number of steps, and ``wait_seconds``: what training would have taken on a machine
            that is never busy with something else.
        steady_error_seconds: standard error of it.
        steady_refresh_seconds: the forward-only passes, by their median per sample.
        times: the durations that the last five are made of; no sum, and in a checkpoint apart from these.
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
        """Add an epoch: its counts of samples, and seconds of its phases."""
        self.samples_trained += int(counts["trained"])
        self.samples_scored += int(counts.get("scored", 0))
        self.samples_rejected += int(counts.get("rejected", 0))
        for name, seconds in phases.items():
            setattr(self, name, getattr(self, name) + seconds)
        vars(self).update(self.times.figures())

    def take_over(self, other: Totals) -> None:
        """Go on from those of a checkpoint."""
        self.times.load_state_dict(other.times.state_dict())
        vars(self).update(vars(other) | {"times": self.times})

    def as_dict(self) -> dict[str, float]:
        """The sums, and what follows from them."""
        return {**asdict(self), **{name: getattr(self, name) for name in ("steady_seconds", "saved_seconds", "ideal")}}

    @property
    def seconds(self) -> float:
        """Wall time of training, forward-only passes and selection, without validation."""
        return self.train_seconds + self.refresh_seconds + self.select_seconds

    @property
    def steady_seconds(self) -> float:
        """The same on a machine that is never busy with something else; the wall time where steps were not timed."""
        if not self.steady_train_seconds:
            return self.seconds
        return self.steady_train_seconds + self.steady_refresh_seconds + self.select_seconds

    @property
    def saved_seconds(self) -> float:
        """Estimated: what hidden and rejected samples would have cost to train, less refreshing, scoring and selecting."""
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
        """The share of time that could be saved at most: samples not trained, less what forward-only passes cost (:func:`time_factor`)."""
        plain = self.samples_trained + self.samples_spared + self.samples_rejected
        return 1 - self.samples_trained / plain * time_factor(asdict(self)) if self.samples_trained and plain > 0 else 0.0

    @property
    def summary_of_saving(self) -> str:
        """What is estimated to be saved, beside the ideal."""
        saved, whole = self.saved_seconds, self.steady_seconds + self.saved_seconds
        share = f" ({saved / whole:.1%}, ideal {self.ideal:.1%})" if whole > 0 else ""
        return f"estimated saving {saved:.1f} s of {whole:.1f} s{share}"

    def table(self, family: str = "") -> list[str]:
        """What :meth:`summary` says as the lines of a small table, without counts of which there are none."""
        left_out = self.samples_hidden + self.samples_rejected
        known, plural = max(1, self.samples_trained + left_out), "" if self.scoring_epochs == 1 else "s"
        again = f", {self.scoring_epochs} epoch{plural} of them before it started again" if self.scoring_epochs else ""
        counts = {
            "trained": (self.samples_trained, f"{self.samples_trained / known:.1%}{again}"),
            "hidden": (self.samples_hidden, f"{self.samples_hidden / known:.1%}"),
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
        """One line for the end of a run with a method of ``family``."""
        known = max(1, self.samples_trained + self.samples_hidden + self.samples_rejected)
        plural = "" if self.scoring_epochs == 1 else "s"
        scored = f" ({self.scoring_epochs} epoch{plural} of them before it started again)" if self.scoring_epochs else ""
        done = f"trained {self.samples_trained:,} samples{scored}"
        if self.samples_scored:
            done += (
                f", scored {self.samples_scored:,} and rejected {self.samples_rejected:,} ({self.samples_rejected / known:.1%})"
            )
        if self.samples_hidden:
            done += f", hid {self.samples_hidden:,} ({self.samples_hidden / known:.1%})"
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
