"""The console script ``kakurenbo-methods``: lists all methods, or shows one with its settings and its card."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kakurenbo_lightning.cli.cards import BLOCK, HEAD, own_and_common, presets_of, write_cards
from kakurenbo_lightning.cli.text_table import aligned, show, terminal_width
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.registry import MethodInfo, available_methods, method_class

ADDING = Path(__file__).parents[1] / "methods" / "ADDING.md"

ABOUT = "List the methods by which an epoch's samples are chosen, or explain one of them."

EXAMPLES = f"""\
examples:
  kakurenbo-methods               all methods: name, family, paper, memory, summary
  kakurenbo-methods kakurenbo     its settings, formula, cost, when not to use it
  kakurenbo-methods --write-cards update the settings tables of all cards from the code

A name and its settings go into the callback, or into the recipe:
  SampleSelection("kakurenbo", max_fraction=0.3, tau=0.7)
  kakurenbo-train method=kakurenbo F=0.3 tau=0.7

Methods of other installed packages are listed too. How to write one:
  {ADDING}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the command line asks for. An unknown method ends with exit code 2."""
    parser = argparse.ArgumentParser(
        "kakurenbo-methods", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "method", nargs="?", metavar="NAME", help="explain this method, for example kakurenbo; without it, all are listed"
    )
    parser.add_argument("--write-cards", action="store_true", help="update the settings tables of all cards from the code")
    asked = parser.parse_args(arguments)
    if asked.write_cards:
        print("\n".join(map(str, write_cards())) or "all cards are up to date")
        return
    name, width = asked.method, terminal_width()
    methods = available_methods()
    if name is not None and name not in methods:
        try:
            method_class(name)
        except ValueError as error:
            parser.error(str(error))
    show(list_of(methods.values(), width) if name is None else explanation(methods[name], method_class(name), width))


def list_of(methods: Iterable[MethodInfo], width: int) -> str:
    """Return the table of all methods, in lines of at most ``width`` characters."""
    head = ["name", "family", "paper", "bytes", "summary"]
    rows = [[info.name, info.family, info.paper, str(info.bytes_per_sample), info.summary] for info in methods]
    note = "bytes: of state per sample, with default settings. One method: kakurenbo-methods NAME"
    return "\n".join([*aligned(head, rows, width), "", *textwrap.wrap(note, width)])


def explanation(info: MethodInfo, cls: type[Method], width: int) -> str:
    """Describe one method: its facts, its settings, and its card, or its docstring if it has no card."""
    about = f"{info.name}: {info.summary}. {info.paper}; family {info.family}; {info.bytes_per_sample} bytes of state per sample."
    own, common = own_and_common(cls)
    text = shown(info.card.read_text(encoding="utf-8")) if info.card else inspect.getdoc(cls) or ""
    presets = [line for preset in presets_of(cls) for line in ["", *textwrap.wrap(preset.replace("`", ""), width)]]
    return "\n".join(
        [
            *textwrap.wrap(about.replace(" -;", ""), width),
            "",
            *(aligned(HEAD, own, width) if own else ["no settings of its own"]),
            *presets,
            "",
            *([*aligned(["common setting", *HEAD[1:]], common, width), ""] if common else []),
            *([f"--- {info.card}", ""] if info.card else []),
            *(reflowed(text, width) if info.card else text.splitlines()),
        ]
    )


def shown(card: str) -> str:
    """Return the text of a card without its settings table, which is shown above it, and without comments."""
    return re.sub(r"^<!--.*?-->\n", "", BLOCK.sub("The table above.\n", card), flags=re.MULTILINE)


def reflowed(markdown: str, width: int) -> Iterator[str]:
    """Yield the lines of a card for the terminal: paragraphs wrapped, tables aligned, headings and code unchanged."""
    code = r"^```.*?^```$"
    for block in re.split(rf"({code})|\n\n+", markdown.strip(), flags=re.MULTILINE | re.DOTALL):
        lines = (block or "").splitlines()
        if not lines:
            continue
        if lines[0].startswith("|"):
            cells = [[cell.strip() for cell in re.split(r" \|(?= )", line.strip("|"))] for line in lines]
            yield from aligned(cells[0], cells[2:], width)
        elif lines[0].startswith(("#", "```")):
            yield from lines
        else:
            for item in re.split(r"\n(?=- )", block.strip()):
                yield from textwrap.wrap(
                    item,
                    width,
                    subsequent_indent="  " * item.startswith("- "),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
        yield ""


if __name__ == "__main__":
    main()
