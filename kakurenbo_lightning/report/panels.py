"""Figures with one panel per group: losses, where the time went, classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from kakurenbo_lightning.record.schema import LOSS_EDGES
from kakurenbo_lightning.report.groups import Group
from kakurenbo_lightning.report.reading import Run
from kakurenbo_lightning.report.style import COLOURS, SMALL, WHITE, WIDTH, Picture, tiles, whole_epochs, wrapped

BLUE, RED = COLOURS[:2]
PARTS = {  # of a run's seconds, in the order of their bars
    "forward pass": "#56B4E9",
    "backward pass": BLUE,
    "scoring": "#E69F00",
    "waiting for data": "#999999",
    "rest of training": "#8C6BB1",
    "refresh pass": "#009E73",
    "selecting": RED,
}
MEASURED = {"forward": "forward pass", "backward": "backward pass", "score": "scoring", "data": "waiting for data"}
FEW_CLASSES, ENDS = 20, 10  # with more classes than the first: so many of either end


def histograms(groups: list[Group]) -> list[Picture]:
    """The samples by epoch and loss, a panel for each group's first seed with any, and the threshold of hiding."""
    found = []
    for group in groups:
        known = [(group.name, run.history, run.losses) for run in group.counted if run.losses is not None and run.losses.any()]
        found += known[:1]
    if not found:
        return []
    all_losses = np.concatenate([losses for _, _, losses in found])
    most, bins = all_losses.max(), np.flatnonzero(all_losses.any(axis=0))
    names = [name for name, _, _ in found]
    figure, panels = tiles(names, 1.9 if len(names) == 1 else 1.6, room=0.45, sharey=True)
    colours = LogNorm(1, max(2, most))
    for place, (_, history, losses) in zip(panels, found, strict=True):
        draw_losses(place, history, losses, colours)
        place.set_xlabel("epoch")
        place.set_ylim(LOSS_EDGES[bins[0]].item(), LOSS_EDGES[bins[-1] + 1].item())
    for place in panels[::2]:
        place.set_ylabel("loss")
    bar = figure.colorbar(ScalarMappable(colours, "Blues"), ax=panels, location="bottom", aspect=45, pad=0.02, label="samples")
    bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")  # 100 instead of powers of ten
    bar.ax.xaxis.set_minor_formatter(lambda value, _: "")
    caption = (
        "Each column is an epoch: how many samples had which loss when it was planned, the darker the more (on a logarithmic "
        f"scale, up to {most:,}). The orange line is the largest loss of a sample that was hidden and predicted correctly. "
        "Good: the cloud sinks, and hiding eats its lower edge. Bad: the line runs through the middle of the cloud (too much "
        "is hidden), or a second cloud stays at the top (samples that are never learned: look for wrong labels)."
    )
    alt = f"Heat maps of samples by epoch and loss with the threshold of hiding, for {'; '.join(names)}."
    return [Picture("losses", "Losses and the threshold of hiding", caption, alt, figure)]


def draw_losses(axes: Axes, history: pd.DataFrame, losses: np.ndarray, norm: LogNorm) -> None:
    """Draw a heat map, epoch by loss."""
    epochs = history.index.to_numpy() + 1.0
    edges = np.append(epochs - 0.5, epochs[-1] + 0.5)
    axes.set_facecolor(WHITE)  # what is pale is few, in the dark too
    axes.pcolormesh(edges, LOSS_EDGES, np.ma.masked_equal(losses, 0).T, norm=norm, cmap="Blues", rasterized=True)
    if "threshold" in history:
        axes.stairs(history["threshold"].to_numpy(), edges, baseline=None, color=RED, linewidth=1.3)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # 0.01 instead of powers of ten
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    whole_epochs(axes)
    axes.grid(False)


def phases(groups: list[Group]) -> list[Picture]:
    """Where the seconds went: one stacked bar per group, of the mean over its finished runs."""
    spent: Any = pd.DataFrame({group.name: pd.DataFrame([parts(run) for run in group.counted]).mean() for group in groups}).T
    spent = spent[spent.sum(axis=1) > 0]
    if not len(spent):
        return []
    totals, longest = spent.sum(axis=1), spent.sum(axis=1).max()
    spent = spent[[part for part in PARTS if (spent[part] > 0.001 * totals).any()]]
    figure = Figure(figsize=(WIDTH, 0.4 * len(spent) + 1.0), layout="constrained")
    axes = figure.subplots()
    lefts = spent.cumsum(axis=1) - spent
    for part in spent.columns.astype(str):
        axes.barh(range(len(spent)), spent[part], left=lefts[part], height=0.42, color=PARTS[part], label=part)
    for row, (name, seconds) in enumerate(totals.items()):
        axes.text(0, row - 0.27, wrapped(str(name)), va="bottom", fontsize=7)
        axes.text(seconds + 0.01 * longest, row, f"{seconds:,.1f} s", va="center", fontsize=SMALL)
    axes.set(xlim=(0, 1.17 * longest), ylim=(len(spent) - 0.6, -0.85), yticks=[], xlabel="seconds, mean over the finished runs")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower left", ncols=3, handlelength=1, columnspacing=1, fontsize=SMALL)
    caption = (
        "Where the seconds of a run went, without validation. Forward, backward and waiting are measured for methods that "
        "choose within a step; for the others they are within the rest. Good: a bar shorter than the baseline's. Bad: "
        "refreshing, scoring and selecting take as much as the shorter training saves, or "
        "most of the time goes to waiting for data, which no hiding shortens."
    )
    texts = "; ".join(f"{name}: {seconds:.1f} s" for name, seconds in totals.items())
    return [Picture("phases", "Where the time went", caption, f"Stacked bars of seconds by phase. {texts}.", figure)]


def parts(run: Run) -> dict[str, float]:
    """The seconds of a run by the names of `PARTS`."""
    seconds = {name: max(0.0, np.nan_to_num(run.total(f"{name}_seconds"))) for name in ("train", *MEASURED, "refresh", "select")}
    within = {part: seconds[name] for name, part in MEASURED.items()}
    rest = max(0.0, seconds["train"] - sum(within.values()))
    return {**within, "rest of training": rest, "refresh pass": seconds["refresh"], "selecting": seconds["select"]}


def classes(groups: list[Group]) -> list[Picture]:
    """How much of each class was left out: a panel of bars for each group that left anything out."""
    shares = {group.name: class_shares(group) for group in groups}
    shown = {group.name: group for group in groups if (shares[group.name].abs() > 1e-9).any()}
    if not shown:
        return []
    bars = max(min(len(shares[name]), FEW_CLASSES) for name in shown)
    figure, panels = tiles(list(shown), 0.12 * bars + 0.5, sharex=True)
    for place, (name, group) in zip(panels, shown.items(), strict=True):
        draw_classes(place, group.counted[0], shares[name])
    figure.supxlabel("share of the epochs in which a sample was left out (%)", fontsize=7.5)
    caption = (
        "How often a sample of each class was hidden, on average; where a method does not hide, how often it was not trained, "
        "which is negative for classes drawn more than once per epoch. Good: easy classes lead, none is at 100. Bad: a class "
        "that is left out far more often than others and whose accuracy falls: protect it (method.protected_classes) or "
        "hide within classes (method.balance=class)."
    )
    alt = f"Bars of the share left out by class, for {'; '.join(shown)}."
    return [Picture("classes", "What was left out, class by class", caption, alt, figure)]


def class_shares(group: Group) -> pd.Series:
    """The mean percentage of epochs in which a sample of each class was left out, over the finished runs with samples of known class."""
    found = []
    for run in group.counted:
        if run.samples is not None and run.samples.epochs >= 1 and len(run.samples.classes):
            times = run.samples.classes / run.samples.epochs
            found.append(times["times_hidden"] if run.family == "hide" else 1 - times["times_trained"])
    if not found:
        return pd.Series(dtype="float64")
    mean: Any = pd.concat(found).groupby(level=0).mean()
    return 100 * mean


def draw_classes(axes: Axes, run: Run, share: pd.Series) -> None:
    """Draw a bar for each class, the most hidden first; of many classes those at either end."""
    ordered = share.sort_values(ascending=False, kind="stable")
    if len(ordered) > FEW_CLASSES:
        ordered = pd.concat([ordered.iloc[:ENDS], ordered.iloc[-ENDS:]])
    places = np.arange(len(ordered)) + 0.6 * (len(share) > FEW_CLASSES) * (np.arange(len(ordered)) >= ENDS)
    axes.barh(places, ordered.to_numpy(), height=0.7, color=BLUE)
    names = [run.class_name(int(target)) for target in ordered.index]
    axes.set_yticks(places, [name if len(name) <= 18 else f"{name[:17]}…" for name in names], fontsize=SMALL)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
