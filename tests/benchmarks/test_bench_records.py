"""The benchmarks of the recorder and of the transfer from fractals, end to end at toy size."""

import json

import pytest
from bench_helpers import as_before, tiny_cifar, written

from recipes.benchmarks import recording, transfer


@pytest.fixture(autouse=True)
def unchanged():
    with as_before():
        yield


def test_recording_end_to_end(tmp_path):
    options = ["--samples", "256", "--epochs", "6", "--sizes", "1000", "--repeats", "2", "--json", str(tmp_path / "r.json")]
    recording.main(options)
    result = written(tmp_path / "r.json")
    run = result["run"]
    assert 0 < run["hooks_cpu_s"] + run["thread_cpu_s"] < run["fit_cpu_s"] and run["epochs"] == 6 and run["bytes"] > 1000
    assert result["large"][0]["samples"] == 1000 and result["large"][0]["bytes_per_sample"] > 1


def row(seed, name, accuracy, **pre):
    before = {"accuracy": 0.5, "hidden_share": 0.0, "samples_trained": 100, "seconds": 10.0, "cpu_s": 10.0, **pre}
    return {"seed": seed, "pre-training": name, "tuned": {"accuracy": accuracy}, **({} if name == "none" else {"pre": before})}


def test_a_summary_is_of_the_baseline_of_the_same_seed():
    rows = [row(0, "none", 0.3), row(0, "baseline", 0.4), row(0, "kakurenbo", 0.5, cpu_s=8.0), row(1, "none", 0.5)]
    rows += [row(1, "baseline", 0.4, cpu_s=20.0), row(1, "kakurenbo", 0.3, cpu_s=10.0)]
    none, baseline, kakurenbo = transfer.summarise(rows)
    assert none == {"pre-training": "none", "seeds": 2, "accuracy": {"mean": 0.4, "std": pytest.approx(0.02**0.5)}}
    assert baseline["cpu_s_ratio"] == {"mean": 1.0, "std": 0.0}
    assert kakurenbo["cpu_s_ratio"]["mean"] == pytest.approx(0.65) and kakurenbo["accuracy"]["mean"] == pytest.approx(0.4)


@pytest.mark.slow
def test_transfer_end_to_end_and_again(tmp_path):
    (tmp_path / "cifar").mkdir()
    tiny_cifar(tmp_path / "cifar")
    options = ["--data-root", str(tmp_path / "cifar"), "--fractals", str(tmp_path / "fractals"), "--runs", str(tmp_path / "runs")]
    options += [
        "--categories",
        "2",
        "--instances",
        "20",
        "--epochs",
        "2",
        "--fine-tuning",
        "2",
        "--samples",
        "16",
        "--seeds",
        "1",
    ]
    transfer.main([*options, "--json", str(tmp_path / "t.json")])
    result = written(tmp_path / "t.json")
    assert [part["pre-training"] for part in result["summary"]] == ["none", "baseline", "kakurenbo", "random"]
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("row.json")}
    assert len(rows) == 7
    transfer.main([*options, "--json", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text())["summary"] == result["summary"]
    assert {path: path.stat().st_mtime_ns for path in rows} == rows
    with pytest.raises(SystemExit, match="holds other fractals"):
        transfer.main([*options, "--categories", "3"])
