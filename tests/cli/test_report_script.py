"""The console script `kakurenbo-report`."""

import csv

import pytest
from report_runs import RunFolder, write_sweep

from kakurenbo_lightning.cli.report import NARROW, default_target, main


def said(capsys, *arguments):
    """What the script prints on stdout and on stderr, without line breaks."""
    main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return " ".join(printed.out.split()), " ".join(printed.err.split())


def test_the_help_shows_what_to_type(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "kakurenbo-report multirun/2026-01-31/12-00-00 --format markdown >> README.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "begin"),
    [
        ("markdown", "| method | accuracy (%) |"),
        ("latex", "% \\usepackage{booktabs}\n\\begin{tabular}"),
        ("csv", "group,method,metric,score,"),
    ],
)
def test_other_formats_print_one_table_and_name_problems_apart_from_it(tmp_path, capsys, kind, begin):
    RunFolder("baseline").write(tmp_path / "0")
    broken = RunFolder("random").write(tmp_path / "1") / "run.json"
    broken.write_text("")
    main([str(tmp_path), "--format", kind])
    printed = capsys.readouterr()
    assert printed.out.startswith(begin) and "baseline" in printed.out and str(broken) not in printed.out
    assert f"{broken}: cannot be read" in printed.err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("columns", [NARROW - 1, NARROW])
def test_a_narrow_terminal_has_fewer_columns_and_a_note_says_so(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    write_sweep(tmp_path, [RunFolder("baseline", seed) for seed in (0, 1)])
    main([str(tmp_path), "--format", "terminal"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert ("forwards" in lines[0], "Not shown for want of room" in " ".join(lines)) == (columns >= NARROW, columns < NARROW)


def test_a_report_is_written_into_the_folder_and_printed(tmp_path, capsys):
    """Running and stopped runs are drawn and listed but not compared."""
    RunFolder("baseline", image_size=None).write(tmp_path / "0")
    RunFolder("kakurenbo", score=0.91).write(tmp_path / "3")
    RunFolder("kakurenbo", 1, epochs=6, image_size=None, changes={"status": "running", "epochs": 3}).write(tmp_path / "1")
    stopped = {"status": "stopped", "epochs": 0, "error": "ValueError: <b>", "score": None}
    missing = ("selection.parquet", "samples.parquet", "thumbnails.npz")
    RunFolder("random", changes=stopped, left_out=missing).write(tmp_path / "2")
    out, _ = said(capsys, tmp_path)
    assert "kakurenbo 91.00 +1.00" in out and f"report: {tmp_path / 'report' / 'report.html'} (0." in out
    assert f"{tmp_path / '1'}: has not finished (or was killed) after 3 epochs of 6" in out
    assert f"{tmp_path / '2'}: stopped after 0 epochs of 6" in out and ".parquet" not in out
    assert [row["group"] for row in csv.DictReader((tmp_path / "report" / "comparison.csv").open())] == ["baseline", "kakurenbo"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "ValueError: &lt;b&gt;" in page and ">3 of 6<" in page


def test_runs_that_all_go_on_are_compared_so_far(tmp_path, capsys):
    write_sweep(tmp_path, [RunFolder(method, changes={"status": "running"}) for method in ("baseline", "kakurenbo")])
    out, _ = said(capsys, tmp_path, "--format", "terminal")
    assert "No run has finished" in out and "+0.00" in out and "left out:" not in out


def test_a_name_that_is_too_long_is_named(tmp_path, capsys):
    RunFolder("baseline").write(tmp_path / "run")
    out, _ = said(capsys, "x" * 300, tmp_path / "run", "--format", "terminal")
    assert f"{'x' * 300}: cannot be opened: File name too long" in out


@pytest.mark.parametrize("made", [False, True])
def test_nothing_to_report_ends_with_2_and_says_what_to_type(tmp_path, capsys, made):
    folder = tmp_path / "runs"
    if made:
        folder.mkdir()
    with pytest.raises(SystemExit) as ended:
        main([str(folder)])
    printed = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    assert "kakurenbo-train -m method=baseline,kakurenbo seed=0,1" in printed and "run.json" in printed
    assert ("is not there" in printed) is not made


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    RunFolder("baseline").write(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "run"), "-o", str(tmp_path / "file")])
    assert ended.value.code == 2 and "Name a folder that can, with -o." in capsys.readouterr().err


def test_a_report_of_several_folders_lies_beside_them(tmp_path):
    first, second = tmp_path / "results" / "a", tmp_path / "results" / "b"
    for folder in (first, second):
        folder.mkdir(parents=True)
    assert default_target([first]) == first / "report"
    assert default_target([first, second]) == tmp_path / "results" / "report"
