"""The HTML page of a report: one file that holds everything, made of `page.html`."""

import base64
import io
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from kakurenbo_lightning.report.groups import Group
from kakurenbo_lightning.report.maps import Thumbnail, kind, thumbnails
from kakurenbo_lightning.report.reading import Problem, Run
from kakurenbo_lightning.report.style import Picture
from kakurenbo_lightning.report.tables import TextTable, best_of, comparison_text, notes, pairs, runs_text

THUMBNAILS = 480  # in a page; with many groups each shows fewer
FEWEST, MOST = 6, 24  # of either kind for a group


@dataclass(frozen=True)
class Drawn:
    """A figure and the PNG file that it became."""

    picture: Picture
    png: bytes

    @property
    def source(self) -> str:
        """Address of the picture within the page."""
        return data_address(self.png, "png")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, so that the page does not jump while it loads."""
        with Image.open(io.BytesIO(self.png)) as image:
            return image.size


def data_address(content: bytes, ending: str) -> str:
    """Return an address that holds an image file."""
    return f"data:image/{ending};base64,{base64.b64encode(content).decode()}"


def small_image(image: np.ndarray) -> str:
    """Return the address of a thumbnail, uint8 [h, w, 3]: PNG or WebP, whichever is smaller."""
    files = []
    for ending, options in (("png", {"optimize": True}), ("webp", {"quality": 80})):
        written = io.BytesIO()
        Image.fromarray(image).save(written, ending, **options)
        files.append((len(written.getvalue()), ending, written.getvalue()))
    _, ending, content = min(files)
    return data_address(content, ending)


def grids(groups: list[Group]) -> list[dict[str, Any]]:
    """Return, for each group with pictures, its name and its most and least hidden samples."""
    found = [group for group in groups if thumbnails(group, True, 1) or thumbnails(group, False, 1)]
    limit = min(MOST, max(FEWEST, THUMBNAILS // (2 * len(found)))) if found else 0
    return [
        {"group": group.name, "kinds": [(kind(group, most), cells(thumbnails(group, most, limit))) for most in (True, False)]}
        for group in found
    ]


def cells(found: list[Thumbnail]) -> list[dict[str, Any]]:
    """Return what the template needs of thumbnails."""
    return [{"source": small_image(one.image), "lines": one.lines, "small": max(one.image.shape) < 48} for one in found]


def details(run: Run) -> list[tuple[str, str]]:
    """Return what there is to know of a run, by name."""
    info = run.info
    found = [
        ("folder", str(run.folder)),
        ("command", info.get("command")),
        ("error", info.get("error")),
        ("started, ended", " to ".join(str(info.get(name) or "?") for name in ("started", "ended"))),
        ("settings", pairs(run.settings)),
        ("versions", pairs(info.get("versions"))),
        ("machine", pairs(info.get("machine"))),
        ("processes", info.get("world_size")),
        ("git", pairs(info.get("git"))),
        ("configuration", json.dumps(run.config, indent=1) if run.config else None),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "", "None")]


def write_page(groups: list[Group], drawn: list[Drawn], problems: list[Problem], title: str) -> str:
    """Return the page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kakurenbo_lightning.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    runs = [(group, run) for group in groups for run in group.runs]
    return environment.get_template("page.html").render(
        title=title,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        comparison=comparison_text(groups),
        notes=notes(groups),
        drawn=drawn,
        grids=grids(best_of(groups)),
        runs_table=runs_text(groups),
        runs=[(f"{group.name}, seed {'-' if run.seed is None else run.seed}", details(run)) for group, run in runs],
        problems=TextTable(["what", "why"], [[problem.path, problem.reason] for problem in problems]),
    )
