"""The program `kakurenbo-report`: reads run folders, prints their comparison and draws the report."""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
from rich.console import Console
from tqdm import tqdm

from kakurenbo_lightning.report.curves import by_epoch, overview, scores
from kakurenbo_lightning.report.groups import Group, make_groups
from kakurenbo_lightning.report.maps import f_tau, grid
from kakurenbo_lightning.report.page import Drawn, write_page
from kakurenbo_lightning.report.panels import classes, histograms, phases
from kakurenbo_lightning.report.reading import Problem, read_runs
from kakurenbo_lightning.report.style import RC, Picture, is_own
from kakurenbo_lightning.report.tables import (
    COUNTS,
    best_of,
    comparison,
    comparison_text,
    not_drawn,
    notes,
    runs_table,
    unfinished,
)

EPILOG = """examples:
  kakurenbo-report outputs/2026-01-31/12-00-00
      writes report/report.html there, with the figures as PNG and the tables as CSV beside it
  kakurenbo-report multirun/2026-01-31/12-00-00 outputs/2026-01-30 -o sweep_report
      several folders in one report; runs are found at any depth
  kakurenbo-report multirun/2026-01-31/12-00-00 --format markdown >> README.md
      the comparison table alone, for a README (csv: for a spreadsheet, terminal: to look at)

A run folder is one that kakurenbo-train leaves: it holds a run.json. Runs that differ in their seed only are averaged.
Differences and savings need a run of method=baseline with the same seed."""
WIDTH, NARROW = 150, 116  # characters of a line that goes into a file or a pipe, and that all columns need


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, and print or write what it asks for."""
    parser = argparse.ArgumentParser(
        prog="kakurenbo-report",
        description="Compare training runs: what was hidden, what that saved, and whether it was worth it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of a run or of a multirun")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT_DIR",
        help="where the report goes (default: FOLDER/report; of several, beside them)",
    )
    parser.add_argument(
        "--format",
        choices=("html", "terminal", "markdown", "csv"),
        default="html",
        help="html (default) writes the report and prints the comparison; the others print the comparison only",
    )
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # names of folders and classes may be of any characters
    runs, problems = read_runs(options.folders)
    if not runs:
        raise SystemExit(nothing_found(options.folders, problems))
    groups = make_groups(runs)
    problems += unfinished(runs)
    if options.format in ("markdown", "csv"):
        text = (
            comparison_text(groups).markdown() + "\n" if options.format == "markdown" else comparison(groups).to_csv(index=False)
        )
        sys.stdout.write(text)
        print_problems(problems, Console(stderr=True))
        return
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    print_comparison(groups, console)
    print_problems(problems, console)
    if options.format == "html":
        target = options.output or default_target(options.folders)
        try:
            size = write_report(groups, problems, target, title=", ".join(str(folder) for folder in options.folders))
        except OSError as error:
            parser.error(f"--output={str(target)!r} cannot be written: {error}. Name a folder that can, with -o.")
        console.print(f"report: {target / 'report.html'} ({size / 1e6:.1f} MB)", markup=False, soft_wrap=True)


def default_target(folders: list[Path]) -> Path:
    """Return where the report of these folders goes: into the only one, or where all of them lie."""
    there = [folder if os.path.isdir(folder) else folder.parent for folder in folders]  # of a name too long, `Path.is_dir` raises
    return Path(os.path.commonpath([folder.absolute() for folder in there])) / "report"


def nothing_found(folders: list[Path], problems: list[Problem]) -> int:
    """Say on stderr that there is nothing to report and what to type, and return the exit status."""
    console = Console(stderr=True, soft_wrap=True)
    names = ", ".join(str(folder) for folder in folders)
    console.print(
        f"kakurenbo-report: no run can be read in {names}. A run folder is one that kakurenbo-train leaves, with a run.json in "
        "it or below it; its path is printed at the end of a run. Make one and report it:\n"
        "  kakurenbo-train -m method=baseline,kakurenbo seed=0,1\n"
        "  kakurenbo-report multirun/DATE/TIME",
        markup=False,
        highlight=False,
    )
    print_problems(problems, console)
    return 2


def print_comparison(groups: list[Group], console: Console) -> None:
    """Print the comparison and what one must know to read it."""
    told, narrow = notes(groups), console.width < NARROW
    if narrow:
        told.append(f"Not shown for want of room: {', '.join(COUNTS)}. A wider terminal has them, and --format csv.")
    console.print(comparison_text(groups, narrow).rich("runs that differ in their seed only, averaged"))
    for note in told:
        console.print(note, markup=False, highlight=False, style="dim")


def print_problems(problems: list[Problem], console: Console) -> None:
    """Print what was left out and why."""
    if problems:
        console.print("left out:", markup=False)
    for problem in problems:
        console.print(f"  {problem.path}: {problem.reason}", markup=False, highlight=False, soft_wrap=True)


def jobs(groups: list[Group]) -> list[Callable[[], list[Picture]]]:
    """Return what draws the figures, in their order on the page."""
    best = best_of(groups)
    draw = [overview, scores, by_epoch, phases, histograms, classes]
    each = [partial(one, best) for one in draw]
    each.insert(3, partial(f_tau, groups))  # which has a place for every run
    return [*each, *(partial(grid, group, number) for number, group in enumerate(best))]


def draw_all(groups: list[Group], problems: list[Problem]) -> list[Drawn]:
    """Return all figures that apply; one that cannot be drawn, and groups that none shows, become problems."""
    drawn: list[Drawn] = []
    problems += not_drawn(groups)
    with matplotlib.rc_context(RC):
        for job in tqdm(jobs(groups), desc="drawing", leave=False, disable=None):
            try:
                drawn += [Drawn(picture, picture.png()) for picture in job()]
            except Exception as error:  # of a file that is whole and holds what nobody thought of
                problems.append(Problem(f"figure {job.func.__name__}", f"could not be drawn: {type(error).__name__}: {error}"))
    return drawn


def write_report(groups: list[Group], problems: list[Problem], target: Path, title: str) -> int:
    """Write report.html, a PNG file for each figure and a CSV file for each table; return the page's size in bytes.

    Raises:
        OSError: the folder cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    drawn = draw_all(groups, problems)
    for path in target.glob("*.png"):
        if is_own(path):  # of an earlier report of more or other runs
            path.unlink()
    for one in drawn:
        (target / f"{one.picture.name}.png").write_bytes(one.png)
    comparison(groups).to_csv(target / "comparison.csv", index=False, errors="replace")
    runs_table(groups).to_csv(target / "runs.csv", index=False, errors="replace")
    on_page = [one for one in drawn if not one.picture.photos]
    page = write_page(groups, on_page, problems, f"Report: {title}").encode(errors="replace")
    (target / "report.html").write_bytes(page)
    return len(page)


if __name__ == "__main__":
    main()
