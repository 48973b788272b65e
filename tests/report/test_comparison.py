"""The comparison of groups: figures, text and notes."""

import math

import pytest
from markdown_it import MarkdownIt
from report_runs import RunFolder, groups_of, write_sweep

from kakurenbo_lightning.report.notes import notes
from kakurenbo_lightning.report.tables import comparison, comparison_text, count, latex, markdown


def scored(method, seed, score, seconds, **options):
    return RunFolder(method, seed, score=score, changes={"seconds": seconds}, image_size=None, **options)


def rows_of(folder, *runs):
    """The comparison of runs as figures, one dict per group."""
    return comparison(groups_of(write_sweep(folder, list(runs)))).to_dict("records")


def text_of(folder, *runs):
    """The comparison of runs as text: headings, and the cells of each group."""
    table = comparison_text(groups_of(write_sweep(folder, list(runs)) if runs else folder))
    return list(table), table.values.tolist()


def noted(groups):
    """The notes but the first one, which is always there."""
    return " ".join(notes(groups)[1:])


# --- figures


def test_means_differences_and_savings_are_those_computed_by_hand(tmp_path):
    runs = [scored("baseline", 0, 0.90, 20.0), scored("baseline", 1, 0.92, 40.0), scored("kakurenbo", 0, 0.91, 15.0)]
    baseline, other = rows_of(tmp_path, *runs, scored("kakurenbo", 1, 0.92, 20.0), scored("kakurenbo", 2, 0.96, 10.0))
    assert baseline["score"] == pytest.approx(0.91) and baseline["score_std"] == pytest.approx(math.sqrt(2e-4))
    assert other["score"] == pytest.approx(0.93) and other["score_std"] == pytest.approx(math.sqrt(7e-4))
    assert other["difference"] == pytest.approx(0.005) and other["difference_std"] == pytest.approx(math.sqrt(0.5e-4))
    assert other["seconds"] == pytest.approx(15.0) and other["seconds_std"] == pytest.approx(5.0)
    assert other["saving"] == pytest.approx((0.25 + 0.5) / 2)
    assert (baseline["seeds"], other["seeds"], other["runs"]) == (2, 3, 3)


def totals(trained, hidden=0, refreshed=0, scored=0, rejected=0, train=10.0, refresh=0.0, score=0.0):
    counts = {"trained": trained, "hidden": hidden, "refreshed": refreshed, "scored": scored, "rejected": rejected}
    seconds = {"train_seconds": train, "refresh_seconds": refresh, "score_seconds": score}
    return {"totals": {**{f"samples_{name}": value for name, value in counts.items()}, **seconds}}


def test_forwards_backwards_and_hidden_share_are_counted_over_the_run(tmp_path):
    (row,) = rows_of(tmp_path, RunFolder(changes=totals(600, hidden=300, refreshed=250, scored=40, rejected=100)))
    assert [row[name] for name in ("samples_trained", "forwards", "backwards")] == [600, 890, 600]
    assert row["hidden_share"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("run", "ideal"),
    [  # a training step takes 0.1 s per sample, a forward pass 0.03 s
        (totals(700, hidden=300, refreshed=300, train=70.0, refresh=9.0), 1 - (0.7 + 0.3 * 0.3)),
        (totals(700, hidden=300, train=70.0), 0.3),
        (totals(500, hidden=300, scored=400, rejected=200, train=50 + 12.0, score=12.0), 1 - (0.5 + 0.3 * 0.4)),
        (totals(1500, train=150.0), -0.5),  # epochs that are drawn may be longer
    ],
)
def test_the_ideal_saving_counts_forward_passes_at_what_they_cost(tmp_path, run, ideal):
    rows = rows_of(tmp_path, RunFolder("baseline", changes=totals(1000, train=100.0)), RunFolder("random", changes=run))
    assert rows[1]["ideal"] == pytest.approx(ideal) and rows[0]["ideal"] is not None and math.isnan(rows[0]["ideal"])


def test_a_sweep_over_f_leaves_one_baseline_whose_repeats_count_as_one_seed(tmp_path):
    runs = [scored("baseline", 0, score, 20.0, config={"F": f}) for f, score in ((0.2, 0.8), (0.3, 0.9))]
    baseline, other = rows_of(tmp_path, *runs, scored("kakurenbo", 0, 0.9, 10.0))
    assert (baseline["group"], baseline["seeds"], baseline["runs"]) == ("baseline", 1, 2)
    assert baseline["score"] == pytest.approx(0.85) and math.isnan(baseline["score_std"])
    assert other["difference"] == pytest.approx(0.05)
    assert text_of(tmp_path)[1][0][-1] == "1 (2 runs)"


# --- what a saving can be


def timed(method, wall, steady=None, error=0.0, **counts):
    """A run of so many wall seconds, and seconds without stalls."""
    changes = totals(**counts, train=wall)
    return RunFolder(method, changes={**changes, "seconds": wall}, steady=steady and (steady, error), image_size=None)


def with_totals(run):
    """The run with the totals that it is given, and its steady seconds among them."""
    if run.steady is not None:
        names = ("steady_train_seconds", "steady_error_seconds", "steady_refresh_seconds", "select_seconds")
        run.changes["totals"] |= dict(zip(names, (*run.steady, 0.0, 0.0), strict=True))
    return run


def saved_by(folder, baseline, run):
    """The row of a run's group as figures, and its saving and ideal as text."""
    row = rows_of(folder, with_totals(baseline), with_totals(run))[1]
    headings, rows = text_of(folder)
    return row, dict(zip(headings, rows[1], strict=True))


def test_a_busy_machine_is_no_saving(tmp_path):
    """The baseline took ten times as long by the clock; its steps, but for some, did not."""
    baseline = timed("baseline", 1000.0, steady=100.0, trained=1000)
    row, text = saved_by(tmp_path, baseline, timed("random", 80.0, steady=75.0, trained=700, hidden=300))
    assert row["saving"] == pytest.approx(0.25) and row["resolved"]
    assert (text["seconds"], text["wall"], text["saving"], text["ideal"]) == ("75.0", "80.0", "25.0%", "30.0%")


@pytest.mark.parametrize(
    ("run", "ideal"),
    [
        (timed("random", 90.0, trained=1000), "0.0%"),  # 90.4 % was said of one that trained as many
        (timed("random", 340.0, trained=900, hidden=100), "10.0%"),
        (timed("random", 700.0, steady=34.0, trained=900, hidden=100), "10.0%"),
    ],
)
def test_a_saving_above_the_ideal_is_not_resolved(tmp_path, run, ideal):
    baseline = timed("baseline", 1000.0, steady=None if run.steady is None else 100.0, trained=1000)
    row, text = saved_by(tmp_path, baseline, run)
    assert (text["saving"], text["ideal"]) == ("not resolved", ideal)
    assert not row["resolved"] and row["saving"] > row["ideal"] + row["noise"]


@pytest.mark.parametrize(("error", "saving"), [(0.0, "not resolved"), (3.0, "36.0%")])
def test_a_saving_above_the_ideal_within_noise_is_shown(tmp_path, error, saving):
    """Two standard errors of the steps, and 2 points."""
    baseline = timed("baseline", 100.0, steady=100.0, error=error, trained=1000)
    run = timed("random", 64.0, steady=64.0, error=error, trained=700, hidden=300)
    row, text = saved_by(tmp_path, baseline, run)
    assert (text["saving"], text["ideal"]) == (saving, "30.0%")
    assert row["noise"] == pytest.approx(0.02 + 2 * 0.64 * math.hypot(error / 64, error / 100))


def test_steps_that_only_one_of_two_runs_timed_are_not_compared_with_its_wall_time(tmp_path):
    row, _ = saved_by(
        tmp_path, timed("baseline", 100.0, trained=1000), timed("random", 90.0, steady=50.0, trained=900, hidden=100)
    )
    assert row["saving"] == pytest.approx(0.1)


def test_a_run_of_fewer_epochs_can_save_what_it_did_not_train(tmp_path):
    """Which ended early, or behind `limit_train_batches`, where hiding leaves out nothing that would be trained."""
    row, _ = saved_by(tmp_path, timed("baseline", 100.0, trained=1000), timed("random", 40.0, trained=350, hidden=150))
    assert row["ideal"] == pytest.approx(0.65)


def test_forward_passes_count_a_third_where_no_time_was_measured(tmp_path):
    row, _ = saved_by(
        tmp_path, timed("baseline", 100.0, trained=1000), timed("kakurenbo", 90.0, trained=700, hidden=300, refreshed=300)
    )
    assert row["ideal"] == pytest.approx(1 - 0.7 - 0.3 / 3)


# --- text


def test_the_table_has_mean_and_deviation_in_percent_and_points(tmp_path):
    runs = [scored("baseline", 0, 0.90, 20.0), scored("baseline", 1, 0.92, 40.0), scored("kakurenbo", 0, 0.91, 19.0)]
    headings, rows = text_of(tmp_path, *runs, scored("kakurenbo", 1, 0.92, 32.0))
    assert headings[1:7] == ["accuracy (%)", "difference (points)", "seconds", "wall", "saving", "ideal"]
    assert rows[1][:6] == ["kakurenbo", "91.50 ± 0.71", "+0.50 ± 0.71", "25.5 ± 9.2", "25.5", "12.5%"]


def test_markdown_is_a_table_and_nothing_else(tmp_path):
    write_sweep(tmp_path, [RunFolder("baseline", score=0.9), RunFolder("a|b", score=0.91, seconds=9.9)])
    lines = markdown(comparison_text(groups_of(tmp_path))).splitlines()
    assert lines[0].startswith("| method | accuracy (%) | difference (points) | seconds | wall | saving | ideal |")
    assert lines[1] == "| --- |" + " ---: |" * 11
    assert lines[3].startswith("| a\\|b | 91.00 | +1.00 | 10.0 | 10.0 | 1.0% | 0.0% |") and len(lines) == 4


ODD = ["a|b\\|c", "*x* _y_ `z` ~w~", "[k](http://h) ![i](j)", "<img src=x> &amp; $t$", "two\nlines", "max_fraction_of=0.3"]


@pytest.mark.parametrize("name", ODD)
def test_markdown_shows_names_as_they_are(tmp_path, name):
    """As a reader of Markdown understands it: one row, and the name as text."""
    changes = {"metric": f"val/acc {name.replace('/', ' ')}"}
    write_sweep(tmp_path, [RunFolder(name, score=0.9, seconds=5.0, changes=changes)])
    text = markdown(comparison_text(groups_of(tmp_path)))
    cells = [token.children for token in MarkdownIt("gfm-like").disable("linkify").parse(text) if token.type == "inline"]
    shown = ["".join(child.content for child in children) for children in cells]
    assert {child.type for children in cells for child in children} <= {"text", "text_special"}
    assert len(shown) == 24 and shown[12] == " ".join(name.split())
    assert shown[1].startswith(" ".join(changes["metric"].removeprefix("val/").split()))


def test_latex_is_a_table_of_booktabs_with_names_as_they_are(tmp_path):
    write_sweep(tmp_path, [RunFolder("baseline", score=0.9), RunFolder("a_b & 5%", score=0.91, seconds=9.9)])
    lines = latex(comparison_text(groups_of(tmp_path))).splitlines()
    assert lines[:3] == ["% \\usepackage{booktabs}", "\\begin{tabular}{lrrrrrrrrrrr}", "\\toprule"]
    assert lines[3].startswith("method & accuracy (\\%) & difference (points) &")
    assert lines[6].startswith("a\\_b \\& 5\\% & 91.00 & +1.00 & 10.0 &") and lines[6].count(" & ") == 11
    assert lines[7:] == ["\\bottomrule", "\\end{tabular}"]


def test_one_seed_has_no_deviation_and_other_seeds_no_pair(tmp_path):
    _, rows = text_of(tmp_path, scored("baseline", 0, 0.9, 20.0), scored("kakurenbo", 1, 0.91, 15.0))
    assert rows[1][1:7] == ["91.00", "-", "15.0", "15.0", "-", "-"]
    assert "No baseline with the same data, network and seeds for kakurenbo." in noted(groups_of(tmp_path))


@pytest.mark.parametrize(
    ("name", "score", "headings", "text"),
    [
        *((name, 0.5, "{} (%)", "50.00") for name in ("accuracy", "acc_top1", "MulticlassAccuracy", "mIoU", "f1", "F1Score")),
        *((name, 0.5, "{} (%)", "50.00") for name in ("recall", "auroc", "top5")),
        *((name, 0.5, "{}", "0.50") for name in ("mae", "loss", "accuracy_loss", "stopped", "previous", "perplexity")),
        ("accuracy", 3.25, "{}", "3.25"),
    ],
)
def test_metrics_that_are_shares_by_name_and_value_are_shown_in_percent(tmp_path, name, score, headings, text):
    found, rows = text_of(tmp_path, RunFolder("baseline", score=score, changes={"metric": f"val/{name}"}))
    assert (found[1], rows[0][1]) == (headings.format(name), text)


def test_runs_without_validation_are_compared_by_their_seconds(tmp_path):
    _, rows = text_of(tmp_path, scored("baseline", None, None, 20.0), scored("random", None, None, 18.0))
    assert rows[1][:6] == ["random", "-", "-", "18.0", "18.0", "10.0%"]


@pytest.mark.parametrize(
    ("number", "text"), [(9876, "9,876"), (12_345, "12.3k"), (123_456, "123k"), (999_999, "1.00M"), (43.2e6, "43.2M")]
)
def test_numbers_of_samples_are_short(number, text):
    assert count(number) == text


# --- notes


@pytest.mark.parametrize("other", [{"machine": {"processor": "another", "device": "cpu"}}, {"world_size": 2}])
def test_seconds_of_another_machine_or_number_of_processes_are_no_saving(tmp_path, other):
    usual = {"seconds": 9.0, "machine": {"processor": "a processor", "device": "cpu"}}
    runs = [RunFolder("baseline", 0, changes=usual | {"seconds": 10.0}), RunFolder("random", 0, changes=usual)]
    runs += [RunFolder("random", 1, score=0.95, changes=usual | other), RunFolder("baseline", 1, changes=usual)]
    groups = groups_of(write_sweep(tmp_path, runs))
    row = comparison(groups).set_index("group").loc[groups[-1].name]
    assert row["difference"] == pytest.approx(0.05 if "world_size" in other else 0.025)
    assert row["saving"] == pytest.approx(math.nan if "world_size" in other else 0.1, nan_ok=True)
    assert f"or number of processes: {groups[-1].name}." in noted(groups)
    assert text_of(tmp_path)[1][-1][5] == ("-" if "world_size" in other else "10.0% (1 of 2 seeds)")


def test_a_baseline_of_other_conditions_or_epochs_is_named(tmp_path):
    long, short = {"trainer": {"max_epochs": 6}}, {"trainer": {"max_epochs": 4}}
    write_sweep(tmp_path, [RunFolder("baseline", 0, config=long), RunFolder("random", 0, config=short, epochs=4)])
    found = noted(groups_of(tmp_path))
    assert "random, max_epochs=4 (against baseline, max_epochs=6: another max_epochs)." in found
    assert "random, max_epochs=4 (4, its baseline 6)." in found


def test_means_of_some_seeds_only_say_so(tmp_path):
    runs = [scored("baseline", 0, 0.90, 20.0), *(scored("kakurenbo", seed, 0.89, 10.0) for seed in range(3))]
    runs += [scored("random", seed, score, 10.0) for seed, score in ((0, 0.9), (1, None), (2, None))]
    for run in runs:
        run.changes["metric"] = "val/accuracy"
    _, (baseline, fewer, lacking) = text_of(tmp_path, *runs)
    assert baseline[1:3] == ["90.00", "-"] and fewer[1:3] == ["89.00 ± 0.00", "-1.00 (1 of 3 seeds)"]
    assert lacking[1:3] == ["90.00 (1 of 3 seeds)", "+0.00 (1 of 3 seeds)"] and lacking[-1] == "3"
    assert comparison(groups_of(tmp_path))[["seeds", "pairs", "scored"]].to_numpy().tolist() == [[1, 0, 1], [3, 1, 3], [3, 1, 1]]


def test_without_a_baseline_a_note_says_to_add_one(tmp_path):
    RunFolder("kakurenbo").write(tmp_path)
    assert "add method=baseline" in noted(groups_of(tmp_path))


def test_debug_runs_and_epochs_so_far_are_named(tmp_path):
    going = {"status": "running", "epochs": 3, "config": {"debug": True}}
    write_sweep(tmp_path, [RunFolder(method, epochs=6, changes=going) for method in ("baseline", "kakurenbo")])
    found = noted(groups_of(tmp_path))
    assert "No run has finished: these are figures so far, of epochs done: baseline (3); kakurenbo (3)." in found
    assert "Made with debug=true on small generated data, so the figures mean nothing: baseline; kakurenbo." in found
    assert "+0.00" in text_of(tmp_path)[1][1]
