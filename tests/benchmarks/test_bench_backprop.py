"""The benchmarks of the backprop family: what is compared does the same work, parts make the whole, and what is written adds up."""

from argparse import Namespace
from functools import partial
from math import comb

import pytest
import torch
from bench_helpers import as_before, tiny_cifar, written
from kakurenbo_recipes.models import CifarResNet
from tqdm import tqdm

from kakurenbo_lightning import available_methods
from recipes.benchmarks import backprop, fits, losers, report
from recipes.benchmarks.training import RandomImages
from recipes.benchmarks.turns import TakeEpochs, take_turns

SHADES = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


@pytest.fixture(autouse=True)
def settings_put_back():
    with as_before():
        yield


def curve_of(errors, cost=1.0):
    return [{"epoch": n + 1, "cpu_s": 2.0 * (n + 1), "cost": cost * (n + 1), "error": error} for n, error in enumerate(errors)]


def row_of(name, seed, errors, cost=1.0, **more):
    total = {"cost": cost * len(errors), "cpu_s": 2.0 * len(errors), "epochs": len(errors), "samples_trained": 4}
    return {"run": name, "seed": seed, "curve": curve_of(errors, cost), **total, **more}


# --- backprop


@pytest.mark.parametrize("count", [1, 5, 6, 9, 20, 24])
def test_the_interval_of_a_median_misses_it_at_most_once_in_twenty_times(count):
    values = [float(value) for value in reversed(range(count))]
    figure = report.median_of(values)
    below = int(figure["low"])
    missed = 2 * sum(comb(count, k) for k in range(below + 1)) / 2**count
    tighter = missed + 2 * comb(count, below + 1) / 2**count
    assert figure["low"] <= figure["median"] <= figure["high"] == count - 1 - below
    if count >= 6:
        assert missed <= 0.05 < tighter
    else:
        assert (figure["low"], figure["high"]) == (0, count - 1), "too few: all of them"


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
        sizes = ["--samples", "20", "--batch-size", "8", "--depth", "8", "--width", "2", "--rounds", "3", "--percentiles", "5"]
        backprop.main([*sizes, "--threads", "1", "--json", str(path)])
    return written(path), kept[0]


def test_backprop_end_to_end(measured):
    result, arms = measured
    rows = {row["variant"]: row for row in result["variants"]}
    assert list(rows) == list(backprop.VARIANTS)
    hands = ["plain, by hand", "SB 50 %, by hand", "SB 25 %, by hand"]
    assert list(result["epochs_s"]) == ["plain", *rows, *hands]
    assert {len(seconds) for seconds in result["epochs_s"].values()} == {9}, "the first cycle is not counted"
    assert arms.epochs == 12
    assert result["percentile_s"]["median"] > 0
    assert rows["baseline"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    for row in rows.values():
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert sum(row["phases_s"].values()) == pytest.approx(arms.mean_seconds[row["variant"]])
        assert row["met"] == (row["target"] and row["ratio"]["median"] <= row["target"])
        assert ("overhead" in row) == ("overhead_of_the_driver" in row) == (f"{row['variant']}, by hand" in hands)
    plain = result["epochs_s"]["plain"]
    stale = [sum(result["epochs_s"]["StaleSB 25 %, n = 3"][at : at + 3]) / sum(plain[at : at + 3]) for at in (0, 3, 6)]
    assert rows["StaleSB 25 %, n = 3"]["ratio_to_plain"]["median"] == pytest.approx(sorted(stale)[1], rel=1e-3)


@pytest.mark.parametrize(("name", "of_a_batch", "steps"), [("SB 50 %", (4, 4, 2), 2), ("SB 25 %", (2, 2, 1), 1)])
def test_the_loop_by_hand_does_the_work_of_the_driver(measured, name, of_a_batch, steps):
    _, arms = measured
    loop, totals = arms.loops[name], arms.selections[name].totals
    assert totals.samples_trained == loop.trained == arms.epochs * sum(of_a_batch)
    assert loop.steps == arms.epochs * steps
    assert totals.samples_scored == arms.epochs * 20


def test_stale_epochs_neither_load_nor_look_at_what_they_reject(measured):
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


def test_a_network_in_the_settings_is_made_anew_for_each_fit():
    made = []
    variant = backprop.Variant("selective_backprop", {"beta": partial(lambda: made.append(1) or 1.0)})
    methods = [variant.selection(0).method for _ in range(2)]
    assert len(made) == 2
    assert [method.warmup_epochs for method in methods] == [0, 0]


def test_variants_are_of_the_family_and_quick_is_smaller(tmp_path, monkeypatch):
    known = available_methods()
    assert [name for name, one in backprop.VARIANTS.items() if known[one.method].family != "backprop"] == ["baseline"]
    seen = []
    monkeypatch.setattr(backprop.Arms, "__init__", lambda arms, settings: seen.append(settings) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backprop.main(["--quick", "--variants", "SB 25 %", "--json", str(tmp_path / "x.json")])
    assert seen[0].samples == backprop.QUICK["samples"] and seen[0].rounds == 1
    assert seen[0].variants == ["baseline", "SB 25 %"]


def test_backprop_is_measured_on_the_cpu(capsys):
    with pytest.raises(SystemExit):
        backprop.main(["--device", "cuda"])
    assert "--device cuda is not allowed" in capsys.readouterr().err


# --- losers


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_are_the_whole_and_about_equal(parts):
    seeds, names = range(3), list(losers.RUNS)
    shared = [losers.jobs(seeds, names, (number, parts)) for number in range(1, parts + 1)]
    assert [job for part in shared for job in part] == losers.jobs(seeds, names)
    sizes = [losers.fits_of(part) for part in shared]
    assert max(sizes) - min(sizes) <= 3
    assert losers.fits_of(losers.jobs(seeds, names)) == 24


def test_a_control_follows_its_method_and_takes_as_long():
    seconds = {"selective_backprop, beta 1": 82.0, "stale_sb, beta 1": 50.0}
    asked = {}

    def run(name, seed, epochs, method, **options):
        asked[name] = (seed, epochs, method, options)
        return row_of(name, seed, [0.5] * epochs) | {"cost": seconds.get(name, 100.0)}

    rows = list(losers.train(run, losers.jobs([4], list(losers.RUNS)), 12))
    assert [row["run"] for row in rows] == list(asked)
    assert len(rows) == losers.fits_of(losers.jobs([4], list(losers.RUNS)))
    assert next(iter(asked)) == "baseline"
    assert asked["selective_backprop, beta 3"] == (4, 12, "selective_backprop", {"beta": 3.0})
    assert asked["stale_sb, beta 1"] == (4, 12, "stale_sb", {"beta": 1.0, "staleness": 3})
    assert asked["baseline, time of selective_backprop, beta 1"] == (4, 10, "baseline", {})
    assert asked["baseline, time of stale_sb, beta 1"] == (4, 6, "baseline", {})
    assert [row["time_ratio"] for row in rows if row["run"] in seconds] == [0.82, 0.5]


def test_a_run_is_there_with_its_first_epoch_of_at_most_that_error():
    baseline = row_of("baseline", 0, [0.9, 0.5, 0.3, 0.2])
    row = losers.compared(row_of("method", 0, [0.8, 0.27, 0.29, 0.25], cost=0.75), baseline)
    assert (row["there_epoch"], row["there_cpu_s"], row["there_ratio"]) == (2, 4.0, 1.5 / 4)
    assert row["error"] == 0.25 and row["difference"] == pytest.approx(0.05)
    assert row["error_at"] == {"0.25": 0.8, "0.5": 0.27, "0.75": 0.25, "1.0": 0.25}
    never = losers.compared(row_of("slow", 0, [0.9, 0.8], cost=2.0), baseline)
    assert never["there_epoch"] is never["there_cpu_s"] is never["there_ratio"] is None
    assert never["error_at"] == {"0.25": None, "0.5": 0.9, "0.75": 0.9, "1.0": 0.8}


def test_what_one_seed_lacks_has_no_mean():
    rows = []
    for seed, errors in enumerate(([0.3, 0.2], [0.9, 0.8])):
        baseline = row_of("baseline", seed, [0.6, 0.2])
        rows += [losers.compared(baseline, baseline), losers.compared(row_of("method", seed, errors), baseline)]
    baseline, method = losers.summarise(rows)
    assert baseline["there"] == 2 and baseline["there_ratio"] == {"mean": 1.0, "std": 0.0}
    assert method["there"] == 1 and method["there_ratio"] is method["there_cpu_s"] is None
    assert method["difference"]["mean"] == pytest.approx(0.3)


def options_of(folder, **options):
    tiny_cifar(folder, colours=SHADES)
    given = {
        "data-root": folder,
        "json": folder / "losers.json",
        "samples": 16,
        "batch-size": 4,
        "seeds": 1,
        "epochs": 3,
        **options,
    }
    return [f"--{name}={value}" for name, value in given.items()]


def test_losers_in_parts_and_merged(tmp_path, capsys):
    paths = [tmp_path / f"{number}.json" for number in (1, 2)]
    for number, path in enumerate(paths, 1):
        losers.main(options_of(tmp_path, part=f"{number}/2", json=path))
    parts = [{row["run"]: row for row in written(path)["runs"]} for path in paths]
    assert set(parts[0]) & set(parts[1]) == {"baseline"}
    same = [[point["error"] for point in part["baseline"]["curve"]] for part in parts]
    assert same[0] == same[1], "equal runs in both parts are equal"

    merged = tmp_path / "merged.json"
    losers.main(["--merge", *map(str, paths), "--json", str(merged)])
    result = written(merged)
    order = ["baseline", *losers.RUNS]
    rows = {row["run"]: row for row in result["runs"]}
    assert [row["run"] for row in result["summary"] if "time of" not in row["run"]] == order
    assert rows == {**parts[1], **parts[0]}
    for row in rows.values():
        costs = [point["cost"] for point in row["curve"]]
        assert len(costs) == row["epochs"] and costs == sorted(costs) and costs[0] > 0
        seconds = [point["cpu_s"] for point in row["curve"]]
        assert seconds[-1] <= row["cpu_s"] and costs[-1] <= row["cost"]
        assert row["error"] == pytest.approx(1 - row["accuracy"])
    looking = rows["selective_backprop, beta 1"]
    assert looking["samples_scored"] == 2 * 16, "all but the warm-up epoch"
    assert looking["samples_trained"] + looking["samples_rejected"] == 3 * 16
    assert rows["katharopoulos"]["settings"] == {}
    assert "1.4 x error" in capsys.readouterr().out


def test_files_of_other_settings_are_not_merged(tmp_path, capsys):
    paths = []
    for epochs in (1, 2):
        path = tmp_path / f"{epochs}.json"
        paths.append(str(path))
        losers.main([*options_of(tmp_path, epochs=epochs, json=path), "--runs", "sb_fixed"])
    with pytest.raises(SystemExit):
        losers.main(["--merge", *paths, f"--json={tmp_path / 'merged.json'}"])
    assert "2.json is of epochs=2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clock=wall"], "--clock wall and --device cuda are not allowed"),
        ([], "--data-root is missing"),
        (["--part=3/2"], "3/2 is not i/n"),
        (["--part=half"], "half is not i/n"),
        (["--runs=forget"], "invalid choice"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        losers.main(options)
    assert message in capsys.readouterr().err


def test_a_curve_changes_nothing_of_a_run(tmp_path):
    tiny_cifar(tmp_path, colours=SHADES)
    data = fits.CIFAR10(str(tmp_path), batch_size=4)
    data.setup("fit")
    settings = Namespace(batch_size=4, learning_rate=0.1, data_root=tmp_path)
    rows = [
        fits.Fits(data, settings, tqdm(disable=True), each_epoch).run("sb", 0, 3, "selective_backprop")
        for each_epoch in (False, True)
    ]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    assert rows[0]["samples_trained"] == rows[1]["samples_trained"]
    assert "curve" not in rows[0] and len(rows[1]["curve"]) == 3


def test_validation_is_not_time_of_a_run(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(fits, "CLOCKS", {"wall_s": now.__next__, "cpu_s": lambda: 0.0})
    reference = fits.Reference(1)
    curve = fits.Curve(reference)
    trainer = Namespace(
        sanity_checking=False, state=Namespace(fn="fit"), current_epoch=0, callback_metrics={"val/accuracy": torch.tensor(0.25)}
    )
    curve.on_fit_start(trainer, None)
    for epoch in range(2):
        trainer.current_epoch = epoch
        curve.on_validation_start(trainer, None)
        next(now)  # validation takes a while
        curve.on_validation_end(trainer, None)
    assert curve.seconds["wall_s"] == 4
    assert [point["wall_s"] for point in curve.points] == [1, 2]
    assert [point["epoch"] for point in curve.points] == [1, 2]
    assert curve.points[0]["error"] == 0.75
