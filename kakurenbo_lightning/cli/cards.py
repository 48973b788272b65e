"""Settings tables of cards and lists, generated from the methods' declared settings between two comments of the Markdown file."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from kakurenbo_lightning.methods.backprop.base import BackpropMethod
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.draw.base import DrawMethod, StreamMethod
from kakurenbo_lightning.methods.hide.base import HideMethod
from kakurenbo_lightning.methods.registry import available_methods, method_class
from kakurenbo_lightning.methods.settings import settings_of

PACKAGE = Path(__file__).parents[1]
HEAD = ["setting", "default", "allowed", "meaning"]
FAMILIES = {cls.__name__: cls for cls in (HideMethod, BackpropMethod, StreamMethod, DrawMethod)}
BLOCK = re.compile(r"(^<!-- settings of (\w+)\b[^\n]*-->\n).*?(^<!-- end of settings -->\n)", re.MULTILINE | re.DOTALL)
PROBED = {
    "fraction_schedule": [(1.0,)],
    "balance": ["class", "rcap"],
    "unbiased": ["epoch"],
}  # values of common settings that some methods refuse
NAMES = re.compile(r"^(\| \[`(\w+)`\]\(\w+/\2\.md\) \|.*\| )[^|\n]*( \|)$", re.MULTILINE)


def own_and_common(cls: type[Method]) -> tuple[list[list[str]], list[list[str]]]:
    """Table rows of a method: of settings that it declares or changes, and of those that it takes unchanged from its family."""
    lines = cls.__mro__
    family = next((base for base in lines[1:] if base in FAMILIES.values()), Method)
    declared = [name for base in reversed(lines[: lines.index(family)]) for name in inspect.get_annotations(base)]
    rows = {field.name: [field.name, _default(field), *_said(cls, field.name)] for field in fields(cls)}
    own = [rows.pop(name) for name in declared if name in rows]  # a name may be declared twice
    return own, [taken for row in rows.values() if (taken := _taken(cls, row))]


def presets_of(cls: type[Method]) -> list[str]:
    """A line of Markdown for each preset of a method, with the settings that it stands for."""
    return [
        f"`preset={name!r}` stands for " + ", ".join(f"`{setting}={value!r}`" for setting, value in settings.items())
        for name, settings in cls.presets.items()
    ]


def _taken(cls: type[Method], row: list[str]) -> list[str]:
    """Remove from the row of a common setting the values that the method refuses; empty if it accepts only the default."""
    name, default, allowed, meaning = row
    refused = [value for value in PROBED.get(name, ()) if _refuses(cls, **{name: value})]
    if refused and len(refused) == len(PROBED[name]):
        return []
    for value in refused:
        allowed = allowed.replace(f" or {value!r}", "")
        meaning = re.sub(rf"; `{value!r}`: [^;]*", "", meaning)
    return [name, default, allowed, meaning]


def _refuses(cls: type[Method], **setting: Any) -> bool:
    try:
        cls()
    except (TypeError, ValueError):  # some settings have no default
        return False
    try:
        cls(**setting)
    except ValueError:
        return True
    return False


def _said(cls: type[Method], name: str) -> list[str]:
    declared = settings_of(cls)[name]
    if declared is None:
        return ["-", "-"]
    return [declared.kind.allowed + f" ({declared.unit})" * bool(declared.unit), declared.meaning]


def _default(field: Field) -> str:
    if field.default is not MISSING:
        return repr(field.default)
    return "must be given" if field.default_factory is MISSING else repr(field.default_factory())


def updated(text: str) -> str:
    """Return a Markdown file's text with current settings tables, and current names of settings in lists of methods."""

    def table(block: re.Match) -> str:
        cls = FAMILIES.get(block[2]) or method_class(block[2])
        own, _ = own_and_common(cls)
        presets = [f"\n{line}\n" for line in presets_of(cls)]
        return f"{block[1]}{markdown(own)}{''.join(presets)}{block[3]}"

    def names(row: re.Match) -> str:
        cls = method_class(row[2])
        common = {field.name for family in FAMILIES.values() if issubclass(cls, family) for field in fields(family)}
        return f"{row[1]}{', '.join(f'`{field.name}`' for field in fields(cls) if field.name not in common) or '-'}{row[3]}"

    return NAMES.sub(names, BLOCK.sub(table, text))


def markdown(rows: Iterable[list[str]]) -> str:
    """Format ``rows`` as a Markdown table with the columns :data:`HEAD`."""
    cells = [[f"`{name}`", f"`{default}`", *said] for name, default, *said in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [HEAD, *cells]).replace("\n", f"\n{'|---' * len(HEAD)}|\n", 1)


def write_cards() -> list[Path]:
    """Update the tables in the cards of all methods and in the list beside them; returns the files that have changed."""
    cards = [info.card for info in available_methods().values() if info.card]
    changed = []
    for path in [*cards, *filter(Path.is_file, [PACKAGE / "methods" / "README.md"])]:
        text = path.read_text(encoding="utf-8")
        if (new := updated(text)) != text:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed
