"""Error against cost, and cost until an error is reached: which points and bars a report draws, and of what."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from report_runs import RunFolder, groups_of, write_sweep

from kakurenbo_lightning.report.pareto import (
    cost_by_epoch,
    error_against_cost,
    pareto,
    pareto_picture,
    points,
    time_bars,
    times_to_error,
    units_of,
)

SMALL = {"image_size": None, "samples": 60}


def sweep(tmp_path, *runs):
    return groups_of(write_sweep(tmp_path, list(runs)))


def one_by_one(costs, errors):
    """The definition, in words: nobody is as good in both and better in one."""

    def beaten(cost, error):
        others = zip(costs, errors, strict=True)
        return any(c <= cost and e <= error and (c < cost or e < error) for c, e in others)

    pairs = zip(costs, errors, strict=True)
    return [math.isfinite(cost) and math.isfinite(error) and not beaten(cost, error) for cost, error in pairs]


@pytest.mark.parametrize(
    ("costs", "errors", "optimal"),
    [
        ([1, 2, 3, 4], [4, 3, 3.5, 1], [True, True, False, True]),
        ([1, 1, 1], [2, 1, 1], [False, True, True]),  # equal points are optimal together
        ([1, 2], [1, 1], [True, False]),  # as good, and cheaper
        ([math.nan, 2, 3], [0, 5, 4], [False, True, True]),  # what is not known beats nothing
        ([1, 2, 3], [math.nan, 5, math.inf], [False, True, False]),
        ([], [], []),
    ],
)
def test_the_pareto_set_is_what_no_other_point_beats(costs, errors, optimal):
    assert pareto(costs, errors).tolist() == optimal


@pytest.mark.parametrize("seed", range(5))
def test_the_pareto_set_is_that_of_its_definition(seed):
    random = np.random.default_rng(seed)
    costs, errors = random.integers(0, 9, (2, 40)).astype(float)
    costs[3], errors[7] = math.nan, math.inf
    assert pareto(costs, errors).tolist() == one_by_one(costs, errors)


def test_points_are_errors_and_robust_seconds_and_trained_samples_with_what_scoring_costs(tmp_path):
    slow = RunFolder("baseline", score=0.9, seconds=40.0, steady=(12.0, 0.1), **SMALL)
    groups = sweep(tmp_path, slow, RunFolder("selective_backprop", score=0.8, **SMALL))
    table = points(groups).set_index("method")
    assert table["error"].to_dict() == pytest.approx({"baseline": 10, "selective_backprop": 20})
    assert table["seconds"]["baseline"] == pytest.approx(12.0 + 0.4)  # the machine was busy: not the 40 it took
    run = groups[1].runs[0]
    wanted = run.total("samples_trained") * (
        1 + run.total("score_seconds") / (run.total("train_seconds") - run.total("score_seconds"))
    )
    assert table["work"]["selective_backprop"] == pytest.approx(wanted) and wanted > run.total("samples_trained")


def test_the_picture_fills_and_numbers_the_optimal_points_and_names_them(tmp_path):
    groups = sweep(
        tmp_path,
        RunFolder("baseline", score=0.9, seconds=20.0, **SMALL),
        RunFolder("kakurenbo", 0, {"max_fraction": 0.2}, score=0.9, seconds=15.0, **SMALL),
        RunFolder("kakurenbo", 0, {"max_fraction": 0.4}, score=0.85, seconds=10.0, **SMALL),
        RunFolder("plb", score=0.8, seconds=25.0, **SMALL),
    )
    (picture,) = error_against_cost(groups)
    axes = picture.figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["1", "2"]
    legend = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert legend[0].startswith("filled: Pareto-optimal") and legend[1].startswith("open: another")
    assert legend[2:] == ["1: kakurenbo, max_fraction=0.4", "2: kakurenbo, max_fraction=0.2", "baseline", "plb"]
    filled = [line for line in axes.lines if line.get_marker() not in ("None", None, "") and line.get_markerfacecolor() != "none"]
    assert sorted(line.get_ydata()[0] for line in filled) == pytest.approx([10, 15])
    assert "Pareto-optimal: kakurenbo, max_fraction=0.4; kakurenbo, max_fraction=0.2." in picture.alt


COST = {"time": "seconds", "time_std": "seconds_std"}
NEAR = [("baseline", 1.0, 9.5), ("baseline, 3 epochs", 0.73, 10.6), ("orderdp", 0.74, 10.55), ("random", 0.735, 10.6)]


@pytest.mark.parametrize("apart", [1.0, 0.3, 0.0])
def test_a_number_stands_at_its_own_point_or_a_line_leads_there(apart):
    rows = [{"group": group, "method": group.partition(",")[0], "time": 0.73 + (time - 0.73) * apart} for group, time, _ in NEAR]
    table = pd.DataFrame(rows).assign(error=[10.6 + (error - 10.6) * apart for _, _, error in NEAR], time_std=0.0, error_std=0.3)
    picture = pareto_picture("pareto", table.rename(columns=COST), ["seconds"], "error (%)")
    assert picture.png
    axes, labels = picture.figure.axes[0], [text.get_text() for text in picture.figure.legends[0].get_texts()]
    spots = axes.transData.transform(table[["time", "error"]].to_numpy())
    named = {label.partition(": ")[0]: label.partition(": ")[2] for label in labels}
    boxes = []
    for text in axes.texts:
        own = table.index[table["group"] == named[text.get_text()]][0]
        assert tuple(text.xy) == tuple(table.loc[own, ["time", "error"]])
        box = Text.get_window_extent(text)
        far = np.linalg.norm(spots - [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2], axis=1)
        assert text.arrow_patch is not None or far[own] < 0.7 * np.delete(far, own).min()
        assert not any(box.overlaps(other) for other in boxes) and axes.bbox.contains(box.x0, box.y0)
        boxes.append(box)
    assert len(boxes) == len([label for label in labels if label[0].isdigit()]) > 1


def test_a_point_that_is_beaten_has_its_settings_in_the_legend_too():
    groups = {'rcap balance="rcap"': 3.0, 'seta balance="class"': 4.0, "seta groups=2": 5.0, "plb": 1.0}
    table = pd.DataFrame([{"group": name, "method": name.split()[0], "time": at, "error": at} for name, at in groups.items()])
    picture = pareto_picture("pareto", table.assign(time_std=0.0, error_std=0.0).rename(columns=COST), ["seconds"], "error (%)")
    labels = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert labels[2:] == ["1: plb", 'rcap balance="rcap"', "seta, 2 settings"]


def test_seconds_of_different_machines_are_not_compared(tmp_path):
    other = {"machine": {"processor": "another", "device": "cuda"}}
    runs = [RunFolder("baseline", **SMALL), RunFolder("kakurenbo", changes=other, **SMALL)]
    groups = sweep(tmp_path, *runs)
    assert units_of(groups) == ["work"] and units_of(groups[:1]) == ["seconds", "work"]
    (picture,) = error_against_cost(groups)
    assert [axes.get_xlabel() for axes in picture.figure.axes] == ["cost in trained samples, scoring passes included"]


def test_data_sets_and_metrics_have_pictures_of_their_own(tmp_path):
    runs = [RunFolder(method, config={"data": {"name": name}}, **SMALL) for name in "ab" for method in ("baseline", "plb")]
    lonely = RunFolder("baseline", config={"data": {"name": "c"}}, **SMALL)
    rising = RunFolder("random", config={"data": {"name": "a"}}, changes={"metric": "val/reward", "score": 7.0}, **SMALL)
    pictures = error_against_cost(sweep(tmp_path, *runs, lonely, rising))
    assert [picture.name for picture in pictures] == ["pareto", "pareto_1"]
    assert all("Points of 2 groups" in picture.alt for picture in pictures)


def test_a_loss_is_an_error_as_it_is(tmp_path):
    changes = {"metric": "val/loss", "score": 0.3}
    groups = sweep(tmp_path, *(RunFolder(method, changes=changes, **SMALL) for method in ("baseline", "plb")))
    assert points(groups)["error"].tolist() == [0.3, 0.3]
    (picture,) = error_against_cost(groups)
    assert picture.figure.axes[0].get_ylabel() == "validation loss"


# --- time to an error


def test_the_costs_of_epochs_add_up_to_the_runs_and_leave_out_stalls(tmp_path):
    groups = sweep(tmp_path, *(RunFolder(method, steady=(8.0, 0.1), **SMALL) for method in ("baseline", "kakurenbo", "plb")))
    for group in groups:
        run = group.runs[0]
        spent = cost_by_epoch(run, "seconds")
        assert spent.is_monotonic_increasing and spent.iloc[-1] == pytest.approx(run.figures["steady_seconds"])
        assert cost_by_epoch(run, "work").iloc[-1] == pytest.approx(run.total("samples_trained") * run.figures["time_factor"])
    before = cost_by_epoch(groups[0].runs[0], "seconds").tolist()
    groups[0].runs[0].history["train_seconds"] *= np.linspace(1, 9, 6)  # seconds of the clock in its later epochs
    assert cost_by_epoch(groups[0].runs[0], "seconds").tolist() == before


def test_bars_end_where_the_error_first_was_as_low_as_wanted(tmp_path):
    groups = sweep(
        tmp_path,
        *(RunFolder("baseline", seed, score=0.8, seconds=12.0, **SMALL) for seed in (0, 1)),
        *(RunFolder("plb", seed, score=score, seconds=12.0, **SMALL) for seed, score in ((0, 0.8), (1, 0.5))),
    )
    baseline, plb = groups
    errors = 100 * (1 - baseline.runs[0].history["val/accuracy"])
    spent = cost_by_epoch(baseline.runs[0], "seconds")
    found = times_to_error(baseline, groups, "seconds")
    for factor in (1.4, 1.2, 1.1):
        assert found[factor] == (pytest.approx(spent[errors <= 20 * factor].iloc[0]), 2, 2)
        assert times_to_error(plb, groups, "seconds")[factor] == (pytest.approx(found[factor][0]), 1, 2)
    (picture,) = time_bars(groups)
    texts = [text.get_text() for text in picture.figure.axes[0].texts]
    assert texts[:1] == ["baseline"] and texts[4] == "plb" and all(text.endswith("(1 of 2 seeds)") for text in texts[5:])


def test_an_error_that_is_never_reached_is_said_to_be(tmp_path):
    groups = sweep(tmp_path, RunFolder("baseline", score=0.9, **SMALL), RunFolder("plb", score=0.5, **SMALL))
    (picture,) = time_bars(groups)
    assert [text.get_text() for text in picture.figure.axes[0].texts][-2:] == ["plb", "none of them reached"]


def test_without_a_baseline_there_are_no_bars(tmp_path):
    assert time_bars(sweep(tmp_path, RunFolder("random", **SMALL), RunFolder("plb", **SMALL))) == []
