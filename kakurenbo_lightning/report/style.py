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

PROGRAM = "kakurenbo-report"  # what the files of its pictures name as their software
WIDTH, DPI = 3.3, 320  # inches, a column of a paper with two; and pixels of one
INK, BACK = "#1c1e21", "#ffffff"  # of text and lines, and behind them
BLACK, WHITE = "#010101", "#fefefe"  # upon colours, where they must stay in the dark
DARK = {INK: "#e6e8eb", BACK: "#1e2127", "#0072b2": "#2f86c9", "#777777": "#9aa1ab"}  # what an SVG file has in their place there
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: distinct for the colour-blind
LINES = ("-", "--", ":", "-.")
SMALL = 6.5  # points of what stands within axes; the rest has a half to one and a half more
RC: dict[Any, Any] = {
    "figure.dpi": DPI,
    "font.size": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "grid.color": "#777777",
    "legend.frameon": False,
    "legend.fontsize": 7,
    "text.parse_math": False,  # a class may be called $x
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), BACK),
    "axes.formatter.useoffset": False,
    "svg.hashsalt": PROGRAM,  # equal pictures are equal files
    "pdf.fonttype": 42,
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
        """The figure as a PNG file."""
        drawn = raster(self.figure, self.photos)
        self.figure.set_layout_engine("none")  # its axes have their places, and keep them in the other files
        return drawn

    @cached_property
    def svg(self) -> bytes:
        """The figure as an SVG file, with other colours where the reader prefers a dark scheme."""
        return in_the_dark(saved(self.figure, "svg"))

    @cached_property
    def pdf(self) -> bytes:
        """The figure as a PDF file, as wide as a column."""
        return saved(self.figure, "pdf")

    @property
    def files(self) -> dict[str, bytes]:
        """The figure's files by their ending."""
        return {"png": self.png, "svg": self.svg, "pdf": self.pdf}


def raster(figure: Figure, photos: bool = False) -> bytes:
    """A figure as a PNG file: with a palette, which makes it a third as large, unless it is of photos."""
    canvas, about, packed = FigureCanvasAgg(figure), PngInfo(), io.BytesIO()
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    about.add_text("Software", PROGRAM)
    (image if photos else image.quantize(256, dither=Image.Dither.NONE)).save(packed, "PNG", pnginfo=about)
    return packed.getvalue()


def saved(figure: Figure, kind: str) -> bytes:
    """A figure as a file of vectors, ``svg`` or ``pdf``."""
    packed, undated = io.BytesIO(), {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # else equal pictures differ
    figure.savefig(packed, format=kind, metadata={"Creator": PROGRAM, **undated[kind]})
    return packed.getvalue()


def in_the_dark(svg: bytes) -> bytes:
    """An SVG file of this style with a style sheet that replaces its colours in the dark; attributes alone cannot depend on it."""
    rules = (f'[style*="{part}: {old}"]{{{part}:{new}!important}}' for old, new in DARK.items() for part in ("fill", "stroke"))
    sheet = f"<style>@media (prefers-color-scheme:dark){{{''.join(rules)}}}</style>"
    head, start, rest = svg.partition(b"<defs>")
    return head + sheet.encode() + start + rest


def is_own(path: Path) -> bool:
    """Whether a file is a picture of a report."""
    try:
        if path.suffix != ".png":
            return PROGRAM.encode() in path.read_bytes()
        with Image.open(path) as image:
            return image.info.get("Software") == PROGRAM
    except OSError:  # no picture
        return False


def data_address(content: bytes, ending: str) -> str:
    return f"data:image/{ending};base64,{base64.b64encode(content).decode()}"


def styles(groups: Sequence[Group]) -> dict[str, dict[str, str]]:
    """Colour and line of each group by its name, the same in every figure.

    Baselines have the colour of the text; the kind of line changes when colours are used up.
    """
    black = itertools.cycle((INK, line) for line in LINES)
    coloured = itertools.cycle((colour, line) for line in LINES for colour in COLOURS)
    found = {group.name: next(black if group.method == BASELINE else coloured) for group in groups}
    return {name: {"color": colour, "linestyle": line} for name, (colour, line) in found.items()}


def wrapped(text: str, width: int = 48) -> str:
    return textwrap.fill(text, width)


def new_figure(rows: int, height: float, labels: Iterable[str] = (), **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes [rows, 1], each row so many inches high, with room for a legend of these labels."""
    labels = list(labels)
    lines = sum(len(wrapped(label).splitlines()) for label in labels)
    room = 0.125 * (-(-lines // legend_columns(labels)))
    figure = Figure(figsize=(WIDTH, rows * height + room + 0.15), layout="constrained")
    return figure, figure.subplots(rows, 1, squeeze=False, **options)


def tiles(names: Sequence[str], height: float, room: float = 0.15, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per name, each so many inches high, in two columns if there are several; an odd last one has both.

    Args:
        names: the titles, each once.
        height: height of a panel, in inches.
        room: inches for what is beside the panels.
        **options: of the axes.
    """
    rows: list[list[Any]] = [list(names[first : first + 2]) for first in range(0, len(names), 2)]
    figure = Figure(figsize=(WIDTH, len(rows) * height + room), layout="constrained")
    width = min(2, len(names))
    panels = list(figure.subplot_mosaic([row * (width // len(row)) for row in rows], **options).values())
    for place, (name, beside) in zip(panels, [(name, len(row)) for row in rows for name in row], strict=True):
        place.set_title(wrapped(name, 48 if beside == 1 else 24), fontsize=SMALL)
        place.tick_params(labelbottom=True, labelleft=True)
    return figure, panels


def legend_columns(labels: Sequence[str]) -> int:
    """How many columns a legend with these labels has: two where they are many and short."""
    return 2 if len(labels) > 4 and max(map(len, labels)) <= 20 else 1


def legend(figure: Figure, labels: dict[str, dict[str, Any]]) -> None:
    """Put one legend below the axes: labels with the style of their line."""
    handles = [Line2D([], [], label=wrapped(label), **style) for label, style in labels.items()]
    columns = legend_columns(list(labels))
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, handlelength=2.4, labelspacing=0.25, columnspacing=1)


def whole_epochs(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
