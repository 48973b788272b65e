"""Progress on a terminal and in a log, by a clock that the test turns."""

import io
import sys

import pytest
import tqdm
import tqdm.std

from kakurenbo_lightning.core.progress import bar_settings


@pytest.fixture
def written(monkeypatch):
    """``written(terminal)`` shows ten minutes of 600 items, one a second, and returns what that wrote to stderr."""
    now = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])

    def show(terminal, **settings):
        stream = io.StringIO()
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stderr", stream)
        for _ in tqdm.tqdm(range(600), **bar_settings(desc="work", **settings)):
            now[0] += 1
        return stream.getvalue()

    return show


def test_a_log_gets_a_line_a_minute(written):
    lines = written(False).splitlines()
    assert 8 <= len(lines) <= 10 and all(line.startswith("work:") for line in lines)
    assert "\r" not in "".join(lines)


def test_a_terminal_gets_a_bar(written):
    assert written(True).count("\r") > 500


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_disabled_shows_nothing(written, terminal):
    assert written(terminal, disable=True) == ""


def test_work_of_less_than_a_minute_is_not_in_the_log(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with tqdm.tqdm(**bar_settings(total=3)) as bar:
        bar.update(3)
    assert stream.getvalue() == ""
