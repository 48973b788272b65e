"""The label quality of every sample, written for cleanlab and FiftyOne."""

import json

import pandas as pd
import pytest
from report_runs import RunFolder, write_sweep, write_table

from kakurenbo_lightning.cli.report import main
from kakurenbo_lightning.record.schema import OVER_EPOCHS


def test_a_csv_has_the_columns_of_cleanlab(tmp_path, capsys):
    run = RunFolder("baseline", flipped=20).write(tmp_path / "run")
    main([str(run), "--export", str(tmp_path / "new" / "cleanlab.csv")])
    assert "cleanlab.csv: 200 samples, 20 of them label issues" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "new" / "cleanlab.csv")
    assert list(table) == ["index", "given_label", "label_quality", "is_label_issue"]
    assert table["index"].tolist() == list(range(200)) and table["given_label"].tolist() == [row % 10 for row in range(200)]
    assert table["is_label_issue"].tolist() == [True] * 20 + [False] * 180
    quality = table["label_quality"]
    assert quality.isna().tolist() == [False] * 199 + [True] and quality.dropna().between(0, 1).all()
    assert quality.sort_values().index[:20].tolist() == list(range(19, -1, -1)), "the order is that of the report"
    assert not (run / "report").exists()


def test_a_json_has_fields_for_fiftyone(tmp_path):
    run = RunFolder("baseline", flipped=20).write(tmp_path / "run")
    main([str(run), "--export", str(tmp_path / "fiftyone.json")])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    written = json.loads((tmp_path / "fiftyone.json").read_text(), parse_constant=refuse)
    fields = written["fields"]
    assert list(fields) == ["index", "given_label", "label_quality", "is_label_issue", *OVER_EPOCHS]
    assert {len(values) for values in fields.values()} == {200} and "dataset.set_values(name, values)" in written["about"]
    assert fields["label_quality"][-1] is None and fields["is_label_issue"][18:22] == [True, True, False, False]
    assert fields["times_measured"][:2] == [6, 6] and isinstance(fields["times_measured"][0], int)


@pytest.mark.parametrize(
    ("runs", "name", "said"),
    [
        ([RunFolder(flipped=2)], "labels.xlsx", "labels.xlsx' is not possible: it must end with .csv or .json"),
        ([RunFolder(flipped=2), RunFolder("baseline", flipped=2)], "a.csv", "writes one run, and there are 2: name the folder"),
        ([RunFolder(left_out=("samples.parquet",))], "a.csv", "samples.parquet, which is not there"),
        ([RunFolder()], "a.json", "it has no column times_measured"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(tmp_path, capsys, runs, name, said):
    write_sweep(tmp_path / "runs", runs)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "runs"), "--export", str(tmp_path / name)])
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and said in printed and printed.startswith("kakurenbo-report: --export")
    assert printed.count("\n") == 1 and not (tmp_path / name).exists()


def test_a_run_whose_predictions_nobody_judged_has_no_label_quality(tmp_path, capsys):
    run = RunFolder("baseline", flipped=2).write(tmp_path / "run")
    columns = {name: [0.5, 0.5] for name in ("loss", "average_loss", "average_label_confidence")}
    columns |= {
        name: [0, 1] for name in ("index", "target", "times_trained", "times_hidden", "times_measured", "times_forgotten")
    }
    write_table(run / "samples.parquet", columns | {"correct": [None, None], "average_margin": [None, None]}, {"epochs": 1})
    with pytest.raises(SystemExit):
        main([str(run), "--export", str(tmp_path / "a.csv")])
    assert "finds no judged sample" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    run = RunFolder("baseline", flipped=2).write(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main([str(run), "--export", str(tmp_path / "file" / "a.csv")])
    assert ended.value.code == 2 and str(tmp_path / "file") in capsys.readouterr().err
