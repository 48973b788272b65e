"""Short texts beside points that may lie close to each other, each where it belongs to its own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

REACHES = (3.0, 10.0, 19.0, 30.0, 44.0)  # from a marker to the edge of its text, in points; but for the first with a line
MARKER, GAP = 3.5, 1.5  # half of a marker, and the least room between two texts, in points
AROUND = np.deg2rad(np.arange(0, 360, 15) + 45)
LINE: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 1}


def label_points(axes: Axes, points: np.ndarray, labels: Mapping[int, str], size: float = 6.5, lines: Any = ()) -> None:
    """Write texts beside points, with a line to its own where another one is about as near; limits and layout must be final.

    Args:
        axes: the axes that the points are drawn in.
        points: ``float[n, 2]``, in the data's units.
        labels: text by place in ``points``, which are finite there; the first ones find the best places.
        size: size of the letters, in typographic points.
        lines: ``float[m, 2]``, points of lines that texts rather do not cover.
    """
    scale = 72 / axes.figure.dpi
    spots = axes.transData.transform(points) * scale
    ways = axes.transData.transform(np.reshape(lines, (-1, 2))) * scale
    corners, taken = axes.bbox.get_points() * scale, np.empty((0, 2, 2))
    for place, label in labels.items():
        half = _half(axes, label, size) * scale

        def badness(
            way: tuple[float, np.ndarray], half: np.ndarray = half, place: int = place, taken: np.ndarray = taken
        ) -> float:
            low, high = spots[place] + way[1] - half - 1, spots[place] + way[1] + half + 1
            struck = min(3, ((ways > low) & (ways < high)).all(axis=1).sum())
            return _badness(*way, half, place, spots, taken, corners) + 6.0 * struck

        tried = ((reach, _offset(reach, angle, half)) for reach, angle in itertools.product(REACHES, AROUND))
        reach, offset = min(tried, key=badness)
        middle = spots[place] + offset
        taken = np.concatenate([taken, [[middle - half - GAP, middle + half + GAP]]])
        axes.annotate(
            label,
            points[place],
            tuple(offset),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            linespacing=1.05,
            arrowprops=LINE | {"color": rcParams["text.color"]} if reach > REACHES[0] else None,
            path_effects=[withStroke(linewidth=1.5, foreground=rcParams["figure.facecolor"])],
        )


def _half(axes: Axes, label: str, size: float) -> np.ndarray:
    """Half of the width and of the height of a text, in pixels."""
    text = axes.text(0, 0, label, fontsize=size, linespacing=1.05)
    box = text.get_window_extent()
    text.remove()
    return np.array([box.width, box.height]) / 2


def _offset(reach: float, angle: float, half: np.ndarray) -> np.ndarray:
    """The way from a point to the middle of a text whose nearest edge is ``reach`` from its marker."""
    way = np.array([np.cos(angle), np.sin(angle)])
    return way * (MARKER + reach) + np.clip(way * 1.5, -1, 1) * half


def _badness(
    reach: float, offset: np.ndarray, half: np.ndarray, place: int, spots: np.ndarray, taken: np.ndarray, corners: np.ndarray
) -> float:
    """How ill a text stands at an offset from its point; the lower, the better."""
    middle, others = spots[place] + offset, np.delete(spots, place, axis=0)
    others = others[np.isfinite(others).all(axis=1)]
    low, high = middle - half, middle + half
    covered = ((others > low - MARKER) & (others < high + MARKER)).all(axis=1).sum()
    covered += ((taken[:, 0] < high) & (taken[:, 1] > low)).all(axis=1).sum()
    outside = (low < corners[0] + 1).any() or (high > corners[1] - 1).any()
    far = np.linalg.norm(others - middle, axis=1)
    own = np.linalg.norm(offset)
    # a long text may begin or end at another point, far from its middle
    beside = np.linalg.norm(np.maximum(np.abs(others - middle) - half, 0), axis=1) < MARKER + REACHES[1]
    mistaken = reach == REACHES[0] and ((far < 1.6 * own) | beside).any()  # no line says whose it is
    along = np.clip((others - spots[place]) @ offset / own**2, 0, 1)[:, None]
    crossed = (np.linalg.norm(others - spots[place] - along * offset, axis=1) < MARKER).sum() if reach > REACHES[0] else 0
    return 100.0 * (covered + outside + mistaken) + 40.0 * (far <= own).any() + 30.0 * crossed + reach
