"""The verdict of a comparison: for each method the paired differences to the baseline and to its controls."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from kakurenbo_lightning.arena.runs import BASELINE, Comparison, Entry, Row, Training
from kakurenbo_lightning.cli.text_table import aligned

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom; above, the last is close and on the safe side
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
# limits beyond which a method's times mean that the machine was busy with something else
LEAST_TIME = 0.9  # least time of a method, relative to what its trained and refreshed samples take
FORWARD = 0.15  # least time of a refreshed sample, relative to a trained one
SPREAD = 0.15  # largest relative standard deviation, over the seeds, of the time per trained sample
UNRELIABLE = (
    "? time not resolved: below what the trained samples and scoring passes take, or its time per trained sample differs by more than "
    f"{SPREAD:.0%} between the seeds, so the machine was busy with something else and the baselines of equal time have the wrong length. "
    "Compare again, in another folder, while nothing else runs"
)
HEAD = ("method", "score", "to baseline", "time", "trained", "to random", "to equal time", "survives", "seeds")


FIGURES = ("score", "gain", "over_random", "over_time", "time", "trained", "refreshed")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of some figures; NaN if there are too few, or one is not finite.

    Attributes:
        values: one figure for each seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        return stdev(self.values) if len(self.values) > 1 and all(map(math.isfinite, self.values)) else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean by Student's t; NaN for fewer than two values."""
        count = len(self.values)
        if count < 2:
            return math.nan, math.nan
        half = STUDENT[min(count - 1, len(STUDENT)) - 1] * self.std / math.sqrt(count)
        return self.mean - half, self.mean + half

    def written(self, digits: int = 2, sign: str = "", scale: float = 1.0) -> str:
        """Format as mean ± standard deviation; a dash if there are no values."""
        if not self.values:
            return "-"
        text = f"{self.mean * scale:{sign}.{digits}f}"
        return text if math.isnan(self.std) else f"{text} ± {self.std * scale:.{digits}f}"


@dataclass(frozen=True)
class Standing:
    """The result of one method over all seeds.

    Attributes:
        entry: the method and its settings.
        score: scores of its trainings.
        gain: improvement of its score over the baseline of the same seed; positive is better for either kind of score.
        over_random: improvement over hiding the same share at random.
        over_time: improvement over a baseline of equal time.
        time: its cost relative to the baseline's.
        trained: its number of trained samples relative to the baseline's.
        refreshed: its number of samples in scoring passes over hidden ones, relative to the baseline's trained samples.
    """

    entry: Entry
    score: Spread
    gain: Spread
    over_random: Spread
    over_time: Spread
    time: Spread
    trained: Spread
    refreshed: Spread = Spread(())

    @property
    def name(self) -> str:
        """Name and settings of the method."""
        return self.entry.name

    @property
    def is_timed(self) -> bool:
        """Whether its times are plausible, so that the machine was not busy with something else."""
        trained, refreshed = self.trained.values, self.refreshed.values or (0.0,) * len(self.trained.values)
        parts = [each for each in zip(self.time.values, trained, refreshed, strict=True) if each[1] > 0]
        ratios = Spread(tuple(time / share for time, share, _ in parts))
        steady = len(parts) < 2 or ratios.std <= SPREAD * ratios.mean
        return steady and all(time >= LEAST_TIME * (share + FORWARD * again) for time, share, again in parts)

    @property
    def survives(self) -> str:
        """``yes`` if it is better than both controls by more than the interval of the differences; ``no`` if it is worse than one, or
        one of its trainings diverged; else ``not resolved``. Without reliable times the baseline of equal time had the wrong length.
        ``-`` for the baseline, which has no controls.
        """
        if self.entry.method == BASELINE:
            return "-"
        if not all(map(math.isfinite, self.score.values)):
            return "no"
        intervals = [self.over_random.interval, self.over_time.interval if self.is_timed else (math.nan, math.nan)]
        if all(low > 0 for low, _ in intervals):
            return "yes"
        return "no" if any(high < 0 for _, high in intervals) else "not resolved"


def standings(comparison: Comparison, rows: Mapping[str, Row], higher_is_better: bool = True) -> list[Standing]:
    """The result of each method, the baseline first. Only seeds whose trainings are all finished count.

    Args:
        comparison: which trainings were compared.
        rows: results of finished trainings, by name.
        higher_is_better: whether a higher score is better, as for an accuracy; ``False`` for a loss or an error.
    """
    better = 1 if higher_is_better else -1
    scores = Spread(tuple(row["score"] for seed in comparison.seeds if (row := rows.get(comparison.baseline(seed).name))))
    none, one = Spread(()), Spread((1.0,))
    found = [Standing(Entry(BASELINE), scores, none, none, none, one, one)]
    for entry in comparison.entries:
        figures: dict[str, list[float]] = {name: [] for name in FIGURES}
        for seed in comparison.seeds:
            row, baseline = rows.get(comparison.of(entry, seed).name), rows.get(comparison.baseline(seed).name)
            if row is None or baseline is None:
                continue
            figures["score"].append(row["score"])
            figures["gain"].append(better * (row["score"] - baseline["score"]))
            figures["time"].append(row["cost"] / baseline["cost"])
            figures["trained"].append(row["samples_trained"] / baseline["samples_trained"])
            figures["refreshed"].append(row.get("samples_refreshed", 0) / baseline["samples_trained"])
            for name, control in zip(("over_random", "over_time"), comparison.controls(row, baseline), strict=True):
                if control.name in rows:
                    figures[name].append(better * (row["score"] - rows[control.name]["score"]))
        found.append(Standing(entry, **{name: Spread(tuple(values)) for name, values in figures.items()}))
    return found


def group_of(comparison: Comparison, training: Training) -> str:
    """What a training and those of other seeds have in common: the method, its settings, and how many epochs where others have more."""
    epochs = "" if training.epochs == comparison.epochs else f", {training.epochs} epoch{'s' * (training.epochs != 1)}"
    return training.entry.title + epochs


def controls_of(comparison: Comparison, entry: Entry, rows: Mapping[str, Row]) -> dict[str, None]:
    """The groups that a method must beat, as ``points`` names them, in the order of the seeds; those that are trained."""
    found: dict[str, None] = {}
    for seed in comparison.seeds:
        row, baseline = rows.get(comparison.of(entry, seed).name), rows.get(comparison.baseline(seed).name)
        if row is not None and baseline is not None:
            controls = [control for control in comparison.controls(row, baseline) if control.name in rows]
            found |= dict.fromkeys(group_of(comparison, control) for control in controls)
    return found


def points(comparison: Comparison, rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """One row for each method, setting and number of epochs that was trained, controls included: means and deviations over the seeds.

    Returns:
        rows with ``group`` (what was trained), ``method``, ``time`` (relative to the baseline of the same seed) and ``score``, the
        latter two also with ``_std``. Trainings without a baseline of the same seed are left out.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows.values():
        baseline = rows.get(comparison.baseline(row["seed"]).name)
        if baseline is None or row["seed"] not in comparison.seeds:
            continue
        group = group_of(comparison, Training(Entry(row["method"], row["settings"]), row["seed"], row["epochs"]))
        found.setdefault((group, row["method"]), []).append((row["cost"] / baseline["cost"], row["score"]))
    made = []
    for (group, method), figures in found.items():
        times, scores = (Spread(values) for values in zip(*figures, strict=True))
        made.append({"group": group, "method": method, "time": times.mean, "time_std": times.std})
        made[-1] |= {"score": scores.mean, "score_std": scores.std}
    return made


def table(found: Sequence[Standing], width: int, percent: bool = True) -> list[str]:
    """The lines of the table. ``percent`` shows scores in percent and differences in points. Unreliable times are explained below
    it.
    """
    scale = 100.0 if percent else 1.0
    cells = [
        (
            one.entry.title,
            one.score.written(scale=scale),
            one.gain.written(sign="+", scale=scale),
            one.time.written() + " ?" * (not one.is_timed),
            one.trained.written(),
            one.over_random.written(sign="+", scale=scale),
            one.over_time.written(sign="+", scale=scale),
            one.survives,
            str(len(one.score.values)),
        )
        for one in found
    ]
    below = [] if all(one.is_timed for one in found) else textwrap.wrap(UNRELIABLE, width)
    return [*aligned(HEAD, cells, width, figures=True), *below]
