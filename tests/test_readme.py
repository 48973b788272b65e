"""README.md: short, its two lines train, and its table is of the measured rows; the other pages are tested in tests/docs."""

import json

import pytest
from doc_pages import REPOSITORY, blocks, prose, text_of
from helpers import Net, loader

README = text_of("README.md")
MOST_WORDS, LONGEST = 700, 120
# row of the table -> name of the standing
ROWS = {
    "`baseline`": "baseline",
    "`kakurenbo`": "kakurenbo",
    '`kakurenbo`, `preset="fast"`': "kakurenbo every_n_epochs=3 fractions=[1.0] max_fraction=0.5 milestones=[]",
}


def written(figure, form, scale):
    return "-" if figure["mean"] is None else format(scale * figure["mean"], form)


def test_it_is_read_in_a_few_minutes():
    assert len(README.split()) <= MOST_WORDS
    assert [line for line in prose(README) if len(line) > LONGEST] == []


def test_the_two_lines_with_a_plus_are_all_that_a_program_needs():
    lines = blocks("README.md", "diff")[0].splitlines()
    assert [line[:1] for line in lines if line[:1] not in ("", " ")] == ["+", "+"]
    names = {"model": Net(), "datamodule": loader(32)}
    for shown in (lambda line: not line.startswith("+"), lambda line: True):
        program = "\n".join(line[1:] for line in lines if shown(line))
        exec(compile(program.replace("max_epochs=30", "max_epochs=3"), "README.md", "exec"), names)
        assert names["trainer"].current_epoch == 3
    (selection,) = (one for one in names["trainer"].callbacks if type(one).__name__ == "SampleSelection")
    assert selection.totals.samples_trained + selection.totals.samples_hidden == 3 * 32


def of_arena(name):
    found = json.loads((REPOSITORY / f"recipes/benchmarks/results/{name}.json").read_text())["standings"]
    return {one["name"]: one for one in found}


def test_its_sentence_on_a_redundant_set_has_the_figures_of_that_arena():
    standings = of_arena("arena-fractals")
    one, baseline = standings["kakurenbo every_n_epochs=3 fractions=[1.0] max_fraction=0.7 milestones=[]"], standings["baseline"]
    score, other = (written(each["score"], ".2f", 100) for each in (one, baseline))
    assert f"takes {written(one['time'], '.2f', 1)} of the time:" in README and one["survives"] == "yes"
    assert f"{score} % against {other} %, {written(one['over_time'], '.2f', 100)} points above a baseline" in README
    fast = standings["kakurenbo every_n_epochs=3 fractions=[1.0] max_fraction=0.5 milestones=[]"]
    assert f'`preset="fast"`: {written(fast["score"], ".2f", 100)} % in {written(fast["time"], ".2f", 1)}.' in README
    assert fast["survives"] == "yes" and "Both are better than both controls." in README


@pytest.mark.parametrize(("arena", "trained"), [("arena-deep", "ResNet-8"), ("arena", "small")])
def test_its_table_has_the_figures_of_the_arena(arena, trained):
    """Those of recipes/benchmarks/results, with their verdicts."""
    standings = of_arena(arena)
    for row, name in ROWS.items():
        one = standings[name]
        cells = [written(one[key], form, scale) for key, form, scale in (("score", ".2f", 100), ("time", ".2f", 1))]
        cells += [written(one[key], "+.2f", 100) for key in ("over_random", "over_time")]
        assert f"| {trained} | {row} | {' | '.join([*cells, one['survives']])} |" in README
    assert min(standings[name]["seeds"] for name in ROWS.values()) >= 3 and "three to five seeds" in " ".join(README.split())


def test_its_sentence_on_what_does_not_pay_has_a_resolved_figure():
    standings = of_arena("arena-wide")
    loser, text = standings["selective_backprop"], " ".join(README.split())
    below = written({"mean": -loser["over_time"]["mean"]}, ".2f", 100)
    assert f"`selective_backprop` ended {below} points below a baseline that took as long" in text
    assert loser["over_time"]["interval"][1] < 0, "beyond the 95 % interval"
    assert "yes" not in {one["survives"] for one in standings.values()}, "no method was resolved to be better than both"
