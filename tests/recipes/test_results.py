"""Results of the recipe: the table after `compare=[...]`, and the one after a sweep."""

import pytest
from hydra.utils import instantiate
from kakurenbo_recipes.results import Result, Summary, comparison
from kakurenbo_recipes.train import fit
from omegaconf import OmegaConf
from recipe_runs import TINY
from report_runs import RunFolder, write_sweep


def test_a_backprop_run_counts_what_it_scored_and_rejected(compose):
    cfg = compose(*TINY, "method=selective_backprop")
    result = fit(cfg, instantiate(cfg.data))
    totals = result.totals
    assert totals["samples_scored"] == 96
    assert totals["samples_trained"] + totals["samples_rejected"] == 2 * 96
    assert result.hidden_share == 0
    assert result.as_dict()["rejected_share"] == totals["samples_rejected"] / (2 * 96) > 0


def test_a_stream_trains_as_many_samples_and_counts_the_pass_at_the_start(compose):
    cfg = compose(*TINY, "method=plb", "data.label_noise=0.25")
    data = instantiate(cfg.data)
    result = fit(cfg, data)
    assert int((data.train_images.labels != data.clean_labels).sum()) == 24
    assert (result.totals["samples_trained"], result.totals["samples_refreshed"]) == (2 * 96, 96)
    assert (result.hidden_share, result.rejected_share) == (0, 0)


def a_result(method, seconds, **counts):
    totals = {f"samples_{name}": counts.get(name, 0) for name in ("trained", "hidden", "refreshed", "scored", "rejected")}
    totals |= {"train_seconds": seconds, "refresh_seconds": 0.0, "score_seconds": 0.0, "select_seconds": 0.0}
    return Result(method, "accuracy", 0.9, totals, fit_seconds=seconds)


def cells(*results):
    """The rows of the comparison, in cells."""
    return [line.split() for line in comparison(list(results)) if line.startswith(("baseline", "random", "stale_sb"))]


def test_the_table_has_the_columns_of_the_report(monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    results = [a_result("baseline", 100.0, trained=1000), a_result("random", 72.0, trained=700, hidden=300)]
    head = comparison(results)[0].split()
    assert head == ["method", "accuracy", "(%)", "difference", "(points)", *["seconds", "wall", "saving", "ideal", "trained"],
                    *["forwards", "backwards", "hidden", "seeds"]]  # fmt: skip
    assert cells(*results) == [
        ["baseline", "90.00", "-", "100.0", "100.0", "-", "-", "1,000", "1,000", "1,000", "0.0%", "1"],
        ["random", "90.00", "+0.00", "72.0", "72.0", "28.0%", "30.0%", "700", "700", "700", "30.0%", "1"],
    ]


def test_the_table_compares_with_the_baseline_only_where_there_is_one():
    (row,) = cells(a_result("random", 72.0, trained=700, hidden=300))
    assert row[1:6] == ["90.00", "-", "72.0", "72.0", "-"]


def test_a_sweep_ends_with_its_table_and_the_command_that_draws_it(tmp_path, capsys):
    write_sweep(tmp_path, [RunFolder("baseline"), RunFolder("random", changes={"status": "running", "epochs": 1})])
    RunFolder("selective_backprop", image_size=None).write(tmp_path / "2")
    Summary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    printed = " ".join(capsys.readouterr().out.split())
    assert "selective_backprop 90.00 +0.00" in printed and "random: has not finished (or was killed) after 1 epochs" in printed
    assert f"kakurenbo-report {tmp_path}" in printed


@pytest.mark.parametrize("config", [{}, {"hydra": {"sweep": {"dir": "nowhere"}}}])
def test_a_summary_never_ends_a_sweep_with_an_error(config):
    Summary().on_multirun_end(OmegaConf.create(config))
