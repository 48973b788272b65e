"""Figures of what happens epoch by epoch: shares, scores, learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from kakurenbo_lightning.report.groups import Group
from kakurenbo_lightning.report.reading import Run
from kakurenbo_lightning.report.style import Picture, legend, new_figure, styles, whole_epochs
from kakurenbo_lightning.report.tables import is_share, metric_name

FEW = 30  # epochs that are drawn as dots too
HIDDEN = "hidden or rejected (%)"
STORED = {"ordered_share": "pairs in the right order", "distribution_distance": "distribution shift"}  # of what draws are made by
Panel = tuple[list[Group], str, str]  # the groups in a chart, the column of `curves` that it shows, and the name of that


def curves(run: Run) -> pd.DataFrame:
    """What a run did by epoch, NaN where it is not known.

    Columns: epoch (from 1), hidden (%), score, seconds, trained, moved_back, lr_factor, ordered_share, distribution_distance.
    """

    def column(name: str | None) -> pd.Series:
        return run.history[name] if name in run.history else pd.Series(math.nan, run.history.index)

    left_out = column("samples_hidden") + column("samples_rejected").fillna(0)
    share = left_out / (left_out + column("samples_trained")).clip(lower=1)
    return pd.DataFrame(
        {
            "epoch": run.history.index + 1.0,
            "hidden": 100 * share.fillna(column("hidden_fraction")),
            "score": column(run.metric),
            "seconds": column("elapsed_seconds"),
            "trained": column("samples_trained").cumsum(),
            "moved_back": column("moved_back"),
            "lr_factor": column("lr_factor"),
            **{name: column(name) for name in STORED},
        }
    )


def lines_of(runs: list[Run], x: str, y: str) -> list[pd.DataFrame]:
    """A line for each run that has one: columns x and y, the index is the epoch."""
    lines: list[Any] = [curves(run)[[x, y]].set_axis(["x", "y"], axis=1).dropna() for run in runs]
    return [line for line in lines if len(line)]


def has(groups: list[Group], x: str, y: str) -> bool:
    return any(lines_of(group.runs, x, y) for group in groups)


def draw(axes: Axes, groups: list[Group], known: Mapping[str, dict], x: str, y: str, scale: tuple[float, float] = (1, 1)) -> None:
    """Draw the seeds thin and the mean of those that count thick, over the epochs that all of these have."""
    for group in groups:
        counted: list[Any] = [line * list(scale) for line in lines_of(group.counted, x, y)]
        others: list[Any] = [
            line * list(scale) for line in lines_of([run for run in group.runs if run not in group.counted], x, y)
        ]
        for line in [*counted, *others] if len(counted) + len(others) > 1 else []:
            axes.plot(line["x"], line["y"], **known[group.name], linewidth=0.5, alpha=0.45)
        if counted:
            stacked = pd.concat(counted).groupby(level=0)
            mean = cast(Any, stacked.mean())[stacked.size() == len(counted)]
            marker = "." if len(mean) <= FEW else None
            axes.plot(mean["x"], mean["y"], **known[group.name], linewidth=1.3, marker=marker, markersize=3.5)


def by_metric(groups: list[Group]) -> dict[str, list[Group]]:
    """The groups by their metric, those without any left out."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.metric:
            found.setdefault(group.metric, []).append(group)
    return found


def score_axis(groups: list[Group]) -> tuple[float, str]:
    """The factor on a validation metric and the label of its axis."""
    return (100.0, f"validation {metric_name(groups)} (%)") if is_share(groups) else (1.0, f"validation {metric_name(groups)}")


def charts_by_epoch(groups: list[Group], panels: list[Panel], height: float, scale: float, ends: Mapping[str, str]) -> Figure:
    """Charts below each other over the epochs, and a legend of the groups that are in any of them, their names with `ends`."""
    known, drawn = styles(groups), {group.name for own, _, _ in panels for group in own}
    labels = {name + ends.get(name, ""): style for name, style in known.items() if name in drawn}
    figure, axes = new_figure(len(panels), height, labels, sharex=True)
    for place, (own, column, label) in zip(axes[:, 0], panels, strict=True):
        draw(place, own, known, "epoch", column, (1, scale if column == "score" else 1))
        place.set_ylabel(label)
        if column == "hidden":
            place.set_ylim(bottom=-1)  # a run that leaves nothing out shows as a line, not as the axis
        elif column in STORED:
            place.set_ylim(-0.03, 1.03)
        whole_epochs(place)
    axes[-1, 0].set_xlabel("epoch")
    legend(figure, labels)
    return figure


def overview(groups: list[Group]) -> list[Picture]:
    """The picture for a README: the share left out above, the metric of most groups below."""
    own = max(by_metric(groups).values(), key=len, default=[])
    scale, label = score_axis(own)
    wanted: list[Panel] = [(groups, "hidden", HIDDEN), (own, "score", label)]
    panels = [panel for panel in wanted if has(panel[0], "epoch", panel[1])]
    if not panels:
        return []
    figure = charts_by_epoch(groups, panels, 1.6, scale, {group.name: last_score(group, scale) for group in own})
    caption = (
        "Above, what each epoch did not train; below, what came of it. Good: the lower lines lie together although the upper "
        "ones are high. Bad: a line that stays below the baseline's to the end, or an upper one near zero, which saves nothing. "
        "Thin lines are seeds, thick ones the mean "
        "of the finished ones; figures in the legend are of the last epoch."
    )
    alt = f"Charts by epoch, one line for each of {len(groups)} groups: {', '.join(label for _, _, label in panels)}."
    return [Picture("overview", "Hidden share and validation by epoch", caption, alt, figure)]


def last_score(group: Group, scale: float) -> str:
    """The last value of a group's metric, for the legend."""
    value = scale * group.seeds["score"].mean()
    return "" if math.isnan(value) else f" ({value:.1f} %)" if scale == 100 else f" ({value:.3g})"


def selection(groups: list[Group]) -> list[Picture]:
    """Candidates moved back and learning-rate factor by epoch, as far as there are any; the overview has the hidden share."""
    panels: list[Panel] = []
    for column, label, usual in (("moved_back", "samples moved back", 0), ("lr_factor", "learning-rate factor", 1)):
        own = [one for one in groups if any((line["y"] != usual).any() for line in lines_of(one.runs, "epoch", column))]
        panels += [(own, column, label)] if own else []
    if not panels:
        return []
    caption = (
        "What else the selection did in each epoch. Samples moved back were among the easiest but wrong or unsure, so they stayed "
        "in training. Bad: most candidates are moved back to the end (the network is not sure of anything: lower tau or hide less). "
        "The factor on the learning rate is 1 / (1 - hidden share)."
    )
    alt = f"Charts by epoch: {', '.join(label for _, _, label in panels)}."
    figure = charts_by_epoch(groups, panels, 1.4, 1.0, {})
    return [Picture("selection", "Moved back, and the learning rate", caption, alt, figure)]


def stored_values(groups: list[Group]) -> list[Picture]:
    """How true the values that samples are drawn by are, of the runs of draw methods that were asked (`diagnose`)."""
    own = [group for group in groups if has([group], "epoch", "ordered_share")]
    if not own:
        return []
    caption = (
        "Before each epoch some samples were scored, only to compare: the stored values by which samples are drawn against the real "
        "ones. Above, the share of the pairs of samples that the stored values order as the real ones do (0.5 is chance); below, how "
        "far the two distributions are apart (total variation distance: 0 is equal, 1 has nothing in common). Good: high above and low "
        "below. Bad: near 0.5 above or near 1 below, for then draws have nothing to do with what the network finds hard "
        "(method.refresh_share scores the stalest samples again)."
    )
    alt = f"Charts by epoch of ordered share and distribution shift, for {'; '.join(group.name for group in own)}."
    figure = charts_by_epoch(groups, [(own, column, label) for column, label in STORED.items()], 1.6, 1.0, {})
    return [Picture("stored_values", "How true the stored values are", caption, alt, figure)]


def scores(groups: list[Group]) -> list[Picture]:
    """The validation metric against time and against samples trained, a picture for each metric."""
    kinds, known = by_metric(groups), styles(groups)
    pictures = {metric: score_figure(own, known) for metric, own in kinds.items()}
    caption = (
        "The same scores over the time they took and over the samples they took. Good: a line further to the left at the "
        "same height. Bad: a line that wins over samples and not over time, for then choosing costs what it saves."
    )
    return [
        Picture(
            "scores" if len(kinds) == 1 else f"scores_{metric.replace('/', '_')}",
            f"{metric_name(kinds[metric]).capitalize()} against time and samples",
            caption,
            f"Charts of {score_axis(kinds[metric])[1]} against time and samples, one line for each of {len(kinds[metric])} groups.",
            figure,
        )
        for metric, figure in pictures.items()
        if figure is not None
    ]


def score_figure(groups: list[Group], known: Mapping[str, dict]) -> Figure | None:
    """One metric against what it cost; None when that is not known."""
    scale, label = score_axis(groups)
    longest = max(curves(run)["seconds"].max() for group in groups for run in group.runs)
    name, unit = ("hours", 3600) if longest > 3 * 3600 else ("minutes", 60) if longest > 600 else ("seconds", 1)
    costs = {"seconds": (f"{name} of training, refreshing and selecting", 1 / unit), "trained": ("samples trained", 1.0)}
    costs = {column: cost for column, cost in costs.items() if has(groups, column, "score")}
    if not costs:
        return None
    figure, axes = new_figure(len(costs), 1.8, [group.name for group in groups])
    for place, (column, (x_label, x_scale)) in zip(axes[:, 0], costs.items(), strict=True):
        draw(place, groups, known, column, "score", (x_scale, scale))
        place.set(xlabel=x_label, ylabel=label)
        place.locator_params(axis="x", nbins=6)
        if column == "trained":
            place.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, 1.5M
    legend(figure, {group.name: known[group.name] for group in groups})
    return figure
