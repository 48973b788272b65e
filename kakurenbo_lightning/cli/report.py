"""The console script ``kakurenbo-report``: reads run folders, prints their comparison and writes the report."""

from __future__ import annotations

import argparse
import io
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kakurenbo_lightning.cli.text_table import aligned, show, terminal_width
from kakurenbo_lightning.core import extras

if TYPE_CHECKING:  # pandas and matplotlib are imported only when there is something to report, so --help is fast
    from kakurenbo_lightning.report import Group, Problem

ABOUT = "Compare training runs: what was hidden, what that saved, and whether it was worth it."

EXAMPLES = """\
examples:
  kakurenbo-report outputs/2026-01-31/12-00-00
      writes report/report.html there, with the figures as PNG, SVG and PDF, and the tables as CSV, Markdown and LaTeX beside it
  kakurenbo-report multirun/2026-01-31/12-00-00 outputs/2026-01-30 -o sweep_report
      several folders in one report; runs are found at any depth
  kakurenbo-report multirun/2026-01-31/12-00-00 --format markdown >> README.md
      the comparison table alone, for a README (latex: for a paper, csv: for a spreadsheet, terminal: to look at)
  kakurenbo-report outputs/2026-01-31/12-00-00 --export cleanlab.csv
      the label quality of every sample of a run (fiftyone.json: as fields for FiftyOne's dataset.set_values)

A run folder is written by kakurenbo-train or a RunRecorder; it holds a run.json. Runs that differ only in their seed are averaged.
Differences and savings need a run of method=baseline with the same seed."""

FIRST = 5  # rows shown of each of the data doctor's tables
WIDTH, NARROW = 150, 133  # line width in a file or a pipe; line width that all columns need
NOTHING = """\
kakurenbo-report: no run can be read in {names}. A run folder is one that kakurenbo-train or a RunRecorder among a Trainer's callbacks \
leaves, with a run.json in it or below it. Make one and report it:
  kakurenbo-train -m method=baseline,kakurenbo seed=0,1
  kakurenbo-report multirun/DATE/TIME
"""


def parser_of_options() -> argparse.ArgumentParser:
    """Build the command line's parser, with the examples below the options."""
    parser = argparse.ArgumentParser(
        "kakurenbo-report", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="folder of a run or of a multirun, for example outputs/2026-01-31/12-00-00",
    )
    output = "where the report goes (default: FOLDER/report; of several, beside them)"
    parser.add_argument("-o", "--output", type=Path, metavar="OUT_DIR", help=output)
    kinds = "html (default) writes the report and prints the comparison; the others print the comparison only"
    parser.add_argument("--format", choices=("html", "terminal", "markdown", "latex", "csv"), default="html", help=kinds)
    about = (
        "write the label quality of every sample of one run there, and nothing else: .csv as cleanlab has it, .json for FiftyOne"
    )
    parser.add_argument("--export", type=Path, metavar="FILE", help=about)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print or write what the command line asks for. Without a readable run it ends with exit code 2."""
    parser = parser_of_options()
    options = parser.parse_args(arguments)
    extras.require_or_exit("kakurenbo-report", "report", *extras.REPORT)

    from kakurenbo_lightning import report
    from kakurenbo_lightning.report.export import export
    from kakurenbo_lightning.report.notes import unfinished

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # names of folders and classes may hold characters that the terminal cannot show
    runs, problems = report.read_runs(options.folders)
    if not runs:
        names = ", ".join(map(str, options.folders))
        parser.exit(2, "\n".join([NOTHING.format(names=names), *problem_lines(problems), ""]))
    if options.export is not None:
        try:
            show("\n".join([export(runs, options.export), *problem_lines(problems)]))
        except (ValueError, OSError) as error:
            parser.exit(2, f"kakurenbo-report: {error}\n")
        return
    groups = report.make_groups(runs)
    problems += unfinished(runs)
    if options.format in ("markdown", "latex", "csv"):
        write = {"markdown": report.markdown, "latex": report.latex}.get(options.format)
        sys.stdout.write(
            report.comparison(groups).to_csv(index=False) if write is None else write(report.comparison_text(groups))
        )
        print("\n".join(problem_lines(problems)), file=sys.stderr)
        return
    width = terminal_width(WIDTH)
    show("\n".join([*comparison_lines(groups, width), *doctor_lines(groups, width), *problem_lines(problems)]))
    if options.format == "html":
        target = options.output or default_target(options.folders)
        try:
            page = report.write_report(groups, problems, target, title=", ".join(map(str, options.folders)))
        except OSError as error:
            parser.error(f"--output={str(target)!r} cannot be written: {error}. Name a folder that can, with -o.")
        show(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")


def default_target(folders: list[Path]) -> Path:
    """Where the report of these folders goes by default: into the only folder, or beside several of them."""
    # Path.is_dir raises for a name that is too long
    there = [folder if os.path.isdir(folder) else folder.parent for folder in folders]
    return Path(os.path.commonpath([folder.absolute() for folder in there])) / "report"


def comparison_lines(groups: list[Group], width: int) -> list[str]:
    """The comparison as lines for a terminal, followed by how to read it."""
    from kakurenbo_lightning.report.notes import notes
    from kakurenbo_lightning.report.tables import COUNTS, comparison_text

    table, found = comparison_text(groups), notes(groups)
    if width < NARROW:
        table = table.drop(columns=COUNTS)
        found.append(f"Not shown for want of room: {', '.join(COUNTS)}. A wider terminal has them, and --format csv.")
    lines = aligned([str(name) for name in table], table.values.tolist(), width, figures=True)
    return [*lines, "", *(textwrap.fill(note, width) for note in found)]


def doctor_lines(groups: list[Group], width: int) -> list[str]:
    """The first rows of the data doctor's findings, as lines for a terminal. The HTML page has more and says how to read them."""
    from kakurenbo_lightning.report.doctor_section import doctor_sections

    lines: list[str] = []
    for section in doctor_sections(groups):
        lines += ["", f"data doctor, by {section.title}", *textwrap.wrap(section.summary, width)]
        for table in (section.suspects, section.classes):
            first = table.head(FIRST)
            lines += ["", *aligned([str(name) for name in first], first.values.tolist(), width)] if len(first) else []
    return lines


def problem_lines(problems: list[Problem]) -> list[str]:
    """One line for each run that was left out, with the reason."""
    return ["left out:", *(f"  {problem.path}: {problem.reason}" for problem in problems)] if problems else []


if __name__ == "__main__":
    main()
