"""Reads run folders, as `kakurenbo_lightning.record.recorder` writes them; what cannot be read is named instead of raised."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

FORMAT = 1  # of run.json
RUN, HISTORY, SAMPLES, THUMBNAILS = "run.json", "selection.parquet", "samples.parquet", "thumbnails.npz"
OLD = ("results.json", "metrics.csv")  # what runs without run.json left
PARTS = (HISTORY, SAMPLES, THUMBNAILS)  # what no folder has without run.json, unless that was lost
STATUSES = ("running", "finished", "stopped")
HISTOGRAM = "loss_histogram"
COUNTED = ("times_trained", "times_hidden")

Read = TypeVar("Read")


@dataclass(frozen=True)
class Problem:
    """Something that the report leaves out: a folder, a file or a figure, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class History:
    """One row per epoch.

    Attributes:
        columns: float64 by metric, NaN where an epoch has none; the index is the epoch, ascending.
        edges: float64 [B + 1], edges of the loss histograms; None without them.
        counts: int64 [epochs, B], samples by loss; None without them.
    """

    columns: pd.DataFrame = field(default_factory=pd.DataFrame)
    edges: np.ndarray | None = None
    counts: np.ndarray | None = None

    def column(self, name: str) -> pd.Series:
        """Return a column, all NaN where the run has none."""
        return self.columns[name] if name in self.columns else pd.Series(np.nan, self.columns.index)


@dataclass(frozen=True)
class Samples:
    """What samples.parquet says, summed up.

    Attributes:
        epochs: how many epochs it covers.
        classes: float64, by target: the means of `times_trained` and `times_hidden`; without samples of unknown target.
        shown: the rows of the samples that have a thumbnail, by index.
    """

    epochs: int
    classes: pd.DataFrame
    shown: pd.DataFrame


@dataclass(frozen=True)
class Thumbnails:
    """Pictures: uint8 [h, w, 3] by data set index, and the indices of the most and least hidden samples in order."""

    images: dict[int, np.ndarray]
    most_hidden: list[int]
    least_hidden: list[int]


@dataclass(frozen=True)
class Run:
    """One training run; figures that its folder does not have are NaN or None.

    Attributes:
        folder: where it was read.
        info: run.json as it is.
        totals: sums over the run by name, as in `kakurenbo_lightning.totals.Totals`.
    """

    folder: Path
    info: Mapping[str, Any]
    history: History
    samples: Samples | None
    thumbnails: Thumbnails | None
    totals: Mapping[str, float]

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.info["method"]

    @property
    def family(self) -> str:
        """Family of the method: hide, backprop or pod."""
        return str(self.info.get("family") or "hide")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the method."""
        return mapping(self.info.get("settings"))

    @property
    def config(self) -> dict[str, Any]:
        """The Hydra configuration, empty when the run had none."""
        return mapping(self.info.get("config"))

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        seed = self.info.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def status(self) -> str:
        """One of running, finished, stopped."""
        return self.info["status"]

    @property
    def metric(self) -> str | None:
        """Name of the validation metric, as it was logged: val/accuracy."""
        metric = self.info.get("metric")
        return metric if isinstance(metric, str) and metric else None

    @property
    def score(self) -> float:
        """Last value of the metric."""
        return number(self.info.get("score"))

    @property
    def seconds(self) -> float:
        """Seconds of training, refresh passes and selection, without validation."""
        return number(self.info.get("seconds"))

    @property
    def progress(self) -> str:
        """Epochs done, of how many."""
        done, planned = number(self.info.get("epochs")), number(self.info.get("max_epochs"))
        return f"{0 if math.isnan(done) else done:.0f} epochs" + ("" if math.isnan(planned) else f" of {planned:.0f}")

    def class_name(self, target: int) -> str:
        """Name of a class, its number when it has none, `?` when it is unknown."""
        names = self.info.get("class_names")
        if target < 0:
            return "?"
        known = isinstance(names, list) and target < len(names)
        return " ".join(str(names[target]).split()) if known else str(target)

    def total(self, *names: str) -> float:
        """Return the sum of totals, NaN when one is missing."""
        return sum(self.totals.get(name, math.nan) for name in names)

    @property
    def hidden_share(self) -> float:
        """Share of all presentations that were hidden, or looked at and rejected."""
        left_out, trained = self.total("samples_hidden", "samples_rejected"), self.total("samples_trained")
        return left_out / max(1.0, left_out + trained) if not math.isnan(left_out + trained) else math.nan


def number(value: object) -> float:
    """Return a finite number as it is, NaN for everything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if is_number else math.nan


def clean(text: str) -> str:
    """Return text that can be written as UTF-8: names of files and half an emoji may hold what cannot."""
    return text.encode(errors="replace").decode()


def mapping(value: object) -> dict[str, Any]:
    """Return a dict as it is, an empty one for everything else."""
    return value if isinstance(value, dict) else {}


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Problem]]:
    """Return the runs at any depth of the folders, each once and in the order of their paths, and what was left out."""
    problems: list[Problem] = []
    found: dict[Path, None] = {}
    for folder in folders:
        for path in run_folders(folder, problems):
            found[path] = None
    runs = [read_run(folder, problems) for folder in found]
    return [run for run in runs if run is not None], list(dict.fromkeys(problems))


def run_folders(folder: Path, problems: list[Problem]) -> list[Path]:
    """Return the folders below (and including) `folder` that hold a run.json."""
    try:
        if folder.name == RUN and folder.is_file():
            folder = folder.parent
        if not folder.is_dir():
            problems.append(Problem(str(folder), "is not a folder" if folder.exists() else "is not there"))
            return []
    except OSError as error:  # a name that is too long, a folder above that may not be entered
        problems.append(closed(error, str(folder)))
        return []
    found: list[Path] = []
    old: list[Path] = []
    for path, files in walk(folder.resolve(), problems):
        if RUN in files:
            found.append(path)
        elif lost := [name for name in PARTS if name in files]:
            reason = f"is of a run whose {RUN} is missing, so that nothing tells what it was; copy that file too, or train again"
            problems.append(Problem(str(path / lost[0]), reason))
        elif not any(other.parent in (path, *path.parents) for other in old):
            old += [path / name for name in OLD if name in files][:1]
    for path in old:
        if not any(path.parent in run.parents or run in path.parents for run in found):
            reason = f"is of a run without {RUN}: an older version made it, or it was made with record=none, or it ended at once"
            problems.append(Problem(str(path), f"{reason}; train again to have it here"))
    return found


def walk(top: Path, problems: list[Problem]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder at and below `top` once, with the names of its files; links are followed, but not upwards."""
    known: set[Path] = set()
    opened = os.walk(top, followlinks=True, onerror=lambda error: problems.append(closed(error, error.filename)))
    for name, folders, files in opened:
        path = Path(name).resolve()
        if path in known or path in top.parents:
            folders.clear()
            continue
        known.add(path)
        folders.sort(key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
        yield path, files


def closed(error: OSError, path: str) -> Problem:
    """Return that a folder could not be looked into."""
    return Problem(path, f"cannot be opened: {error.strerror or error}")


def read_run(folder: Path, problems: list[Problem]) -> Run | None:
    """Return the run of a folder, with what is readable; None when run.json is not."""
    info = attempt(folder / RUN, read_description, problems)
    if info is None:
        return None
    begun = info["status"] == "finished" or number(info.get("epochs")) > 0
    history = attempt(folder / HISTORY, read_history, problems, needed=begun)
    if history is not None:  # apart from its columns, so that broken histograms leave these
        counted = attempt(folder / HISTORY, lambda path: with_histograms(path, history), problems)
        history = counted or history
    thumbnails = attempt(folder / THUMBNAILS, read_thumbnails, problems, needed=False)
    shown = list(thumbnails.images) if thumbnails else []
    samples = attempt(folder / SAMPLES, lambda path: read_samples(path, shown), problems, needed=info["status"] == "finished")
    totals = {str(name): number(value) for name, value in mapping(info.get("totals")).items()}
    return Run(folder, info, history or History(), samples, thumbnails, totals)


def attempt(path: Path, read: Callable[[Path], Read], problems: list[Problem], needed: bool = True) -> Read | None:
    """Return what `read` makes of a file; None, with a problem noted, when the file is broken or `needed` and missing."""
    try:
        if not path.is_file():
            if needed:
                problems.append(Problem(str(path), "is missing, and with it what the report shows of it"))
            return None
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        return read(path)
    except Exception as error:  # a broken file makes its reader raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        problems.append(Problem(str(path), f"cannot be read (half-written or changed?): {reason}"))
        return None


def read_description(path: Path) -> dict[str, Any]:
    """Return run.json.

    Raises:
        ValueError: it is no JSON of this format.
    """
    info = json.loads(clean(json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False)))
    if not isinstance(info, dict):
        raise ValueError("it holds no JSON object")
    if info.get("format") != FORMAT:
        raise ValueError(f"format={info.get('format')!r}, and this version reads {FORMAT}: install the version that wrote it")
    if not isinstance(info.get("method"), str) or not info["method"]:
        raise ValueError("it names no method")
    if info.get("status") not in STATUSES:
        raise ValueError(f"status={info.get('status')!r} is none of {', '.join(STATUSES)}")
    return info


def read_history(path: Path) -> History:
    """Return every column of numbers in selection.parquet.

    Raises:
        ValueError: it has no column `epoch`.
    """
    table = read_table(path)
    if "epoch" not in table.column_names:
        raise ValueError("it has no column epoch")
    names = [name for name in table.column_names if name != HISTOGRAM]
    columns = table.select(names).to_pandas().apply(pd.to_numeric, errors="coerce").astype("float64")
    columns = columns.replace([np.inf, -np.inf], np.nan)
    return History(columns.loc[rows_by_epoch(columns["epoch"])].astype({"epoch": int}).set_index("epoch"))


def with_histograms(path: Path, history: History) -> History:
    """Return the history with the loss histograms in selection.parquet, without them when it has none.

    Raises:
        ValueError: they do not fit their edges, or an epoch has none.
    """
    table = read_table(path)
    edges = json.loads((table.schema.metadata or {}).get(b"loss_edges", b"null"))
    if edges is None or HISTOGRAM not in table.column_names:
        return history
    rows = rows_by_epoch(pd.to_numeric(table["epoch"].to_pandas(), errors="coerce").replace([np.inf, -np.inf], np.nan))
    histograms = [table[HISTOGRAM][row].as_py() for row in rows]
    if any(one is None or None in one for one in histograms):
        raise ValueError(f"{HISTOGRAM} has gaps, so that the losses are not drawn; the other columns are")
    edges = np.asarray(edges, dtype=np.float64)
    bins = {len(one) for one in histograms}
    if bins - {len(edges) - 1}:
        raise ValueError(f"its histograms have {', '.join(map(str, sorted(bins)))} bins and {len(edges)} edges")
    return replace(history, edges=edges, counts=np.array(histograms, dtype=np.int64).reshape(len(rows), -1))


def read_table(path: Path) -> pa.Table:
    """Return a parquet file; the `read_table` of parquet would take a folder named F=0.2 for a column."""
    with path.open("rb") as file:
        return parquet.ParquetFile(file).read()


def rows_by_epoch(epochs: pd.Series) -> pd.Index:
    """Return the rows in the order of their epochs, of each epoch the last."""
    return epochs.dropna().drop_duplicates(keep="last").sort_values().index


def read_samples(path: Path, shown: list[int]) -> Samples:
    """Return samples.parquet in sums, and in full the rows of the data set indices `shown`.

    Raises:
        ValueError: a column is missing.
    """
    wanted = ["index", "loss", "target", *COUNTED]
    with path.open("rb") as opened:
        file = parquet.ParquetFile(opened)
        schema = file.schema_arrow
        missing = [name for name in wanted if name not in schema.names]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        rows = file.read(columns=wanted).to_pandas().apply(pd.to_numeric, errors="coerce").dropna(subset=["index", "target"])
    rows = rows.astype({"index": int, "target": int}).drop_duplicates("index", keep="last").set_index("index")
    epochs = int(json.loads((schema.metadata or {}).get(b"epochs", b"0")))
    classes = rows[rows["target"] >= 0].groupby("target")[list(COUNTED)].mean()
    return Samples(epochs, classes.astype("float64"), rows[rows.index.isin(shown)])


def read_thumbnails(path: Path) -> Thumbnails:
    """Return thumbnails.npz.

    Raises:
        ValueError: its pictures are none, or not as many as their indices.
    """
    with np.load(path, allow_pickle=False) as file:
        indices, images = file["indices"].tolist(), file["images"]
        orders = [[index for index in file[name].tolist() if index in indices] for name in ("most_hidden", "least_hidden")]
    if (
        images.ndim != 4
        or images.shape[3] != 3
        or images.dtype != np.uint8
        or len(images) != len(indices)
        or 0 in images.shape[1:]
    ):
        raise ValueError(f"its pictures are {images.dtype} of the shape {images.shape} for {len(indices)} samples")
    return Thumbnails(dict(zip(indices, images, strict=True)), *orders)
