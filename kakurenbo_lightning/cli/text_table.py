"""Tables for the terminal, printed by every console script."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import zip_longest

GAP = "  "
LEAST_WIDTH, PIPED_WIDTH = 60, 100  # line widths in characters; the second is for a file or a pipe


def terminal_width(piped: int = PIPED_WIDTH) -> int:
    """Line width of the terminal in characters, or ``piped`` if the output is not a terminal."""
    return max(LEAST_WIDTH, shutil.get_terminal_size((piped, 24)).columns)


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], width: int, figures: bool = False) -> Iterator[str]:
    """Yield the lines of a table of at most ``width`` characters if its words allow it. Cells are wrapped between words.

    Args:
        head: one heading for each column.
        rows: as many cells in each row.
        width: line width in characters.
        figures: whether every column but the first is aligned to the right.
    """
    table = [list(head), *map(list, rows)]
    sizes = _sizes(table, width - len(GAP) * (len(head) - 1))
    for number, row in enumerate(table):
        cells = [_wrapped(cell, size) for cell, size in zip(row, sizes, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            placed = [
                part.rjust(size) if figures and column else part.ljust(size)
                for column, (part, size) in enumerate(zip(parts, sizes, strict=True))
            ]
            yield GAP.join(placed).rstrip()
        if number == 0:
            yield GAP.join("-" * size for size in sizes)


def show(text: str) -> None:
    """Print a text. A reader that closes the pipe early, such as ``head``, is no error."""
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sizes(table: Sequence[Sequence[str]], room: int) -> list[int]:
    """Column widths that add up to ``room``, found by narrowing one column at a time where that adds the fewest lines."""
    columns = list(zip(*table, strict=True))
    sizes = [max(map(len, column)) for column in columns]
    least = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]

    def cost(sizes: list[int]) -> tuple[int, int]:
        height = sum(max(len(_wrapped(cell, size)) for cell, size in zip(row, sizes, strict=True)) for row in table)
        return height, sum(size * size for size in sizes)

    while sum(sizes) > room:
        narrower = [[*sizes[:i], sizes[i] - 1, *sizes[i + 1 :]] for i in range(len(sizes)) if sizes[i] > least[i]]
        if not narrower:
            break
        sizes = min(narrower, key=cost)
    return sizes


@cache
def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
