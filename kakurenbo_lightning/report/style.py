"""How every figure of a report looks, and the file it becomes."""

from __future__ import annotations

import base64
import io
import itertools
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kakurenbo_lightning.report.groups import BASELINE, Group

PROGRAM = "kakurenbo-report"  # what its PNG files name as their software
WIDTH, DPI = 5.0, 160  # inches, and pixels of one: 10 point letters are 10 pixels high on a phone of 360
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: distinct for the colour-blind
LINES = ("-", "--", ":", "-.")
RC: dict[Any, Any] = {
    "figure.dpi": DPI,
    "font.size": 10.5,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "text.parse_math": False,  # a class may be called $x
    "figure.facecolor": "white",
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: its file without the ending.
        caption: how to read it, and what would be a bad sign.
        alt: what it shows, for those who do not see it.
        photos: it is a grid of samples, which the page shows one by one instead.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    photos: bool = False

    @cached_property
    def png(self) -> bytes:
        """The figure as a PNG file: with a palette, which makes it a third as large, unless it is of photos."""
        canvas, about, packed = FigureCanvasAgg(self.figure), PngInfo(), io.BytesIO()
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        about.add_text("Software", PROGRAM)
        (image if self.photos else image.quantize(256, dither=Image.Dither.NONE)).save(packed, "PNG", pnginfo=about)
        return packed.getvalue()


def is_own(path: Path) -> bool:
    """Whether a PNG file is a picture of a report."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == PROGRAM
    except OSError:  # no picture
        return False


def data_address(content: bytes, ending: str) -> str:
    return f"data:image/{ending};base64,{base64.b64encode(content).decode()}"


def styles(groups: Sequence[Group]) -> dict[str, dict[str, str]]:
    """Colour and line of each group by its name, the same in every figure: baselines are black; lines change when colours are used up."""
    black = itertools.cycle(("black", line) for line in LINES)
    coloured = itertools.cycle((colour, line) for line in LINES for colour in COLOURS)
    found = {group.name: next(black if group.method == BASELINE else coloured) for group in groups}
    return {name: {"color": colour, "linestyle": line} for name, (colour, line) in found.items()}


def wrapped(text: str, width: int = 54) -> str:
    return textwrap.fill(text, width)


def new_figure(rows: int, height: float, labels: Iterable[str] = (), columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes [rows, columns], each row so many inches high, with room for a legend of these labels."""
    lines = sum(len(wrapped(label).splitlines()) for label in labels)
    figure = Figure(figsize=(WIDTH, rows * height + 0.17 * lines + 0.25), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def tiles(names: Sequence[str], height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per name, each so many inches high, in two columns if there are several."""
    columns = 1 if len(names) == 1 else 2
    figure, axes = new_figure(-(-len(names) // columns), height, columns=columns, **options)
    panels = list(axes.flat)
    for name, place in zip(names, panels, strict=False):
        place.set_title(wrapped(name, 54 if columns == 1 else 26), fontsize=9.5)
    for place in panels[len(names) :]:
        place.set_axis_off()
    for place in panels[: len(names)][-columns:]:
        place.tick_params(labelbottom=True)  # also where the panel below is off
    return figure, panels[: len(names)]


def legend(figure: Figure, labels: dict[str, dict[str, Any]]) -> None:
    """Put one legend below the axes: labels with the style of their line."""
    handles = [Line2D([], [], label=wrapped(label), **style) for label, style in labels.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=1, handlelength=2.6, labelspacing=0.3)


def whole_epochs(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
