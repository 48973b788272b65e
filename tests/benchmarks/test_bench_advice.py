"""What was forecast beside what was saved."""

import json
import math

import pytest

from recipes.benchmarks import advice


@pytest.mark.slow
def test_every_pair_has_a_forecast_and_a_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(advice, "SETTINGS", (advice.SETTINGS[0], ("selective_backprop", {"beta": 1})))
    words = ["--samples", "64", "--batch-size", "16", "--epochs", "2", "--json", str(tmp_path / "advice.json")]
    summary = advice.main(words)
    assert [row["run"] for row in summary] == ["baseline", "random max_fraction=0.3", "selective_backprop beta=1"]
    assert all(math.isfinite(row[key]["mean"]) for row in summary[1:] for key in ("now", "most", "saved", "off"))
    assert summary[1]["most"]["mean"] == pytest.approx(0.3, abs=0.1)
    assert len(json.loads((tmp_path / "advice.json").read_text())["summary"]) == 3
