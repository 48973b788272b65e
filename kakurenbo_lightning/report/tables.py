"""The tables of a report: figures as data frames, and as text for the terminal, Markdown and HTML."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from kakurenbo_lightning.report.groups import BASELINE, Group, key, seeds_of, short, unlike
from kakurenbo_lightning.report.reading import Problem, Run, clean, mapping, number

NOTE = (
    "Seconds are of training, refresh passes and selection, without validation. Difference and saving are against the "
    "baseline, in pairs of the same seed. Forwards are samples trained, refreshed and looked at; backwards are samples "
    "trained. Hidden: share of all presentations that were hidden, or looked at and rejected. ± is the standard deviation over "
    "the seeds. Wall times compare only on an otherwise idle machine."
)
SHARE = re.compile(r"accuracy|precision|recall|auroc|(?<![a-z])(acc|f1(score)?|(m|mean)?iou|top)(?![a-z])")  # of names
LOWER = re.compile(r"loss|error|perplexity|(?<![a-z])r?m[as]p?e(?![a-z])")  # names of metrics that are to fall
BEST = 20  # groups in a figure
NAMED = 10  # groups in a note
COUNTS = ("trained", "forwards", "backwards")  # columns that a narrow terminal has no room for
NO_BASELINE = "No baseline of the same data and network: add method=baseline, with the same seeds, for differences and savings."


@dataclass(frozen=True)
class TextTable:
    """Rows of text under headings; the first column is text, the others are figures."""

    headings: list[str]
    rows: list[list[str]]

    def rich(self, title: str) -> Table:
        """Return it for the terminal."""
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        for column, heading in enumerate(self.headings):
            table.add_column(
                heading.replace(" (", "\n("), justify="right" if column else "left", no_wrap=column > 0, overflow="fold"
            )
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table

    def without(self, headings: tuple[str, ...]) -> "TextTable":
        """Return it without some columns."""
        kept = [number for number, heading in enumerate(self.headings) if heading not in headings]
        return TextTable([self.headings[number] for number in kept], [[row[number] for number in kept] for row in self.rows])

    def markdown(self) -> str:
        """Return it for a README."""
        rows = [self.headings, ["---", *["---:"] * (len(self.headings) - 1)], *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def is_share(groups: list[Group]) -> bool:
    """Tell whether the metrics are shares, which are shown in percent: by their names, and all scores are in [0, 1]."""
    scores = [run.score for group in groups for run in group.runs if not math.isnan(run.score)]
    names = {group.metric.lower() for group in groups if group.metric}
    named = bool(names) and all(SHARE.search(name) and "loss" not in name for name in names)
    return named and all(0 <= score <= 1 for score in scores)


def metric_name(groups: list[Group]) -> str:
    """Return the name of the groups' metric without what it was logged under, `score` for several."""
    names = {group.metric.split("/")[-1] for group in groups if group.metric}
    return names.pop() if len(names) == 1 else "score"


def compared(groups: list[Group]) -> tuple[list[Group], bool]:
    """Return the groups to compare and whether their finished runs count only: those of a report in which any has finished."""
    finished = [group for group in groups if group.finished]
    return (finished, True) if finished else (groups, False)


def comparison(groups: list[Group]) -> pd.DataFrame:
    """Return one row per group, over its seeds; what does not apply or is not known is NaN.

    Columns: group, method, metric, score and score_std (as logged), difference and difference_std (of the score, to the
    baseline with the same seed), seconds and seconds_std, saving (share of the baseline's seconds, same seed), samples_trained,
    forwards, backwards, hidden_share, seeds, pairs, timed_pairs and scored (seeds with a difference, a saving, a score), runs.
    A std is that of a sample, NaN for one seed.
    """
    chosen, finished = compared(groups)
    return pd.DataFrame([comparison_row(group, finished) for group in chosen])


def comparison_row(group: Group, finished: bool) -> dict[str, Any]:
    """Return the figures of one group."""
    score, seconds = group.by_seed(lambda run: run.score, finished), group.by_seed(lambda run: run.seconds, finished)
    difference, saving = paired(group, finished)
    return {
        "group": group.name,
        "method": group.method,
        "metric": group.metric,
        "score": score.mean(),
        "score_std": score.std(),
        "difference": difference.mean(),
        "difference_std": difference.std(),
        "seconds": seconds.mean(),
        "seconds_std": seconds.std(),
        "saving": saving.mean(),
        "samples_trained": total(group, finished, "samples_trained"),
        "forwards": total(group, finished, "samples_trained", "samples_refreshed", "samples_scored"),
        "backwards": total(group, finished, "samples_trained"),
        "hidden_share": group.by_seed(lambda run: run.hidden_share, finished).mean(),
        "seeds": len(group.by_seed(lambda run: 0.0, finished)),
        "pairs": len(difference),
        "timed_pairs": len(saving),
        "scored": len(score),
        "runs": len(group.finished if finished else group.runs),
    }


def total(group: Group, finished: bool, *names: str) -> float:
    """Return the mean over the seeds of a sum of totals."""
    return group.by_seed(lambda run: run.total(*names), finished).mean()


def paired(group: Group, finished: bool = True) -> tuple[pd.Series, pd.Series]:
    """Return, by the seeds that group and baseline share, the score's difference and the share of seconds saved.

    Seconds of other machines or of another number of processes say nothing of what was saved, and are left out.
    """
    if group.baseline is None:
        return pd.Series(dtype="float64"), pd.Series(dtype="float64")
    own, other = (one.by_seed(lambda run: run.score, finished) for one in (group, group.baseline))
    spent, usual = (one.by_seed(lambda run: run.seconds, finished) for one in (group, group.baseline))
    apart = unlike_places(group, finished)
    saving = (1 - spent / usual.where(usual > 0)).dropna()
    return (own - other).dropna(), saving[[seed not in apart for seed in saving.index]]


def by_seed_texts(group: Group, value: Callable[[Run], Any], finished: bool) -> dict[Any, set[str]]:
    """Return the different values of each seed, as text."""
    runs = group.finished if finished else group.runs
    found: dict[Any, set[str]] = {}
    for seed, run in zip(seeds_of(runs), runs, strict=True):
        found.setdefault(seed, set()).add(key(value(run)))
    return found


def unlike_seeds(group: Group, value: Callable[[Run], Any], finished: bool) -> list[Any]:
    """Return the seeds that a group shares with its baseline and of which not all runs of the two have the same value."""
    if group.baseline is None:
        return []
    own, other = (by_seed_texts(one, value, finished) for one in (group, group.baseline))
    return [seed for seed in own if seed in other and len(own[seed] | other[seed]) > 1]


def unlike_places(group: Group, finished: bool) -> list[Any]:
    """Return the seeds whose seconds are of different machines, devices or numbers of processes in group and baseline."""
    return unlike_seeds(group, place, finished)


def place(run: Run) -> list[Any]:
    """Return where a run was trained: device, processor and number of processes."""
    machine = mapping(run.info.get("machine"))
    return [machine.get("device"), machine.get("processor"), run.info.get("world_size")]


def comparison_text(groups: list[Group], narrow: bool = False) -> TextTable:
    """Return the comparison as text; a narrow one is without the columns of `COUNTS` and the deviation of the seconds."""
    frame, percent = comparison(groups), is_share(groups)
    scale, unit = (100, " (%)") if percent else (1, "")
    headings = ["method", metric_name(groups) + unit, "difference (points)" if percent else "difference", "seconds", "saving"]
    headings += ["trained", "forwards", "backwards", "hidden", "seeds"]
    rows = []
    for row in frame.to_dict("records"):
        seeds, runs = row["seeds"], row["runs"]
        saving = "-" if math.isnan(row["saving"]) else f"{row['saving']:.1%}"
        rows.append(
            [
                row["group"],
                of_seeds(spread(row["score"] * scale, row["score_std"] * scale), row["scored"], seeds),
                of_seeds(spread(row["difference"] * scale, row["difference_std"] * scale, sign="+"), row["pairs"], seeds),
                spread(row["seconds"], math.nan if narrow else row["seconds_std"], digits=1),
                of_seeds(saving, row["timed_pairs"], seeds),
                *(count(row[name]) for name in ("samples_trained", "forwards", "backwards")),
                "-" if math.isnan(row["hidden_share"]) else f"{row['hidden_share']:.1%}",
                str(seeds) if seeds == runs else f"{seeds} ({runs} runs)",
            ]
        )
    table = TextTable(headings, rows)
    return table.without(COUNTS) if narrow else table


def of_seeds(text: str, known: int, seeds: int) -> str:
    """Return a figure, with the number of seeds that it is of when others lack it."""
    return text if text == "-" or known >= seeds else f"{text} ({known} of {seeds} seeds)"


def spread(mean: float, std: float, digits: int = 2, sign: str = "") -> str:
    """Return mean ± standard deviation, without the latter for one seed."""
    if math.isnan(mean):
        return "-"
    text = f"{mean:{sign},.{digits}f}"
    return text if math.isnan(std) else f"{text} ± {std:,.{digits}f}"


def count(value: float) -> str:
    """Return a number of samples in few characters: 9,876, 98.8k, 9.88M."""
    if math.isnan(value):
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size * 0.99995:
            shown = value / (1e3 if letter == "k" else size)
            return f"{shown:.{max(0, 2 - len(str(int(shown))) + 1)}f}{letter}"
    return f"{value:,.0f}"


def notes(groups: list[Group]) -> list[str]:
    """Return what a reader of the comparison must know of these groups."""
    found = [NOTE]
    chosen, finished = compared(groups)
    others = [group for group in chosen if group.method != BASELINE]
    if others and not any(group.baseline for group in others):
        found.append(NO_BASELINE)
    else:
        lone = [group.name for group in others if not shares_seeds(group, finished)]
        if lone:
            found.append(f"No baseline with the same data, network and seeds for {listed(lone)}.")
        found += pair_notes([group for group in others if shares_seeds(group, finished)], finished)
    found += few_notes(chosen, finished)
    if not finished:
        done = listed([f"{group.name} ({epochs_text(group, finished)})" for group in chosen])
        found.append(f"No run has finished: these are figures so far, of epochs done: {done}.")
    debug = [group.name for group in chosen if any(is_debug(run) for run in group.runs)]
    if debug:
        found.append(f"Made with debug=true on small generated data, so the figures mean nothing: {listed(debug)}.")
    return found


def is_debug(run: Run) -> bool:
    """Tell whether a run was made with debug=true."""
    config = run.info.get("config")
    return mapping(config).get("debug") is True


def shares_seeds(group: Group, finished: bool) -> bool:
    """Tell whether a group has a seed that its baseline has too."""
    if group.baseline is None:
        return False
    own, other = (by_seed_texts(one, place, finished) for one in (group, group.baseline))
    return bool(set(own) & set(other))


def pair_notes(groups: list[Group], finished: bool) -> list[str]:
    """Return what makes groups and their baselines less than comparable: places, conditions, lengths."""
    apart, other, lengths = [], [], []
    for group in groups:
        if unlike_places(group, finished):
            apart.append(group.name)
        leaves = unlike(group, group.baseline)
        if leaves:
            named = ", ".join(short(leaf, leaves) for leaf in leaves)
            other.append(f"{group.name} (against {group.baseline.name}: another {named})")
        if unlike_seeds(group, lambda run: run.info.get("epochs"), finished):
            done = [epochs_text(one, finished) for one in (group, group.baseline)]
            lengths.append(f"{group.name} ({done[0]}, its baseline {done[1]})")
    texts = {
        "No saving where a run and its baseline differ in machine, device or number of processes": apart,
        "No baseline under the same conditions, so another one is compared with": other,
        "Epochs done differ from the baseline's, and with them what was saved": lengths,
    }
    return [f"{text}: {listed(names)}." for text, names in texts.items() if names]


def listed(names: list[str]) -> str:
    """Return the first names in one line, and how many more there are."""
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return "; ".join([*names[:NAMED], *more])


def epochs_text(group: Group, finished: bool) -> str:
    """Return the epochs that the runs of a group did: 6, or 3 to 6."""
    done = group.by_seed(lambda run: number(run.info.get("epochs")), finished)
    return "?" if not len(done) else " to ".join(dict.fromkeys(f"{value:g}" for value in (done.min(), done.max())))


def few_notes(groups: list[Group], finished: bool) -> list[str]:
    """Return which groups have scores or differences of some seeds only."""
    few = []
    for group in groups:
        row = comparison_row(group, finished)
        pairs_count, seeds = row["pairs"], row["seeds"]
        if 0 < row["scored"] < seeds or 0 < pairs_count < seeds:
            pairs_text = f", {pairs_count} with a difference" if group.baseline else ""
            few.append(f"{group.name} ({seeds} seeds, {row['scored']} with a score{pairs_text})")
    return [f"Means of some seeds only: {listed(few)}."] if few else []


def unfinished(runs: list[Run]) -> list[Problem]:
    """Return the runs that are drawn and listed but not compared, because others have finished."""
    if all(run.status != "finished" for run in runs):
        return []
    reasons = {"running": "has not finished (or was killed)", "stopped": "stopped"}
    return [
        Problem(str(run.folder), f"{reasons[run.status]} after {run.progress}: drawn, but not in the comparison")
        for run in runs
        if run.status != "finished"
    ]


def best_of(groups: list[Group]) -> list[Group]:
    """Return the groups that the figures show, in their order: the best by score, and as many baselines."""
    kept = []
    for baseline in (True, False):
        own = [group for group in groups if (group.method == BASELINE) == baseline]
        kept += sorted(own, key=rank)[:BEST]
    return [group for group in groups if any(group is one for one in kept)]


def rank(group: Group) -> float:
    """Return what is the lower the better a group's mean score is; groups without a score come last."""
    score = group.by_seed(lambda run: run.score, bool(group.finished)).mean()
    return math.inf if math.isnan(score) else score if LOWER.search((group.metric or "").lower()) else -score


def not_drawn(groups: list[Group]) -> list[Problem]:
    """Return which groups no figure but the map of F and tau shows, because there are too many."""
    best = best_of(groups)
    rest = [group.name for group in groups if not any(group is one for one in best)]
    reason = f"show the {BEST} best groups by score, and as many baselines; the tables have these too: {'; '.join(rest)}"
    return [Problem("figures", reason)] if rest else []


def runs_table(groups: list[Group]) -> pd.DataFrame:
    """Return one row per run: what it was, how far it came, and what it was run with."""
    rows = []
    for group in groups:
        for run in group.runs:
            versions, machine, git = (run.info.get(name) or {} for name in ("versions", "machine", "git"))
            rows.append(
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
                    "hidden_share": run.hidden_share,
                    "settings": pairs(run.settings),
                    "versions": pairs(versions),
                    "machine": pairs(machine),
                    "git": pairs(git),
                    "started": run.info.get("started"),
                    "command": run.info.get("command"),
                    "error": run.info.get("error"),
                    "folder": clean(str(run.folder)),
                }
            )
    return pd.DataFrame(rows)


def runs_text(groups: list[Group]) -> TextTable:
    """Return the runs as text: what one sees at a glance."""
    scale, unit = (100, " (%)") if is_share(groups) else (1, "")
    headings = ["method", "seed", "status", "epochs", metric_name(groups) + unit, "seconds", "trained", "hidden"]
    rows = []
    for row in runs_table(groups).to_dict("records"):
        hidden = "-" if math.isnan(row["hidden_share"]) else f"{row['hidden_share']:.1%}"
        texts = [row["group"], str(row["seed"]), row["status"], row["epochs"].replace(" epochs", "")]
        rows.append(
            [
                *texts,
                spread(row["score"] * scale, math.nan),
                spread(row["seconds"], math.nan, digits=1),
                count(row["samples_trained"]),
                hidden,
            ]
        )
    return TextTable(headings, rows)


def pairs(values: Any) -> str:
    """Return names and values in one line; other things as they are."""
    return ", ".join(f"{name}={value}" for name, value in values.items()) if isinstance(values, dict) else str(values)
