"""The F x tau map of a sweep, and the pictures of the most and least hidden samples."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kakurenbo_lightning.report.groups import Group, key
from kakurenbo_lightning.report.panels import first_run
from kakurenbo_lightning.report.reading import Run
from kakurenbo_lightning.report.style import WIDTH, Picture, new_figure, wrapped
from kakurenbo_lightning.report.tables import comparison_row, is_share, metric_name

F, TAU = "max_fraction", "tau"
MAP_CELL, GAP = 64, 34  # pixels of a thumbnail in a grid, and of the three lines below it
COLUMNS = 6  # of a grid
SIDE = 12  # values of F or tau in a map with a number in each cell


@dataclass(frozen=True)
class Thumbnail:
    """A sample as it is shown: its picture and what is written below it.

    Attributes:
        image: uint8 [h, w, 3].
        lines: its class, index and how often it was left out.
    """

    image: np.ndarray
    lines: tuple[str, str, str]


def sweeps(groups: list[Group]) -> list[tuple[str, pd.DataFrame]]:
    """Return, for each method and rest of settings with at least 2 x 2 of F and tau, its name and rows.

    A row has the columns `max_fraction`, `tau`, `score` and `saving`, the means over the seeds.
    """
    found: dict[str, list[Group]] = {}
    for group in groups:
        settings = dict(group.runs[0].settings)
        if all(isinstance(settings.pop(name, None), int | float) for name in (F, TAU)) and group.finished:
            found.setdefault(key([group.method, group.metric, settings, group.leaves]), []).append(group)
    maps = []
    for own in found.values():
        rows = pd.DataFrame([map_row(group) for group in own])
        if rows[F].nunique() > 1 and rows[TAU].nunique() > 1:
            rest = [part for part in own[0].name.split(", ") if not part.startswith((f"{F}=", f"{TAU}="))]
            maps.append((", ".join(rest), rows))
    return maps


def map_row(group: Group) -> dict[str, float]:
    """Return a group's place and values in the map."""
    settings, row = group.runs[0].settings, comparison_row(group, finished=True)
    return {F: settings[F], TAU: settings[TAU], "score": row["score"], "saving": row["saving"]}


def f_tau(groups: list[Group]) -> list[Picture]:
    """Return the metric and the saving by F and tau, a picture for each method swept over both."""
    pictures = []
    percent = is_share(groups)
    for number, (name, rows) in enumerate(sweeps(groups)):
        metric = metric_name(groups)
        values = [("score", f"{metric} (%)" if percent else metric, 100 if percent else 1), ("saving", "saving (%)", 100)]
        values = [value for value in values if rows[value[0]].notna().any()]
        if not values:
            continue
        figure, axes = new_figure(len(values), 0.45 * rows[TAU].nunique() + 0.95 if is_grid(rows) else 2.9)
        for place, (column, label, scale) in zip(axes[:, 0], values, strict=True):
            draw(place, rows, column, label, scale)
        caption = (
            f"{metric.capitalize()} and saved time of {name} by the largest share hidden (max_fraction, F) and the confidence "
            "from which a sample may be hidden (tau). Good: a place that is dark in both. Bad: scores that fall to the right: "
            "so much cannot be hidden from this task."
        )
        alt = f"Values in colour, tau by max_fraction: {', '.join(label for _, label, _ in values)}."
        file = "f_tau" if number == 0 else f"f_tau_{number + 1}"
        pictures.append(Picture(file, f"F and tau: {name}", caption, alt, figure))
    return pictures


def draw(axes: Axes, rows: pd.DataFrame, column: str, label: str, scale: float) -> None:
    """Draw a column over F and tau, in a grid or as points."""
    if is_grid(rows):
        draw_map(axes, scale * rows.pivot_table(index=TAU, columns=F, values=column, dropna=False), label)
    else:
        draw_points(axes, rows[F], rows[TAU], scale * rows[column], label)


def is_grid(rows: pd.DataFrame) -> bool:
    """Tell whether F and tau have few values each, and at least half of their pairs were run."""
    sides = rows[F].nunique(), rows[TAU].nunique()
    return max(sides) <= SIDE and 2 * len(rows[[F, TAU]].drop_duplicates()) >= math.prod(sides)


def draw_points(axes: Axes, fractions: pd.Series, taus: pd.Series, values: pd.Series, label: str) -> None:
    """Draw values as the colours of points, tau over F, the highest on top."""
    order = values.dropna().sort_values().index
    points = axes.scatter(fractions[order], taus[order], c=values[order], cmap="Blues", edgecolors="black", linewidths=0.5, s=26)
    axes.figure.colorbar(points, ax=axes)
    axes.set(title=label, xlabel=F, ylabel=TAU)


def draw_map(axes: Axes, values: pd.DataFrame, label: str) -> None:
    """Draw a table of numbers in colours: tau upwards, F to the right."""
    values = values.sort_index(ascending=False).sort_index(axis=1)
    numbers = values.to_numpy(dtype=np.float64)
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    vmin = low - 0.2 * (high - low or 1)
    image = axes.imshow(np.ma.masked_invalid(numbers), cmap="Blues", aspect="auto", vmin=vmin, vmax=high)
    for (row, column), value in np.ndenumerate(numbers):
        text = "-" if math.isnan(value) else f"{value:.1f}"
        dark = not math.isnan(value) and luminance(image.to_rgba(value)) < 0.5
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(values.columns)), [f"{value:g}" for value in values.columns])
    axes.set_yticks(range(len(values.index)), [f"{value:g}" for value in values.index])
    axes.set(title=label, xlabel=F, ylabel=TAU)
    axes.grid(False)


def luminance(colour: tuple[float, ...]) -> float:
    """Return how bright a colour of red, green, blue in [0, 1] looks, in [0, 1]."""
    return float(np.dot(colour[:3], (0.2126, 0.7152, 0.0722)))


def thumbnails(group: Group, most: bool, limit: int) -> list[Thumbnail]:
    """Return the most or least hidden samples of a group's first run with pictures, at most `limit`; none hidden, none most."""
    run = first_run(group, lambda run: run.thumbnails is not None)
    if run is None or (most and run.family == "hide" and run.total("samples_hidden") == 0):
        return []
    order = (run.thumbnails.most_hidden if most else run.thumbnails.least_hidden)[:limit]
    return [Thumbnail(run.thumbnails.images[index], written(run, index)) for index in order]


def kind(group: Group, most: bool) -> str:
    """Return the name of the most or least hidden samples of a group: other families train some more often than others."""
    hides = group.runs[0].family == "hide"
    return f"{'most' if most else 'least'} hidden" if hides else f"{'least' if most else 'most'} trained"


def written(run: Run, index: int) -> tuple[str, str, str]:
    """Return what stands below a sample: its class, its index, and how often it was hidden or trained."""
    if run.samples is None or index not in run.samples.shown.index:
        return "?", f"#{index}", ""
    row = run.samples.shown.loc[index]
    times = f"hidden {row['times_hidden']:.0f}x" if run.family == "hide" else f"trained {row['times_trained']:.0f}x"
    return run.class_name(int(row["target"])), f"#{index}", times


def grid(group: Group, number: int) -> list[Picture]:
    """Return the pictures of a group's most and least hidden samples as one figure; nothing when it has none."""
    parts = [(kind(group, most), thumbnails(group, most, 24)) for most in (True, False)]
    parts = [(title, found) for title, found in parts if found]
    if not parts:
        return []
    rows = [-(-len(found) // COLUMNS) for _, found in parts]
    figure = Figure(figsize=(WIDTH, sum(rows) * 1.12 + 0.3 * len(rows) + 0.3), layout="constrained")
    figure.suptitle(wrapped(group.name), fontsize=10)
    places = figure.subplots(len(parts), 1, height_ratios=rows, squeeze=False)
    for place, (title, found) in zip(places[:, 0], parts, strict=True):
        draw_grid(place, found)
        place.set_title(title, loc="left")
    alt = f"Pictures of the most and the least hidden samples of {group.name}, with class, index and times hidden."
    return [Picture(f"samples_{number}", f"Most and least hidden samples: {group.name}", "", alt, figure, photos=True)]


def draw_grid(axes: Axes, found: list[Thumbnail]) -> None:
    """Draw pictures in rows, each with its lines below."""
    rows = -(-len(found) // COLUMNS)
    step_y, step_x = MAP_CELL + GAP, MAP_CELL + 8
    canvas = np.full((rows * step_y, COLUMNS * step_x, 3), 255, np.uint8)
    for place, thumbnail in enumerate(found):
        top, left = place // COLUMNS * step_y, place % COLUMNS * step_x
        canvas[top : top + MAP_CELL, left : left + MAP_CELL] = enlarged(thumbnail.image, MAP_CELL)
        label, *others = thumbnail.lines
        text = "\n".join([label if len(label) <= 13 else f"{label[:12]}…", *others])
        axes.text(left + MAP_CELL / 2, top + MAP_CELL + 1, text, ha="center", va="top", fontsize=7, linespacing=1.05)
    axes.imshow(canvas, interpolation="none")
    axes.set_axis_off()


def enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """Return an image as uint8 [size, size, 3]: the nearest pixels, in the middle of white when it is not square."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    rows = np.minimum((np.arange(high) / scale).astype(int), height - 1)
    columns = np.minimum((np.arange(wide) / scale).astype(int), width - 1)
    canvas = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - high) // 2, (size - wide) // 2
    canvas[top : top + high, left : left + wide] = image[rows][:, columns]
    return canvas
