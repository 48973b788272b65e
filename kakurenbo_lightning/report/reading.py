"""Reads run folders, as :class:`~kakurenbo_lightning.record.RunRecorder` writes them; what cannot be read is named instead of raised."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import parquet

from kakurenbo_lightning.core.durations import time_factor
from kakurenbo_lightning.record import schema
from kakurenbo_lightning.record.schema import EPOCHS, HISTOGRAM, RUN, SAMPLES, THUMBNAILS, Thumbnails
from kakurenbo_lightning.report.doctor import COLUMNS, Findings, examine

COUNTED = ["times_trained", "times_hidden"]
FOUND = 15  # samples and classes that the data doctor shows


@dataclass(frozen=True)
class Problem:
    """Something that the report leaves out: a folder, a file or a figure, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Samples:
    """A summary of samples.parquet.

    Attributes:
        epochs: how many epochs it covers.
        classes: float64, by target: the means of `times_trained` and `times_hidden`; without samples of unknown target.
        shown: the rows of the samples that have a thumbnail, by index.
        findings: what the data doctor finds; None where no figures over the epochs were recorded, as by versions before 0.2.0, or no
            sample is judged.
        is_unjudged: whether no sample is judged.
    """

    epochs: int
    classes: pd.DataFrame
    shown: pd.DataFrame
    findings: Findings | None = None
    is_unjudged: bool = False


@dataclass(frozen=True)
class Run:
    """One training run; numbers that its folder does not have are NaN.

    Attributes:
        folder: where it was read.
        info: run.json in the current format.
        totals: sums over the run by name, as in `SampleSelection.totals`.
        metric: name of the validation metric, as it was logged: val/accuracy.
        score: its last value.
        seconds: wall time of training, refreshing and selecting, without validation.
        history: float64, one row per epoch, NaN where an epoch has no value.
        losses: int64 [epochs, B], samples by loss when an epoch was planned, between `schema.LOSS_EDGES`.
    """

    folder: Path
    info: Mapping[str, Any]
    method: str
    status: str
    family: str
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    totals: Mapping[str, float]
    seed: int | None
    metric: str | None
    score: float
    seconds: float
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    losses: np.ndarray | None = None
    samples: Samples | None = None
    thumbnails: Thumbnails | None = None

    @classmethod
    def of(cls, folder: Path, info: Mapping[str, Any], **contents: Any) -> Run:
        """The run that a run.json describes, any value of which may be of a kind that nobody thought of."""
        seed, metric = info.get("seed"), info.get("metric")
        return cls(
            folder,
            info,
            method=info["method"],
            status=info.get("status", "finished"),
            family=str(info.get("family") or "hide"),
            settings=mapping(info.get("settings")),
            config=mapping(info.get("config")),
            totals={str(name): number(value) for name, value in mapping(info.get("totals")).items()},
            seed=seed if isinstance(seed, int) else None,
            metric=metric if isinstance(metric, str) and metric else None,
            score=number(info.get("score")),
            seconds=number(info.get("seconds")),
            **contents,
        )

    @property
    def progress(self) -> str:
        """How many epochs are done, and out of how many."""
        done, planned = number(self.info.get("epochs")), number(self.info.get("max_epochs"))
        return f"{0 if math.isnan(done) else done:.0f} epochs" + ("" if math.isnan(planned) else f" of {planned:.0f}")

    def class_name(self, target: int) -> str:
        """Name of a class, its number when it has none, `?` when it is unknown."""
        names = self.info.get("class_names")
        if isinstance(names, list) and 0 <= target < len(names):
            return " ".join(str(names[target]).split())
        return "?" if target < 0 else str(target)

    def total(self, name: str) -> float:
        """A sum over the run, NaN where it is not recorded."""
        return self.totals.get(name, math.nan)

    @property
    def figures(self) -> dict[str, float]:
        """The score of the run and what it cost, by name.

        `hidden_share` is that of all presentations that were hidden, or scored and rejected. `time_factor` is by what forward-only passes
        lengthen the time of the trained samples, as measured in this run. `steady_seconds` and their standard error are as `Totals` has
        them; NaN where steps were not timed.
        """
        trained = self.total("samples_trained")
        left_out = self.total("samples_hidden") + self.total("samples_rejected")
        steps = self.total("steady_train_seconds") or math.nan
        return {
            "score": self.score,
            "seconds": self.seconds,
            "steady_seconds": steps + self.total("steady_refresh_seconds") + self.total("select_seconds"),
            "steady_error": self.total("steady_error_seconds"),
            "samples_trained": trained,
            "forwards": trained + self.total("samples_refreshed") + self.total("samples_scored"),
            "backwards": trained,
            "hidden_share": left_out / np.maximum(1.0, left_out + trained),
            "time_factor": time_factor(self.totals),
        }


def number(value: Any) -> float:
    """A finite number as it is, NaN for everything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if is_number else math.nan


def mapping(value: object) -> dict[str, Any]:
    """A dict as it is, an empty one for everything else."""
    return value if isinstance(value, dict) else {}


def clean(text: str) -> str:
    """Text that can be written as UTF-8: names of files and half an emoji may hold what cannot."""
    return text.encode(errors="replace").decode()


# --- folders


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Problem]]:
    """The runs at any depth of the folders, each once and in the order of their paths, and what was left out."""
    problems: list[Problem] = []
    found = dict.fromkeys(path for folder in folders for path in run_folders(folder, problems))
    runs = [read_run(folder, problems) for folder in found]
    return [run for run in runs if run is not None], list(dict.fromkeys(problems))


def run_folders(folder: Path, problems: list[Problem]) -> list[Path]:
    """The folders at and below `folder` that hold a run.json."""
    try:
        if folder.name == RUN and folder.is_file():
            folder = folder.parent
        if not folder.is_dir():
            problems.append(Problem(str(folder), "is not a folder" if folder.exists() else "is not there"))
            return []
    except OSError as error:  # a name that is too long, a folder above that may not be entered
        problems.append(_closed(error, str(folder)))
        return []
    found: list[Path] = []
    for path, files in walk(folder.resolve(), problems):
        if RUN in files:
            found.append(path)
        elif lost := [name for name in (EPOCHS, SAMPLES, THUMBNAILS) if name in files]:
            reason = f"is of a run whose {RUN} is missing, so that nothing says what it was; copy that file too, or train again"
            problems.append(Problem(str(path / lost[0]), reason))
    return found


def walk(top: Path, problems: list[Problem]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder at and below `top` once, with the names of its files; links are followed, but not upwards."""
    known: set[Path] = set()
    opened = os.walk(top, followlinks=True, onerror=lambda error: problems.append(_closed(error, error.filename)))
    for name, folders, files in opened:
        path = Path(name).resolve()
        if path in known or path in top.parents:
            folders.clear()
            continue
        known.add(path)
        folders.sort(key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
        yield path, files


def _closed(error: OSError, path: str) -> Problem:
    return Problem(path, f"cannot be opened: {error.strerror or error}")


# --- one run


def read_run(folder: Path, problems: list[Problem]) -> Run | None:
    """The run of a folder, with what is readable; None when run.json is not."""

    def attempt(name: str, read: Callable[[Path], Any], needed: bool = True) -> Any:
        """What `read` makes of a file; None, with a problem noted, when it is broken, or `needed` and missing."""
        path = folder / name
        try:
            if path.is_file():
                if path.stat().st_size == 0:
                    raise ValueError("the file is empty")
                return read(path)
            if needed:
                problems.append(Problem(str(path), "is missing, and with it what the report shows of it"))
        except Exception as error:  # a broken file makes its reader raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            problems.append(Problem(str(path), f"cannot be read (half-written or changed?): {reason}"))
        return None

    info = attempt(RUN, read_info)
    if info is None:
        return None
    finished = info["status"] == "finished"
    history = attempt(EPOCHS, read_history, needed=finished or number(info.get("epochs")) > 0)
    losses = None if history is None else attempt(EPOCHS, read_losses)  # apart: broken histograms leave the other columns
    thumbnails = attempt(THUMBNAILS, read_thumbnails, needed=False)
    shown = list(thumbnails.images) if thumbnails else []
    has_samples = info.get("num_samples", 0) is not None  # none of iterable data
    samples = attempt(SAMPLES, lambda path: read_samples(path, shown), needed=finished and has_samples)
    history = pd.DataFrame() if history is None else history
    return Run.of(folder, info, history=history, losses=losses, samples=samples, thumbnails=thumbnails)


def read_info(path: Path) -> dict[str, Any]:
    """The content of run.json, in the current format; a ValueError says what is wrong with it."""
    info = json.loads(clean(json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False)))
    if not isinstance(info, dict):
        raise ValueError("it holds no JSON object")
    info = schema.upgraded(info)
    if not isinstance(info.get("method"), str) or not info["method"]:
        raise ValueError("it names no method")
    if info.get("status") not in schema.STATUSES:
        raise ValueError(f"status={info.get('status')!r} is none of {', '.join(schema.STATUSES)}")
    return info


def read_history(path: Path) -> pd.DataFrame:
    """Every column of numbers in selection.parquet, by epoch."""
    frame = read_table(path)[0].drop(columns=HISTOGRAM, errors="ignore")
    if "samples_looked" in frame:
        frame = frame.rename(columns=schema.FORMAT_1)
    frame = frame.apply(pd.to_numeric, errors="coerce").astype("float64").replace([np.inf, -np.inf], np.nan)
    return frame.loc[_rows_by_epoch(frame)].astype({"epoch": int}).set_index("epoch")


def read_losses(path: Path) -> np.ndarray | None:
    """The loss histograms in selection.parquet; None when it has none, a ValueError when an epoch lacks one."""
    frame, _ = read_table(path)
    if HISTOGRAM not in frame:
        return None
    counts, bins = frame[HISTOGRAM].loc[_rows_by_epoch(frame)].tolist(), len(schema.LOSS_EDGES) - 1
    if any(one is None or len(one) != bins or np.isnan(one).any() for one in counts):
        raise ValueError(f"{HISTOGRAM} has gaps or not {bins} bins, so that the losses are not drawn; the other columns are")
    return np.array(counts, dtype=np.int64).reshape(len(counts), bins)


def read_table(path: Path, columns: list[str] | None = None, more: Sequence[str] = ()) -> tuple[pd.DataFrame, dict[bytes, bytes]]:
    """A parquet file, or some columns of it, with its metadata; a ValueError names columns that it lacks.

    The `read_table` of parquet would take a folder named F=0.2 for a column.

    Args:
        path: the file to read.
        columns: None for all.
        more: columns that are read where the file has them.
    """
    with path.open("rb") as opened:
        file = parquet.ParquetFile(opened)
        missing = [name for name in columns or ["epoch"] if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        there = [name for name in more if name in file.schema_arrow.names and name not in (columns or [])]
        return file.read(columns=columns and [*columns, *there]).to_pandas(), file.schema_arrow.metadata or {}


def _rows_by_epoch(frame: pd.DataFrame) -> pd.Index:
    """The rows in the order of their epochs, of each epoch the last."""
    epochs: Any = pd.to_numeric(frame["epoch"], errors="coerce")
    epochs = epochs.replace([np.inf, -np.inf], np.nan)
    return epochs.dropna().drop_duplicates(keep="last").sort_values().index


def read_samples(path: Path, shown: list[int]) -> Samples:
    """A summary of samples.parquet, with the rows of the data set indices `shown`."""
    table, metadata = read_table(path, ["index", "loss", "target", *COUNTED], COLUMNS)
    rows: Any = by_index(table)
    epochs = int(metadata.get(schema.EPOCHS_KEY.encode(), b"0"))
    classes: Any = rows[rows["target"] >= 0].groupby("target")[COUNTED].mean()
    findings = examine(rows, FOUND)
    is_unjudged = findings is None and set(COLUMNS) <= set(rows)
    return Samples(epochs, classes.astype("float64"), rows[rows.index.isin(shown)], findings, is_unjudged)


def by_index(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of samples by their index, as numbers: whether a prediction is correct is 1, 0, or NaN where it is not known."""
    numbers: Any = table.astype({"correct": "float64"}) if "correct" in table else table
    numbers = numbers.apply(pd.to_numeric, errors="coerce")
    rows: Any = numbers.dropna(subset=["index", "target"]).astype({"index": int, "target": int})
    return rows.drop_duplicates("index", keep="last").set_index("index")


def read_thumbnails(path: Path) -> Thumbnails:
    """The content of thumbnails.npz; a ValueError says what is wrong with its pictures."""
    with np.load(path, allow_pickle=False) as file:
        indices, images = file["indices"].tolist(), file["images"]
        orders = [[index for index in file[name].tolist() if index in indices] for name in ("most_hidden", "least_hidden")]
    right = images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8 and 0 not in images.shape[1:]
    if not right or len(images) != len(indices):
        raise ValueError(f"its pictures are {images.dtype} of the shape {images.shape} for {len(indices)} samples")
    return Thumbnails(dict(zip(indices, images, strict=True)), *orders)
