"""Figures of what happens epoch by epoch: shares, accuracy, learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kakurenbo_lightning.report.groups import Group
from kakurenbo_lightning.report.reading import Run
from kakurenbo_lightning.report.style import Look, Picture, legend, looks, new_figure, whole_epochs
from kakurenbo_lightning.report.tables import is_share, metric_name

FEW = 30  # epochs that are drawn as dots too
HIDDEN = "hidden or rejected (%)"

Column = Callable[[Run], pd.Series]


@dataclass(frozen=True)
class Panel:
    """A chart: the groups in it, what it shows of each of their runs, and the name of that."""

    groups: list[Group]
    column: Column
    label: str


def epochs(run: Run) -> pd.Series:
    """Return the epochs of a run, counted from 1."""
    index = run.history.columns.index
    return pd.Series(index + 1.0, index)


def hidden_share(run: Run) -> pd.Series:
    """Return the percentage of each epoch's presentations that were hidden, or looked at and rejected."""
    history = run.history
    left_out = history.column("samples_hidden") + history.column("samples_rejected").fillna(0)
    share = left_out / (left_out + history.column("samples_trained")).clip(lower=1)
    return 100 * share.fillna(history.column("hidden_fraction"))


def score(run: Run, scale: float) -> pd.Series:
    """Return the validation metric of each epoch."""
    return scale * run.history.column(run.metric or "")


def elapsed(run: Run, unit: float) -> pd.Series:
    """Return the time at the end of each epoch."""
    return run.history.column("elapsed_seconds") / unit


def trained(run: Run) -> pd.Series:
    """Return the samples trained by the end of each epoch."""
    return run.history.column("samples_trained").cumsum()


def plain(run: Run, name: str) -> pd.Series:
    """Return a column as it is."""
    return run.history.column(name)


def lines_of(runs: list[Run], x: Column, y: Column) -> list[pd.DataFrame]:
    """Return a line for each run that has one: columns x and y, the index is the epoch."""
    lines = [pd.DataFrame({"x": x(run), "y": y(run)}).dropna() for run in runs]
    return [line for line in lines if len(line)]


def draw_group(axes: Axes, look: Look, counted: list[pd.DataFrame], others: list[pd.DataFrame]) -> None:
    """Draw the seeds thin and the mean of those that count thick, over the epochs that all of these have."""
    if len(counted) + len(others) > 1:
        for line in [*counted, *others]:
            axes.plot(line["x"], line["y"], **look.line(linewidth=0.7, alpha=0.45))
    if not counted:
        return
    stacked = pd.concat(counted).groupby(level=0)
    mean = stacked.mean()[stacked.size() == len(counted)]
    marker = "." if len(mean) <= FEW else None
    axes.plot(mean["x"], mean["y"], **look.line(linewidth=1.8, marker=marker, markersize=5))


def draw(axes: Axes, groups: list[Group], known: dict[str, Look], x: Column, y: Column) -> None:
    """Draw the groups that have this line."""
    for group in groups:
        counted = group.counted
        others = [run for run in group.runs if run not in counted]
        draw_group(axes, known[group.name], lines_of(counted, x, y), lines_of(others, x, y))


def has(groups: list[Group], x: Column, y: Column, worth: Callable[[pd.Series], bool] = len) -> bool:
    """Tell whether any run has a line that is worth drawing."""
    return any(worth(line["y"]) for group in groups for line in lines_of(group.runs, x, y))


def focus(axes: Axes, lines: list[pd.DataFrame]) -> None:
    """Let the lower end of the axis be that of the later two thirds of all lines, where the differences are."""
    later = [line["y"].iloc[len(line) // 3 :] for line in lines]
    low, high = min(line.min() for line in later), max(line.max() for line in later)
    margin = 0.06 * max(high - low, 0.005 * abs(high))  # lines that are equal do not fill the axis with their rounding
    axes.set_ylim(low - margin, high + margin)


def scored(groups: list[Group]) -> dict[str, list[Group]]:
    """Return the groups by their metric, those without any left out."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.metric:
            found.setdefault(group.metric, []).append(group)
    return found


def score_axis(groups: list[Group]) -> tuple[float, str]:
    """Return the factor and the label of a validation metric."""
    return (100.0, f"validation {metric_name(groups)} (%)") if is_share(groups) else (1.0, f"validation {metric_name(groups)}")


def panels_by_epoch(groups: list[Group], panels: list[Panel], height: float, labels: dict[str, str]) -> Figure:
    """Return a figure of charts below each other over the epochs, and a legend of the groups that are in any of them."""
    known, drawn = looks(groups), {group.name for panel in panels for group in panel.groups}
    named = {name: look for name, look in known.items() if name in drawn}
    figure, axes = new_figure(len(panels), height, [labels.get(name, name) for name in named], sharex=True)
    for place, panel in zip(axes[:, 0], panels, strict=True):
        draw(place, panel.groups, known, epochs, panel.column)
        place.set_ylabel(panel.label)
        if panel.column is hidden_share:
            place.set_ylim(bottom=-1)  # a run that leaves nothing out shows as a line, not as the axis
        whole_epochs(place)
    axes[-1, 0].set_xlabel("epoch")
    legend(figure, named, labels)
    return figure


def overview(groups: list[Group]) -> list[Picture]:
    """Return the picture for a README: the share left out above, the metric of most groups below."""
    kinds = scored(groups)
    own = max(kinds.values(), key=len, default=[])
    scale, label = score_axis(own)
    panels = [Panel(groups, hidden_share, HIDDEN), Panel(own, partial(score, scale=scale), label)]
    panels = [panel for panel in panels if has(panel.groups, epochs, panel.column)]
    if not panels:
        return []
    figure = panels_by_epoch(groups, panels, 2.3, {group.name: group.name + last(group, scale) for group in own})
    caption = (
        "Above, what each epoch did not train; below, what came of it. Good: the lower lines lie together although the upper "
        "ones are high. Bad: a line that stays below the baseline's to the end. Thin lines are seeds, thick ones the mean "
        "of the finished ones; figures in the legend are of the last epoch."
    )
    alt = f"Charts by epoch, one line for each of {len(groups)} groups: {', '.join(panel.label for panel in panels)}."
    return [Picture("overview", "Hidden share and validation by epoch", caption, alt, figure)]


def last(group: Group, scale: float) -> str:
    """Return the last value of a group's metric, for the legend."""
    value = scale * group.by_seed(lambda run: run.score, bool(group.finished)).mean()
    return "" if math.isnan(value) else f" ({value:.1f} %)" if scale == 100 else f" ({value:.3g})"


def time_unit(groups: list[Group]) -> tuple[str, float]:
    """Return the unit in which the longest run is a number of two or three digits, and its seconds."""
    longest = max((run.history.column("elapsed_seconds").max() for group in groups for run in group.runs), default=0)
    return ("hours", 3600.0) if longest > 3 * 3600 else ("minutes", 60.0) if longest > 600 else ("seconds", 1.0)


def amount(value: float) -> str:
    """Return the text of a tick at a round number."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"


def scores(groups: list[Group]) -> list[Picture]:
    """Return the validation metric against time and against samples trained, a picture for each metric."""
    pictures, kinds, known = [], scored(groups), looks(groups)
    for metric, own in kinds.items():
        scale, label = score_axis(own)
        y, (name, unit) = partial(score, scale=scale), time_unit(own)
        costs: list[tuple[Column, str]] = [
            (partial(elapsed, unit=unit), f"{name} of training, refreshing and selecting"),
            (trained, "samples trained"),
        ]
        costs = [cost for cost in costs if has(own, cost[0], y)]
        if not costs:
            continue
        figure, axes = new_figure(len(costs), 2.6, [group.name for group in own])
        for place, (x, x_label) in zip(axes[:, 0], costs, strict=True):
            draw(place, own, known, x, y)
            focus(place, [line for group in own for line in lines_of(group.runs, x, y)])
            place.set(xlabel=x_label, ylabel=label)
            place.locator_params(axis="x", nbins=6)
            place.xaxis.set_major_formatter(lambda value, _: amount(value))
        legend(figure, {group.name: known[group.name] for group in own})
        caption = (
            "The same scores over the time they took and over the samples they took. Good: a line further to the left at the "
            "same height. Bad: a line that wins over samples and not over time, for then choosing costs what it saves. "
            "The first epochs may lie below the axis."
        )
        alt = f"Charts of {label} against {' and '.join(cost for _, cost in costs)}, one line for each of {len(own)} groups."
        file = "scores" if len(kinds) == 1 else f"scores_{metric.replace('/', '_')}"
        title = f"{metric_name(own).capitalize()} against time and samples"
        pictures.append(Picture(file, title, caption, alt, figure))
    return pictures


def by_epoch(groups: list[Group]) -> list[Picture]:
    """Return hidden share, candidates moved back and learning-rate factor by epoch, as far as there are any."""
    wanted: list[tuple[Column, str, Callable[[pd.Series], bool]]] = [
        (hidden_share, HIDDEN, lambda values: values.max() > 0),
        (partial(plain, name="moved_back"), "samples moved back", lambda values: values.max() > 0),
        (partial(plain, name="lr_factor"), "learning-rate factor", lambda values: (values != 1).any()),
    ]
    panels = [Panel([one for one in groups if has([one], epochs, y, worth)], y, label) for y, label, worth in wanted]
    panels = [panel for panel in panels if panel.groups]
    if not panels:
        return []
    caption = (
        "What the selection did in each epoch. Samples moved back were among the easiest but wrong or unsure, so they stayed "
        "in training. Bad: the hidden share stays near zero (nothing is saved), or most candidates are moved back to the end "
        "(the network is not sure of anything: lower tau or hide less). "
        "The factor on the learning rate is 1 / (1 - hidden share)."
    )
    alt = f"Charts by epoch: {', '.join(panel.label for panel in panels)}."
    figure = panels_by_epoch(groups, panels, 2.0, {})
    return [Picture("selection", "What was left out, epoch by epoch", caption, alt, figure)]
