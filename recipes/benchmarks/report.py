"""What all benchmarks share: command-line options, clocks, medians, tables, and the JSON file that also describes the machine."""

import argparse
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kakurenbo_lightning.cli.text_table import aligned, terminal_width
from kakurenbo_lightning.record import machine as here

Row = dict[str, Any]
Columns = dict[str, Callable[[Row], str]]  # by column heading, a function that formats the cell of a row


def parser(
    name: str,
    description: str,
    devices: Sequence[str] = ("cpu", "cuda"),
    clocks: Sequence[str] = ("wall", "cpu"),
    **defaults: Any,
) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark; `defaults` replace their defaults."""
    options = argparse.ArgumentParser(
        prog=f"python -m recipes.benchmarks.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--device", default="cpu", choices=devices, help="where the network and statistics are")
    options.add_argument("--threads", type=count, help="CPU threads of torch; by default its own choice")
    options.add_argument("--clock", default=clocks[0], choices=clocks, help="cpu: time this process was given")
    options.add_argument("--seed", type=int, default=0, help="of the data and the weights")
    options.add_argument("--json", type=Path, default=Path(f"outputs/bench/{name}.json"), help="file to write")
    options.set_defaults(benchmark=name, **defaults)
    return options


def parse(options: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, set the number of threads, and describe the machine before it is busy."""
    settings = options.parse_args(arguments)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    settings.machine = machine(settings.device)
    return settings


def count(text: str) -> int:
    """Parse a number of samples, also in the form 1.28e6."""
    number = float(text)
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1; write for example 50000 or 1.28e6")
    return int(number)


def share(text: str) -> float:
    """Parse a share in [0, 1)."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1); write for example 0.3")
    return number


def machine(device: str) -> Row:
    """Describe the machine and the software of the measurement."""
    return {
        **here.machine(device),
        **here.versions(),
        "commit": here.commit(Path(__file__).parent),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "command": " ".join(["python", "-m", f"recipes.benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def write(settings: argparse.Namespace, **result: Any) -> Row:
    """Write the figures and the machine to `--json`, print where, and return what was written.

    The file is replaced atomically, so that a kill leaves the previous one.
    """
    result = {"benchmark": settings.benchmark, "machine": settings.machine, "clock": settings.clock, **result}
    settings.json.parent.mkdir(parents=True, exist_ok=True)
    part = settings.json.with_suffix(".part")
    part.write_text(compact(result))
    part.replace(settings.json)
    print(f"results: {settings.json}")
    return result


def compact(result: Row) -> str:
    """Format JSON with one line per entry, and one line per row for entries that are lists of rows."""

    def text(value: Any) -> str:
        if not (isinstance(value, list) and value and isinstance(value[0], dict)):
            return json.dumps(value)
        return "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"

    return "{\n  " + ",\n  ".join(f"{json.dumps(key)}: {text(value)}" for key, value in result.items()) + "\n}\n"


def print_table(title: str, rows: Sequence[Row], columns: Columns, note: str = "") -> None:
    """Print one line per row."""
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    lines = ["", title, *aligned(list(columns), cells, terminal_width(120), figures=True)]
    print("\n".join([*lines, *textwrap.wrap(note, terminal_width(120))]))


def median_of(values: Sequence[float]) -> dict[str, float]:
    """Return the median and its 95 % interval, which are order statistics; with fewer than six values the smallest and the largest."""
    ordered, tail, outside = sorted(values), 0.0, 0
    while 2 * (tail := tail + comb(len(ordered), outside) / 2 ** len(ordered)) <= 0.05:
        outside += 1
    first = max(0, outside - 1)
    return {"median": median(ordered), "low": ordered[first], "high": ordered[len(ordered) - 1 - first]}


def in_units(seconds: float | None) -> str:
    """Format seconds in a suitable unit; a dash for None."""
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def interval(figure: dict[str, float] | None, form: str) -> str:
    """Format a median and its interval; a dash for None."""
    return "-" if figure is None else f"{figure['median']:{form}} ({figure['low']:{form}} to {figure['high']:{form}})"


def verdict(met: bool | None) -> str:
    """Format whether a target was met; empty for None."""
    return "" if met is None else "met" if met else "MISSED"


def clock(device: str, kind: str = "wall") -> Callable[[], float]:
    """Return a clock, in seconds, that waits for `device` before it is read.

    Args:
        device: `"cpu"` or `"cuda"`.
        kind: `"wall"`, or `"cpu"` for the seconds this process was given: what other programs on the machine take is
            left out, but so is waiting. With several threads it also counts threads that only wait for each other.
    """
    now = time.perf_counter if kind == "wall" else time.process_time

    def read() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return now()

    return read


def seconds_of(clock: Callable[[], float], function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[float, Any]:
    """Time a call of `function`; returns the seconds and its result."""
    started = clock()
    value = function(*args, **kwargs)
    return clock() - started, value
