"""Figures of what an error costs: which methods and settings no other beats, and how soon each comes near the baseline's error."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from kakurenbo_lightning.report.curves import curves
from kakurenbo_lightning.report.groups import BASELINE, Group, task_of
from kakurenbo_lightning.report.point_labels import label_points
from kakurenbo_lightning.report.reading import Run
from kakurenbo_lightning.report.style import COLOURS, INK, SMALL, WIDTH, Picture, legend, new_figure, wrapped
from kakurenbo_lightning.report.tables import LOWER, compared, is_share, metric_name

MARKERS = ("o", "^", "D", "v", "P")
SECONDS, WORK = "seconds", "work"
UNITS = {SECONDS: "seconds of training, refreshing and selecting", WORK: "cost in trained samples, scoring passes included"}
FACTORS = {
    1.4: COLOURS[4],
    1.2: COLOURS[0],
    1.1: INK,
}  # of the baseline's error, as in the Selective-Backprop paper, and their bars
NAMED = 12  # optimal groups in a legend
OPEN: dict[str, Any] = {"markerfacecolor": "none"}
_GREY: dict[str, Any] = {"color": "#777777", "marker": "o", "linestyle": "none"}
KEY = {
    "filled: Pareto-optimal, none is better in both": _GREY,
    "open: another one costs no more and errs no more": _GREY | OPEN,
}


def pareto(costs: Any, errors: Any) -> np.ndarray:
    """Which points are Pareto-optimal: no other has at most their cost and their error, and less of one of them.

    Args:
        costs: float [N], the lower the better.
        errors: float [N], the lower the better.

    Returns:
        bool [N]; equal points are optimal together, and one of which a number is not finite never is.
    """
    cost, error = (np.asarray(values, dtype=float) for values in (costs, errors))
    known = np.isfinite(cost) & np.isfinite(error)
    beats = (cost[:, None] <= cost) & (error[:, None] <= error) & ((cost[:, None] < cost) | (error[:, None] < error))
    return known & ~beats[known].any(axis=0)


def error_of(values: Any, groups: list[Group]) -> Any:
    """Values of the groups' metric as errors: of shares in percent what they lack; NaN for other metrics that are to rise."""
    if is_share(groups):
        return 100 * (1 - values)
    return values if LOWER.search((groups[0].metric or "").lower()) else values * math.nan


def error_label(groups: list[Group]) -> str:
    """The label of an axis that shows `error_of`."""
    return "validation error (%)" if is_share(groups) else f"validation {metric_name(groups)}"


def comparable(groups: list[Group]) -> list[list[Group]]:
    """The groups that are compared and have an error, together with those of the same metric, data and network."""
    found: dict[tuple, list[Group]] = {}
    for group in compared(groups):
        found.setdefault((group.metric, task_of(group)), []).append(group)
    return [
        own
        for own in found.values()
        if np.isfinite(error_of(np.array([run.score for one in own for run in one.runs]), own)).any()
    ]


def units_of(groups: list[Group]) -> list[str]:
    """The unit in which the groups' costs are compared: seconds say nothing where machines differ."""
    places = {place for group in groups for place in group.frame["place"]}
    return [SECONDS, WORK] if len(places) == 1 else [WORK]


def total(run: pd.DataFrame, unit: str) -> pd.Series:
    """The costs of whole runs, which are rows of `Group.frame` or of its means: robust seconds as in the comparison, or trained samples."""
    seconds: Any = run["steady_seconds"].fillna(run["seconds"])
    return seconds if unit == SECONDS else run["samples_trained"] * run["time_factor"]


def points(groups: list[Group]) -> pd.DataFrame:
    """One row per group, in their order: the mean and the standard deviation over its seeds of its error and of each of its costs."""
    rows = []
    for group in groups:
        values = {unit: total(group.seeds, unit) for unit in UNITS} | {"error": error_of(group.seeds["score"], groups)}
        rows.append({"group": group.name, "method": group.method} | {name: one.mean() for name, one in values.items()})
        rows[-1] |= {f"{name}_std": one.std() for name, one in values.items()}
    return pd.DataFrame(rows)


def error_against_cost(groups: list[Group]) -> list[Picture]:
    """Every group as a point of error and cost with the Pareto-optimal ones numbered, a picture for each metric and task of two or more."""
    pictures = []
    for own in comparable(groups):
        table, units = points(own), units_of(own)
        units = [unit for unit in units if (np.isfinite(table[unit]) & np.isfinite(table["error"])).sum() > 1]
        if units:
            name = "pareto" if not pictures else f"pareto_{len(pictures)}"
            pictures.append(pareto_picture(name, table, units, error_label(own)))
    return pictures


def pareto_picture(name: str, table: pd.DataFrame, units: list[str], label: str) -> Picture:
    """The picture of one table of points, with a panel for each unit of cost."""
    optimal = {unit: pareto(table[unit], table["error"]) for unit in units}
    chosen: Any = table[np.any(list(optimal.values()), axis=0)]
    of_any = chosen.sort_values([units[0], "error"])
    numbers = {row: number for number, row in enumerate(of_any.index, start=1)}
    looks = method_styles(table["method"].tolist())
    unnumbered: Any = table[~table.index.isin(list(numbers))]
    others = {
        own["group"].iloc[0] if len(own) == 1 else f"{method}, {len(own)} settings": looks[str(method)] | OPEN
        for method, own in unnumbered.groupby("method", sort=False)
    }
    named = {f"{numbers[row]}: {of_any.loc[row, 'group']}": looks[table.loc[row, "method"]] for row in of_any.index[:NAMED]}
    labels = KEY | named | others
    figure, axes = new_figure(len(units), 1.9, labels)
    for place, unit in zip(axes[:, 0], units, strict=True):
        draw_points(place, table, unit, optimal[unit], looks)
        place.set(xlabel=UNITS[unit], ylabel=label)
        place.locator_params(axis="x", nbins=6)
        if unit == WORK:
            place.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend(figure, labels)
    figure.draw_without_rendering()  # for the layout, in which numbers find their places
    for place, unit in zip(axes[:, 0], units, strict=True):
        spots: Any = table[[unit, "error"]].to_numpy(float)
        at = {numbers[row]: one for one, row in enumerate(table.index) if row in numbers and np.isfinite(spots[one]).all()}
        label_points(place, spots, {at[number]: f"{number}" for number in sorted(at)})
    caption = (
        "The error at the end of training (of a share, what it lacks to 100 %) against what training cost: a point for each method and "
        "its settings, the mean over its seeds, with crosses of a standard deviation. Filled are those that no other beats "
        "in both (Pareto-optimal), in grey what they bound. Good: a method's points lie on that line and left of the baseline's. Bad: a "
        "point to the right of and above the baseline costs more and errs more. Distances within the crosses mean nothing."
    )
    alt = f"Points of {len(table)} groups by cost and error. Pareto-optimal: {'; '.join(of_any['group'])}."
    return Picture(name, "Error against cost", caption, alt, figure)


def method_styles(methods: list[str]) -> dict[str, dict[str, Any]]:
    """The marker of each method: the baseline in that of the text, the others in the colours of the other figures."""
    looks = itertools.cycle((colour, marker) for marker in MARKERS for colour in COLOURS)
    found = {method: (INK, "s") if method == BASELINE else next(looks) for method in dict.fromkeys(methods)}
    return {method: {"color": colour, "marker": marker, "linestyle": "none"} for method, (colour, marker) in found.items()}


def draw_points(axes: Axes, table: pd.DataFrame, unit: str, optimal: np.ndarray, looks: dict[str, dict[str, Any]]) -> None:
    """Draw the points of a table, `optimal` (bool [N]) ones filled and joined."""
    chosen: Any = table[optimal]
    front = chosen.sort_values([unit, "error"])
    axes.plot(front[unit], front["error"], drawstyle="steps-post", color="#999999", linewidth=1, zorder=1)
    for row, best in zip(table.index, optimal, strict=True):
        point: Any = table.loc[row]
        look: dict[str, Any] = looks[point["method"]] | ({} if best else OPEN)
        axes.plot(point[unit], point["error"], **look, markersize=4.5)
        spans = {"xerr": np.nan_to_num(point[f"{unit}_std"]), "yerr": np.nan_to_num(point["error_std"])}
        axes.errorbar(point[unit], point["error"], **spans, color=look["color"], linewidth=0.6, alpha=0.6)
    axes.margins(0.08)


# --- time to an error


def cost_by_epoch(run: Run, unit: str) -> pd.Series:
    """What a run had cost by the end of each epoch: its total, in proportion to the samples trained and passed forward until
    then.

    In that a machine that stood still in one of its epochs does not change it.
    """

    def column(name: str) -> pd.Series:
        return run.history[name].fillna(0) if name in run.history else pd.Series(0.0, run.history.index)

    figures = pd.DataFrame([run.figures])
    trained, forwards = column("samples_trained").cumsum(), (column("samples_refreshed") + column("samples_scored")).cumsum()
    work = trained
    if len(run.history) and forwards.iloc[-1] > 0:
        work = trained + (figures["time_factor"].item() - 1) * trained.iloc[-1] * forwards / forwards.iloc[-1]
    share: Any = work / work.iloc[-1] if len(work) and work.iloc[-1] > 0 else work * math.nan
    return share * total(figures, unit).item()


def cost_to_error(run: Run, target: float, groups: list[Group], unit: str) -> float:
    """The cost of a run until the end of its first epoch with at most the error `target`; NaN where it never has it."""
    spent: Any = cost_by_epoch(run, unit)
    errors: Any = error_of(curves(run)["score"], groups)
    reached = spent[errors <= target]
    return float(reached.iloc[0]) if len(reached) else math.nan


def times_to_error(group: Group, groups: list[Group], unit: str) -> dict[float, tuple[float, int, int]]:
    """By factor on the baseline's last error with the same seed: the mean cost of the runs that reach it, how many do, and out of
    how many."""
    baseline = group if group.method == BASELINE else group.baseline
    if baseline is None:
        return {}
    last = {run.seed: error_of(run.score, groups) for run in baseline.counted}
    runs = [run for run in group.counted if run.seed in last and math.isfinite(last[run.seed])]
    found = {factor: [cost_to_error(run, factor * last[run.seed], groups, unit) for run in runs] for factor in FACTORS}
    reached = {factor: [cost for cost in costs if math.isfinite(cost)] for factor, costs in found.items()}
    return {
        factor: (float(np.mean(costs)) if costs else math.nan, len(costs), len(runs)) for factor, costs in reached.items() if runs
    }


def time_bars(groups: list[Group]) -> list[Picture]:
    """How soon each group comes near its baseline's error: bars for each factor on it, a picture for each metric and task."""
    pictures = []
    for own in comparable(groups):
        unit = units_of(own)[0]
        times = {group.name: times_to_error(group, own, unit) for group in own}
        times = {name: found for name, found in times.items() if found}
        if len(times) > 1 and any(reached for found in times.values() for _, reached, _ in found.values()):
            name = "time_to_error" if not pictures else f"time_to_error_{len(pictures)}"
            pictures.append(bars_picture(name, times, unit))
    return pictures


def bars_picture(name: str, times: dict[str, dict[float, tuple[float, int, int]]], unit: str) -> Picture:
    """The bars of some groups, the groups below each other."""
    longest = np.nanmax([cost for found in times.values() for cost, _, _ in found.values()])
    figure = Figure(layout="constrained")
    axes, height = figure.subplots(), 0.0
    for group, found in times.items():
        height += 0.18 * wrapped(group).count("\n")
        axes.text(0, height, wrapped(group), va="bottom", fontsize=7)
        height -= 0.09
        for factor, (cost, reached, runs) in found.items() if any(reached for _, reached, _ in found.values()) else ():
            height += 0.24
            axes.barh(height, np.nan_to_num(cost), height=0.2, color=FACTORS[factor])
            text = f"{cost:,.1f} s" if unit == SECONDS else EngFormatter(sep="")(cost)
            note = "not reached" if not reached else text if reached == runs else f"{text} ({reached} of {runs} seeds)"
            axes.text(np.nan_to_num(cost) + 0.01 * longest, height, note, va="center", fontsize=SMALL)
        if not any(reached for _, reached, _ in found.values()):
            height += 0.24
            axes.text(0.01 * longest, height, "none of them reached", va="center", fontsize=SMALL)
        height += 0.46
    figure.set_size_inches(WIDTH, 0.62 * height + 1.0)
    axes.set(xlim=(0, 1.3 * longest), ylim=(height - 0.3, -0.5), yticks=[], xlabel=UNITS[unit])
    axes.locator_params(axis="x", nbins=6)
    if unit == WORK:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    legend(
        figure,
        {f"to {factor:g} x the baseline's last error": {"color": look, "linewidth": 5} for factor, look in FACTORS.items()},
    )
    caption = (
        "What each method cost until its error was first, at the end of an epoch, at most so many times the last one of its seed's "
        "baseline; the mean over the seeds that came there. Costs are spread over the epochs by the samples trained and passed forward "
        "in each. Good: shorter bars than the baseline's for all three. Bad: short bars for the highest error only, and 'not reached' "
        "for the lowest. With few epochs the bars move in steps of one."
    )
    names = "; ".join(times)
    return Picture(name, "Cost until an error is reached", caption, f"Bars of the cost to three errors for {names}.", figure)
