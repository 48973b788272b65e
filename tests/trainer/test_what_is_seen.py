"""What a person sees of a fit: the bar of a scoring pass below the Trainer's own, and what the fit came to."""

import io
from contextlib import redirect_stderr

import pytest
from helpers import GROWING, SureNet, fit, hide_then_grow, loader
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from tqdm.auto import tqdm

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.core.progress import set_aside
from kakurenbo_lightning.trainer import progress

EPOCHS = len(GROWING)


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A stream to have as stderr; bars are shown at once and with every batch."""
    monkeypatch.setattr(progress, "AFTER", 0.0)
    monkeypatch.setattr(progress, "BETWEEN", 0.0)
    return Terminal()


def test_rich_shows_a_scoring_pass_as_a_second_bar_of_its_own(terminal):
    screen, looks = Terminal(), []
    bar = RichProgressBar(console_kwargs={"file": screen, "force_terminal": True, "width": 120})
    usual = bar.refresh
    bar.refresh = lambda **how: (looks.append([(t.description, t.visible) for t in bar.progress.tasks]), usual(**how))
    try:
        with redirect_stderr(terminal):
            fit(SureNet(), loader(), hide_then_grow(), bar, max_epochs=EPOCHS, enable_progress_bar=True)
    except IndexError:
        pytest.skip("this Lightning and this rich do not work together")
    shown = [look for look in looks if any(name.startswith("Scoring") and visible for name, visible in look)]
    assert shown and all(sum(visible for _, visible in look) == 2 for look in shown)  # the pass and the epoch
    assert [name for name, visible in looks[-1] if visible] == [name for name, _ in looks[-1] if name.startswith("Epoch")]
    assert "Scoring" not in terminal.getvalue()


@pytest.mark.parametrize(("bar", "rows"), [(TQDMProgressBar, True), (None, False)])
def test_tqdm_shows_a_scoring_pass_below_the_epoch_unless_bars_are_off(bar, rows, terminal):
    callbacks = [] if bar is None else [bar()]
    with redirect_stderr(terminal):
        fit(SureNet(), loader(), hide_then_grow(), *callbacks, max_epochs=EPOCHS, enable_progress_bar=rows)
    assert ("Scoring 32 samples" in terminal.getvalue()) is rows


@pytest.mark.parametrize("shows", [True, False])
def test_the_end_of_a_fit_is_a_table_where_there_is_a_bar_and_a_line_where_there_is_none(shows, capfd, caplog):
    with caplog.at_level("INFO"):
        fit(SureNet(), loader(), hide_then_grow(), max_epochs=EPOCHS, enable_progress_bar=shows)
    text = caplog.text if "SampleSelection: " in caplog.text else capfd.readouterr().err
    end = text[text.rindex("SampleSelection: ") :].splitlines()
    line = "SampleSelection: kakurenbo trained 240 samples, hid 80 (25.0%), refreshed"
    assert end[0].startswith(line) is not shows
    if shows:
        assert [row.split()[:4] for row in end[1:4]] == [
            ["trained", "240", "samples", "75.0%"],
            ["hidden", "80", "samples", "25.0%"],
            ["refreshed", "80", "samples", "forward"],
        ]
        assert end[4].split()[0] == "time" and "estimated saving" in end[4]


@pytest.mark.parametrize(
    ("method", "rows"),
    [
        ("baseline", ["trained", "time"]),
        ("selective_backprop", ["trained", "rejected", "scored", "time"]),
        ("plb", ["trained", "refreshed", "time"]),
    ],
)
def test_the_table_has_a_row_for_what_there_was_alone(method, rows):
    selection = SampleSelection(method)
    fit(SureNet(), loader(), selection, max_epochs=3)
    table = selection.totals.table(selection.method.family)
    assert [row.split()[0] for row in table] == rows


def test_a_message_is_not_written_into_a_bar(terminal):
    with redirect_stderr(terminal), tqdm(total=3, mininterval=0) as bar:
        bar.update(1)
        with set_aside():
            terminal.write("a message\n")
        before, _, after = terminal.getvalue().partition("a message\n")
    assert before.endswith(" \r") and "1/3" in after
