"""What a report shows of the data doctor's findings: two tables of text for each data set, and how to read them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from kakurenbo_lightning.report.doctor import ISSUE, Findings
from kakurenbo_lightning.report.groups import Group, task_of
from kakurenbo_lightning.report.reading import Run

LABELS = (
    "Margin: the logit of the label less the largest other one, averaged over the epochs that measured the sample (the area under the "
    "margin). It is made of loss, confidence and correctness: for a cross-entropy it is exact where the prediction is wrong, and the least "
    "possible where it is correct; with label smoothing or another loss, a guess where it is wrong. By loss, by probability, by "
    "forgetting: the place by average loss, by average probability of the label and by times forgotten alone; a label that is never "
    "learned is never forgotten. Rare and hard samples are found beside wrong labels: look before you change one."
)
CLASSES = (
    "The hardest classes first, by the probability of the label, averaged over epochs and samples. Correct: share when each sample was "
    "measured last. Forgotten: times per sample. Bad: a hard class with many label issues, whose labels may be confused with another's."
)


@dataclass(frozen=True)
class Section:
    """The findings of one run as text.

    Attributes:
        title: the group and seed that they are of.
        summary: how many label issues there are, and how far the figures agree.
        suspects: labels that are probably wrong, a row per sample.
        classes: a row per class; empty where targets are not known.
    """

    title: str
    summary: str
    suspects: pd.DataFrame
    classes: pd.DataFrame


def doctor_sections(groups: list[Group]) -> list[Section]:
    """A section for each data set and network: of the first run with findings, so of a baseline where there is one."""
    found: dict[str, Section] = {}
    for group in groups:
        runs = [run for run in group.counted if run.samples is not None and run.samples.findings is not None]
        if runs and task_of(group) not in found:
            found[task_of(group)] = _section(group, runs[0])
    return list(found.values())


def _section(group: Group, run: Run) -> Section:
    assert run.samples is not None and run.samples.findings is not None  # the caller has looked
    findings = run.samples.findings
    title = group.name if run.seed is None else f"{group.name}, seed {run.seed}"
    return Section(title, summary(findings), suspects_text(findings, run), classes_text(findings, run))


def summary(findings: Findings) -> str:
    """How many label issues there are, by what rule, and how far the other figures agree with the margin."""
    unknown = findings.count - findings.judged
    left_out = f"; {unknown:,} more were not judged" if unknown else ""
    names = {"average_loss": "loss", "average_label_confidence": "probability", "times_forgotten": "times forgotten"}
    agreed = ", ".join(f"{names[name]} {_number(value)}" for name, value in findings.agreement.items())
    return (
        f"{findings.issues:,} of {findings.judged:,} labels are probably wrong{left_out}: a margin below {ISSUE:g} (another class was, on "
        f"average, {math.exp(-ISSUE):.1f} times as probable), and still predicted wrongly. Rank correlation with the margin: {agreed}."
    )


def suspects_text(findings: Findings, run: Run) -> pd.DataFrame:
    """A row for each of the most suspicious samples."""
    return pd.DataFrame(
        {
            "sample": f"#{index}",
            "label": run.class_name(int(row["target"])),
            "margin": _number(row["average_margin"]),
            "by loss": f"{row['rank_by_average_loss']:.0f}.",
            "by probability": f"{row['rank_by_average_label_confidence']:.0f}.",
            "by forgetting": f"{row['rank_by_times_forgotten']:.0f}.",
            "epochs": f"{row['times_measured']:.0f}",
            "last": "correct" if row["correct"] else "wrong",
        }
        for index, row in findings.suspects.to_dict("index").items()
    )


def classes_text(findings: Findings, run: Run) -> pd.DataFrame:
    """A row for each of the hardest classes."""
    return pd.DataFrame(
        {
            "class": run.class_name(int(str(target))),
            "samples": f"{row['samples']:,.0f}",
            "probability": _number(row["average_label_confidence"]),
            "loss": _number(row["average_loss"]),
            "correct": f"{row['correct']:.1%}",
            "forgotten": _number(row["times_forgotten"]),
            "label issues": f"{row['issues']:,.0f}",
        }
        for target, row in findings.classes.to_dict("index").items()
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
