"""The data doctor: what the figures over the epochs say of the data. Pure functions of the rows of samples.parquet.

Samples are data frames by data set index, with ``target``, ``correct`` and :data:`~kakurenbo_lightning.record.schema.OVER_EPOCHS` as
numbers. A sample is judged when it was measured and is known to be predicted correctly or not; the others (never measured, a regression)
have no margin, no rank and are no label issue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kakurenbo_lightning.record.schema import OVER_EPOCHS

SCORE = "average_margin"  # the lower, the more suspicious
OTHERS = {"average_loss": False, "average_label_confidence": True, "times_forgotten": False}  # whether low values are suspicious
ISSUE = -2.0  # below this margin another class was, on average, e ** 2 = 7.4 times as probable as the label
COLUMNS = ("target", "correct", *OVER_EPOCHS)


@dataclass(frozen=True)
class Findings:
    """What the data doctor finds in a run.

    Attributes:
        suspects: the first rows of :func:`suspects`.
        classes: the hardest classes, see :func:`hardness`.
        agreement: how far the rankings agree, see :func:`agreement`.
        issues: how many samples are label issues.
        judged: how many samples could be.
        count: how many samples there are.
    """

    suspects: pd.DataFrame
    classes: pd.DataFrame
    agreement: Mapping[str, float]
    issues: int
    judged: int
    count: int


def examine(samples: pd.DataFrame, rows: int) -> Findings | None:
    """The findings, with so many rows of each table; ``None`` where no sample is judged, or a column of an older version is missing."""
    if not set(COLUMNS) <= set(samples) or not samples[SCORE].notna().any():
        return None
    judged, issues = int(samples[SCORE].notna().sum()), int(is_issue(samples).sum())
    return Findings(
        suspects(samples).head(rows), hardness(samples).head(rows), agreement(samples), issues, judged, count=len(samples)
    )


def is_issue(samples: pd.DataFrame) -> pd.Series:
    """Whether each label is probably wrong: a margin below :data:`ISSUE`, and predicted wrongly when it was measured last."""
    return (samples[SCORE] < ISSUE) & (samples["correct"] == 0)


def suspects(samples: pd.DataFrame) -> pd.DataFrame:
    """The judged samples by their margin, the most suspicious first.

    Their columns, ``is_issue``, and ``rank_by_average_loss``, ``rank_by_average_label_confidence`` and ``rank_by_times_forgotten``: the
    place that each has by one of the other figures alone, from 1, the same for equal ones.
    """
    known: Any = samples[samples[SCORE].notna()]
    places = {f"rank_by_{name}": known[name].rank(ascending=low, method="min").astype(int) for name, low in OTHERS.items()}
    return known.assign(is_issue=is_issue(known), **places).sort_values(SCORE, kind="stable")


def agreement(samples: pd.DataFrame) -> dict[str, float]:
    """How far the other figures agree with the margin on who is suspicious: Spearman's rank correlation over the judged samples.

    1 for the same order, 0 for none; NaN where all values of a figure are equal.
    """
    known: Any = samples[samples[SCORE].notna()]
    ranks: Any = pd.DataFrame({name: known[name].rank(ascending=low) for name, low in {SCORE: True, **OTHERS}.items()})
    return ranks.corr()[SCORE].drop(SCORE).to_dict()


def hardness(samples: pd.DataFrame) -> pd.DataFrame:
    """How hard each class was to learn, the hardest first: that of the lowest average probability of the label.

    By target, without samples that are not judged or whose target is not known: ``samples``, the means of ``average_loss``,
    ``average_label_confidence`` and ``times_forgotten``, ``correct`` (share when it was measured last) and ``issues`` (a number).
    """
    known: Any = samples[samples[SCORE].notna() & (samples["target"] >= 0)]
    parts = known.assign(issues=is_issue(known), samples=1).groupby("target")
    means = parts[["average_loss", "average_label_confidence", "times_forgotten", "correct"]].mean()
    return means.join(parts[["samples", "issues"]].sum()).sort_values("average_label_confidence", kind="stable")
