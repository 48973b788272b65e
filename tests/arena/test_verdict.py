"""What a comparison comes to, against figures made by hand."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from kakurenbo_lightning.arena import plot
from kakurenbo_lightning.arena.runs import Comparison, Entry
from kakurenbo_lightning.arena.verdict import STUDENT, Spread, controls_of, points, standings, table

HALF = Entry("kakurenbo", {"max_fraction": 0.5})


def row(score, cost=1.0, trained=1000):
    return {"score": score, "cost": cost, "samples_trained": trained}


def compared(method, random, time, baseline=(0.70, 0.71, 0.72)):
    """A comparison of three seeds in which the method costs three quarters as much."""
    comparison, rows = Comparison([HALF], range(3), 10), {}
    for seed in range(3):
        rows[comparison.baseline(seed).name] = row(baseline[seed], 100.0)
        rows[comparison.of(HALF, seed).name] = mine = {**row(method[seed], 75.0, 700), "seed": seed}
        alike, equal = comparison.controls(mine, rows[comparison.baseline(seed).name])
        rows |= {alike.name: row(random[seed]), equal.name: row(time[seed])}
    return comparison, rows


def test_the_interval_is_that_of_students_t():
    low, high = Spread((1.0, 2.0, 4.0)).interval
    half = 4.303 * np.std([1.0, 2.0, 4.0], ddof=1) / math.sqrt(3)
    assert (low, high) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-4)
    assert all(map(math.isnan, Spread((1.0,)).interval))


@pytest.mark.parametrize(("values", "text"), [((math.nan, 1.0), "nan"), ((math.inf, 1.0), "inf"), ((math.inf, -math.inf), "nan")])
def test_a_training_that_diverged_has_a_line_too(values, text):
    assert Spread(values).written() == text and all(map(math.isnan, Spread(values).interval))
    comparison, rows = compared((*values, 0.7), (0.7, 0.7, 0.7), (0.7, 0.7, 0.7))
    found = standings(comparison, rows)
    assert found[1].survives == "no" and any(text in line for line in table(found, 120))


def test_students_t_falls_towards_the_normal_distribution():
    assert list(STUDENT) == sorted(STUDENT, reverse=True)
    assert NormalDist().inv_cdf(0.975) < STUDENT[-1] < 2.05


@pytest.mark.parametrize(
    ("method", "random", "time", "survives"),
    [
        ((0.72, 0.73, 0.74), (0.70, 0.711, 0.72), (0.68, 0.691, 0.70), "yes"),
        ((0.72, 0.73, 0.74), (0.70, 0.711, 0.72), (0.73, 0.741, 0.75), "no"),
        ((0.72, 0.73, 0.74), (0.70, 0.711, 0.72), (0.70, 0.75, 0.71), "not resolved"),
        ((math.nan, 0.73, 0.74), (0.70, 0.711, 0.72), (0.68, 0.691, 0.70), "no"),
    ],
)
def test_a_method_survives_when_it_beats_both_controls(method, random, time, survives):
    _, mine = standings(*compared(method, random, time))
    assert mine.survives == survives


def test_of_a_loss_the_lower_one_is_better():
    found = standings(*compared((0.1, 0.11, 0.12), (0.2, 0.21, 0.23), (0.3, 0.31, 0.33)), higher_is_better=False)
    assert [one.survives for one in found] == ["-", "yes"]
    assert found[1].gain.mean == pytest.approx(0.6)


def test_figures_are_of_pairs_with_the_same_seed():
    _, mine = standings(*compared((0.71, 0.73, 0.72), (0.70, 0.71, 0.72), (0.60, 0.61, 0.62)))
    assert mine.gain.values == pytest.approx((0.01, 0.02, 0.0))
    assert mine.over_time.values == pytest.approx((0.11, 0.12, 0.10))
    assert (mine.time.mean, mine.trained.mean) == pytest.approx((0.75, 0.7))


def test_a_seed_without_its_controls_counts_where_it_can():
    comparison, rows = compared((0.71, 0.73, 0.72), (0.70, 0.71, 0.72), (0.60, 0.61, 0.62))
    del rows[comparison.controls(rows[comparison.of(HALF, 2).name], rows[comparison.baseline(2).name])[1].name]
    _, mine = standings(comparison, rows)
    assert (len(mine.score.values), len(mine.over_random.values), len(mine.over_time.values)) == (3, 3, 2)


def test_the_table_shows_points_and_the_verdict():
    lines = table(standings(*compared((0.72, 0.73, 0.74), (0.70, 0.711, 0.72), (0.68, 0.691, 0.70))), 140)
    assert lines[2].split() == ["baseline", "71.00", "±", "1.00", "-", "1.00", "1.00", "-", "-", "-", "3"]
    assert "kakurenbo max_fraction=0.5  73.00 ± 1.00  +2.00 ± 0.00" in lines[3]
    assert lines[3].split()[-2:] == ["yes", "3"]


@pytest.mark.parametrize(
    ("costs", "refreshed", "is_timed"),
    [
        ((75.0, 78.0, 74.0), 0, True),
        ((22.0, 80.0, 75.0), 0, False),  # one is quicker than its samples allow
        ((69.0, 70.0, 71.0), 0, True),
        ((69.0, 70.0, 71.0), 600, False),  # and its scoring passes
        ((75.0, 110.0, 75.0), 0, False),  # one was slowed down
    ],
)
def test_times_that_cannot_be_the_methods_are_marked_and_decide_nothing(costs, refreshed, is_timed):
    comparison, rows = compared((0.72, 0.73, 0.74), (0.70, 0.711, 0.72), (0.68, 0.691, 0.70))
    for seed, cost in enumerate(costs):
        rows[comparison.of(HALF, seed).name] |= {"cost": cost, "samples_refreshed": refreshed}
        equal = comparison.controls(rows[comparison.of(HALF, seed).name], rows[comparison.baseline(seed).name])[1]
        rows[equal.name] = row(0.68 + 0.01 * seed)
    found = standings(comparison, rows)
    lines = table(found, 140)
    assert found[1].is_timed == is_timed and found[1].survives == ("yes" if is_timed else "not resolved")
    assert ("? " in lines[3]) is not is_timed and (len(lines) > 4) is not is_timed
    if not is_timed:
        assert lines[4].startswith("? time not resolved: below what the trained samples") and "busy" in " ".join(lines[4:])


def drawn():
    """A comparison of two seeds as it lies in a folder, and a training whose baseline is missing."""
    comparison = Comparison([HALF], range(2), 10)
    trained = [
        *((comparison.baseline(seed), 0.7 + 0.02 * seed, 100.0) for seed in range(2)),
        *((comparison.of(HALF, seed), 0.72, 60.0 - 20 * seed) for seed in range(2)),
        *((comparison.baseline(seed, 5), 0.6, 50.0) for seed in range(2)),
        (comparison.of(HALF, 2), 0.9, 1.0),
    ]
    about = (
        (one, {"method": one.entry.method, "settings": dict(one.entry.settings), "epochs": one.epochs}) for one, *_ in trained
    )
    rows = {
        one.name: {**row(score, cost), **more, "seed": one.seed}
        for (one, more), (_, score, cost) in zip(about, trained, strict=True)
    }
    return comparison, rows


def test_points_are_means_over_the_seeds_of_what_was_trained():
    baseline, half, short = points(*drawn())
    assert (baseline["group"], baseline["time"], baseline["score"]) == ("baseline", 1, pytest.approx(0.71))
    assert (half["group"], half["method"]) == ("kakurenbo max_fraction=0.5", "kakurenbo")
    assert half["time"] == pytest.approx(0.5) and half["time_std"] == pytest.approx(0.1 * math.sqrt(2))
    assert (short["group"], short["method"], short["time"]) == ("baseline, 5 epochs", "baseline", 0.5)


def test_a_baseline_of_one_epoch_is_named_so():
    comparison, rows = drawn()
    rows[comparison.baseline(0, 1).name] = {**row(0.5, 10.0), "method": "baseline", "settings": {}, "epochs": 1, "seed": 0}
    assert points(comparison, rows)[-1]["group"] == "baseline, 1 epoch"


def test_controls_are_named_as_points_are():
    comparison, rows = drawn()
    assert list(controls_of(comparison, HALF, rows)) == [
        "baseline"
    ]  # it left out nothing; the baselines of 6 and 4 epochs are missing
    rows[comparison.baseline(0, 6).name] = {**row(0.6, 60.0), "method": "baseline", "settings": {}, "epochs": 6, "seed": 0}
    assert list(controls_of(comparison, HALF, rows)) == ["baseline", points(comparison, rows)[-1]["group"]]


@pytest.mark.parametrize("rises", [True, False])
def test_the_picture_shows_each_method_beside_its_controls_and_says_which_way_is_better(tmp_path, rises, monkeypatch):
    comparison, rows = drawn()
    rows[comparison.baseline(0, 6).name] = {**row(0.6, 60.0), "method": "baseline", "settings": {}, "epochs": 6, "seed": 0}
    figures, usual = [], plot._figure
    monkeypatch.setattr(plot, "_figure", lambda *words: figures.append(usual(*words)) or figures[-1])
    said = plot.draw(comparison, rows, tmp_path / "new" / "arena.png", rises, "accuracy", "digits")
    begins = (
        "Accuracy against time, that of the baseline being 1: baseline 71.0 % at 1.00; kakurenbo max_fraction=0.5 72.0 % at 0.50;"
    )
    assert said.startswith(begins) is rises
    axes = figures[0].axes[0]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [tuple(line.get_xdata()) for line in dotted] == [(0.5, 1.0), (0.5, 0.6)]  # from the method to both controls
    assert [text.get_text() for text in axes.texts] == ["baseline", "kakurenbo"]
    assert ("better →" in axes.get_ylabel()) is rises and "← better" in axes.get_xlabel()
    for name in ("arena.png", "arena-dark.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")


def test_the_picture_as_vectors_is_for_light_and_dark_pages(tmp_path):
    plot.draw(*drawn(), tmp_path / "arena.svg")
    plot.draw(*drawn(), tmp_path / "arena.pdf")
    assert "prefers-color-scheme:dark" in (tmp_path / "arena.svg").read_text()
    assert (tmp_path / "arena.pdf").read_bytes().startswith(b"%PDF") and len(list(tmp_path.iterdir())) == 2
