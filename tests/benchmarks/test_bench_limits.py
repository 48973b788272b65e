"""The benchmark of what limits the saving counts each sample of an epoch once."""

import pytest
from bench_helpers import tiny_cifar, written

from recipes.benchmarks import limits


def test_what_may_be_hidden_is_hidden_or_moved_back(tmp_path, capsys):
    tiny_cifar(tmp_path, colours=((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)))
    options = {"data-root": tmp_path, "json": tmp_path / "result.json", "samples": 16, "batch-size": 4, "epochs": 4}
    rows = limits.main([f"--{name}={value}" for name, value in options.items()])
    assert [row["run"] for row in rows] == [f"{run}, epoch {epoch}" for run in ("defaults", "fast") for epoch in range(4)]
    assert all(row["hidden"] + row["moved_back"] == pytest.approx(row["candidates"]) for row in rows)
    # F is 0.3 of 16 samples, then 0.8 and 0.6 of that; all of the preset's 0.5
    assert [16 * row["candidates"] for row in rows] == [0, 4, 3, 2, 0, 8, 8, 8]
    hidden = [row["hidden"] for row in rows]
    assert [row["scored"] for row in rows[1:4]] == hidden[:3]  # before each epoch, what the last one hid
    assert "hidden on average" in capsys.readouterr().out and written(tmp_path / "result.json")["network"] == "narrow"
