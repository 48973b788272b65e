"""The data doctor: which labels it takes for wrong, which classes for hard, and where the report says so."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from report_runs import RunFolder, groups_of, write_sweep

from kakurenbo_lightning.cli.report import main
from kakurenbo_lightning.record.schema import SAMPLES
from kakurenbo_lightning.report.doctor import agreement, examine, hardness, is_issue, suspects
from kakurenbo_lightning.report.doctor_section import doctor_sections
from kakurenbo_lightning.report.page import render


def samples(**columns):
    """Six samples of two classes: 1 and 4 look wrongly labelled, 5 was never measured."""
    return pd.DataFrame(
        {
            "target": [0, 0, 0, 1, 1, 1],
            "correct": [1.0, 0.0, 1.0, 0.0, 0.0, math.nan],
            "times_measured": [4, 4, 4, 4, 3, 0],
            "times_forgotten": [0, 0, 1, 3, 0, 0],
            "average_loss": [0.1, 4.0, 0.2, 1.0, 3.0, math.nan],
            "average_label_confidence": [0.9, 0.02, 0.8, 0.4, 0.05, math.nan],
            "average_margin": [3.0, -4.0, 2.0, -0.5, -3.5, math.nan],
        }
        | columns
    ).rename(index=lambda row: 10 * row)


def test_suspects_are_those_of_low_margin_with_their_place_by_each_other_figure():
    found = suspects(samples())
    assert found.index.tolist() == [10, 40, 30, 20, 0], "the sample that was never measured has no place"
    assert found["is_issue"].tolist() == [True, True, False, False, False]
    assert found["rank_by_average_loss"].tolist() == found["rank_by_average_label_confidence"].tolist() == [1, 2, 3, 4, 5]
    assert found["rank_by_times_forgotten"].tolist() == [3, 3, 1, 2, 3]


def test_a_label_that_is_predicted_in_the_end_is_no_issue():
    assert is_issue(samples()).tolist() == [False, True, False, False, True, False]
    assert not is_issue(samples(correct=[1.0] * 6)).any()


def test_ranks_agree_as_far_as_they_do():
    found = agreement(samples())
    assert found["average_loss"] == found["average_label_confidence"] == pytest.approx(1)
    known = samples().dropna()
    places = [known["average_margin"].rank(), -known["times_forgotten"].rank()]
    assert found["times_forgotten"] == pytest.approx(np.corrcoef(*places)[0, 1])
    assert math.isnan(agreement(samples(times_forgotten=0))["times_forgotten"])


def test_classes_are_in_the_order_of_their_hardness_without_samples_nobody_measured():
    found = hardness(samples())
    assert found.index.tolist() == [1, 0] and found["samples"].tolist() == [2, 3] and found["issues"].tolist() == [1, 1]
    assert found.loc[1, "average_label_confidence"] == pytest.approx((0.4 + 0.05) / 2)
    assert found["correct"].tolist() == pytest.approx([0, 2 / 3])
    assert hardness(samples(target=-1)).empty


def test_nothing_is_found_where_nothing_is_judged():
    assert examine(samples(average_margin=math.nan), 15) is None, "a regression"
    assert examine(samples().drop(columns="average_margin"), 15) is None, "an older version"
    found = examine(samples(), 2)
    assert (found.issues, found.judged, found.count, len(found.suspects)) == (2, 5, 6, 2)


# --- in a report


def test_the_page_and_the_terminal_show_the_findings_of_the_baseline(tmp_path, capsys):
    runs = [RunFolder("kakurenbo", flipped=3), RunFolder("baseline", flipped=20), RunFolder("baseline", 1, flipped=2)]
    groups = groups_of(write_sweep(tmp_path, runs))
    (section,) = doctor_sections(groups)
    assert (
        section.title == "baseline, seed 0" and "20 of 199 labels are probably wrong; 1 more were not judged" in section.summary
    )
    assert "loss 1.00, probability 1.00, times forgotten -0.0" in section.summary
    assert section.suspects["sample"].tolist() == [f"#{index}" for index in range(19, 4, -1)]
    assert section.suspects["label"][0] == "car" and section.suspects["by loss"][0] == "1." and len(section.classes) == 10
    page = render(groups, [], [], "a sweep")
    assert "20 of 199 labels" in page and ">#5<" in page and '<a href="#data">' in page
    main([str(tmp_path), "--format", "terminal"])
    printed = capsys.readouterr().out
    assert "data doctor, by baseline, seed 0" in printed and "#15 " in printed and "#14 " not in printed


def test_a_report_of_older_runs_has_no_findings(tmp_path, capsys):
    groups = groups_of(write_sweep(tmp_path, [RunFolder("baseline")]))
    assert not doctor_sections(groups) and "#data" not in render(groups, [], [], "old")
    main([str(tmp_path), "--format", "terminal"])
    assert "doctor" not in capsys.readouterr().out


def test_a_report_says_why_there_are_no_findings(tmp_path, capsys):
    """A baseline trains any loss: where no value of a sample was found, nothing is known of labels."""
    folders = write_sweep(tmp_path, [RunFolder("baseline", flipped=3), RunFolder("random", flipped=3)])
    for path in tmp_path.rglob(SAMPLES):
        table = parquet.read_table(path)
        place = table.column_names.index("average_margin")
        parquet.write_table(table.set_column(place, "average_margin", pa.nulls(len(table), pa.float32())), path)
    main([str(tmp_path), "--format", "terminal"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "No data doctor (labels that are probably wrong), because no value of a sample" in printed
    assert "return sample_loss, logits and target from training_step" in printed and "Without it: baseline; random" in printed
    assert "No data doctor" in render(groups_of(folders), [], [], "a sweep")
