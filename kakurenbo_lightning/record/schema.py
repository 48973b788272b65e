"""What a run folder holds: the names of its files, their columns, and how a folder of an older format is read.

``run.json`` says what was run and how it ended, ``selection.parquet`` has a row per epoch, ``samples.parquet`` a row per sample in the
order of the data set, ``thumbnails.npz`` a few images. :class:`~kakurenbo_lightning.record.RunRecorder` writes them,
``kakurenbo-report`` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

FORMAT = 2  # of run.json; 1 is read too
RUN, EPOCHS, SAMPLES, THUMBNAILS = "run.json", "selection.parquet", "samples.parquet", "thumbnails.npz"
STATUSES = ("running", "finished", "stopped")

# selection.parquet: the part of the totals that belongs to an epoch, by when it is known
PLANNED = ("samples_refreshed", "refresh_seconds", "select_seconds")
TRAINED = (
    *("samples_trained", "samples_scored", "samples_rejected"),
    *(f"{phase}_seconds" for phase in ("train", "score", "forward", "backward", "data")),
)
HISTOGRAM = "loss_histogram"  # list<int64>: samples by loss when the epoch was planned, between LOSS_EDGES
LOSS_EDGES = np.logspace(-6, 2, 49)
EDGES_KEY = "loss_edges"  # of the file's metadata: LOSS_EDGES as JSON
# The metrics of the selection (hidden_fraction, lr, ...) and what the module logged are float64 columns of their own names.
EPOCH_COLUMNS = {
    "epoch": "int64",
    "threshold": "float64",  # the largest loss of a hidden sample that was predicted correctly
    "samples_hidden": "int64",
    **{name: "int64" if name.startswith("samples_") else "float64" for name in (*PLANNED, *TRAINED)},
    "elapsed_seconds": "float64",  # of training, refreshing and selecting, since the first epoch began
}

# Further columns are those that the method keeps for each sample.
SAMPLE_COLUMNS = {
    "index": "int64",
    "loss": "float32",
    "confidence": "float32",
    "correct": "bool",  # null where it is not known: never measured, or no classification
    "target": "int32",  # -1 where it is not known
    "epoch_seen": "int16",
    "times_trained": "int32",
    "times_hidden": "int32",
    "last_change": "int16",  # epoch in which the sample was hidden or came back, -1 for never
    "times_measured": "int16",  # epochs that measured it, with a finite loss; once each
    "times_forgotten": "int16",  # how often it was predicted correctly in one of them and wrongly in the next
    "average_loss": "float32",  # over these epochs, as the two below; NaN where there are none
    "average_label_confidence": "float32",  # probability of the label; NaN also where `correct` is not known
    "average_margin": "float32",  # its logit less the largest other one, or the least that can be; see sample_figures.py
}
OVER_EPOCHS = ("times_measured", "times_forgotten", "average_loss", "average_label_confidence", "average_margin")  # since 0.2.0
JUDGED = "judged"  # no column: where `correct` is known
EPOCHS_KEY = "epochs"  # of the file's metadata: how many epochs it covers

FORMAT_1 = {"samples_looked": "samples_scored", "look_seconds": "score_seconds", "looked": "scored"}  # names until format 2
Value = TypeVar("Value")


@dataclass(frozen=True)
class Thumbnails:
    """The content of thumbnails.npz: images and two orders of them.

    Attributes:
        images: ``uint8[h, w, 3]`` by data set index, all of one size.
        most_hidden: indices of the most hidden samples, the first one hidden most often; none that was never hidden, but for methods that
            hide none: then of the least trained ones.
        least_hidden: indices of the least hidden ones, the first one hidden least often; of equal ones that of highest loss.
    """

    images: dict[int, np.ndarray]
    most_hidden: list[int]
    least_hidden: list[int]


def renamed(values: Mapping[str, Value]) -> dict[str, Value]:
    """The same values under the names of this format: of columns, totals or metrics of format 1."""
    return {FORMAT_1.get(name, name): value for name, value in values.items()}


def upgraded(info: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a run.json of any readable format, as this format has it.

    Raises:
        ValueError: it is of a format that this version does not read.
    """
    if info.get("format") == FORMAT:
        return dict(info)
    if info.get("format") != 1:
        raise ValueError(
            f"format={info.get('format')!r}, and this version reads 1 to {FORMAT}: install the version that wrote it"
        )
    changed = {**info, "format": FORMAT, "config": _with_new_targets(info.get("config"))}
    if isinstance(info.get("totals"), dict):
        changed["totals"] = renamed(info["totals"])
    if info.get("family") == "pod":
        changed["family"] = "draw"
    return changed


def _with_new_targets(config: Any) -> Any:
    """A configuration whose classes (``_target_``) are where they were moved, so that old and new runs are of one group."""
    if isinstance(config, dict):
        return {name: _with_new_targets(value) for name, value in config.items()}
    is_moved = isinstance(config, str) and config.startswith("recipes.")
    return f"kakurenbo_{config}" if is_moved else config


def json_ready(value: Any) -> Any:
    """The value with null for numbers that JSON does not have (NaN, infinity), and text for what it does not know."""
    if isinstance(value, Mapping):
        return {str(name): json_ready(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
