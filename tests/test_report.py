"""`kakurenbo-report`: reading run folders, groups and their comparison."""

import csv
import json
import math
from pathlib import Path

import pytest
from report_runs import RunFolder, groups_of, write_sweep, write_table

from recipes.report.groups import make_groups
from recipes.report.main import draw_all, main
from recipes.report.reading import read_runs
from recipes.report.tables import comparison, comparison_text, count


def scored(method, seed, score, seconds, **options):
    return RunFolder(method, seed, score=score, changes={"seconds": seconds}, image_size=None, **options)


# ---- groups


def test_runs_that_differ_in_their_seed_only_are_a_group_and_baselines_come_first(tmp_path):
    write_sweep(tmp_path, [RunFolder("kakurenbo", 1), RunFolder("baseline", 0), RunFolder("kakurenbo", 0)])
    groups = groups_of(tmp_path)
    assert [(group.name, [run.seed for run in group.runs]) for group in groups] == [("baseline", [0]), ("kakurenbo", [0, 1])]


def test_a_group_is_named_by_what_differs(tmp_path):
    def config(rate, fraction):
        return {
            "F": fraction,
            "seed": 0,
            "optimizer": {"_target_": "torch.optim.SGD", "lr": rate},
            "logger": {"save_dir": f"outputs/{rate}"},
            "trainer": {"default_root_dir": f"outputs/{rate}", "max_epochs": 6},
            "method": {"max_fraction": fraction},
        }

    runs = [RunFolder("kakurenbo", 0, {"max_fraction": f}, config(rate, f)) for f in (0.2, 0.3) for rate in (0.1, 0.05)]
    write_sweep(tmp_path, [*runs, RunFolder("random", 0, {"max_fraction": 0.3}, config(0.1, 0.3))])
    assert [group.name for group in groups_of(tmp_path)] == [
        "kakurenbo, max_fraction=0.2, lr=0.1",
        "kakurenbo, max_fraction=0.2, lr=0.05",
        "kakurenbo, max_fraction=0.3, lr=0.1",
        "kakurenbo, max_fraction=0.3, lr=0.05",
        "random, max_fraction=0.3, lr=0.1",
    ]


def test_epochs_that_a_static_method_adds_are_no_difference(tmp_path):
    config = {"trainer": {"max_epochs": 6}}
    write_sweep(tmp_path, [RunFolder("baseline", config=config), RunFolder("el2n", config=config, changes={"max_epochs": 7})])
    assert [group.name for group in groups_of(tmp_path)] == ["baseline", "el2n"]


def test_another_data_set_is_named_once_and_has_its_own_baseline(tmp_path):
    digits = {"data": {"_target_": "recipes.data.Digits", "size": 32, "crop_padding": 4}}
    images = {"data": {"_target_": "recipes.data.CIFAR10", "size": None, "crop_padding": 2}}
    write_sweep(
        tmp_path, [RunFolder(method, 0, config=config) for config in (digits, images) for method in ("baseline", "random")]
    )
    groups = groups_of(tmp_path)
    pairs = [(group.name, group.baseline.name) for group in groups if group.baseline]
    assert pairs == [("random, data=Digits", "baseline, data=Digits"), ("random, data=CIFAR10", "baseline, data=CIFAR10")]


def test_a_sweep_over_f_leaves_one_baseline_whose_repeats_count_as_one_seed(tmp_path):
    runs = [scored("baseline", 0, score, 20.0, config={"F": f}) for f, score in ((0.2, 0.8), (0.3, 0.9))]
    write_sweep(tmp_path, [*runs, scored("kakurenbo", 0, 0.9, 10.0)])
    groups = groups_of(tmp_path)
    baseline, other = comparison(groups).to_dict("records")
    assert (baseline["group"], baseline["seeds"], baseline["runs"]) == ("baseline", 1, 2)
    assert baseline["score"] == pytest.approx(0.85) and math.isnan(baseline["score_std"])
    assert other["difference"] == pytest.approx(0.05)
    assert comparison_text(groups).rows[0][-1] == "1 (2 runs)"


def test_a_baseline_of_other_length_is_compared_with_when_it_is_the_only_one(tmp_path):
    long, short = {"trainer": {"max_epochs": 6}}, {"trainer": {"max_epochs": 4}}
    write_sweep(tmp_path, [RunFolder("baseline", 0, config=long), RunFolder("random", 0, config=short, epochs=4)])
    assert [(group.name, group.baseline and group.baseline.name) for group in groups_of(tmp_path)] == [
        ("baseline, max_epochs=6", None),
        ("random, max_epochs=4", "baseline, max_epochs=6"),
    ]


# ---- comparison


def test_means_differences_and_savings_are_those_computed_by_hand(tmp_path):
    runs = [scored("baseline", 0, 0.90, 20.0), scored("baseline", 1, 0.92, 40.0), scored("kakurenbo", 0, 0.91, 15.0)]
    write_sweep(tmp_path, [*runs, scored("kakurenbo", 1, 0.92, 20.0), scored("kakurenbo", 2, 0.96, 10.0)])
    baseline, other = comparison(groups_of(tmp_path)).to_dict("records")
    assert baseline["score"] == pytest.approx(0.91) and baseline["score_std"] == pytest.approx(math.sqrt(2e-4))
    assert other["score"] == pytest.approx(0.93) and other["score_std"] == pytest.approx(math.sqrt(7e-4))
    assert other["difference"] == pytest.approx(0.005) and other["difference_std"] == pytest.approx(math.sqrt(0.5e-4))
    assert other["seconds"] == pytest.approx(15.0) and other["seconds_std"] == pytest.approx(5.0)
    assert other["saving"] == pytest.approx((0.25 + 0.5) / 2)
    assert (baseline["seeds"], other["seeds"], other["runs"]) == (2, 3, 3)


def test_forwards_backwards_and_hidden_share_are_counted_over_the_run(tmp_path):
    totals = {
        "samples_trained": 600,
        "samples_hidden": 300,
        "samples_refreshed": 250,
        "samples_looked": 40,
        "samples_rejected": 100,
    }
    RunFolder(changes={"totals": totals}).write(tmp_path)
    (row,) = comparison(groups_of(tmp_path)).to_dict("records")
    assert [row[name] for name in ("samples_trained", "forwards", "backwards", "hidden_share")] == [600, 890, 600, 0.4]


def test_the_table_says_mean_and_deviation_in_percent_and_points(tmp_path):
    runs = [scored("baseline", 0, 0.90, 20.0), scored("baseline", 1, 0.92, 40.0), scored("kakurenbo", 0, 0.91, 15.0)]
    write_sweep(tmp_path, [*runs, scored("kakurenbo", 1, 0.92, 20.0)])
    table = comparison_text(groups_of(tmp_path))
    assert table.headings[1:3] == ["accuracy (%)", "difference (points)"]
    assert table.rows[1][:5] == ["kakurenbo", "91.50 ± 0.71", "+0.50 ± 0.71", "17.5 ± 3.5", "37.5%"]


def test_one_seed_has_no_deviation_and_other_seeds_no_pair(tmp_path, capsys):
    write_sweep(tmp_path, [scored("baseline", 0, 0.9, 20.0), scored("kakurenbo", 1, 0.91, 15.0)])
    assert comparison_text(groups_of(tmp_path)).rows[1][1:5] == ["91.00", "-", "15.0", "-"]
    main([str(tmp_path), "--format", "terminal"])
    assert "No baseline with the same data, network and seeds for kakurenbo." in " ".join(capsys.readouterr().out.split())


def test_without_a_baseline_the_table_says_to_add_one(tmp_path, capsys):
    RunFolder("kakurenbo").write(tmp_path)
    main([str(tmp_path), "--format", "terminal"])
    assert "add method=baseline" in capsys.readouterr().out


def test_a_metric_that_is_no_share_is_shown_as_it_is(tmp_path):
    write_sweep(tmp_path, [RunFolder("baseline", 0, score=3.25, changes={"metric": "val/perplexity"})])
    table = comparison_text(groups_of(tmp_path))
    assert table.headings[1] == "perplexity" and table.rows[0][1] == "3.25"


def test_runs_without_validation_are_compared_by_their_seconds(tmp_path):
    write_sweep(tmp_path, [scored("baseline", None, None, 20.0), scored("random", None, None, 10.0)])
    assert comparison_text(groups_of(tmp_path)).rows[1][:5] == ["random, max_fraction=0.3"[:6], "-", "-", "10.0", "50.0%"]


@pytest.mark.parametrize(
    ("number", "text"), [(9876, "9,876"), (12_345, "12.3k"), (123_456, "123k"), (999_999, "1.00M"), (43.2e6, "43.2M")]
)
def test_numbers_of_samples_are_short(number, text):
    assert count(number) == text


# ---- reading what is broken


def break_file(name, content=None, keep=None):
    def change(folder):
        path = folder / name
        if content is None and keep is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:keep] if content is None else content)

    return change


@pytest.mark.parametrize(
    ("change", "file", "reason"),
    [
        (break_file("run.json", keep=200), "run.json", "half-written"),
        (break_file("run.json", b""), "run.json", "empty"),
        (break_file("run.json", b"[1]"), "run.json", "no JSON object"),
        (break_file("run.json", b'{"format": 2}'), "run.json", "format=2"),
        (break_file("run.json", b'{"format": 1, "method": "x", "status": "flying"}'), "run.json", "status='flying'"),
        (break_file("selection.parquet"), "selection.parquet", "missing"),
        (break_file("selection.parquet", keep=500), "selection.parquet", "half-written"),
        (break_file("selection.parquet", b""), "selection.parquet", "empty"),
        (break_file("samples.parquet", b"PAR1"), "samples.parquet", "half-written"),
        (break_file("thumbnails.npz", keep=300), "thumbnails.npz", "half-written"),
        (break_file("thumbnails.npz", b""), "thumbnails.npz", "empty"),
    ],
)
def test_a_broken_file_is_named_and_the_other_runs_are_reported(tmp_path, capsys, change, file, reason):
    whole, broken = RunFolder("baseline").write(tmp_path / "0"), RunFolder("kakurenbo").write(tmp_path / "1")
    change(broken)
    runs, problems = read_runs([tmp_path])
    assert [run.folder for run in runs] == ([whole] if file == "run.json" else [whole, broken])
    assert [problem.path for problem in problems] == [str(broken / file)] and reason in problems[0].reason
    main([str(tmp_path), "--format", "csv"])
    said = capsys.readouterr()
    assert str(broken / file) in said.err and "baseline" in said.out


def test_columns_that_are_missing_leave_their_figures_out(tmp_path):
    folder = RunFolder("kakurenbo", image_size=None).write(tmp_path)
    write_table(folder / "selection.parquet", {"epoch": [0, 1], "val/accuracy": [0.5, None], "lr_factor": ["a", "b"]}, {})
    write_table(folder / "samples.parquet", {"index": [0], "loss": [0.5]}, {})
    runs, problems = read_runs([folder])
    assert "no column target, times_trained, times_hidden" in problems[0].reason
    drawn = draw_all(make_groups(runs), problems)
    assert [one.picture.name for one in drawn] == ["overview", "phases"] and len(problems) == 1


def test_any_value_in_run_json_may_be_of_another_kind(tmp_path):
    description = json.loads((RunFolder("kakurenbo").write(tmp_path / "whole") / "run.json").read_text())
    fields = [name for name in description if name not in ("format", "method", "status")]
    values = [None, "text", [], [1, None], {"a": {"b": [None]}}, -1, 1e308, True]
    for number, value in enumerate(values):
        run = RunFolder("kakurenbo", changes=dict.fromkeys(fields, value), epochs=2, samples=30, image_size=None)
        run.write(tmp_path / str(number))
    target = tmp_path / "report"
    main([str(tmp_path), "-o", str(target)])
    page = (target / "report.html").read_text()
    assert "could not be drawn" not in page
    assert page.count("<details>") == len(values) + 1


def test_running_and_stopped_runs_are_drawn_and_listed_but_not_compared(tmp_path, capsys):
    RunFolder("baseline").write(tmp_path / "0")
    RunFolder("kakurenbo", epochs=6, changes={"status": "running", "epochs": 3}).write(tmp_path / "1")
    stopped = {"status": "stopped", "epochs": 0, "error": "ValueError: <b>", "score": None}
    RunFolder("random", changes=stopped, left_out=("selection.parquet", "samples.parquet", "thumbnails.npz")).write(
        tmp_path / "2"
    )
    main([str(tmp_path)])
    said, page = capsys.readouterr().out, (tmp_path / "report" / "report.html").read_text()
    assert f"{tmp_path / '1'}: has not finished (or was killed) after 3 epochs of 6" in said
    assert f"{tmp_path / '2'}: stopped after 0 epochs of 6" in said and ".parquet" not in said
    assert [row["group"] for row in csv.DictReader((tmp_path / "report" / "comparison.csv").open())] == ["baseline"]
    assert "ValueError: &lt;b&gt;" in page and ">3 of 6<" in page


def test_runs_that_all_go_on_are_compared_so_far(tmp_path, capsys):
    write_sweep(tmp_path, [RunFolder(method, changes={"status": "running"}) for method in ("baseline", "kakurenbo")])
    main([str(tmp_path), "--format", "terminal"])
    said = " ".join(capsys.readouterr().out.split())
    assert "No run has finished" in said and "+0.00" in said and "left out" not in said


def test_old_runs_are_named_with_the_reason(tmp_path):
    RunFolder("baseline").write(tmp_path / "new" / "baseline")
    (tmp_path / "new" / "results.json").write_text("[]")
    (tmp_path / "old" / "kakurenbo").mkdir(parents=True)
    (tmp_path / "old" / "results.json").write_text("[]")
    (tmp_path / "old" / "kakurenbo" / "metrics.csv").write_text("epoch\n0\n")
    runs, problems = read_runs([tmp_path])
    assert len(runs) == 1
    assert [problem.path for problem in problems] == [str(tmp_path / "old" / "results.json")]
    assert "without run.json" in problems[0].reason


def test_a_run_counts_once_however_often_its_folder_is_named(tmp_path, monkeypatch):
    folder = RunFolder("baseline").write(tmp_path / "F=0.2" / "baseline")
    monkeypatch.chdir(tmp_path)
    runs, problems = read_runs([tmp_path, folder, Path("F=0.2"), folder / "run.json"])
    assert len(runs) == 1 and not problems
    assert runs[0].history.columns.shape[0] == 6


@pytest.mark.parametrize("made", [False, True])
def test_nothing_to_report_ends_with_2_and_says_what_to_type(tmp_path, capsys, made):
    folder = tmp_path / "runs"
    if made:
        folder.mkdir()
    with pytest.raises(SystemExit) as ended:
        main([str(folder)])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    assert "kakurenbo-train -m method=baseline,kakurenbo seed=0,1" in said and "run.json" in said
    assert ("is not there" in said) is not made


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    RunFolder("baseline").write(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "run"), "-o", str(tmp_path / "file")])
    assert ended.value.code == 2 and "Name a folder that can, with -o." in capsys.readouterr().err
