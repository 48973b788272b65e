"""Numbers beside points that may lie close to each other, each where it belongs to its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

REACHES = (
    11.0,
    20.0,
    30.0,
    42.0,
)  # from a point to the middle of its number, in typographic points; but for the first with a line
MARKER, NUMBER = 9.0, 13.0  # how near the middle of a number may be to that of a marker, and of another number
AROUND = np.deg2rad(np.arange(0, 360, 15) + 45)
NEAR = 1.6  # times as far as its own point must another one be where no line leads from a number


def number_points(axes: Axes, points: np.ndarray, numbers: Mapping[int, int]) -> None:
    """Write numbers beside points, with a line to its own where another one is about as near; limits and layout must be final.

    Args:
        axes: of the points.
        points: ``float[n, 2]``, in the data's units.
        numbers: by place in ``points``, which are finite there.
    """
    scale = 72 / axes.figure.dpi
    spots = axes.transData.transform(points) * scale
    corners, taken = axes.bbox.get_points() * scale, np.empty((0, 2))
    for place, number in sorted(numbers.items(), key=lambda each: each[1]):
        reach, offset = min(
            ((reach, np.array([np.cos(angle), np.sin(angle)]) * reach) for reach in REACHES for angle in AROUND),
            key=lambda each: _badness(*each, place, spots, taken, corners),
        )
        taken = np.vstack([taken, spots[place] + offset])
        line = {"arrowstyle": "-", "linewidth": 0.6, "color": "#555555", "shrinkA": 0, "shrinkB": 1}
        axes.annotate(
            f"{number}",
            points[place],
            tuple(offset),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            arrowprops=line if reach > REACHES[0] else None,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )


def _badness(reach: float, offset: np.ndarray, place: int, spots: np.ndarray, taken: np.ndarray, corners: np.ndarray) -> float:
    """How ill a number stands at an offset from its point; the lower, the better."""
    middle, others = spots[place] + offset, np.delete(spots, place, axis=0)
    others = others[np.isfinite(others).all(axis=1)]
    far = np.linalg.norm(others - middle, axis=1)
    covers = (far < MARKER).sum() + (np.linalg.norm(taken - middle, axis=1) < NUMBER).sum()
    outside = (middle < corners[0] + 4).any() or (middle > corners[1] - 4).any()
    mistaken = reach == REACHES[0] and (far < NEAR * reach).any()  # no line says whose it is
    along = np.clip((others - spots[place]) @ offset / reach**2, 0, 1)[:, None]
    crossed = (np.linalg.norm(others - spots[place] - along * offset, axis=1) < MARKER / 2).sum() if reach > REACHES[0] else 0
    nearer = (far <= reach).any()
    return 100.0 * (covers + outside + mistaken) + 60.0 * nearer + 30.0 * crossed + reach
