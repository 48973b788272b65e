"""The benchmark of the backprop family: what is compared does the same work, and what is written adds up."""

from functools import partial

import pytest
import torch
from bench_helpers import as_before, written
from kakurenbo_recipes.models import CifarResNet

from kakurenbo_lightning import available_methods
from recipes.benchmarks import backprop
from recipes.benchmarks.training import RandomImages
from recipes.benchmarks.turns import TakeEpochs, take_turns


def test_a_turn_of_an_epoch_lasts_to_the_start_of_the_next():
    log, fitting = [], []
    for name in "ab":
        timer = TakeEpochs(1, iter(range(100)).__next__, partial(log.append, name))

        def fit(timer=timer, name=name):
            for _ in range(3):
                timer.on_train_epoch_start()
                for number in range(2):
                    timer.on_train_batch_start(None, None, None, number)
                    log.append(name.upper())
            timer.on_train_end(None, None)

        fitting.append((timer, fit))
    take_turns(fitting)
    assert "".join(log) == "AAaBBb" * 3
    assert [timer.seconds for timer, _ in fitting] == [[1.0] * 3] * 2


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Three rounds of everything on 20 images in batches of 8, and what came of the fits."""
    path, kept = tmp_path_factory.mktemp("backprop") / "backprop.json", []
    train = backprop.Arms.train
    with as_before(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(backprop.Arms, "train", lambda arms: (kept.append(arms), train(arms)))
        # torch 2.14.1 writes beyond its memory in the backward pass of channels_last convolutions of fewer than 8 channels on a CPU
        sizes = ["--samples", "20", "--batch-size", "8", "--depth", "8", "--width", "8", "--rounds", "3", "--percentiles", "5"]
        backprop.main([*sizes, "--threads", "1", "--json", str(path)])
    return written(path), kept[0]


@pytest.mark.slow
def test_backprop_end_to_end(measured):
    result, arms = measured
    rows = {row["variant"]: row for row in result["variants"]}
    assert list(rows) == list(backprop.VARIANTS)
    hands = ["plain, by hand", "SB 50 %, by hand", "SB 25 %, by hand"]
    assert list(arms.seconds) == ["plain", *rows, *hands]
    assert {len(seconds) for seconds in arms.seconds.values()} == {9}, "the first cycle is not counted"
    assert arms.epochs == 12 and result["percentile_s"]["median"] > 0
    assert rows["baseline"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    for row in rows.values():
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert sum(row["phases_s"].values()) == pytest.approx(arms.mean_seconds[row["variant"]])
        assert row["met"] == (row["target"] and row["ratio"]["median"] <= row["target"])
        assert ("overhead" in row) == ("overhead_of_the_engine" in row) == (f"{row['variant']}, by hand" in hands)
    stale, plain = (arms.seconds[name] for name in ("StaleSB 25 %, n = 3", "plain"))
    ratios = sorted(sum(stale[at : at + 3]) / sum(plain[at : at + 3]) for at in (0, 3, 6))
    assert rows["StaleSB 25 %, n = 3"]["ratio_to_plain"]["median"] == pytest.approx(ratios[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "of_a_batch", "steps"), [("SB 50 %", (4, 4, 2), 2), ("SB 25 %", (2, 2, 1), 1)])
def test_the_loop_by_hand_does_the_work_of_the_engine(measured, name, of_a_batch, steps):
    _, arms = measured
    loop, totals = arms.loops[name], arms.selections[name].totals
    assert totals.samples_trained == loop.trained == arms.epochs * sum(of_a_batch)
    assert loop.steps == arms.epochs * steps
    assert totals.samples_scored == arms.epochs * 20


@pytest.mark.slow
def test_stale_epochs_neither_load_nor_score_what_they_reject(measured):
    _, arms = measured
    totals = arms.selections["StaleSB 25 %, n = 3"].totals
    assert totals.samples_scored == 20 * arms.epochs / 3
    assert totals.samples_hidden > 0
    assert totals.samples_trained + totals.samples_hidden + totals.samples_rejected == 20 * arms.epochs


def test_a_loop_that_keeps_nothing_back_is_ordinary_training():
    data = RandomImages(16, batch_size=8)
    data.setup("fit")
    weights = []
    for keep in (None, 1.0):
        torch.manual_seed(0)
        loop = backprop.Loop(data, CifarResNet(8, 2), keep)
        timer = TakeEpochs(1, lambda: 0.0)
        take_turns([(timer, partial(loop.fit, timer, 1))])
        assert loop.trained == 16 and loop.steps == 2
        weights.append(loop._network[0][0].weight)
    assert torch.allclose(*weights, atol=1e-5), "chosen whole, a batch is only in another order"


def test_each_fit_gets_a_network_of_its_own():
    made = []
    variant = backprop.Variant("selective_backprop", {"beta": partial(lambda: made.append(1) or 1.0)})
    methods = [variant.selection(0).method for _ in range(2)]
    assert len(made) == 2
    assert [method.warmup_epochs for method in methods] == [0, 0]


def test_variants_are_of_the_family():
    known = available_methods()
    assert [name for name, one in backprop.VARIANTS.items() if known[one.method].family != "backprop"] == ["baseline"]
