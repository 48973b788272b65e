"""The benchmarks' own logic, at toy size: what they compare is equal, what they compute is right, what they write is JSON."""

import json
import os
import stat
import subprocess
import sys
from argparse import Namespace
from functools import partial
from itertools import chain

import pytest
import torch
from bench_helpers import as_before, tiny_cifar, written
from processes import REPOSITORY
from shards import shard_of

from kakurenbo_lightning import Epoch, SampleSelection, available_methods, get_method
from kakurenbo_lightning.signals.outputs import SampleOutputs
from recipes.benchmarks import checkpoint, compare, fault_run, faults, overhead, saving, selection, sync
from recipes.benchmarks.loop import deal_with_loops, select_with_loops
from recipes.benchmarks.training import Classifier, RandomImages, trainer
from recipes.benchmarks.turns import TakeTurns, take_turns

GPU = REPOSITORY / "recipes/benchmarks/gpu.sh"


@pytest.fixture(autouse=True)
def settings_put_back():
    with as_before():
        yield


@pytest.mark.parametrize("total", [1, 10, 1000, 3333])
@pytest.mark.parametrize("fraction", ["0.0", "0.3", "0.99"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loops_hide_what_the_method_hides(total, fraction, seed):
    statistics = selection.made_up(total, seed)
    plan = get_method("kakurenbo", max_fraction=float(fraction), tau=0.7).plan(statistics, Epoch(1, 100, seed))
    hidden, indices = select_with_loops(statistics, fraction, 0.7)
    assert sorted(hidden) == plan.hidden.tolist()
    assert indices == plan.indices.tolist()


def test_the_loops_deal_as_many_samples_in_as_many_steps():
    statistics = selection.made_up(1000, 0)
    plan = get_method("kakurenbo").plan(statistics, Epoch(1, 100, 0))
    batches = deal_with_loops(plan.indices.tolist(), 64, 1, 0, seed=3)
    assert sorted(chain.from_iterable(batches)) == plan.indices.tolist()
    assert len(batches) == shard_of(plan, 64).steps


def test_made_up_statistics_have_everything_that_is_awkward():
    statistics = selection.made_up(20_000, 0)
    assert statistics.loss.isnan().any()
    assert not statistics.measured.all()
    assert statistics.loss.unique().numel() < len(statistics) - 100
    assert 0 < statistics.correct.float().mean() < 1


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
    assert "achieved" not in full
    assert full["saving"] == full["ideal_saving"] == 0
    assert quarter["achieved"] == pytest.approx(1)
    assert half["achieved"] == pytest.approx(0.9)
    assert half["achieved_by_round"] == [0.9] * 3


def test_forced_hiding_hides_the_share_of_its_epoch_and_is_not_registered():
    statistics = selection.made_up(100, 0)
    method = saving.ForcedHiding((0.0, 0.3))
    assert [len(method.plan(statistics, Epoch(index)).hidden) for index in range(3)] == [0, 30, 0]
    assert "forced" not in available_methods()


def test_overhead_end_to_end(tmp_path):
    path = tmp_path / "new" / "overhead.json"
    overhead.main(["--cases", "linear", "--steps", "2", "--turns", "1", "--json", str(path)])
    (row,) = written(path)["networks"]
    assert row["turns"] == 10
    assert row["plain_ms"] > 0 < row["baseline_ms"]
    assert row["ratio"] > 0 < row["control_ratio"]


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
        trainer("cpu", [SampleSelection("baseline")]).fit(model, datamodule=RandomImages(8, batch_size=4))
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


def test_selection_end_to_end(tmp_path):
    path = tmp_path / "selection.json"
    selection.main(["--sizes", "1e3", "--repeats", "1", "--json", str(path)])
    (row,) = written(path)["sizes"]
    assert row["samples"] == 1000
    assert row["times_faster"] == pytest.approx(row["loop_s"] / row["seconds"])
    assert row["statistics_bytes_per_sample"] <= 16


def test_loops_are_left_out_above_their_size():
    settings = Namespace(device="cpu", clock="cpu", seed=0, repeats=2, loop_up_to=1000)
    row = selection.measure(1001, settings)
    assert row["loop_s"] is None
    assert row["times_faster"] is None


def test_saving_end_to_end(tmp_path):
    path = tmp_path / "saving.json"
    options = ["--samples", "24", "--batch-size", "8", "--width", "2", "--rounds", "2", "--shares", "0.5"]
    saving.main([*options, "--json", str(path)])
    result = written(path)
    assert [row["share"] for row in result["shares"]] == [0.0, 0.5]
    assert result["shares"][0]["seconds"] == result["full_s"] > 0
    assert len(result["shares"][1]["achieved_by_round"]) == 2


def test_checkpoint_end_to_end(tmp_path):
    path = tmp_path / "checkpoint.json"
    checkpoint.main(["--sizes", "2000", "--repeats", "1", "--folder", str(tmp_path), "--json", str(path)])
    (row,) = written(path)["sizes"]
    assert row["hidden"] > 100
    assert 11 * 2000 < row["bytes"] < 20 * 2000 + 20_000, "of which the random streams are 10 kB, whatever the data set"
    assert row["save_s"] > 0 and row["load_s"] > 0 and row["read_file_s"] > 0


def test_faults_end_to_end(tmp_path, capsys):
    path = tmp_path / "faults.json"
    faults.main(["--kills", "2", "--world-sizes", "1", "--methods", "kakurenbo", "--seed", "1", "--json", str(path)])
    assert "2 kills, 2 exact resumes, 0 failures" in capsys.readouterr().out
    result = written(path)
    assert sum(len(row["kills"]) for row in result["trainings"]) == 2
    assert all(row["exact"] and row["differs"] == [] for row in result["trainings"])


def test_faults_ends_with_1_when_a_resume_is_not_exact(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(faults, "differences", lambda whole, resumed: ["weights"])
    path = tmp_path / "faults.json"
    with pytest.raises(SystemExit) as end:
        faults.main(["--kills", "1", "--world-sizes", "1", "--methods", "random", "--json", str(path)])
    assert end.value.code == 1
    assert "1 kills, 0 exact resumes, 1 failures" in capsys.readouterr().out
    assert json.loads(path.read_text())["trainings"][0]["differs"] == ["rank 0: weights"]


def test_a_changed_bit_is_a_difference():
    same = {"a": torch.tensor([1.0, float("nan")]), "b": [1, {"c": 0.1}]}
    assert fault_run.equal(same, {"a": torch.tensor([1.0, float("nan")]), "b": [1, {"c": 0.1}]})
    for other in ({"a": torch.tensor([1.0, -float("nan")]), "b": same["b"]}, {**same, "b": [1, {"c": 0.1 + 1e-17 * 4}]}):
        assert not fault_run.equal({**same, "d": 0}, other)
    assert not fault_run.equal(torch.tensor(0.0), torch.tensor(-0.0))
    assert not fault_run.equal(torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))


def test_sync_end_to_end(tmp_path):
    path = tmp_path / "sync.json"
    sync.main(["--steps", "1", "--json", str(path)])
    assert all(arm["error"] is None for arm in written(path)["arms"].values())


def test_compare_end_to_end(tmp_path):
    tiny_cifar(tmp_path)
    path = tmp_path / "compare.json"
    options = ["--data-root", str(tmp_path), "--network", "resnet8", "--batch-size", "8", "--epochs", "2"]
    compare.main([*options, "--json", str(path)])
    assert [one["method"] for one in written(path)["results"]] == ["baseline", "kakurenbo"]


def test_a_resnet18_for_small_images_keeps_their_size():
    features = torch.zeros(1, 3, 32, 32)
    network = compare.small_image_resnet18().eval()
    assert network.maxpool(network.conv1(features)).shape == (1, 64, 32, 32)


def fake_python(folder, fails=""):
    """Return a Python that writes what it was asked for instead of measuring it, and exits with 1 for one module."""
    program = folder / "python"
    program.write_text(
        f"""#!/bin/bash
if [ "$1" = -m ]; then
    name=${{2##*.}}
    if [ "$name" = "{fails}" ]; then exit 1; fi
    while [ "$1" != --json ]; do shift; done
    echo "{{\\"benchmark\\": \\"$name\\"}}" > "$2"
else
    exec "{sys.executable}" "$@"
fi
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("fails", ["", "saving"])
def test_gpu_leaves_one_json_whatever_fails(tmp_path, device, fails):
    out = tmp_path / "out"
    variables = {"PYTHON": str(fake_python(tmp_path, fails)), "DEVICE": device, "OUT": str(out), "WHEELS": str(tmp_path)}
    environment = os.environ | variables | {"DATA_ROOT": str(tmp_path)}
    done = subprocess.run(["bash", str(GPU)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
    assert [path.name for path in out.iterdir()] == ["bench.json"]
    result = json.loads((out / "bench.json").read_text())
    names = {"sync", "overhead", "selection", "saving", "compare"}
    assert set(result) == (names - {fails}) | {"failed"}
    assert result["failed"] == ([fails] if fails else [])
