"""The picture of a comparison: nothing of it is cut off, and settings that are a preset are named by it, as in the table."""

import json

import pytest
from matplotlib.text import Text
from processes import REPOSITORY

from kakurenbo_lightning.arena import plot
from kakurenbo_lightning.arena.runs import Comparison, Entry, Training
from kakurenbo_lightning.arena.verdict import standings, table

FAST = {"max_fraction": 0.5, "fractions": [1.0], "milestones": [], "every_n_epochs": 3}
RESULTS = sorted((REPOSITORY / "recipes/benchmarks/results").glob("arena*.json"))


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({}, "kakurenbo"),
        (FAST, 'kakurenbo preset="fast"'),
        ({"preset": "fast"}, 'kakurenbo preset="fast"'),
        ({**FAST, "end_fraction": 0.14}, 'kakurenbo preset="fast" end_fraction=0.14'),
        ({"preset": "fast", "tau": 0.8}, 'kakurenbo preset="fast" tau=0.8'),
        ({**FAST, "max_fraction": 0.3}, "kakurenbo every_n_epochs=3 fractions=[1.0] max_fraction=0.3 milestones=[]"),
        ({"preset": "fast", "max_fraction": 0.3}, 'kakurenbo max_fraction=0.3 preset="fast"'),
        ({"max_fraction": 0.3, "drop_top": 0.6}, "kakurenbo drop_top=0.6 max_fraction=0.3"),  # which the preset would not allow
    ],
)
def test_settings_that_are_a_presets_are_named_by_it(settings, title):
    entry = Entry("kakurenbo", settings)
    assert entry.title == title and ("preset" in entry.name) is ("preset" in settings), "files have the settings"


def drawn_from(file, folder, monkeypatch, methods=None, **words):
    """The figure of an arena's result, and what is said of it; of all that was trained, or of these methods."""
    result = json.loads(file.read_text())
    trained = [Training(Entry(row["method"], row["settings"]), row["seed"], row["epochs"]) for row in result["rows"]]
    entries = [one.entry for one in trained if one.entry.method not in ("baseline", "random")]
    chosen = [entry for entry in entries if methods is None or entry.method in methods]
    comparison = Comparison(chosen, range(result["seeds"]), result["epochs"])
    rows = {one.name: row for one, row in zip(trained, result["rows"], strict=True)}
    figures, usual = [], plot._figure
    monkeypatch.setattr(plot, "_figure", lambda *given: figures.append(usual(*given)) or figures[-1])
    said = plot.draw(comparison, rows, folder / "arena.svg", **{"score": "test accuracy", **words})
    return figures[0], said, table(standings(comparison, rows), 140)


def cut_off(figure):
    """The texts of a figure that do not lie within it."""
    figure.draw_without_rendering()
    (axes,), (width, height) = figure.axes, figure.bbox.size
    ticks = [(text, text.get_position()[0], axes.get_xlim()) for text in axes.get_xticklabels()]
    ticks += [(text, text.get_position()[1], axes.get_ylim()) for text in axes.get_yticklabels()]
    undrawn = {text for text, place, (low, high) in ticks if not low <= place <= high}
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text not in undrawn]
    boxes = {text.get_text(): text.get_window_extent() for text in texts}
    assert len(boxes) > 10
    return [text for text, box in boxes.items() if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]


@pytest.mark.slow_cases("wide", "text")
@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_no_text_leaves_the_picture(file, tmp_path, monkeypatch):
    about = "50,000 training samples of CIFAR-10, a network of 27,000 parameters, 15 epochs, a learning rate of 0.1, AdamW"
    figure, *_ = drawn_from(file, tmp_path, monkeypatch, title=about)
    assert cut_off(figure) == []


def test_long_words_have_more_lines(tmp_path, monkeypatch):
    score = "balanced_accuracy_over_every_class_of_the_validation_set"
    figure, *_ = drawn_from(
        RESULTS[0].with_name("arena-fractals.json"),
        tmp_path,
        monkeypatch,
        title="a network of 27,000 parameters, " * 9,
        score=score,
    )
    assert cut_off(figure) == [] and "\n" in figure.get_suptitle().strip() and figure.get_figheight() > plot.SIZE[1] + 1


def test_the_picture_names_presets_as_the_table_does_and_has_no_method_beside(tmp_path, monkeypatch):
    file = RESULTS[0].with_name("arena.json")
    figure, said, lines = drawn_from(file, tmp_path, monkeypatch, ["kakurenbo", "infobatch"])
    labels = {text.get_text() for text in figure.axes[0].texts}
    assert labels == {"baseline", "infobatch", "kakurenbo", 'kakurenbo preset="fast"', "kakurenbo 1"}
    assert figure.legends[0].get_texts()[-1].get_text() == 'kakurenbo 1: preset="fast", end_fraction=0.14'
    assert 'kakurenbo preset="fast" 74.2 % at 0.72' in said and "selective_backprop" not in said
    assert any(line.startswith('kakurenbo preset="fast"  ') and line.split()[-2:] == ["yes", "5"] for line in lines)
