"""The benchmark of the data doctor: its figures are right, and it runs at toy size."""

import math

import numpy as np
import pandas as pd
import pytest
from bench_helpers import tiny_cifar, written
from sklearn.metrics import roc_auc_score

from recipes.benchmarks import doctor


def test_figures_are_those_of_the_definition():
    random = np.random.default_rng(0)
    flipped = pd.Series(random.random(200) < 0.1)
    columns = {name: random.integers(0, 9, 200) - 6 * flipped for name in ("average_margin", "average_label_confidence")}
    columns |= {name: random.random(200) + flipped for name in ("loss", "average_loss", "times_forgotten", "times_measured")}
    samples = pd.DataFrame({"target": 0, "correct": (~flipped).astype(float), **columns})
    rows = doctor.judged(samples, flipped)
    assert list(rows) == [*doctor.SCORES, doctor.ISSUES]
    for name, (column, low) in doctor.SCORES.items():
        assert rows[name]["auroc"] == pytest.approx(roc_auc_score(flipped, -samples[column] if low else samples[column]))
        assert rows[name]["flagged"] == flipped.sum() and rows[name]["precision"] == rows[name]["recall"]
    first = samples["average_loss"].nlargest(int(flipped.sum())).index
    assert rows["average loss"]["precision"] == flipped[first].mean()
    issues = (samples["average_margin"] < -2) & flipped
    assert rows[doctor.ISSUES] == {"auroc": None, **doctor.found(issues, flipped)} and rows[doctor.ISSUES]["precision"] == 1


def test_a_sample_that_was_never_measured_is_the_least_suspicious_and_without_wrong_labels_there_is_no_figure():
    samples = pd.DataFrame({column: [0.5, math.nan, 0.4] for column, _ in doctor.SCORES.values()})
    assert all(score.tolist()[1] == -math.inf for score in doctor.suspicion(samples).values())
    none = pd.Series([False] * 3)
    assert doctor.auroc(samples["loss"], none) is None
    assert doctor.found(none, none) == {"flagged": 0, "precision": None, "recall": None}


def test_doctor_end_to_end(tmp_path, capsys):
    tiny_cifar(tmp_path, colours=((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)))
    options = {"data-root": tmp_path, "json": tmp_path / "result.json", "samples": 16, "batch-size": 4, "seeds": 1, "epochs": 2}
    doctor.main([*(f"--{name}={value}" for name, value in options.items()), "--noise", "0.25"])
    result = written(tmp_path / "result.json")
    assert (result["network"], result["noise"]) == ("quick", 0.25)
    summary = {row["run"]: row for row in result["summary"]}
    assert list(summary) == [
        f"{method}: {name}" for method in ("baseline", "kakurenbo") for name in (*doctor.SCORES, doctor.ISSUES)
    ]
    for name in doctor.SCORES:
        row = summary[f"baseline: {name}"]
        assert row["flagged"]["mean"] == 4 and 0 <= row["auroc"]["mean"] <= 1 and 0 <= row["precision"]["mean"] <= 1
    assert "with 25.0% wrong labels" in capsys.readouterr().out
