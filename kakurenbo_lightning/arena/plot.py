"""The picture of a comparison: the score of each method against the time it took, joined to the two controls that it must beat."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kakurenbo_lightning.arena.runs import BASELINE, RANDOM, Comparison, Row
from kakurenbo_lightning.arena.verdict import controls_of, points
from kakurenbo_lightning.report.point_labels import label_points
from kakurenbo_lightning.report.style import COLOURS, RC, in_the_dark, raster, saved

SIZE, DPI = (7.0, 4.4), 200  # inches, and pixels of one: sharp where a page shows it 700 pixels wide
EDGE, LEGEND_EDGE = 0.01, 0.06  # where texts begin, shares of the figure's width
NEAR = 0.004  # of an axis' length: points nearer than this have one label
GREY = "#777777"
PRESET, SETTING = re.compile(r'preset="\w+"'), re.compile(r" (?=\w+=)")  # settings that are a preset, and where one begins
READING = "A method pays where it lies above both of its controls."
BEATEN = "A method pays where it lies below both of its controls."
LETTERS: dict[Any, Any] = {
    **{
        "font.size": 9,
        "axes.labelsize": 9.5,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.fontsize": 8,
        "figure.dpi": DPI,
    },
    **{"axes.linewidth": 0.8, "xtick.major.size": 3.5, "ytick.major.size": 3.5},
}
NIGHT = dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#e6e8eb"
) | dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "#0d1117")
LOOKS: dict[str, dict[str, Any]] = {  # of what is no method, by its line of the legend
    "baseline, trained on everything": {"marker": "s", "markersize": 8},
    "control: baseline of about the method's time, by fewer epochs": {
        "marker": "s",
        "markersize": 5.5,
        "markerfacecolor": "none",
    },
    "control: leaves out as much as the method, at random": {"marker": "o", "markersize": 5.5, "markerfacecolor": "none"},
}
WHOLE, SHORT, CHANCE = LOOKS
METHOD: dict[str, Any] = {"marker": "o", "markersize": 7}
STEPS = np.linspace(0.02, 0.98, 25)[:, None]  # along a line, of where it is as labels keep away from it


def draw(
    comparison: Comparison,
    rows: Mapping[str, Row],
    target: Path,
    higher_is_better: bool = True,
    score: str = "score",
    title: str = "",
) -> str:
    """Write the picture, and return what it shows in words.

    Args:
        comparison: what was compared.
        rows: of what is trained, by name.
        target: the file, PNG, SVG or PDF by its ending; its folder is made. Of a PNG file there are two: ``NAME-dark.png`` is for
            pages that are dark. One SVG file is for both.
        higher_is_better: whether a higher score is better.
        score: its name, for the axis; values from 0 to 1 are shown in percent.
        title: what was trained on, below the heading.
    """
    links = [(entry.title, control) for entry in comparison.entries for control in controls_of(comparison, entry, rows)]
    table = _table(comparison, rows, higher_is_better, {control for _, control in links})
    percent = bool(higher_is_better and table["score"].between(0, 1).all())
    table[["score", "score_std"]] *= 100 if percent else 1
    words = (f"{score} (%)" if percent else score, title, higher_is_better, _seeds(comparison, rows))
    target.parent.mkdir(parents=True, exist_ok=True)
    themes = {"": {}} if target.suffix in (".svg", ".pdf") else {"": {}, "-dark": NIGHT}
    for ending, theme in themes.items():
        with rc_context({**RC, **LETTERS, **theme}):
            figure, file = _figure(table, links, *words), target.with_stem(target.stem + ending)
            write = {".svg": lambda figure: in_the_dark(saved(figure, "svg")), ".pdf": lambda figure: saved(figure, "pdf")}
            file.write_bytes(write.get(target.suffix, raster)(figure))
    shown = [f"{row.group} {row.score:.1f}{' %' * percent} at {row.time:.2f}" for row in _rows(table) if row.kind != CHANCE]
    return f"{score.capitalize()} against time, that of the baseline being 1: {'; '.join(shown)}."


def _seeds(comparison: Comparison, rows: Mapping[str, Row]) -> str:
    """Over how many seeds the points of methods are means; it may be more for some than for others."""
    counts = [sum(comparison.of(entry, seed).name in rows for seed in comparison.seeds) for entry in comparison.entries]
    trained = sorted({count for count in counts if count} or {len(comparison.seeds)})
    least, most = trained[0], trained[-1]
    if most == 1:
        return "one seed"
    return f"mean ± deviation of {most if least == most else f'{least} to {most}'} seeds"


def _table(comparison: Comparison, rows: Mapping[str, Row], higher_is_better: bool, controls: Set[str]) -> pd.DataFrame:
    """The points of what is compared, the baseline first and the best method next, and which kind each is: one of `LOOKS`, else a
    method. Others may be trained too.
    """
    table, methods = pd.DataFrame(points(comparison, rows)), {entry.title for entry in comparison.entries}
    known = np.isfinite(table["time"]) & np.isfinite(table["score"])
    table = table[known & table["group"].isin({BASELINE, *methods, *controls})].copy()
    control = {BASELINE: SHORT, RANDOM: CHANCE}
    table["kind"] = [
        WHOLE if group == BASELINE else "method" if group in methods else control.get(method, "method")
        for group, method in zip(table["group"], table["method"], strict=True)
    ]
    order = table.assign(after=table["kind"] != WHOLE, worse=table["score"] * (-1 if higher_is_better else 1))
    return order.sort_values(["after", "worse"]).reset_index(drop=True)


def _rows(table: pd.DataFrame) -> Iterable[Any]:
    """The points one by one, with their columns as attributes."""
    return table.itertuples()


def _figure(table: pd.DataFrame, links: list[tuple[str, str]], label: str, title: str, rising: bool, seeds: str) -> Figure:
    """The figure, in the colours of the style that is set."""
    names, key = _labels(table)
    colours = dict(
        zip(dict.fromkeys(row.method for row in _rows(table) if row.kind == "method"), itertools.cycle(COLOURS), strict=False)
    )
    figure, ink = Figure(figsize=SIZE, layout="constrained"), rcParams["text.color"]
    key = {_wrapped(figure, line, rcParams["legend.fontsize"], LEGEND_EDGE): method for line, method in key.items()}
    said = [f"{title}."] * bool(title) + [f"{seeds.capitalize()}. {READING if rising else BEATEN}"]
    heading = f"Is it worth it? {label.removesuffix(' (%)').capitalize()} against training time"
    _write_head(figure, heading, said, SIZE[1] + 0.145 * sum(line.count("\n") + 1 for line in key))
    axes = figure.subplots()
    lines = _draw_points(axes, table, links, colours)
    axes.set(
        xlabel="← better    training time, that of the baseline being 1",
        ylabel=textwrap.fill(f"{label}    {'better →' if rising else '← better'}", 34),
    )
    axes.margins(0.07, 0.1)
    handles = [
        Line2D([], [], linestyle="none", label=name, color=GREY if name != WHOLE else ink, **look) for name, look in LOOKS.items()
    ]
    handles.append(Line2D([], [], linestyle=":", color=GREY, label="joins a method to its controls"))
    handles += [Line2D([], [], linestyle="none", label=line, color=colours[method], **METHOD) for line, method in key.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=1, labelspacing=0.3, handlelength=1.8)
    figure.draw_without_rendering()  # for the layout, in which labels find their places
    label_points(axes, table[["time", "score"]].to_numpy(float), names, 8.5, lines)
    return figure


def _write_head(figure: Figure, heading: str, said: Iterable[str], height: float) -> None:
    """Write the heading and sentences below it, and make the figure so many inches high, or more if these need many lines."""
    heading = _wrapped(figure, heading, 12, fontweight="bold")
    about = "\n".join(_wrapped(figure, sentence, 8.5) for sentence in said)
    above, below = heading.count("\n"), about.count("\n") + 1
    figure.set_figheight(height + 0.2 * (above + below - 2))
    # the layout knows the heading alone: its empty lines are the room for what is below
    figure.suptitle(heading + "\n" * below, x=EDGE, ha="left", fontsize=12, fontweight="bold")
    figure.text(EDGE, 1 - (0.32 + 0.2 * above) / figure.get_figheight(), about, fontsize=8.5, va="top")


def _wrapped(figure: Figure, text: str, size: float, left: float = EDGE, **look: Any) -> str:
    """The text in as many lines as it needs to end within the figure, when it begins at ``left`` (a share of its width)."""
    for columns in range(min(len(text), 140), 10, -1):
        shown = "\n".join(textwrap.wrap(text, columns))
        drawn = figure.text(left, 0.5, shown, fontsize=size, **look)
        end = drawn.get_window_extent().x1
        drawn.remove()
        if end <= (1 - EDGE) * figure.bbox.x1:
            return shown
    return text


def _draw_points(axes: Axes, table: pd.DataFrame, links: list[tuple[str, str]], colours: Mapping[str, str]) -> np.ndarray:
    """Draw the points, their deviations, the lines through the controls, and those that join methods to them.

    Returns:
        ``float[n, 2]``, points on these lines.
    """
    at, ways = {row.group: row for row in _rows(table)}, [np.empty((0, 2))]
    for method, control in links:
        if method in at and control in at:
            pair = at[method], at[control]
            colour = colours.get(str(pair[0].method), GREY)
            axes.plot(
                [one.time for one in pair], [one.score for one in pair], ":", color=colour, linewidth=1.2, alpha=0.7, zorder=1
            )
            ways.append((1 - STEPS) * [pair[0].time, pair[0].score] + STEPS * [pair[1].time, pair[1].score])
    for kinds, line in (((WHOLE, SHORT), "-"), ((CHANCE,), "--")):
        curve: Any = table[table["kind"].isin(kinds)]
        curve = curve.sort_values("time")
        axes.plot(curve["time"], curve["score"], line, color=GREY, linewidth=1, alpha=0.5, zorder=0.5)
        places = curve[["time", "score"]].to_numpy(float)
        ways += [(1 - STEPS) * start + STEPS * end for start, end in itertools.pairwise(places)]
    ink = rcParams["text.color"]
    for row in _rows(table):
        look: Any = LOOKS.get(str(row.kind), METHOD)
        colour = ink if row.kind == WHOLE else colours.get(str(row.method), GREY) if row.kind == "method" else GREY
        spans = {"xerr": np.nan_to_num(row.time_std), "yerr": np.nan_to_num(row.score_std)}
        axes.errorbar(row.time, row.score, **spans, color=colour, linewidth=0.8, alpha=0.6, zorder=2)
        axes.plot(row.time, row.score, color=colour, zorder=3, linestyle="none", **look)
    return np.concatenate(ways)


def _labels(table: pd.DataFrame) -> tuple[dict[int, str], dict[str, str]]:
    """The label of each point by its place, the baseline and methods alone, and by its line of the legend the method of each that
    has a number.

    A method as it is by default has its name alone, and one with a preset that too; of other settings each has a number, if there
    are several. Points that lie on each other have one label.
    """
    chosen: Any = table[table["kind"].isin((WHOLE, "method"))]
    spans = [float(np.ptp(table[axis])) or 1.0 for axis in ("time", "score")]
    found: dict[int, str] = {}
    key: dict[str, str] = {}
    numbers = {method: itertools.count(1) for method in chosen["method"].unique()}
    several = chosen["method"].value_counts()
    for place, row in chosen.iterrows():
        name, settings = row["method"], row["group"].removeprefix(row["method"]).strip()
        own = f" {settings}"
        if several[name] == 1:
            own = ""
        elif settings and not PRESET.fullmatch(settings):
            own = f" {next(numbers[name])}"
            key[f"{name}{own}: {SETTING.sub(', ', settings.replace('[]', 'none'))}"] = name
        same = [
            other
            for other in found
            if math.hypot(
                *((row[axis] - table.loc[other, axis]) / span for axis, span in zip(("time", "score"), spans, strict=True))
            )
            < NEAR
        ]
        if same and own.strip() and table.loc[same[0], "method"] == name:
            found[same[0]] += f",{own}"
        else:
            found[int(place)] = name + own.rstrip()
    return found, dict(sorted(key.items()))
