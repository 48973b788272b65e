"""Writes what documents quote of the arenas: tables, and a line in the card of each method, between two comments of a Markdown file.

Give `python -m recipes.benchmarks.quotes` whenever a file `results/arena*.json` has changed; a test fails until it is done. A block
begins with one of these lines, and ends with `<!-- end of arena-wide -->`:

    <!-- all rows of arena-wide, made by `python -m recipes.benchmarks.quotes` -->
    <!-- first rows of arena-wide, made by `python -m recipes.benchmarks.quotes` -->
    <!-- kakurenbo in arena-wide, made by `python -m recipes.benchmarks.quotes` -->

The second is a shorter table, with one row for each method where there are many; the third is the line of a card, empty as long as the
arena has no row of the method.
"""

import argparse
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kakurenbo_lightning import available_methods, get_method
from kakurenbo_lightning.arena.runs import BASELINE, Entry
from kakurenbo_lightning.methods.registry import method_class
from kakurenbo_lightning.methods.settings import settings_of
from recipes.benchmarks.arena import conditions_of
from recipes.benchmarks.fits import written
from recipes.benchmarks.report import Row

REPOSITORY = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
DOCUMENTS = (Path(__file__).parent / "README.md", REPOSITORY / "docs/results.md")
BLOCK = re.compile(
    r"(^<!-- (all rows of|first rows of|\w+ in) (arena[\w-]*), made by [^\n]*-->\n).*?(^<!-- end of \3 -->\n)",
    re.MULTILINE | re.DOTALL,
)
MANY = 10  # rows, from which on a short table has only one for each method
TABLE = "../../../recipes/benchmarks/README.md#results"  # seen from a card
NOTHING = 0.995  # of the baseline's samples; a method that trains more has the baseline as its control of equal share
VERDICTS = {
    "yes": "better than both",
    "no": "worse than at least one, beyond the 95 % interval",
    "not resolved": "not resolved to be better than both",
}
ALL = {  # heading of a column -> the figure, its form and its scale
    "accuracy, %": ("score", ".2f", 100),
    "to baseline": ("gain", "+.2f", 100),
    "time": ("time", ".2f", 1),
    "trained": ("trained", ".2f", 1),
    "to random of the same share": ("over_random", "+.2f", 100),
    "to a baseline of equal time": ("over_time", "+.2f", 100),
}
FIRST = {
    "accuracy, %": ALL["accuracy, %"],
    "time": ALL["time"],
    "over random": ALL["to random of the same share"],
    "over equal time": ALL["to a baseline of equal time"],
}


def result_of(arena: str) -> Row:
    """Read the result of an arena by the name of its file."""
    return json.loads((RESULTS / f"{arena}.json").read_text(encoding="utf-8"))


def figure(one: Row, name: str, form: str, scale: float) -> str:
    """Format a figure of a standing as mean ± deviation over the seeds; a dash where there is none."""
    return written(one[name] if one[name]["mean"] is not None else None, form, scale).replace("+-", "±")


def all_rows(result: Row) -> Iterator[str]:
    """Yield the lines of the table with every row and every figure."""
    yield from head([*ALL, "seeds", "survives"])
    for one in result["standings"]:
        cells = [f"`{one['name']}`", *(figure(one, *form) for form in ALL.values()), str(one["seeds"]), one["survives"]]
        yield f"| {' | '.join(cells)} |"


def first_rows(result: Row) -> Iterator[str]:
    """Yield the lines of the short table."""
    yield from head([*FIRST, "better than both"])
    standings, names = result["standings"], entries(result)
    if len(standings) > MANY:
        firsts: dict[str, Row] = {}
        for one in standings:
            firsts.setdefault(names[one["name"]].method, one)
        standings = list(firsts.values())
    for one in standings:
        yield f"| {' | '.join([label(names[one['name']]), *(figure(one, *form) for form in FIRST.values()), one['survives']])} |"


def head(columns: list[str]) -> list[str]:
    """The two lines above the rows of a table, whose first and last columns are texts."""
    return [f"| method | {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}---|"]


def entries(result: Row) -> dict[str, Entry]:
    """The methods with settings of an arena, by their names in the standings."""
    made = [Entry(BASELINE), *(Entry(row["method"], row["settings"]) for row in result["rows"])]
    return {entry.name: entry for entry in made}


def label(entry: Entry) -> str:
    """Name a method with the fewest settings that say the same, for a reader: those that are not the default or the preset's."""
    cls = method_class(entry.method)

    def settings(**given: Any) -> dict[str, Any]:
        method = get_method(entry.method, **given)
        return {name: getattr(method, name) for name, declared in settings_of(cls).items() if declared}

    chosen, found = settings(**entry.settings), []
    for preset in (None, *cls.presets):
        base = {"preset": preset} if preset else {}
        usual = settings(**base)
        unlike = {name: value for name, value in chosen.items() if usual[name] != value}
        found.append([f"`{name}={json.dumps(value)}`" for name, value in {**base, **unlike}.items()])
    return ", ".join([f"`{entry.method}`", *min(found, key=len)])


def line(result: Row, method: str) -> str:
    """The sentence of a card on the method's first row; empty if there is none."""
    names = entries(result)
    own = [one for one in result["standings"] if names[one["name"]].method == method]
    if not own:
        return ""
    one = own[0]
    others = f"; [{len(own) - 1} other settings]({TABLE})" if len(own) > 2 else f"; [another setting]({TABLE})" * (len(own) - 1)
    to_baseline, time, _, to_random, to_time = (figure(one, *form) for form in list(ALL.values())[1:])
    random = "its control of equal share (the baseline)" if one["trained"]["mean"] > NOTHING else "hiding as much at random"
    said = (
        f"[Arena]({TABLE}), {conditions_of(argparse.Namespace(**result))}, {one['seeds']} seeds: {label(names[one['name']])} differs by "
        f"{to_baseline} points from the baseline in {time} of its time, by {to_random} from {random} and by {to_time} from a baseline of "
        f"equal time: {VERDICTS[one['survives']]}{others}."
    )
    return textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def updated(text: str) -> str:
    """Return a document's text with current blocks."""

    def block(found: re.Match) -> str:
        begin, kind, arena, end = found.groups()
        result = result_of(arena)
        if kind.endswith(" in"):
            return f"{begin}{line(result, kind.removesuffix(' in'))}{end}"
        rows = all_rows(result) if kind.startswith("all") else first_rows(result)
        return begin + "".join(f"{row}\n" for row in rows) + end

    return BLOCK.sub(block, text)


def documents() -> list[Path]:
    """The Markdown files that may hold blocks: the cards, and :data:`DOCUMENTS`."""
    return [*DOCUMENTS, *(info.card for info in available_methods().values() if info.card and REPOSITORY in info.card.parents)]


def main() -> None:
    """Write the blocks of all documents again, and name those that have changed."""
    argparse.ArgumentParser("quotes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if (new := updated(text)) != text:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
