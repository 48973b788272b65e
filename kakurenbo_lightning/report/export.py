"""Writes what the data doctor finds of every sample for other programs: a table as cleanlab has it, or sample fields for FiftyOne."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kakurenbo_lightning.core.atomic import replacing
from kakurenbo_lightning.record.schema import SAMPLES, json_ready
from kakurenbo_lightning.report.doctor import COLUMNS, SCORE, is_issue
from kakurenbo_lightning.report.reading import Run, by_index, read_table

ABOUT = (
    "One value per sample, in the order of the training data set. For a FiftyOne dataset in that order: for name, values in "
    "json.load(open(path))['fields'].items(): dataset.set_values(name, values). For one whose samples have their index in a field "
    "'index': dataset.set_values(name, dict(enumerate(values)), key_field='index')."
)


def export(runs: list[Run], path: Path) -> str:
    """Write a file of the only run, and return a sentence that says what is in it.

    Args:
        runs: what was read; only one can be written.
        path: its ending says for whom: ``.csv`` has the columns index, given_label, label_quality and is_label_issue, as in cleanlab's
            ``CleanLearning.get_label_issues``, whose predicted_label is not recorded; ``.json`` fields for FiftyOne's ``set_values``.

    Raises:
        ValueError: one sentence: another ending, several runs, or a run without judged samples.
        OSError: the file cannot be written.
    """
    if path.suffix not in WRITERS:
        raise ValueError(f"--export={str(path)!r} is not possible: it must end with {' or '.join(WRITERS)}; try cleanlab.csv.")
    if len(runs) != 1:
        names = ", ".join(str(run.folder) for run in runs[:3])
        raise ValueError(f"--export writes one run, and there are {len(runs)}: name the folder of one alone ({names}, ...).")
    samples = read_judged(runs[0].folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        WRITERS[path.suffix](samples, part)
    return f"{path}: {len(samples):,} samples, {int(is_issue(samples).sum()):,} of them label issues"


def read_judged(folder: Path) -> pd.DataFrame:
    """The rows of a run's samples.parquet by index, for :mod:`~kakurenbo_lightning.report.doctor`; a ValueError says why there are none."""
    path = folder / SAMPLES
    if not path.is_file():
        raise ValueError(
            f"--export needs {path}, which is not there: it is written every few epochs and when a run has finished."
        )
    try:
        table, _ = read_table(path, ["index", *COLUMNS])
    except Exception as error:  # a broken file makes its reader raise anything; columns are missing in files of older versions
        reason = " ".join(str(error).split())
        raise ValueError(f"--export cannot use {path} ({reason}): record the run again with this version.") from error
    samples = by_index(table).sort_index()
    if not samples[SCORE].notna().any():
        raise ValueError(
            f"--export finds no judged sample in {path}: of no sample it is known whether it was predicted correctly."
        )
    return samples


def label_quality(samples: pd.DataFrame) -> pd.Series:
    """The margin of each sample between 0 (probably wrong) and 1, by the logistic function; NaN where it was not judged."""
    return 1 / (1 + np.exp(-samples[SCORE].astype("float64")))


def write_cleanlab(samples: pd.DataFrame, path: Path) -> None:
    """Write a row per sample; a label quality that is not known is empty."""
    columns = {"given_label": samples["target"], "label_quality": label_quality(samples), "is_label_issue": is_issue(samples)}
    pd.DataFrame(columns).to_csv(path, index_label="index")


def write_fiftyone(samples: pd.DataFrame, path: Path) -> None:
    """Write lists by the name of their field, one value per sample; what is not known is null."""
    fields: dict[str, Any] = {"index": samples.index.to_series(), "given_label": samples["target"]}
    fields |= {"label_quality": label_quality(samples), "is_label_issue": is_issue(samples)}
    fields |= {name: samples[name] for name in COLUMNS if name not in ("target", "correct")}
    lists = {name: values.tolist() for name, values in fields.items()}
    path.write_text(json.dumps(json_ready({"about": ABOUT, "fields": lists}), allow_nan=False) + "\n", encoding="utf-8")


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {".csv": write_cleanlab, ".json": write_fiftyone}
