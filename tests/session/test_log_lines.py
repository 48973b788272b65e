"""What the log and the help say of a method and of what it did."""

import re
from dataclasses import fields

import pytest
from helpers import Net, fit, loader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.session.totals import Totals


@pytest.mark.parametrize(
    ("name", "settings", "said", "untrue"),
    [
        ("infobatch", {"unbiased": False}, "prunes a random part of the samples of below-average loss.", "weight"),
        ("selective_backprop", {"score": "topk"}, "trains the samples of highest loss of each batch.", "probability"),
        ("selective_backprop", {"score": "random"}, "trains samples drawn at random", "percentile"),
        ("rcap", {"balance": None}, "draws samples of high loss more often.", "keeps more of the classes"),
        ("weighted", {"weights": [1.0] * 64}, "trained 64 samples, drawn by probability\n", "scored 0"),
        ("random", {}, "hid ", "refreshed 0"),
    ],
)
def test_the_log_says_what_a_method_does_with_the_settings_it_has(name, settings, said, untrue, capfd, caplog):
    with caplog.at_level("INFO"):
        fit(Net(), loader(64), SampleSelection(name, **settings), max_epochs=1)
    text = caplog.text + "".join(capfd.readouterr())
    lines = "".join(f"{line}\n" for line in text.splitlines() if f"SampleSelection: {name}" in line)
    assert said in lines and untrue not in lines


def test_the_help_of_totals_names_its_counts():
    text = SampleSelection.totals.__doc__
    named = [name for name in re.findall(r"``(\w+)(?:\(\))?``", text) if name != "fit"]
    assert {field.name for field in fields(Totals) if field.name.startswith("samples_")} - {"samples_spared"} <= set(named)
    assert all(hasattr(Totals(), name) for name in named)
