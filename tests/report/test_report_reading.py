"""`kakurenbo-report`: reading run folders that are broken, unfinished, old, linked or closed."""

import csv
import json
import os
from pathlib import Path

import pytest
from report_runs import RunFolder, write_sweep, write_table

from kakurenbo_lightning.report.groups import make_groups
from kakurenbo_lightning.report.main import draw_all, main
from kakurenbo_lightning.report.reading import read_runs


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


def test_a_run_that_lost_its_description_is_named(tmp_path):
    RunFolder("baseline").write(tmp_path / "0")
    lost = RunFolder("kakurenbo", left_out=("run.json",)).write(tmp_path / "1")
    runs, problems = read_runs([tmp_path])
    assert len(runs) == 1 and [problem.path for problem in problems] == [str(lost / "selection.parquet")]
    assert "run.json is missing" in problems[0].reason


def test_linked_folders_are_followed_once_and_not_in_circles(tmp_path):
    inside = RunFolder("baseline").write(tmp_path / "runs" / "0")
    outside = RunFolder("kakurenbo").write(tmp_path / "elsewhere" / "run")
    for name, target in (("1", outside), ("2", inside), ("up", tmp_path), ("here", tmp_path / "runs")):
        (tmp_path / "runs" / name).symlink_to(target)
    (outside / "back").symlink_to(tmp_path / "runs")
    runs, problems = read_runs([tmp_path / "runs"])
    assert sorted(run.folder for run in runs) == [outside, inside] and not problems


def test_folders_that_may_not_be_opened_are_named(tmp_path):
    RunFolder("baseline").write(tmp_path / "open")
    for name in ("closed", "listed"):
        RunFolder("kakurenbo").write(tmp_path / name)
    (tmp_path / "closed").chmod(0o000)
    (tmp_path / "listed").chmod(0o444)
    try:
        if os.access(tmp_path / "closed", os.R_OK):
            pytest.skip("this user may open everything")
        runs, problems = read_runs([tmp_path, tmp_path / "closed" / "run.json"])
    finally:
        (tmp_path / "closed").chmod(0o755)
        (tmp_path / "listed").chmod(0o755)
    assert len(runs) == 1
    places = [tmp_path / "closed", tmp_path / "closed" / "run.json", tmp_path / "listed" / "run.json"]
    assert sorted(problem.path for problem in problems) == [str(place) for place in places]
    assert all("Permission denied" in problem.reason for problem in problems)


def test_a_name_that_is_too_long_is_named(tmp_path, capsys):
    RunFolder("baseline").write(tmp_path / "run")
    main(["x" * 300, str(tmp_path / "run"), "--format", "terminal"])
    assert f"{'x' * 300}: cannot be opened: File name too long" in capsys.readouterr().out


def test_broken_histograms_leave_the_other_columns(tmp_path):
    folder = RunFolder("kakurenbo", image_size=None).write(tmp_path)
    columns = {"epoch": [0, 1], "val/accuracy": [0.5, 0.6], "loss_histogram": [[1, 2], [None, 3]]}
    write_table(folder / "selection.parquet", columns, {"loss_edges": [0, 1, 2]})
    (run,), problems = read_runs([folder])
    assert run.history.column("val/accuracy").tolist() == [0.5, 0.6] and run.history.counts is None
    assert len(problems) == 1 and "loss_histogram has gaps" in problems[0].reason


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


def test_debug_runs_and_unfinished_epochs_are_told(tmp_path, capsys):
    going = {"status": "running", "epochs": 3}
    runs = [RunFolder(method, epochs=6, changes={**going, "config": {"debug": True}}) for method in ("baseline", "kakurenbo")]
    write_sweep(tmp_path, runs)
    main([str(tmp_path), "--format", "terminal"])
    said = " ".join(capsys.readouterr().out.split())
    assert "No run has finished: these are figures so far, of epochs done: baseline (3); kakurenbo (3)." in said
    assert "Made with debug=true on small generated data, so the figures mean nothing: baseline; kakurenbo." in said


def test_a_report_of_several_folders_lies_beside_them(tmp_path):
    for name in ("a", "b"):
        write_sweep(tmp_path / "results" / name, [RunFolder("baseline")])
    main([str(tmp_path / "results" / "a"), str(tmp_path / "results" / "b")])
    assert (tmp_path / "results" / "report" / "report.html").is_file()
