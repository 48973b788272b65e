"""Figures with one panel per group: loss histograms, where the time went, classes."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from kakurenbo_lightning.report.groups import Group
from kakurenbo_lightning.report.reading import History, Run
from kakurenbo_lightning.report.style import RED, WIDTH, Picture, new_figure, plain_log, whole_epochs, wrapped

PARTS = {  # of a run's seconds, in the order of their bars
    "forward pass": "#56B4E9",
    "backward pass": "#0072B2",
    "looking": "#E69F00",
    "waiting for data": "#BBBBBB",
    "rest of training": "#8C6BB1",
    "refresh pass": "#009E73",
    "selecting": "#D55E00",
}
FEW_CLASSES, ENDS = 20, 10  # with more classes than the first: so many of either end


def first_run(group: Group, has: Callable[[Run], bool]) -> Run | None:
    """Return the first run, by seed, that has something to draw; an unfinished one only where none has finished."""
    return next((run for run in group.counted if has(run)), None)


def histograms(groups: list[Group]) -> list[Picture]:
    """Return the samples by epoch and loss, a panel for each group's first seed, with the threshold of hiding."""
    found = {group.name: first_run(group, lambda run: has_counts(run.history)) for group in groups}
    runs = {name: run for name, run in found.items() if run is not None}
    if not runs:
        return []
    most = max(run.history.counts.max() for run in runs.values())
    columns = 1 if len(runs) == 1 else 2
    rows = -(-len(runs) // columns)
    figure, axes = new_figure(rows, 2.6 if columns == 1 else 2.1, columns=columns, sharey=True)
    for place, (name, run) in zip(axes.flat, runs.items(), strict=False):
        draw_histogram(place, run.history, LogNorm(1, max(2, most)))
        place.set_title(wrapped(name, 54 if columns == 1 else 27), fontsize=9.5)
        place.set_xlabel("epoch")
    for place in axes.flat[len(runs) :]:
        place.set_axis_off()
    for place in axes[:, 0]:
        place.set_ylabel("loss")
    axes[0, 0].set_ylim(*loss_range([run.history for run in runs.values()]))
    caption = (
        "Each column is an epoch: how many samples had which loss when it was planned, the darker the more (on a logarithmic "
        f"scale, up to {most:,}). The orange line is the largest loss of a sample that was hidden and predicted correctly. "
        "Good: the cloud sinks, and hiding eats its lower edge. Bad: the line runs through the middle of the cloud (too much "
        "is hidden), or a second cloud stays at the top (samples that are never learned: look for wrong labels)."
    )
    alt = f"Heat maps of samples by epoch and loss with the threshold of hiding, for {'; '.join(runs)}."
    return [Picture("losses", "Losses and the threshold of hiding", caption, alt, figure)]


def has_counts(history: History) -> bool:
    """Tell whether any loss was counted."""
    return history.counts is not None and bool(history.counts.any())


def draw_histogram(axes: Axes, history: History, norm: LogNorm) -> None:
    """Draw a heat map, epoch by loss."""
    epochs = history.columns.index.to_numpy() + 1.0
    edges = np.append(epochs - 0.5, epochs[-1] + 0.5)
    counts = np.ma.masked_less_equal(history.counts, 0)
    axes.pcolormesh(edges, history.edges, counts.T, norm=norm, cmap="Blues", rasterized=True)
    threshold = history.column("threshold").to_numpy()
    axes.stairs(threshold, edges, baseline=None, color=RED, linewidth=1.8)
    axes.set_yscale("log")
    plain_log(axes.yaxis)
    whole_epochs(axes)
    axes.grid(False)


def loss_range(histories: list[History]) -> tuple[float, float]:
    """Return the smallest and largest loss that any histogram counted."""
    counted = [history.counts.any(axis=0).nonzero()[0] for history in histories]
    low = min(history.edges[bins.min()] for history, bins in zip(histories, counted, strict=True))
    high = max(history.edges[bins.max() + 1] for history, bins in zip(histories, counted, strict=True))
    return low, high


def phases(groups: list[Group]) -> list[Picture]:
    """Return where the seconds went: one stacked bar per group, of the mean over its finished runs."""
    spent = {group.name: pd.DataFrame([parts(run) for run in group.counted]).mean() for group in groups}
    bars = {name: seconds for name, seconds in spent.items() if seconds.sum() > 0}
    if not bars:
        return []
    used = [part for part in PARTS if any(seconds.get(part, 0) > 0.001 * seconds.sum() for seconds in bars.values())]
    figure = Figure(figsize=(WIDTH, 0.62 * len(bars) + 1.6), layout="constrained")
    axes = figure.subplots()
    longest = max(seconds.sum() for seconds in bars.values())
    for row, (name, seconds) in enumerate(bars.items()):
        lefts = np.cumsum([0, *(seconds.get(part, 0) for part in used)])
        for part, left in zip(used, lefts, strict=False):
            axes.barh(row, seconds.get(part, 0), left=left, height=0.42, color=PARTS[part], label=part if row == 0 else None)
        axes.text(0, row - 0.27, wrapped(name), va="bottom", fontsize=9.5)
        axes.text(lefts[-1] + 0.01 * longest, row, f"{seconds.sum():,.1f} s", va="center", fontsize=9.5)
    axes.set(xlim=(0, 1.17 * longest), ylim=(len(bars) - 0.6, -0.85), yticks=[], xlabel="seconds, mean over the finished runs")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower left", ncols=3, handlelength=1, columnspacing=1)
    caption = (
        "Where the seconds of a run went, without validation. Forward, backward and waiting are measured for methods that "
        "choose within a step; for the others they are within the rest. Good: a bar shorter than the baseline's. Bad: "
        "refreshing, scoring and selecting take as much as the shorter training saves, or "
        "most of the time goes to waiting for data, which no hiding shortens."
    )
    totals = "; ".join(f"{name}: {seconds.sum():.1f} s" for name, seconds in bars.items())
    return [Picture("phases", "Where the time went", caption, f"Stacked bars of seconds by phase. {totals}.", figure)]


def parts(run: Run) -> dict[str, float]:
    """Return the seconds of a run by the names of `PARTS`."""
    seconds = {name: max(0.0, np.nan_to_num(run.total(f"{name}_seconds"))) for name in ("train", *MEASURED, "refresh", "select")}
    within = {part: seconds[name] for name, part in MEASURED.items()}
    rest = max(0.0, seconds["train"] - sum(within.values()))
    return {**within, "rest of training": rest, "refresh pass": seconds["refresh"], "selecting": seconds["select"]}


MEASURED: Mapping[str, str] = {
    "forward": "forward pass",
    "backward": "backward pass",
    "score": "looking",
    "data": "waiting for data",
}


def classes(groups: list[Group]) -> list[Picture]:
    """Return how much of each class was left out: a panel of bars for each group that left anything out."""
    shares = {group.name: (group, class_shares(group)) for group in groups}
    shown = {name: pair for name, pair in shares.items() if len(pair[1]) and (pair[1].abs() > 1e-9).any()}
    if not shown:
        return []
    columns = 1 if len(shown) == 1 else 2
    rows = -(-len(shown) // columns)
    bars = max(min(len(share), FEW_CLASSES) for _, share in shown.values())
    figure, axes = new_figure(rows, 0.17 * bars + 0.75, columns=columns, sharex=True)
    for place, (name, (group, share)) in zip(axes.flat, shown.items(), strict=False):
        draw_classes(place, group.counted[0], share)
        place.set_title(wrapped(name, 54 if columns == 1 else 26), fontsize=9.5)
    for place in axes.flat[len(shown) :]:
        place.set_axis_off()
    figure.supxlabel("share of the epochs in which a sample was left out (%)", fontsize=10)
    caption = (
        "How often a sample of each class was hidden, on average; where a method does not hide, how often it was not trained, "
        "which is negative for classes drawn more than once per epoch. Good: easy classes lead, none is at 100. Bad: a class "
        "that is left out far more often than others and whose accuracy falls: protect it (method.protected_classes) or "
        "hide within classes (method.balance=class)."
    )
    alt = f"Bars of the share left out by class, for {'; '.join(shown)}."
    return [Picture("classes", "What was left out, class by class", caption, alt, figure)]


def class_shares(group: Group) -> pd.Series:
    """Return the mean percentage of epochs in which a sample of each class was left out, over the finished runs that say so."""
    found = []
    for run in group.counted:
        if run.samples is None or run.samples.epochs < 1 or not len(run.samples.classes):
            continue
        times = run.samples.classes / run.samples.epochs
        found.append(times["times_hidden"] if run.family == "hide" else 1 - times["times_trained"])
    return 100 * pd.concat(found).groupby(level=0).mean() if found else pd.Series(dtype="float64")


def draw_classes(axes: Axes, run: Run, share: pd.Series) -> None:
    """Draw a bar for each class, the most hidden first; of many classes those at either end."""
    ordered = share.sort_values(ascending=False, kind="stable")
    if len(ordered) > FEW_CLASSES:
        ordered = pd.concat([ordered.iloc[:ENDS], ordered.iloc[-ENDS:]])
    places = np.arange(len(ordered)) + 0.6 * (len(share) > FEW_CLASSES) * (np.arange(len(ordered)) >= ENDS)
    axes.barh(places, ordered.to_numpy(), height=0.7, color="#0072B2")
    names = [run.class_name(int(target)) for target in ordered.index]
    axes.set_yticks(places, [name if len(name) <= 18 else f"{name[:17]}…" for name in names], fontsize=9.5)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
