"""The benchmarks that go over methods: controls get the data or the time of the method, and every plan is timed."""

from argparse import Namespace

import pytest
import torch
from bench_helpers import as_before, tiny_cifar, written
from kakurenbo_recipes.models import ImageClassifier
from kakurenbo_recipes.parquet_data import CIFAR10
from tqdm import tqdm

from kakurenbo_lightning import Epoch, available_methods, get_method
from recipes.benchmarks import controls, plans

NAMES = [
    "baseline",
    "infobatch",
    "random, data of infobatch",
    "baseline, time of infobatch",
    "kakurenbo",
    "random, data of kakurenbo",
    "baseline, time of kakurenbo",
]
CASES = [(name, options) for name in available_methods() for options in plans.options_for(name)]


@pytest.fixture(autouse=True)
def settings_put_back():
    with as_before():
        yield


def pretended(seconds, shares):
    """A stand-in for `Fits.run` that takes given seconds and hides given shares, and the list of what it was asked for."""
    asked = {}

    def run(name, seed, epochs, method, **options):
        asked[name] = (method, epochs, options)
        return {"run": name, "seed": seed, "cost": seconds.get(name, 1.0), "hidden_share": shares.get(name, 0.0)}

    return run, asked


def test_controls_get_the_data_and_the_time_of_their_method():
    seconds = {"baseline": 100.0, "infobatch": 74.0, "kakurenbo": 0.5}
    run, asked = pretended(seconds, {"infobatch": 0.28449, "kakurenbo": 0.1})
    rows = list(controls.runs_of_a_seed(run, seed=5, epochs=12))
    assert [row["run"] for row in rows] == list(asked) == NAMES
    assert len(rows) == controls.RUNS
    assert asked["random, data of infobatch"] == ("random", 12, {"max_fraction": 0.284})
    assert asked["random, data of kakurenbo"] == ("random", 12, {"max_fraction": 0.1})
    assert asked["baseline, time of infobatch"] == ("baseline", 9, {})
    assert asked["baseline, time of kakurenbo"] == ("baseline", 1, {}), "a run has at least one epoch"


def test_differences_are_to_the_baseline_of_the_same_seed():
    accuracies = {("baseline", 0): 0.5, ("infobatch", 0): 0.6, ("baseline", 1): 0.8, ("infobatch", 1): 0.9}
    rows = [
        {
            "run": run,
            "seed": seed,
            "epochs": 2,
            "accuracy": value,
            "samples_trained": 4,
            "hidden_share": 0.0,
            "cpu_s": 2.0,
            "cost": 3.0,
        }
        for (run, seed), value in accuracies.items()
    ]
    baseline, infobatch = controls.summarise(rows)
    assert infobatch["difference"] == pytest.approx({"mean": 0.1, "std": 0.0})
    assert infobatch["accuracy"] == pytest.approx({"mean": 0.75, "std": 0.09 / 0.18**0.5})
    assert baseline["time_ratio"] == {"mean": 1.0, "std": 0.0}
    assert controls.summarise(rows[:1])[0]["accuracy"] == {"mean": 0.5, "std": None}


def controls_options(folder, **options):
    tiny_cifar(folder, colours=((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)))
    given = {"data-root": folder, "json": folder / "controls.json", "samples": 16, "batch-size": 8, "seeds": 1, **options}
    return [f"--{name}={value}" for name, value in given.items()]


def test_controls_end_to_end(tmp_path, capsys):
    controls.main(controls_options(tmp_path, epochs=4))
    result = written(tmp_path / "controls.json")
    rows = {row["run"]: row for row in result["runs"]}
    assert list(rows) == [row["run"] for row in result["summary"]] == NAMES
    for row in rows.values():
        assert row["cpu_s"] > 0 < row["wall_s"] and 0 <= row["accuracy"] <= 1
        assert row["cost"] == pytest.approx(row["cpu_s"] / row["reference_step_s"])
    assert rows["baseline"]["samples_trained"] == 4 * 16
    method, control = rows["infobatch"], rows["random, data of infobatch"]
    assert method["samples_hidden"] > 0
    assert method["samples_trained"] + method["samples_hidden"] == 4 * 16
    assert control["settings"] == {"max_fraction": round(method["samples_hidden"] / 64, 3)}
    shorter = rows["baseline, time of infobatch"]
    assert shorter["samples_trained"] == shorter["epochs"] * 16
    assert "CPU seconds of fit" in capsys.readouterr().out


def test_a_killed_bench_leaves_the_runs_that_were_finished(tmp_path, monkeypatch):
    fit, asked = controls.Fits.run, []

    def run(self, *args, **options):
        asked.append(args[0])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return fit(self, *args, **options)

    monkeypatch.setattr(controls.Fits, "run", run)
    with pytest.raises(KeyboardInterrupt):
        controls.main(controls_options(tmp_path, epochs=1))
    assert asked[0] == "warm-up"
    assert [row["run"] for row in written(tmp_path / "controls.json")["runs"]] == asked[1:3]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("options", [{"clock": "wall"}, {"device": "cuda"}])
def test_equal_time_is_of_one_cpu_core(tmp_path, capsys, options):
    with pytest.raises(SystemExit):
        controls.main(controls_options(tmp_path, **options))
    assert "--clock wall and --device cuda are not allowed" in capsys.readouterr().err


def test_the_reference_step_changes_nothing_of_a_run(tmp_path, monkeypatch):
    tiny_cifar(tmp_path)
    data = CIFAR10(str(tmp_path), batch_size=4)
    data.setup("fit")
    weights, settings = [], Namespace(batch_size=4, learning_rate=0.1)

    def keep(self):
        weights.append(torch.cat([parameter.detach().flatten() for parameter in self.parameters()]))

    monkeypatch.setattr(ImageClassifier, "on_train_end", keep)
    for between in (1, 100):
        monkeypatch.setattr(controls, "STEPS_BETWEEN", between)
        controls.Fits(data, settings, tqdm(disable=True)).run("infobatch", 0, 3, "infobatch")
    assert torch.equal(*weights)


def test_plans_end_to_end(tmp_path):
    path = tmp_path / "plans.json"
    plans.main(["--sizes", "2e3", "1e3", "--repeats", "2", "--classes", "5", "--json", str(path)])
    rows = written(path)["plans"]
    measured = {(row["samples"], row["method"], row["options"]) for row in rows}
    assert measured == {(2000, *case) for case in CASES} | {(1000, name, "default") for name in available_methods()}
    for row in rows:
        assert 0 < row["fastest_s"] <= row["plan_s"] <= row["slowest_s"]
        assert row["ns_per_sample"] == pytest.approx(1e9 * row["plan_s"] / row["samples"])
        hide = available_methods()[row["method"]].family == "hide"
        hides = (hide and row["method"] != "baseline") or row["method"] == "stale_sb"  # which plans the epochs between looks
        assert (row["hidden_share"] > 0) == hides, row


@pytest.mark.parametrize(("name", "options"), CASES)
def test_made_up_statistics_have_the_columns_of_a_run(name, options):
    method = get_method(name, **plans.options_of(options, 1000))
    statistics = plans.MadeUp(1000, classes=5, seed=0).for_method(method)
    assert statistics.measured.all()
    assert set(statistics.extra) == {column.name for column in method.columns} | ({"target"} if options == "class" else set())
    for column in method.columns:
        filled = statistics.extra[column.name]
        assert filled.dtype is column.dtype
        assert (filled != column.initial).any()


def test_the_options_of_a_plan_are_followed():
    statistics = plans.MadeUp(1000, classes=5, seed=0)
    protecting = get_method("random", **plans.options_of("protected", 1000))
    hidden = protecting.plan(statistics.for_method(protecting), Epoch(1, plans.MAX_EPOCHS)).hidden
    assert not set(hidden.tolist()) & set(range(0, 1000, plans.PROTECTED_SHARE))
    balanced = get_method("random", **plans.options_of("class", 1000))
    rows = statistics.for_method(balanced)
    hidden = balanced.plan(rows, Epoch(1, plans.MAX_EPOCHS)).hidden
    classes = rows.extra["target"]
    assert torch.equal(torch.bincount(classes[hidden]), (0.3 * torch.bincount(classes)).long())


def test_plans_are_of_one_cpu_core(capsys):
    with pytest.raises(SystemExit):
        plans.main(["--device", "cuda"])
    assert "--device cuda is not allowed" in capsys.readouterr().err
