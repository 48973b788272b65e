"""The console script ``kakurenbo-methods``."""

import os
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from kakurenbo_lightning import Choice, HideMethod, available_methods, get_method, register_method
from kakurenbo_lightning.cli import methods as table
from kakurenbo_lightning.methods import registry
from kakurenbo_lightning.methods.settings import settings_of


@pytest.fixture
def show(capsys, monkeypatch):
    """``show(*arguments, columns=100)`` returns what the script prints to a terminal of so many columns."""

    def run(*arguments, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        table.main(arguments)
        return capsys.readouterr().out

    return run


def in_columns(text):
    """The rows of the table that ``text`` begins with, each a dict by head; wrapped cells are joined again."""
    head, rule, *lines = text.split("\n\n")[0].splitlines()
    starts = [0, *(at + 1 for at, mark in enumerate(rule) if mark == " " and rule[at + 1] == "-")]
    ends = [*starts[1:], None]
    rows = []
    for cells in ([line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in lines):
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    return [dict(zip(head.split(), row, strict=True)) for row in rows]


@pytest.mark.parametrize("columns", [60, 100, 220])
def test_the_table_says_of_every_method_what_the_registry_says(show, columns):
    assert in_columns(show(columns=columns)) == [
        {
            "name": info.name,
            "family": info.family,
            "paper": info.paper,
            "bytes": str(info.bytes_per_sample),
            "summary": info.summary,
        }
        for info in available_methods().values()
    ]


@pytest.mark.parametrize("columns", [80, 100, 220])
@pytest.mark.parametrize("arguments", [[], *([name] for name in available_methods())], ids=lambda words: " ".join(words) or "all")
def test_no_line_is_wider_than_the_terminal(show, arguments, columns):
    lines = show(*arguments, columns=columns).splitlines()
    assert [line for line in lines if len(line) > columns and not line.startswith("---")] == []


def test_a_wide_terminal_needs_no_second_line_for_a_method(show):
    assert len(show(columns=220).split("\n\n")[0].splitlines()) == 2 + len(available_methods())


@pytest.mark.parametrize(
    ("name", "refused"),
    [("kakurenbo", {"unbiased"}), ("forget_online", {"unbiased"}), ("baseline", {"fraction_schedule", "balance"})],
)
def test_a_method_is_explained_by_all_its_settings_and_its_card(show, name, refused):
    """Those it refuses, wholly or in part, are in tests/methods/test_cards.py."""
    text = show(name, columns=800)
    method = get_method(name)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for each in fields(method):
        if each.name in refused:
            continue
        declared = settings_of(type(method))[each.name]
        allowed = declared.kind.allowed + f" ({declared.unit})" * bool(declared.unit)
        assert f"{each.name} {each.default!r} {allowed} {declared.meaning}" in lines, each.name
    assert text.count("| setting |") == text.count("<!--") == 0
    card = available_methods()[name].card
    assert str(card) in text
    words = " ".join(text.split())
    for heading in ("## What it does", "## Settings", "## Measured"):
        assert heading in text.splitlines()
    paragraph = card.read_text().split("## What it does")[1].split("##")[0]
    assert " ".join(paragraph.split()) in words


def test_a_method_without_a_card_is_explained_by_its_docstring(show):
    @dataclass(frozen=True)
    class Own(HideMethod):
        """Hides nothing.

        Args:
            table: looked up.
        """

        table: tuple[str, ...] = field(default_factory=tuple)
        summary: ClassVar[str] = "hides nothing"

        def choose(self, statistics, epoch):
            return Choice(torch.zeros(len(statistics), dtype=torch.bool))

    Own.__module__ = "test_cards"  # a file that has no card beside it
    register_method("test_own")(Own)
    try:
        text = show("test_own")
    finally:
        registry._METHODS.pop("test_own")  # other tests go through all methods there are
    row = next(line for line in text.splitlines() if line.startswith("table"))
    assert row.split() == ["table", "()", "-", "-"]
    assert "    table: looked up." in text.splitlines()


def test_an_unknown_method_ends_with_a_suggestion_and_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        table.main(["kakurembo"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "did you mean 'kakurenbo'? available: baseline, el2n" in said.err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        table.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "kakurenbo-methods kakurenbo " in text
    assert 'SampleSelection("kakurenbo", max_fraction=0.3, tau=0.7)' in text
    assert str(table.ADDING) in text
    assert table.ADDING.is_file()
    assert max(len(line) for line in text.splitlines() if str(table.ADDING) not in line) <= 100


def test_code_and_lists_of_a_card_keep_their_lines():
    card = (
        "# a\n\nlong words "
        + "x" * 90
        + "\n\n```python\n# comment\n\nx = 1  "
        + "#" * 90
        + "\n```\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    lines = list(table.reflowed(card, 60))
    assert "x = 1  " + "#" * 90 in lines
    assert lines[lines.index("- one") + 1] == "- two"
    assert lines[lines.index("a  b") + 2] == "1  2"


def test_the_installed_script_survives_a_reader_that_leaves():
    script = Path(sys.executable).with_name("kakurenbo-methods")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as pipe:
        done = subprocess.run([script, "kakurenbo"], stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, "Traceback" in done.stderr, "BrokenPipe" in done.stderr) == (0, False, False)
