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


def test_the_callback_shows_what_the_log_says(caplog, capfd):
    selection = SampleSelection("kakurenbo", preset="fast", seed=3, scorer=None, key=None)
    settings = "kakurenbo(every_n_epochs=3, max_fraction=0.5, fractions=(1.0,), milestones=())"
    assert repr(selection) == str(selection) == f"SampleSelection({settings}, seed=3)"
    with caplog.at_level("INFO"):
        fit(Net(), loader(64), selection, max_epochs=1)
    assert f"SampleSelection: {settings} hides" in caplog.text + "".join(capfd.readouterr())
    assert repr(SampleSelection("random")) == "SampleSelection(random())"
    assert repr(SampleSelection("selective_backprop", scorer=Net())) == "SampleSelection(selective_backprop(), scorer=Net)"
    assert "save=Saving(share=0.2" in repr(SampleSelection("kakurenbo", save=0.2))
    assert repr(SampleSelection("infobatch", key="url")) == "SampleSelection(infobatch(), key='url')"


def test_the_help_of_totals_names_its_counts():
    text = SampleSelection.totals.__doc__
    named = [name for name in re.findall(r"``(\w+)(?:\(\))?``", text) if name != "fit"]
    assert {field.name for field in fields(Totals) if field.name.startswith("samples_")} - {"samples_spared"} <= set(named)
    assert all(hasattr(Totals(), name) for name in named)
