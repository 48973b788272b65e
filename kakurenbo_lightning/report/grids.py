"""The pictures of the most and least hidden samples, for the page and as files."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from kakurenbo_lightning.report.groups import Group
from kakurenbo_lightning.report.reading import Run
from kakurenbo_lightning.report.style import WIDTH, Picture, data_address, wrapped

COLUMNS, CELL, SIDE, LINE = 6, 0.8, 0.47, 0.17  # of a picture; inches of a row, of an image and of a line of text in it
THUMBNAILS = 480  # in a page; with many groups each shows fewer
FEWEST, MOST = 6, 24  # of either kind for a group


@dataclass(frozen=True)
class Shown:
    """A sample as it is shown in a grid.

    Attributes:
        image: uint8 [h, w, 3].
        lines: what stands below it: its class, index, and how often it was hidden or trained.
    """

    image: np.ndarray
    lines: tuple[str, str, str]

    @property
    def source(self) -> str:
        """The image as an address within the page."""
        packed = io.BytesIO()
        Image.fromarray(self.image).save(packed, "webp", quality=80)
        return data_address(packed.getvalue(), "webp")


def shown_samples(group: Group, limit: int = MOST) -> dict[str, list[Shown]]:
    """The most and the least hidden samples, at most `limit` each, of a group's first run with pictures, by the name of the kind.

    Families that do not hide train some samples more often than others: theirs are the least and the most trained. A run that left out
    nothing has none, for all of its samples were trained alike.
    """
    for run in group.counted:
        if run.thumbnails is not None:
            most, least, images = run.thumbnails.most_hidden, run.thumbnails.least_hidden, run.thumbnails.images
            if run.family == "hide" and not run.total("samples_hidden"):
                return {}
            if run.family != "hide":
                kinds = {"least trained": most, "most trained": least}
            else:
                often = [one for one in most if times_hidden(run, one)]
                kinds = {"most hidden": often, "least hidden": least}
            return {
                kind: [Shown(images[one], written(run, one)) for one in order[:limit]] for kind, order in kinds.items() if order
            }
    return {}


def times_hidden(run: Run, index: int) -> float:
    """How often a sample was hidden; once where the run does not say it."""
    return 1.0 if run.samples is None or index not in run.samples.shown.index else run.samples.shown.loc[index]["times_hidden"]


def written(run: Run, index: int) -> tuple[str, str, str]:
    """The text below a sample: its class, its index, and how often it was hidden or trained."""
    if run.samples is None or index not in run.samples.shown.index:
        return "?", f"#{index}", ""
    row = run.samples.shown.loc[index].to_dict()
    times = f"hidden {row['times_hidden']:.0f}x" if run.family == "hide" else f"trained {row['times_trained']:.0f}x"
    return run.class_name(int(row["target"])), f"#{index}", times


def grid(group: Group, number: int) -> list[Picture]:
    """A group's most and least hidden samples as one figure; nothing when it has none."""
    kinds = shown_samples(group)
    if not kinds:
        return []
    rows = {kind: -(-len(found) // COLUMNS) for kind, found in kinds.items()}
    title = wrapped(group.name)
    height = 0.15 + LINE * (title.count("\n") + 1) + sum(LINE + CELL * high for high in rows.values())
    figure, top = Figure(figsize=(WIDTH, height)), height - 0.1
    figure.text(0.02, top / height, title, va="top", fontsize=7)
    top -= LINE * (title.count("\n") + 1)
    for kind, found in kinds.items():
        figure.text(0.02, top / height, kind, va="top", fontsize=7)
        for place, one in enumerate(found):
            row, column = divmod(place, COLUMNS)
            left, bottom = (column + 0.5) * WIDTH / COLUMNS - SIDE / 2, top - LINE - row * CELL - SIDE
            axes = figure.add_axes((left / WIDTH, bottom / height, SIDE / WIDTH, SIDE / height))
            axes.imshow(one.image, interpolation="nearest")
            axes.set_axis_off()
            label, *others = one.lines
            text = "\n".join([label if len(label) <= 12 else f"{label[:11]}…", *others])
            axes.text(0.5, -0.05, text, transform=axes.transAxes, ha="center", va="top", fontsize=5, linespacing=1.05)
        top -= LINE + CELL * rows[kind]
    alt = f"Pictures of the most and the least hidden samples of {group.name}, with class, index and times hidden."
    return [Picture(f"samples_{number}", f"Most and least hidden samples: {group.name}", "", alt, figure, photos=True)]


def page_grids(groups: list[Group]) -> dict[str, dict[str, list[Shown]]]:
    """The samples that the page shows of each group with pictures, by its name."""
    found = [group for group in groups if shown_samples(group, 1)]
    limit = min(MOST, max(FEWEST, THUMBNAILS // (2 * len(found)))) if found else 0
    return {group.name: shown_samples(group, limit) for group in found}
