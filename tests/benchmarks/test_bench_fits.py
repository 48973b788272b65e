"""Benchmarks of runs: controls get the data or the time of their method, and figures are against the baseline of the same seed."""

import json
from argparse import Namespace

import pytest
import torch
from bench_helpers import tiny_cifar, written
from kakurenbo_recipes.models import ImageClassifier

from recipes.benchmarks import controls, fits, losers, masks, noise, recent, refresh, save, stale, transfer

SHADES = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
CONTROLS = [
    *("baseline", "infobatch", "random, data of infobatch", "baseline, time of infobatch"),
    *("kakurenbo", "random, data of kakurenbo", "baseline, time of kakurenbo"),
]


def words(folder, **options):
    """The command line of a benchmark on sixteen images."""
    if not (folder / "train.parquet").exists():
        tiny_cifar(folder, colours=SHADES)
    given = {
        "data-root": folder,
        "json": folder / "result.json",
        "samples": 16,
        "batch-size": 4,
        "seeds": 1,
        "epochs": 3,
        **options,
    }
    return [f"--{name}={value}" for name, value in given.items()]


def curve_of(errors, cost=1.0):
    return [{"epoch": n + 1, "cpu_s": 2.0 * (n + 1), "cost": cost * (n + 1), "error": error} for n, error in enumerate(errors)]


def row_of(name, seed, errors, cost=1.0, **more):
    total = {"cost": cost * len(errors), "cpu_s": 2.0 * len(errors), "epochs": len(errors), "accuracy": 1 - errors[-1]}
    return {
        "run": name,
        "seed": seed,
        "curve": curve_of(errors, cost),
        "samples_trained": 4,
        "hidden_share": 0.0,
        **total,
        **more,
    }


@pytest.fixture
def pretended(monkeypatch):
    """Runs that take the given costs and hide the given shares; gives what was asked for, by name."""

    def pretend(costs, shares=None):
        asked = {}

        def run(self, name, seed, method, epochs=12, **options):
            asked[name] = (method, epochs, options)
            return row_of(
                name, seed, [0.5] * epochs, cost=costs.get(name, 100.0) / epochs, hidden_share=(shares or {}).get(name, 0.0)
            )

        monkeypatch.setattr(fits.Fits, "__init__", lambda *arguments, **options: None)
        monkeypatch.setattr(fits.Fits, "run", run)
        return asked

    return pretend


# ---- what is trained


def test_controls_get_the_data_and_the_time_of_their_method(pretended):
    asked = pretended({"baseline": 100.0, "infobatch": 74.0, "kakurenbo": 0.5}, {"infobatch": 0.28449, "kakurenbo": 0.1})
    rows = controls.of_a_seed(Namespace(epochs=12), 5)
    assert [row["run"] for row in rows] == list(asked) == CONTROLS and {row["seed"] for row in rows} == {5}
    assert asked["random, data of infobatch"] == ("random", 12, {"max_fraction": 0.284})
    assert asked["random, data of kakurenbo"] == ("random", 12, {"max_fraction": 0.1})
    assert asked["baseline, time of infobatch"] == ("baseline", 9, {})
    assert asked["baseline, time of kakurenbo"] == ("baseline", 1, {}), "a run has at least one epoch"


def test_a_baseline_of_equal_time_follows_each_loser_that_is_controlled(pretended):
    asked = pretended({"selective_backprop, beta 1": 82.0, "stale_sb, beta 1": 50.0})
    rows = losers.of_a_seed(Namespace(epochs=12, runs=list(losers.RUNS)), 4)
    assert [row["run"] for row in rows] == list(asked) and next(iter(asked)) == "baseline"
    assert asked["selective_backprop, beta 3"] == ("selective_backprop", 12, {"beta": 3.0})
    assert asked["stale_sb, beta 1"] == ("stale_sb", 12, {"beta": 1.0, "staleness": 3})
    assert asked["baseline, time of selective_backprop, beta 1"] == ("baseline", 10, {})
    assert asked["baseline, time of stale_sb, beta 1"] == ("baseline", 6, {})
    ratios = {row["run"]: row["time_ratio"] for row in rows}
    assert ratios["selective_backprop, beta 1"] == pytest.approx(0.82) and ratios["stale_sb, beta 1"] == pytest.approx(0.5)


def test_a_baseline_takes_as_long_as_the_run_with_proxy_masks(pretended):
    asked = pretended({"half, proxy masks": 60.0})
    rows = masks.of_a_seed(Namespace(epochs=12), 4)
    assert [row["run"] for row in rows] == list(asked) == ["baseline", *masks.RUNS, "baseline, time of half, proxy masks"]
    assert asked["baseline, time of half, proxy masks"] == ("baseline", 7, {})
    options = asked["half, proxy masks"][2]
    assert (options["keep"], options["train_scorer_every"], options["pool"]) == (0.5, 4, False)
    assert sum(map(torch.numel, options["scorer"]().parameters())) < 6000


# ---- what is made of it


def test_differences_are_to_the_baseline_of_the_same_seed():
    rows = []
    for seed, (base, method) in enumerate(((0.5, 0.6), (0.8, 0.9))):
        baseline, row = row_of("baseline", seed, [1 - base]), row_of("infobatch", seed, [1 - method])
        rows += [fits.compared(baseline, baseline), fits.compared(row, baseline)]
    baseline, infobatch = fits.summarise(rows, *controls.KEYS)
    assert infobatch["difference"] == pytest.approx({"mean": 0.1, "std": 0.0})
    assert infobatch["accuracy"] == pytest.approx({"mean": 0.75, "std": 0.09 / 0.18**0.5})
    assert baseline["time_ratio"] == {"mean": 1.0, "std": 0.0}
    assert fits.summarise(rows[:1], "accuracy")[0]["accuracy"] == {"mean": 0.5, "std": None}


def test_a_run_is_there_with_its_first_epoch_of_at_most_that_error():
    baseline = row_of("baseline", 0, [0.9, 0.5, 0.3, 0.2])
    row = losers.against(row_of("method", 0, [0.8, 0.27, 0.29, 0.25], cost=0.75), baseline)
    assert (row["there_cpu_s"], row["there_ratio"]) == (4.0, 1.5 / 4)
    assert row["error"] == 0.25 and row["difference"] == pytest.approx(-0.05)
    assert [row[f"error_at_{share}"] for share in losers.SHARES] == [0.8, 0.27, 0.25, 0.25]
    never = losers.against(row_of("slow", 0, [0.9, 0.8], cost=2.0), baseline)
    assert never["there_cpu_s"] is never["there_ratio"] is None
    assert [never[f"error_at_{share}"] for share in losers.SHARES] == [None, 0.9, 0.9, 0.8]


def test_what_one_seed_lacks_has_no_mean():
    rows = []
    for seed, errors in enumerate(([0.3, 0.2], [0.9, 0.8])):
        baseline = row_of("baseline", seed, [0.6, 0.2])
        rows += [losers.against(baseline, baseline), losers.against(row_of("method", seed, errors), baseline)]
    baseline, method = fits.summarise(rows, *losers.KEYS)
    assert baseline["there_ratio"] == {"mean": 1.0, "std": 0.0}
    assert method["there_ratio"] is method["there_cpu_s"] is None and fits.written(method["there_ratio"], ".1f") == "-"
    assert method["difference"]["mean"] == pytest.approx(-0.3)
    assert fits.written({"mean": -0.3, "std": 0.02}, "+.1f", 100) == "-30.0 +- 2.0"


def test_a_transfer_is_compared_with_the_pre_training_of_the_same_seed():
    done = {"accuracy": 0.5, "loss": 1.5, "hidden_share": 0.0, "samples_trained": 100, "seconds": 10.0}
    pre = [done | {"cost": 2 * cpu, "cpu_s": cpu} for cpu in (10.0, 8.0)]
    row = transfer.compared(0, "kakurenbo", {"accuracy": 0.4, "loss": 2.0}, pre[1], pre[0])
    assert row["cpu_s_ratio"] == row["cost_ratio"] == 0.8 and row["accuracy"] == 0.4 and row["pre_accuracy"] == 0.5
    assert row["loss"] == 2.0 and row["pre_loss"] == 1.5
    none = transfer.compared(0, "none", {"accuracy": 0.3, "loss": 2.1}, {}, {})
    assert none["pre_accuracy"] is none["pre_loss"] is none["cpu_s_ratio"] is None


# ---- end to end


def test_controls_end_to_end(tmp_path, capsys):
    rows = {row["run"]: row for row in controls.main(words(tmp_path, epochs=4))}
    assert list(rows) == [row["run"] for row in written(tmp_path / "result.json")["summary"]] == CONTROLS
    assert all(row["cpu_s"] > 0 < row["cost"] and 0 <= row["accuracy"] <= 1 for row in rows.values())
    assert rows["baseline"]["samples_trained"] == 4 * 16
    method = rows["infobatch"]
    assert method["samples_hidden"] > 0 and method["samples_trained"] + method["samples_hidden"] == 4 * 16
    shorter = rows["baseline, time of infobatch"]
    assert shorter["samples_trained"] == shorter["epochs"] * 16
    assert "CPU seconds of fit" in capsys.readouterr().out


@pytest.mark.slow
def test_save_end_to_end(tmp_path, capsys):
    options = {"json": tmp_path / "result.json", "samples": 64, "batch-size": 8, "epochs": 4, "save": 0.2}
    baseline, *rows = save.main([f"--{name}={value}" for name, value in options.items()])
    assert [row["run"] for row in rows] == ["kakurenbo, save=0.2", "random, save=0.2"]
    assert (
        baseline["predicted"] is None and rows[1]["predicted"] == pytest.approx(0.2, abs=0.02) and rows[1]["chosen_share"] > 0.2
    )
    assert all(0 < row["forward_share"] < 1 and row["saved"] == 1 - row["time_ratio"] for row in rows)
    assert "by the model" in capsys.readouterr().out


@pytest.mark.slow
def test_masks_end_to_end(tmp_path, capsys):
    rows = {row["run"]: row for row in masks.main(words(tmp_path))}
    for name in ("half, scored by the network", "half, proxy masks"):
        assert (rows[name]["samples_scored"], rows[name]["samples_trained"]) == (2 * 16, 16 + 2 * 8)
    assert "half, proxy masks" in capsys.readouterr().out


def test_a_cheaper_refresh_scores_a_third_of_the_hidden_or_their_middle(tmp_path, capsys, monkeypatch):
    sizes = set()
    forward = refresh.ImageClassifier.forward

    def seen(self, images):
        if not self.training:
            sizes.add(images.shape[-1])
        return forward(self, images)

    monkeypatch.setattr(refresh.ImageClassifier, "forward", seen)
    monkeypatch.setattr(refresh, "HALF", {**refresh.HALF, "tau": 0.0})
    rows = {row["run"]: row for row in refresh.main(words(tmp_path, epochs=4))}
    assert list(rows) == ["baseline", *refresh.RUNS] and sizes == {24, 32}
    scored = {name: rows[name]["samples_refreshed"] for name in refresh.RUNS}
    assert 0 < scored["a third in turn, each epoch"] < scored["all, each epoch"]
    assert scored["all, every third epoch"] == 0, "its second choice would be for epoch 4, and the last epoch is 3"
    assert "a third in turn" in capsys.readouterr().out


@pytest.mark.slow  # the same fits as those of the controls, of other methods
def test_losers_end_to_end(tmp_path, capsys):
    rows = {row["run"]: row for row in losers.main(words(tmp_path))}
    assert [name for name in rows if "time of" not in name] == ["baseline", *losers.RUNS]
    for row in rows.values():
        costs, seconds = ([point[key] for point in row["curve"]] for key in ("cost", "cpu_s"))
        assert len(costs) == row["epochs"] and costs == sorted(costs) and costs[0] > 0 and costs[-1] <= row["cost"]
        assert seconds[-1] <= row["cpu_s"] and row["error"] == pytest.approx(1 - row["accuracy"])
    scoring = rows["selective_backprop, beta 1"]
    assert scoring["samples_scored"] == 2 * 16, "all but the warm-up epoch"
    assert scoring["samples_trained"] + scoring["samples_rejected"] == 3 * 16
    assert "1.4 x error" in capsys.readouterr().out


@pytest.mark.slow  # like those of the controls
def test_noise_end_to_end(tmp_path, capsys):
    noise.main([*words(tmp_path, epochs=2), "--noise", "0", "0.5"])
    summary = {row["run"]: row for row in written(tmp_path / "result.json")["summary"]}
    assert list(summary) == list(noise.RUNS)
    for row in summary.values():
        assert 0 <= row["accuracy_at_0.0"]["mean"] <= 1 and -1 <= row["difference_at_0.5"]["mean"] <= 1
    assert summary["baseline"]["difference_at_0.5"] == {"mean": 0.0, "std": None}
    assert "50.0% wrong" in capsys.readouterr().out


def test_stale_end_to_end_with_its_picture(tmp_path):
    options = ["--runs", "plb", "lb", "--diagnose", "8", "--plot", str(tmp_path / "new" / "stale.png")]
    rows = stale.main([*words(tmp_path), *options])
    assert [len(row["watched"]) for row in rows] == [3, 3] and (tmp_path / "new" / "stale.png").stat().st_size > 1000
    for row in written(tmp_path / "result.json")["summary"]:
        assert 0 <= row["distribution_distance"]["mean"] <= 1 and "watched" not in row


@pytest.mark.slow
def test_seeds_are_shared_between_processes_and_come_out_the_same(tmp_path):
    seeds = {"seeds": 2, "epochs": 1}
    one, two = (controls.main(words(tmp_path, processes=processes, **seeds)) for processes in (1, 2))
    kept = ("run", "seed", "accuracy", "samples_trained")
    assert [[row[key] for key in kept] for row in one][:2] == [[row[key] for key in kept] for row in two][:2]
    assert [row["seed"] for row in two] == [0] * 7 + [1] * 7


def test_a_killed_benchmark_leaves_the_seeds_that_were_finished(tmp_path, monkeypatch):
    fit = fits.Fits.run

    def run(self, name, seed, *args, **options):
        if seed == 1:
            raise KeyboardInterrupt
        return fit(self, name, seed, *args, **options)

    monkeypatch.setattr(fits.Fits, "run", run)
    with pytest.raises(KeyboardInterrupt):
        controls.main(words(tmp_path, epochs=1, seeds=3))
    assert [row["seeds"] for row in written(tmp_path / "result.json")["summary"]] == [1] * 7
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
def test_transfer_end_to_end_and_again(tmp_path):
    (tmp_path / "cifar").mkdir()
    tiny_cifar(tmp_path / "cifar")
    folders = {"data-root": tmp_path / "cifar", "fractals": tmp_path / "fractals", "runs-folder": tmp_path / "runs"}
    sizes = {"categories": 2, "instances": 20, "epochs": 2, "fine-tuning": 2, "samples": 16, "seeds": 1}
    options = [f"--{name}={value}" for name, value in (folders | sizes).items()]
    options += ["--runs", "baseline", "forget", "kakurenbo"]
    transfer.main([*options, "--json", str(tmp_path / "t.json")])
    result = written(tmp_path / "t.json")
    assert [row["run"] for row in result["summary"]] == ["none", "baseline", "forget", "kakurenbo"]
    assert all(row["loss"]["mean"] > 0 for row in result["summary"]) and result["summary"][0]["pre_loss"] is None
    assert result["summary"][1]["cost_ratio"]["mean"] == 1 and result["summary"][2]["cost_ratio"]["mean"] > 1, "an epoch to score"
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("row.json")}
    assert len(rows) == 7
    transfer.main([*options, "--json", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text())["summary"] == result["summary"]
    assert {path: path.stat().st_mtime_ns for path in rows} == rows
    with pytest.raises(SystemExit, match="holds other fractals"):
        transfer.main([*options, "--categories", "3"])


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("forget kakurenbo", "needs baseline too"),
        ("baseline random", "needs kakurenbo too, which random"),
        ("sgd", "invalid choice"),
    ],
)
def test_what_a_run_of_the_transfer_is_compared_with_is_there(tmp_path, capsys, runs, message):
    with pytest.raises(SystemExit):
        transfer.main(["--data-root", str(tmp_path), "--runs", *runs.split()])
    assert message in capsys.readouterr().err


# ---- how it is timed


@pytest.mark.parametrize("option", ["--clock=wall", "--device=cuda"])
def test_equal_time_is_of_one_cpu_core(tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        controls.main([*words(tmp_path), option])
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["reference step", "curve"])
def test_watching_changes_nothing_of_a_run(tmp_path, monkeypatch, changed):
    weights, settings = [], fits.parser("controls", "").parse_args(words(tmp_path))
    monkeypatch.setattr(
        ImageClassifier, "on_train_end", lambda self: weights.append(torch.cat([p.detach().flatten() for p in self.parameters()]))
    )
    for between, each_epoch in ((1, False), (100, False)) if changed == "reference step" else ((16, False), (16, True)):
        monkeypatch.setattr(fits, "STEPS_BETWEEN", between)
        row = fits.Fits(settings, each_epoch).run("infobatch", 0, "infobatch")
        assert len(row["curve"]) == (3 if each_epoch else 0)
    assert torch.equal(weights[1], weights[3]), "the others are of the warm-up"


def test_validation_is_not_time_of_a_run(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(fits, "CLOCKS", {"wall_s": now.__next__, "cpu_s": lambda: 0.0})
    curve = fits.Curve(fits.Reference(torch.zeros(1, 3, 32, 32)))
    accuracy = {"val/accuracy": torch.tensor(0.25)}
    trainer = Namespace(sanity_checking=False, state=Namespace(fn="fit"), current_epoch=0, callback_metrics=accuracy)
    curve.on_fit_start(trainer, None)
    for epoch in range(2):
        trainer.current_epoch = epoch
        curve.on_validation_start(trainer, None)
        next(now)  # validation takes a while
        curve.on_validation_end(trainer, None)
    assert curve.seconds["wall_s"] == 4
    assert [(point["wall_s"], point["epoch"]) for point in curve.points] == [(1, 1), (2, 2)]
    assert curve.points[0]["error"] == 0.75


@pytest.mark.parametrize("rare", [False, True])
def test_recent_methods_have_a_control_of_the_share_that_they_hid(tmp_path, monkeypatch, rare):
    monkeypatch.setattr(recent, "RUNS", {"orderdp": recent.RUNS["orderdp"]})
    words = ["--epochs=2", "--seeds=1", "--batch-size=256", f"--json={tmp_path / 'recent.json'}", *["--rare"] * rare]
    result = recent.main(words)
    assert result == json.loads((tmp_path / "recent.json").read_text()) and result["rare"] is rare
    baseline, run, control = result["summary"]
    assert [row["run"] for row in result["summary"]] == ["baseline", "orderdp", "random, data of orderdp"]
    count = baseline["samples_trained"]["mean"] / 2
    assert count == (490 if rare else 1437)
    hidden = run["hidden_share"]["mean"]  # of the two epochs the last one trains on everything: floor(0.875 * 2) is 1
    assert hidden == pytest.approx((count - int(0.85 * int(0.75 * count))) / count / 2)
    assert control["hidden_share"]["mean"] == pytest.approx(hidden, abs=3e-3)  # rounded twice
    assert run["difference"]["mean"] == pytest.approx(run["accuracy"]["mean"] - baseline["accuracy"]["mean"])
