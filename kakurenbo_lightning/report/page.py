"""The report's files: the HTML page, made of `page.html`, with files of each figure and each table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import jinja2
import matplotlib
import pandas as pd
from tqdm import tqdm

from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_lightning.report.curves import overview, scores, selection, stored_values
from kakurenbo_lightning.report.doctor_section import CLASSES, LABELS, doctor_sections
from kakurenbo_lightning.report.grids import grid, page_grids
from kakurenbo_lightning.report.groups import Group
from kakurenbo_lightning.report.maps import f_tau
from kakurenbo_lightning.report.notes import best_of, not_drawn, notes
from kakurenbo_lightning.report.panels import classes, histograms, phases
from kakurenbo_lightning.report.pareto import error_against_cost, time_bars
from kakurenbo_lightning.report.reading import Problem
from kakurenbo_lightning.report.style import RC, Picture, data_address, is_own
from kakurenbo_lightning.report.tables import comparison, comparison_text, latex, markdown, runs_table, runs_text


def write_report(groups: list[Group], problems: list[Problem], target: Path, title: str) -> Path:
    """Write report.html, a PNG, SVG and PDF file for each figure, and a CSV, Markdown and LaTeX file for each table; the path of the page.

    Raises:
        OSError: the folder cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    pictures = draw_all(groups, problems)
    for path in target.iterdir():
        if path.suffix in (".png", ".svg", ".pdf") and is_own(path):  # of an earlier report of more or other runs
            path.unlink()
    for picture in pictures:
        for ending, content in picture.files.items():
            (target / f"{picture.name}.{ending}").write_bytes(content)
    for name, figures, text in (
        ("comparison", comparison(groups), comparison_text(groups)),
        ("runs", runs_table(groups), runs_text(groups)),
    ):
        figures.to_csv(target / f"{name}.csv", index=False, errors="replace")
        for ending, write in (("md", markdown), ("tex", latex)):
            (target / f"{name}.{ending}").write_text(write(text), encoding="utf-8", errors="replace")
    page = target / "report.html"
    page.write_text(render(groups, pictures, problems, f"Report: {title}"), encoding="utf-8", errors="replace")
    return page


def draw_all(groups: list[Group], problems: list[Problem]) -> list[Picture]:
    """All figures that apply; one that cannot be drawn, and groups that none shows, become problems."""
    best = best_of(groups)
    jobs: list[Callable[[], list[Picture]]] = [
        partial(one, best) for one in (overview, scores, time_bars, selection, stored_values, phases, histograms, classes)
    ]
    jobs[2:2] = [partial(error_against_cost, groups)]  # these two have a place for every run
    jobs.insert(6, partial(f_tau, groups))
    jobs += [partial(grid, group, number) for number, group in enumerate(best)]
    pictures: list[Picture] = []
    problems += not_drawn(groups)
    with matplotlib.rc_context(RC):
        for job in tqdm(jobs, **bar_settings(desc="drawing", leave=False)):
            try:
                drawn = job()
                for picture in drawn:
                    picture.files  # noqa: B018  draws it, while an error can still become a problem
                pictures += drawn
            except Exception as error:  # of a file that is whole and holds what nobody thought of
                problems.append(Problem(f"figure {job.func.__name__}", f"could not be drawn: {type(error).__name__}: {error}"))
    return pictures


def render(groups: list[Group], pictures: list[Picture], problems: list[Problem], title: str) -> str:
    """The report as one HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kakurenbo_lightning.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        title=title,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        comparison=comparison_text(groups),
        notes=notes(groups),
        pictures=[(one, data_address(one.svg, "svg+xml")) for one in pictures if not one.photos],
        grids=page_grids(best_of(groups)),
        doctor=doctor_sections(groups),
        labels_note=LABELS,
        classes_note=CLASSES,
        runs_table=runs_text(groups),
        runs=runs_table(groups).to_dict("records"),
        problems=pd.DataFrame([(problem.path, problem.reason) for problem in problems], columns=["what", "why"]),
    )
