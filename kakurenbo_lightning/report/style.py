"""How every figure of a report looks, and the file it becomes."""

import io
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kakurenbo_lightning.report.groups import BASELINE, Group

PROGRAM = "kakurenbo-report"  # what its PNG files name as their software
WIDTH, DPI = 5.0, 160  # inches, and pixels of one: 10 point letters are 10 pixels high on a phone of 360
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by the colour-blind
LINES = ("-", "--", ":", "-.")
RED = "#D55E00"
RC = {
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
        photos: it is a grid of samples, which the page has one by one instead.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    photos: bool = False

    def png(self) -> bytes:
        """Return it as a PNG file: with a palette, which is a third as large, unless it is of photos."""
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        packed = io.BytesIO()
        about = PngInfo()
        about.add_text("Software", PROGRAM)
        (image if self.photos else image.quantize(256, dither=Image.Dither.NONE)).save(packed, "PNG", pnginfo=about)
        return packed.getvalue()


def is_own(path: Path) -> bool:
    """Tell whether a PNG file is a picture of a report."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == PROGRAM
    except OSError:  # no picture
        return False


@dataclass(frozen=True)
class Look:
    """Colour and line of a group, the same in every figure."""

    color: str
    linestyle: str

    def line(self, **changes: Any) -> dict[str, Any]:
        """Return keywords for a line."""
        return {"color": self.color, "linestyle": self.linestyle, **changes}


def looks(groups: list[Group]) -> dict[str, Look]:
    """Return the look of each group by its name: baselines are black, the line changes when the colours are used up."""
    found, others, baselines = {}, 0, 0
    for group in groups:
        if group.method == BASELINE:
            found[group.name] = Look("black", LINES[baselines % len(LINES)])
            baselines += 1
        else:
            found[group.name] = Look(COLOURS[others % len(COLOURS)], LINES[others // len(COLOURS) % len(LINES)])
            others += 1
    return found


def wrapped(text: str, width: int = 54) -> str:
    """Return a text in lines of so many characters."""
    return textwrap.fill(text, width)


def new_figure(rows: int, height: float, labels: Iterable[str] = (), columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes [rows, columns], each row so many inches high, with room for a legend of these labels."""
    lines = sum(len(wrapped(label).splitlines()) for label in labels)
    figure = Figure(figsize=(WIDTH, rows * height + 0.17 * lines + 0.25), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend(figure: Figure, groups: dict[str, Look], labels: dict[str, str] | None = None) -> None:
    """Put one legend for all groups below the axes."""
    handles = [Line2D([], [], label=wrapped((labels or {}).get(name, name)), **look.line()) for name, look in groups.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=1, handlelength=2.6, labelspacing=0.3)


def plain_log(axis: Any) -> None:
    """Write 0.01 instead of powers of ten at the ticks of a logarithmic axis."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def whole_epochs(axes: Axes) -> None:
    """Let ticks be whole epochs."""
    axes.xaxis.get_major_locator().set_params(integer=True)
