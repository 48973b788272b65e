"""Reading run folders that are of an older format, broken, unfinished, linked or closed."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from report_runs import RunFolder, write_table

from kakurenbo_lightning.report import make_groups, read_runs, write_report
from kakurenbo_lightning.report.page import draw_all


def test_a_folder_of_format_1_is_read_as_the_same_run_of_today(tmp_path):
    for method in ("kakurenbo", "selective_backprop", "plb"):
        folders = [RunFolder(method, format=number).write(tmp_path / method / str(number)) for number in (1, 2)]
        (old, new), problems = read_runs(folders)
        assert (
            not problems
            and old.info == new.info
            and old.totals == new.totals
            and old.figures == pytest.approx(new.figures, nan_ok=True)
        )
        pd.testing.assert_frame_equal(old.history, new.history)
    written = json.loads((tmp_path / "plb" / "1" / "run.json").read_text())
    assert (written["format"], written["family"]) == (1, "pod") and "samples_looked" in written["totals"]


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
        (break_file("run.json", b'{"format": 3}'), "run.json", "format=3, and this version reads 1 to 2"),
        (break_file("run.json", b'{"format": 1, "method": "x", "status": "flying"}'), "run.json", "status='flying'"),
        (break_file("run.json", b'{"format": 2, "status": "running"}'), "run.json", "names no method"),
        (break_file("selection.parquet"), "selection.parquet", "missing"),
        (break_file("selection.parquet", keep=500), "selection.parquet", "half-written"),
        (break_file("selection.parquet", b""), "selection.parquet", "empty"),
        (break_file("samples.parquet", b"PAR1"), "samples.parquet", "half-written"),
        (break_file("thumbnails.npz", keep=300), "thumbnails.npz", "half-written"),
        (break_file("thumbnails.npz", b""), "thumbnails.npz", "empty"),
    ],
)
def test_a_broken_file_is_named_and_the_other_runs_are_read(tmp_path, change, file, reason):
    whole, broken = RunFolder("baseline").write(tmp_path / "0"), RunFolder("kakurenbo").write(tmp_path / "1")
    change(broken)
    runs, problems = read_runs([tmp_path])
    assert [run.folder for run in runs] == ([whole] if file == "run.json" else [whole, broken])
    assert [problem.path for problem in problems] == [str(broken / file)] and reason in problems[0].reason


def test_columns_that_are_missing_leave_their_figures_out(tmp_path):
    folder = RunFolder("kakurenbo", image_size=None).write(tmp_path)
    write_table(folder / "selection.parquet", {"epoch": [0, 1], "val/accuracy": [0.5, None], "lr_factor": ["a", "b"]}, {})
    write_table(folder / "samples.parquet", {"index": [0], "loss": [0.5]}, {})
    runs, problems = read_runs([folder])
    assert "no column target, times_trained, times_hidden" in problems[0].reason
    pictures = draw_all(make_groups(runs), problems)
    assert [picture.name for picture in pictures] == ["overview", "phases"] and len(problems) == 1


def test_broken_histograms_leave_the_other_columns(tmp_path):
    folder = RunFolder("kakurenbo", image_size=None).write(tmp_path)
    columns = {"epoch": [0, 1], "val/accuracy": [0.5, 0.6], "loss_histogram": [[1, 2], [None, 3]]}
    write_table(folder / "selection.parquet", columns, {"loss_edges": [0, 1, 2]})
    (run,), problems = read_runs([folder])
    assert run.history["val/accuracy"].tolist() == [0.5, 0.6] and run.losses is None
    assert len(problems) == 1 and "loss_histogram has gaps" in problems[0].reason


@pytest.mark.slow
def test_any_value_in_run_json_may_be_of_another_kind(tmp_path):
    description = json.loads((RunFolder("kakurenbo").write(tmp_path / "whole") / "run.json").read_text())
    fields = [name for name in description if name not in ("format", "method", "status")]
    values = [None, "text", [], [1, None], {"a": {"b": [None]}}, -1, 1e308, True]
    for number, value in enumerate(values):
        run = RunFolder("kakurenbo", changes=dict.fromkeys(fields, value), epochs=2, samples=30, image_size=None)
        run.write(tmp_path / str(number))
    runs, problems = read_runs([tmp_path])
    page = write_report(make_groups(runs), problems, tmp_path / "report", "odd").read_text()
    assert "could not be drawn" not in page
    assert page.count("<details>") == len(values) + 1


# --- folders


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


def test_a_run_counts_once_however_often_its_folder_is_named(tmp_path, monkeypatch):
    folder = RunFolder("baseline").write(tmp_path / "F=0.2" / "baseline")
    monkeypatch.chdir(tmp_path)
    runs, problems = read_runs([tmp_path, folder, Path("F=0.2"), folder / "run.json"])
    assert len(runs) == 1 and not problems
    assert len(runs[0].history) == 6
