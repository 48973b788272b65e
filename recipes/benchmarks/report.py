"""What all benchmarks share: command-line options, the description of the machine, the table and the JSON file."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from kakurenbo_lightning.record import machine as here


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    options = argparse.ArgumentParser(
        prog=f"python -m recipes.benchmarks.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where the network and statistics are")
    options.add_argument("--threads", type=count, help="CPU threads of torch; by default its own choice")
    options.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: time this process was given")
    options.add_argument("--seed", type=int, default=0, help="of the data and the weights")
    options.add_argument("--json", type=Path, default=Path(f"outputs/bench/{name}.json"), help="file to write")
    return options


def count(text: str) -> int:
    """Read a number of samples, also as 1.28e6."""
    number = float(text)
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1; write for example 50000 or 1.28e6")
    return int(number)


def share(text: str) -> float:
    """Read a share in [0, 1)."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1); write for example 0.3")
    return number


def machine(device: str) -> dict[str, Any]:
    """Describe where and with what the figures were measured."""
    return {
        **here.machine(device),
        **here.versions(),
        "commit": here.commit(Path(__file__).parent),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "command": " ".join(["python", "-m", f"recipes.benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Write `result` as JSON and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"results: {path}")


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Print one row of text per measurement."""
    table = Table(title=title)
    for column, head in enumerate(heads):
        table.add_column(head, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    if note:
        console.print(note, highlight=False)


def median_of(values: Sequence[float]) -> dict[str, float]:
    """Return the median and its interval of 95 %: two order statistics; of fewer than six values, the least and the largest."""
    ordered, tail, outside = sorted(values), 0.0, 0
    while 2 * (tail := tail + comb(len(ordered), outside) / 2 ** len(ordered)) <= 0.05:
        outside += 1
    first = max(0, outside - 1)
    return {"median": median(ordered), "low": ordered[first], "high": ordered[len(ordered) - 1 - first]}


def in_units(seconds: float) -> str:
    """Write seconds in the unit that suits them."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def clock(device: str, kind: str = "wall") -> Callable[[], float]:
    """Return a clock that waits for `device` before it is read.

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
