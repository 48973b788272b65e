"""The benchmarks, at toy size: what they compare is equal, what they compute is right, what they write is JSON."""

import argparse
import importlib
import json
import os
import shlex
import stat
import subprocess
import sys
from argparse import Namespace
from functools import partial
from itertools import chain
from math import comb

import pytest
import torch
from bench_helpers import written
from processes import REPOSITORY
from shards import shard_of

from kakurenbo_lightning import Epoch, SampleSelection, available_methods, get_method
from kakurenbo_lightning.signals.outputs import SampleOutputs
from recipes.benchmarks import (
    backprop,
    checkpoint,
    drawing,
    fault_run,
    faults,
    keys,
    on_digits,
    overhead,
    plans,
    recording,
    report,
    saving,
    selection,
    sharded,
    strategies,
    sync,
    verification,
)
from recipes.benchmarks.selection import select_with_loops, shard_with_loops
from recipes.benchmarks.training import Classifier, RandomImages, trainer
from recipes.benchmarks.turns import TakeTurns, take_turns

GPU = REPOSITORY / "recipes/benchmarks/gpu.sh"
CASES = [(name, options) for name in available_methods() for options in plans.options_for(name)]


def plans_are_of_all_cases(rows):
    """Every method is planned at both sizes, with every option at the larger one, and hides when it should."""
    planned = {(row["samples"], row["method"], row["options"]) for row in rows}
    assert planned == {(2000, *case) for case in CASES} | {(1000, name, "default") for name in available_methods()}
    for row in rows:
        hide = available_methods()[row["method"]].family == "hide"
        hides = (hide and row["method"] != "baseline") or row["method"] == "stale_sb"  # which plans the epochs it does not score
        assert (row["hidden_share"] > 0) == hides, row
    return True


# a command line in which a benchmark takes seconds, the entry of its result with the figures, and whether those can be
SMALL = {
    overhead: (
        "--cases linear --steps 2 --turns 1",
        "networks",
        lambda rows: rows[0]["turns"] == 10 and min(rows[0][key] for key in ("plain_ms", "ratio", "control_ratio")) > 0,
    ),
    selection: (
        "--sizes 1e3 --repeats 1",
        "sizes",
        lambda rows: rows[0]["times_faster"] == rows[0]["loop_s"] / rows[0]["seconds"],
    ),
    sharded: (
        "--sizes 3e3 --ranks 1 2 --simulate 4e3 4",
        "runs",
        lambda rows: (
            [(row["statistics"], row["ranks"]) for row in rows[:3]] == [("replicated", 1), ("replicated", 2), ("sharded", 2)]
            and rows[-1]["simulated"]
        ),
    ),
    strategies: (
        "--steps 1 --turns 2 --batch-size 2",
        "strategies",
        lambda rows: (
            [row["strategy"] for row in rows] == ["ddp", "fsdp2"]
            and all(row[key]["median"] > 0 for row in rows for key in ("ratio", "control_ratio"))
        ),
    ),
    plans: ("--sizes 2e3 1e3 --repeats 2 --classes 5", "plans", plans_are_of_all_cases),
    saving: (
        "--samples 24 --batch-size 8 --width 8 --rounds 2 --shares 0.5",
        "shares",
        lambda rows: [row["share"] for row in rows] == [0.0, 0.5] and len(rows[1]["achieved_by_round"]) == 2,
    ),
    drawing: ("--sizes 1000 --draws 8 --rounds 3", "sizes", lambda rows: rows[0]["times_faster"]["median"] > 0),
    checkpoint: (  # of whose bytes the random streams are 10 kB, whatever the data set
        "--sizes 2000 --repeats 1",
        "sizes",
        lambda rows: rows[0]["hidden"] > 100 and 11 * 2000 < rows[0]["bytes"] < 20 * 2000 + 20_000,
    ),
    keys: (
        "--sizes 2e3 --asked 4e3 --turns 1 --samples 96 --pixels 32 --width 2",
        "sizes",
        lambda rows: rows[0]["per_second"]["median"] > 0 and 5 < rows[0]["bytes"] / 2000 < 20,
    ),
    recording: (
        "--samples 256 --epochs 6 --sizes 1000 --repeats 2",
        "run",
        lambda run: 0 < run["hooks_cpu_s"] + run["thread_cpu_s"] < run["fit_cpu_s"] and run["epochs"] == 6,
    ),
    verification: (
        "--batch-size 8 --rounds 2",
        "losses",
        lambda rows: (
            ["F.cross_entropy" in row["source"] for row in rows] == [True, False, False, True, False]
            and all(row["first_batch_steps"]["median"] > 0 for row in rows)
        ),
    ),
    on_digits: (
        "--of weighted --seeds 1 --epochs 1 --batch-size 128",
        "summary",
        lambda rows: [row["samples_trained"]["mean"] for row in rows] == [490] * 4,
    ),
    sync: ("--steps 1", "arms", lambda arms: all(arm["error"] is None for arm in arms.values())),
}


@pytest.mark.slow_cases("selection", "sharded", "strategies", "verification", "sync", "recording", "plans")
@pytest.mark.parametrize("module", SMALL, ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_benchmark_end_to_end(module, tmp_path, capsys):
    path, (words, key, can_be) = tmp_path / "new" / "result.json", SMALL[module]
    result = module.main([*words.split(), "--json", str(path)])
    assert json.loads(json.dumps(result)) == written(path) and module.__name__.endswith(result["benchmark"])
    assert str(path) in capsys.readouterr().out and can_be(result[key])


@pytest.mark.parametrize("total", [1, 10, 1000, 3333])
@pytest.mark.parametrize("fraction", ["0.0", "0.3", "0.99"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loops_hide_what_the_method_hides(total, fraction, seed):
    statistics = selection.made_up(total, seed)
    plan = get_method("kakurenbo", max_fraction=float(fraction), tau=0.7).plan(statistics, Epoch(1, 100, seed))
    hidden, indices = select_with_loops(statistics, fraction, 0.7)
    assert sorted(hidden) == plan.hidden.tolist()
    assert indices == plan.indices.tolist()


def test_the_loops_shard_as_many_samples_into_as_many_steps():
    statistics = selection.made_up(1000, 0)
    plan = get_method("kakurenbo").plan(statistics, Epoch(1, 100, 0))
    batches = shard_with_loops(plan.indices.tolist(), 64, 1, 0, seed=3)
    assert sorted(chain.from_iterable(batches)) == plan.indices.tolist()
    assert len(batches) == shard_of(plan, 64).steps


def test_made_up_statistics_have_everything_that_is_awkward():
    statistics = selection.made_up(20_000, 0)
    assert statistics.loss.isnan().any() and not statistics.measured.all() and 0 < statistics.correct.float().mean() < 1
    assert statistics.loss.unique().numel() < len(statistics) - 100


def test_a_loop_that_hides_other_samples_is_an_error():
    statistics = selection.made_up(1000, 0)
    plan = get_method("random").plan(statistics, Epoch(1, 100, 0))
    with pytest.raises(AssertionError, match="other samples"):
        selection.loop_seconds(lambda: 0.0, statistics, plan)


def test_every_round_has_every_share_once():
    shares = [0.0, 0.1, 0.3, 0.5]
    order = saving.schedule(shares, 5)
    rounds = [order[first : first + 4] for first in range(0, 20, 4)]
    assert all(sorted(one) == shares for one in rounds)
    assert rounds[0] != rounds[1]


def test_the_ideal_epoch_achieves_all_of_the_saving():
    shares = [0.0, 0.25, 0.5]
    seconds = {0.0: 8.0, 0.25: 0.75 * 8 + 0.25 * 2, 0.5: 0.5 * 8 + 0.5 * 2 + 0.3}
    epochs = [(share, seconds[share]) for share in saving.schedule(shares, 3)]
    full, quarter, half = saving.summarise(shares, epochs, forward=[2.0] * 3)
    assert "achieved" not in full and full["saving"] == full["ideal_saving"] == 0
    assert (quarter["achieved"], half["achieved"]) == pytest.approx((1, 0.9)) and half["achieved_by_round"] == [0.9] * 3


def test_forced_hiding_hides_the_share_of_its_epoch_and_is_not_registered():
    statistics = selection.made_up(100, 0)
    method = saving.ForcedHiding((0.0, 0.3))
    assert [len(method.plan(statistics, Epoch(index)).hidden) for index in range(3)] == [0, 30, 0]
    assert "forced" not in available_methods()


def test_a_function_mode_case_really_uses_the_mode(monkeypatch):
    seen = []
    observe = SampleOutputs.observe

    def spy(self, *args, **kwargs):
        values = observe(self, *args, **kwargs)
        seen.append(self.source)
        return values

    monkeypatch.setattr(SampleOutputs, "observe", spy)
    for name, case in overhead.CASES.items():
        model = Classifier(overhead.tiny(), case.by_name)
        trainer("cpu", [SampleSelection("kakurenbo", **overhead.METHODS["kakurenbo"])]).fit(
            model, datamodule=RandomImages(8, batch_size=4)
        )
        assert ("function mode" in seen[-1]) == (name == "resnet50-mode")


def turns_of(fits, steps=2):
    """Let functions of a `TakeTurns` and its log take turns, and return the log."""
    log = []
    entries = []
    for name, fit in fits.items():
        timer = TakeTurns(steps, iter(range(1000)).__next__)
        entries.append((timer, partial(fit, timer, partial(log.append, name))))
    take_turns(entries)
    return log, [timer.seconds for timer, _ in entries]


def pretend_to_fit(timer, step, steps=6):
    for number in range(steps):
        timer.on_train_batch_start(None, None, None, number)
        step()
    timer.on_train_end(None, None)


def test_fits_take_turns_of_some_steps():
    log, seconds = turns_of({"a": pretend_to_fit, "b": pretend_to_fit, "c": pretend_to_fit})
    assert "".join(log) == "aabbcc" * 3
    assert seconds == [[0.5] * 3] * 3


def test_a_failing_fit_ends_all_of_them_with_its_error():
    def fail(timer, step):
        timer.on_train_batch_start(None, None, None, 0)
        raise ValueError("out of luck")

    with pytest.raises(ValueError, match="out of luck"):
        turns_of({"a": pretend_to_fit, "b": fail, "c": pretend_to_fit})


def test_loops_are_left_out_above_their_size():
    settings = Namespace(device="cpu", clock="cpu", seed=0, repeats=2, loop_up_to=1000)
    row = selection.measure(1001, settings)
    assert row["loop_s"] is None and row["times_faster"] is None


@pytest.mark.parametrize(("name", "options"), CASES)
def test_made_up_statistics_have_the_columns_of_a_run(name, options):
    method = get_method(name, **plans.options_of(options, 1000))
    statistics = plans.MadeUp(1000, classes=5, seed=0).for_method(method)
    assert statistics.measured.all()
    assert set(statistics.extra) == {column.name for column in method.columns} | ({"target"} if method.needs_classes else set())
    for column in method.columns:
        filled = statistics.extra[column.name]
        assert filled.dtype is column.full(0, "cpu").dtype and (filled != column.initial).any()


def test_the_options_of_a_plan_are_followed():
    statistics = plans.MadeUp(1000, classes=5, seed=0)
    hidden = {}
    for options in ("protected", "class"):
        method = get_method("random", **plans.options_of(options, 1000))
        rows = statistics.for_method(method)
        hidden[options] = method.plan(rows, Epoch(1, plans.MAX_EPOCHS)).hidden
    assert not set(hidden["protected"].tolist()) & set(range(0, 1000, plans.PROTECTED_SHARE))
    classes = rows.extra["target"]
    assert torch.equal(torch.bincount(classes[hidden["class"]]), (0.3 * torch.bincount(classes)).long())


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


def test_a_result_has_one_line_for_each_row():
    result = {"name": "x", "rows": [{"a": [1, 2], "b": {"c": None}}, {"a": []}], "none": []}
    assert report.compact(result).splitlines()[2:5] == ['  "rows": [', '    {"a": [1, 2], "b": {"c": null}},', '    {"a": []}']
    assert json.loads(report.compact(result)) == result


@pytest.mark.parametrize("module", [drawing, plans, faults, backprop], ids=lambda one: one.__name__)
def test_what_is_of_the_cpu_refuses_another_device(module, capsys):
    with pytest.raises(SystemExit):
        module.main(["--device", "cuda"])
    assert "invalid choice: 'cuda'" in capsys.readouterr().err


@pytest.mark.slow
def test_faults_end_to_end(tmp_path, capsys):
    path = tmp_path / "faults.json"
    faults.main(["--kills", "2", "--world-sizes", "1", "--methods", "kakurenbo", "--seed", "1", "--json", str(path)])
    assert "2 kills, 2 exact resumes, 0 failures" in capsys.readouterr().out
    trainings = written(path)["trainings"]
    assert sum(len(row["moments"]) for row in trainings) == 2 and all(row["exact"] for row in trainings)


@pytest.mark.slow
def test_faults_ends_with_1_when_a_resume_is_not_exact(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(faults, "differences", lambda whole, resumed: ["weights"])
    path = tmp_path / "faults.json"
    with pytest.raises(SystemExit) as end:
        faults.main(["--kills", "1", "--world-sizes", "1", "--methods", "random", "--json", str(path)])
    assert end.value.code == 1
    assert "1 kills, 0 exact resumes, 1 failures" in capsys.readouterr().out
    assert written(path)["trainings"][0]["differs"] == ["rank 0: weights"]


def test_a_changed_bit_is_a_difference():
    same = {"a": torch.tensor([1.0, float("nan")]), "b": [1, {"c": 0.1}]}
    assert fault_run.equal(same, {"a": torch.tensor([1.0, float("nan")]), "b": [1, {"c": 0.1}]})
    for other in ({"a": torch.tensor([1.0, -float("nan")]), "b": same["b"]}, {**same, "b": [1, {"c": 0.1 + 1e-17 * 4}]}):
        assert not fault_run.equal({**same, "d": 0}, other)
    assert not fault_run.equal(torch.tensor(0.0), torch.tensor(-0.0))
    assert not fault_run.equal(torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))


def fake_python(folder, fails=""):
    """Return a Python that writes what it was asked for instead of measuring it, and exits with 1 for one module."""
    program = folder / "python"
    program.write_text(
        f"""#!/bin/bash
[ "$1" = -m ] || exec "{sys.executable}" "$@"
name=${{2##*.}}
printf "%q " "$@" >> "{folder}/calls" && echo >> "{folder}/calls"
[ "$name" != "{fails}" ] || exit 1
target=
for word; do
    [ "$before" != --json ] || target=$word
    case $word in hydra.run.dir=*) mkdir -p "${{word#*=}}"; target=${{word#*=}}/results.json ;; esac
    before=$word
done
echo "{{\\"benchmark\\": \\"$name\\"}}" > "$target"
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("fails", ["", "saving", "train"])
def test_gpu_leaves_one_json_whatever_fails(tmp_path, device, fails):
    out = tmp_path / "out"
    variables = {"PYTHON": str(fake_python(tmp_path, fails)), "DEVICE": device, "OUT": str(out), "WHEELS": str(tmp_path)}
    environment = os.environ | variables | {"DATA_ROOT": str(tmp_path)}
    done = subprocess.run(["bash", str(GPU)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
    assert [path.name for path in out.iterdir()] == ["bench.json"]
    result = json.loads((out / "bench.json").read_text())
    names, failed = (
        {"sync", "overhead", "selection", "saving", "compare", "arena", "masks"},
        {"train": "compare"}.get(fails, fails),
    )
    assert set(result) == (names - {failed}) | {"failed"}
    assert result["failed"] == ([failed] if failed else [])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_benchmarks_take_what_gpu_gives_them(tmp_path, device, monkeypatch):
    """Each is started up to where it has read its arguments: all of them at toy size would take minutes, most of them for imports."""
    variables = {"PYTHON": str(fake_python(tmp_path)), "DEVICE": device, "OUT": str(tmp_path / "out"), "WHEELS": str(tmp_path)}
    subprocess.run(["bash", str(GPU)], env=os.environ | variables | {"DATA_ROOT": str(tmp_path)}, check=True, timeout=60)
    calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    parse = argparse.ArgumentParser.parse_args

    def then_end(self, *arguments, **settings):
        parse(self, *arguments, **settings)
        raise StopIteration

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", then_end)
    programs = [words for words in calls if words[1].startswith("recipes.benchmarks.")]
    assert len(programs) == 6 and len(calls) == 7  # and `kakurenbo_recipes.train`, whose settings Hydra takes
    for _, module, *arguments in programs:
        with pytest.raises(StopIteration):
            importlib.import_module(module).main(arguments)
