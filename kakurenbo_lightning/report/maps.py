"""The map of F and tau of a sweep: scores and savings by how much may be hidden, and how sure the network must be."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kakurenbo_lightning.report.groups import Group, key
from kakurenbo_lightning.report.style import BLACK, SMALL, WHITE, Picture, new_figure
from kakurenbo_lightning.report.tables import comparison_row, is_share, metric_name

F, TAU = "max_fraction", "tau"
SIDE = 12  # values of F or tau in a map with a number in each cell


def sweeps(groups: list[Group]) -> list[tuple[str, pd.DataFrame]]:
    """Name and rows of each method and rest of settings that has at least 2 x 2 values of F and tau.

    A row has the columns `max_fraction`, `tau`, `score` and `saving`, the means over the seeds.
    """
    found: dict[str, list[Group]] = {}
    for group in groups:
        settings = dict(group.runs[0].settings)
        if all(isinstance(settings.pop(name, None), int | float) for name in (F, TAU)) and group.finished:
            found.setdefault(key([group.method, group.metric, settings, group.leaves]), []).append(group)
    maps = []
    for own in found.values():
        rows = pd.DataFrame([{F: one.runs[0].settings[F], TAU: one.runs[0].settings[TAU], **comparison_row(one)} for one in own])
        if rows[F].nunique() > 1 and rows[TAU].nunique() > 1:
            rest = [part for part in own[0].name.split(", ") if not part.startswith((f"{F}=", f"{TAU}="))]
            rows["saving"] = rows["saving"].where(rows["resolved"].astype(bool))
            maps.append((", ".join(rest), rows[[F, TAU, "score", "saving"]]))
    return maps


def f_tau(groups: list[Group]) -> list[Picture]:
    """The metric and the saving by F and tau, a picture for each method swept over both."""
    pictures = []
    percent, metric = is_share(groups), metric_name(groups)
    for number, (name, rows) in enumerate(sweeps(groups)):
        values = [("score", f"{metric} (%)" if percent else metric, 100 if percent else 1), ("saving", "saving (%)", 100)]
        values = [value for value in values if rows[value[0]].notna().any()]
        if not values:
            continue
        figure, axes = new_figure(len(values), 0.3 * rows[TAU].nunique() + 0.65 if is_grid(rows) else 2.0)
        for place, (column, label, scale) in zip(axes[:, 0], values, strict=True):
            (draw_grid if is_grid(rows) else draw_points)(place, rows.assign(value=scale * rows[column]))
            place.set(title=label, xlabel=F, ylabel=TAU)
        caption = (
            f"{metric.capitalize()} and saved time of {name} by the largest share hidden (max_fraction, F) and the confidence "
            "from which a sample may be hidden (tau). Good: a place that is dark in both. Bad: scores that fall to the right: "
            "so much cannot be hidden from this task."
        )
        alt = f"Values in colour, tau by max_fraction: {', '.join(label for _, label, _ in values)}."
        file = "f_tau" if number == 0 else f"f_tau_{number + 1}"
        pictures.append(Picture(file, f"F and tau: {name}", caption, alt, figure))
    return pictures


def is_grid(rows: pd.DataFrame) -> bool:
    """Whether F and tau have few values each, and at least half of their pairs were run."""
    sides = rows[F].nunique(), rows[TAU].nunique()
    return max(sides) <= SIDE and 2 * len(rows[[F, TAU]].drop_duplicates()) >= math.prod(sides)


def draw_points(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the values as the colours of points, tau over F, the highest on top."""
    rows = rows.dropna(subset=["value"]).sort_values("value")
    points = axes.scatter(rows[F], rows[TAU], c=rows["value"], cmap="Blues", edgecolors="black", linewidths=0.4, s=12)
    axes.figure.colorbar(points, ax=axes)


def draw_grid(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the values as numbers in coloured cells: tau upwards, F to the right."""
    values = rows.pivot_table(index=TAU, columns=F, values="value", dropna=False)
    values = values.sort_index(ascending=False).sort_index(axis=1)
    numbers = values.to_numpy(dtype=np.float64)
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    vmin = low - 0.2 * (high - low or 1)
    axes.set_facecolor(WHITE)
    image = axes.imshow(np.ma.masked_invalid(numbers), cmap="Blues", aspect="auto", vmin=vmin, vmax=high)
    for (row, column), value in np.ndenumerate(numbers):
        text = "-" if math.isnan(value) else f"{value:.1f}"
        dark = not math.isnan(value) and luminance(image.to_rgba(value)) < 0.5
        axes.text(column, row, text, ha="center", va="center", fontsize=SMALL, color=WHITE if dark else BLACK)
    axes.set_xticks(range(len(values.columns)), [f"{value:g}" for value in values.columns])
    axes.set_yticks(range(len(values.index)), [f"{value:g}" for value in values.index])
    axes.grid(False)


def luminance(colour: np.ndarray) -> float:
    """How bright a colour of red, green, blue in [0, 1] is, in [0, 1]."""
    return float(np.dot(colour[:3], (0.2126, 0.7152, 0.0722)))
