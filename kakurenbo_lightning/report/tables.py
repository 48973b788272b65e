"""The tables of a report: figures as data frames, and as text for the terminal, Markdown and HTML."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pandas as pd

from kakurenbo_lightning.report.groups import Group
from kakurenbo_lightning.report.reading import clean

SHARE = re.compile(r"accuracy|precision|recall|auroc|(?<![a-z])(acc|f1(score)?|(m|mean)?iou|top)(?![a-z])")  # of names
LOWER = re.compile(r"loss|error|perplexity|(?<![a-z])r?m[as]p?e(?![a-z])")  # names of metrics that are to fall
MARKS = re.compile(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])")  # of Markdown; an underscore within a word is none
NOISE = 0.02  # of a saving, beside that of the steps: medians are 0.5 % off, and the last batch of an epoch may be short
NOT_RESOLVED = "not resolved"
COUNTS = ["trained", "forwards", "backwards"]  # columns that a narrow terminal has no room for


def is_share(groups: list[Group]) -> bool:
    """Whether the metrics are shares, which are shown in percent: by their names, and all scores are in [0, 1]."""
    scores = [run.score for group in groups for run in group.runs if not math.isnan(run.score)]
    names = {group.metric.lower() for group in groups if group.metric}
    named = bool(names) and all(SHARE.search(name) and "loss" not in name for name in names)
    return named and all(0 <= score <= 1 for score in scores)


def metric_name(groups: list[Group]) -> str:
    """Name of the groups' metric without what it was logged under, `score` for several."""
    names = {group.metric.split("/")[-1] for group in groups if group.metric}
    return names.pop() if len(names) == 1 else "score"


def rank(group: Group) -> float:
    """A number that is the lower the better a group's mean score is; infinite without a score."""
    score = group.seeds["score"].mean()
    return math.inf if math.isnan(score) else score if LOWER.search((group.metric or "").lower()) else -score


def compared(groups: list[Group]) -> list[Group]:
    """The groups that are compared: those with finished runs, all while no run has finished."""
    return [group for group in groups if group.finished] or groups


def comparison(groups: list[Group]) -> pd.DataFrame:
    """One row per compared group, over its seeds; what does not apply or is not known is NaN.

    Columns: group, method, metric, score and score_std (as logged), difference and difference_std (of the score, to the
    baseline with the same seed), seconds and seconds_std (on a machine that is never busy with something else: the median step times
    the number of steps; the wall time where steps were not timed), wall_seconds, saving (share of the baseline's seconds, same seed),
    ideal (the most that can be saved: samples not trained, less what forward-only passes cost), noise (by how much a saving can lie above
    the ideal without meaning anything), resolved (whether it lies no more than that above), samples_trained, forwards, backwards,
    hidden_share, seeds, pairs, timed_pairs and scored (seeds with a difference, a saving, a score), runs. A std is that of a sample, NaN
    for one seed.
    """
    return pd.DataFrame([comparison_row(group) for group in compared(groups)])


def comparison_row(group: Group) -> dict[str, Any]:
    """The row of one group in the comparison."""
    seeds, pairs = group.seeds, group.pairs
    difference: Any = (pairs["score"] - pairs["score_baseline"]).dropna()
    seconds: Any = seeds["steady_seconds"].fillna(seeds["seconds"])
    saved = savings(group)
    noise = NOISE + math.hypot(*saved["noise"]) / max(1, len(saved))
    return {
        "group": group.name,
        "method": group.method,
        "metric": group.metric,
        "score": seeds["score"].mean(),
        "score_std": seeds["score"].std(),
        "difference": difference.mean(),
        "difference_std": difference.std(),
        "seconds": seconds.mean(),
        "seconds_std": seconds.std(),
        "wall_seconds": seeds["seconds"].mean(),
        "saving": saved["saving"].mean(),
        "ideal": ideals(group.pairs).mean(),
        "noise": noise if len(saved) else math.nan,
        "resolved": not (saved["saving"] - saved["ideal"]).mean() > noise,
        **{name: seeds[name].mean() for name in ("samples_trained", "forwards", "backwards", "hidden_share")},
        "seeds": len(seeds),
        "pairs": len(difference),
        "timed_pairs": len(saved),
        "scored": int(seeds["score"].count()),
        "runs": len(group.counted),
    }


def ideals(pairs: pd.DataFrame) -> pd.Series:
    """The most that each pair can save: the share of samples not trained, less what forward-only passes cost."""
    trained: Any = pairs["samples_trained_baseline"]
    return 1 - pairs["samples_trained"] / trained.where(trained > 0) * pairs["time_factor"]


def savings(group: Group) -> pd.DataFrame:
    """Saving, ideal, and noise (two standard errors of the saving) of each seed that has a baseline on the same machine."""
    pairs: Any = group.pairs[~group.pairs.index.isin(group.unlike("place"))]  # of another machine seconds say nothing
    timed = pairs["steady_seconds"].notna() & pairs["steady_seconds_baseline"].notna()  # both or none
    own = pairs["steady_seconds"].where(timed, pairs["seconds"])
    other = pairs["steady_seconds_baseline"].where(timed, pairs["seconds_baseline"])
    other = other.where(other > 0)
    errors = [(pairs[f"steady_error{end}"] / seconds).where(timed, 0.0) for end, seconds in (("", own), ("_baseline", other))]
    return pd.DataFrame(
        {
            "saving": 1 - own / other,
            "ideal": ideals(pairs),
            "noise": 2 * own / other * (errors[0] ** 2 + errors[1] ** 2) ** 0.5,
        }
    ).dropna(subset=["saving"])


def comparison_text(groups: list[Group]) -> pd.DataFrame:
    """The comparison as text, one column per heading."""
    percent = is_share(groups)
    scale, unit, points = (100, " (%)", " (points)") if percent else (1, "", "")
    rows = []
    for row in comparison(groups).to_dict("records"):
        seeds, runs = row["seeds"], row["runs"]
        score = spread(row["score"] * scale, row["score_std"] * scale)
        difference = spread(row["difference"] * scale, row["difference_std"] * scale, sign="+")
        rows.append(
            {
                "method": row["group"],
                metric_name(groups) + unit: of_seeds(score, row["scored"], seeds),
                f"difference{points}": of_seeds(difference, row["pairs"], seeds),
                "seconds": spread(row["seconds"], row["seconds_std"], digits=1),
                "wall": spread(row["wall_seconds"], digits=1),
                "saving": of_seeds(share(row["saving"]), row["timed_pairs"], seeds) if row["resolved"] else NOT_RESOLVED,
                "ideal": share(row["ideal"]),
                "trained": count(row["samples_trained"]),
                "forwards": count(row["forwards"]),
                "backwards": count(row["backwards"]),
                "hidden": share(row["hidden_share"]),
                "seeds": str(seeds) if seeds == runs else f"{seeds} ({runs} runs)",
            }
        )
    return pd.DataFrame(rows)


def runs_table(groups: list[Group]) -> pd.DataFrame:
    """One row per run: what it was, how far it came, and what it was run with."""
    return pd.DataFrame(
        {
            "group": group.name,
            "seed": "-" if run.seed is None else run.seed,
            "status": run.status,
            "epochs": run.progress,
            "metric": run.metric,
            "score": run.score,
            "seconds": run.seconds,
            "fit_seconds": run.info.get("fit_seconds"),
            "samples_trained": run.total("samples_trained"),
            "hidden_share": run.figures["hidden_share"],
            "settings": listing(run.settings),
            **{name: listing(run.info.get(name) or {}) for name in ("versions", "machine", "git")},
            **{name: run.info.get(name) for name in ("world_size", "started", "ended", "command", "error")},
            "folder": clean(str(run.folder)),
            "configuration": json.dumps(run.config) if run.config else None,
        }
        for group in groups
        for run in group.runs
    )


def runs_text(groups: list[Group]) -> pd.DataFrame:
    """The runs as text: what one sees at a glance."""
    scale, unit = (100, " (%)") if is_share(groups) else (1, "")
    return pd.DataFrame(
        {
            "method": row["group"],
            "seed": str(row["seed"]),
            "status": row["status"],
            "epochs": row["epochs"].replace(" epochs", ""),
            metric_name(groups) + unit: spread(row["score"] * scale),
            "seconds": spread(row["seconds"], digits=1),
            "trained": count(row["samples_trained"]),
            "hidden": share(row["hidden_share"]),
        }
        for row in runs_table(groups).to_dict("records")
    )


def markdown(table: pd.DataFrame) -> str:
    """A table of text for a README; names of runs and metrics are shown as they are, whatever they have of Markdown and HTML."""
    rows = [[MARKS.sub(r"\\\g<0>", " ".join(cell.split())) for cell in row] for row in (list(table), *table.values.tolist())]
    rows.insert(1, ["---", *["---:"] * (len(table.columns) - 1)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def latex(table: pd.DataFrame) -> str:
    """A table of text for a paper, with the rules of the package booktabs."""
    columns = "l" + "r" * (len(table.columns) - 1)
    return "% \\usepackage{booktabs}\n" + table.to_latex(index=False, escape=True, column_format=columns)


# --- cells


def of_seeds(text: str, known: int, seeds: int) -> str:
    """A figure, with the number of seeds that it is of when others lack it."""
    return text if text == "-" or known >= seeds else f"{text} ({known} of {seeds} seeds)"


def spread(mean: float, std: float = math.nan, digits: int = 2, sign: str = "") -> str:
    """Mean ± standard deviation, without the latter for one seed."""
    if math.isnan(mean):
        return "-"
    text = f"{mean:{sign},.{digits}f}"
    return text if math.isnan(std) else f"{text} ± {std:,.{digits}f}"


def share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def count(value: float) -> str:
    """A number of samples in few characters: 9,876, 98.8k, 9.88M."""
    if math.isnan(value):
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size * 0.99995:
            shown = value / (1e3 if letter == "k" else size)
            return f"{shown:.{max(0, 2 - len(str(int(shown))) + 1)}f}{letter}"
    return f"{value:,.0f}"


def listing(values: Any) -> str:
    """Names and values in one line; other things as they are."""
    return ", ".join(f"{name}={value}" for name, value in values.items()) if isinstance(values, dict) else str(values)
