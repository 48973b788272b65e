"""Writes the files of a run folder, in a thread of its own; each is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from kakurenbo_lightning.core.atomic import replacing
from kakurenbo_lightning.record import schema
from kakurenbo_lightning.record.schema import Thumbnails


def write_run(folder: Path, info: Mapping[str, Any]) -> None:
    """Write run.json, with null for numbers that JSON does not have."""
    text = json.dumps(schema.json_ready({"format": schema.FORMAT, **info}), indent=2, allow_nan=False) + "\n"
    with replacing(folder / schema.RUN) as path:
        path.write_text(text)


def write_epochs(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write selection.parquet, a row per epoch; a column that a row lacks is null in it."""
    import pyarrow as pa
    from pyarrow import parquet

    types = {name: pa.type_for_alias(kind) for name, kind in schema.EPOCH_COLUMNS.items()} | {
        schema.HISTOGRAM: pa.list_(pa.int64())
    }
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: pa.array([row.get(name) for row in rows], types.get(name)) for name in names})
    table = table.replace_schema_metadata({schema.EDGES_KEY: json.dumps(schema.LOSS_EDGES.tolist())})
    with replacing(folder / schema.EPOCHS) as path:
        parquet.write_table(table, path)


def write_samples(folder: Path, columns: Mapping[str, np.ndarray], epochs: int) -> None:
    """Write samples.parquet, a row per sample: what was known of them after ``epochs`` epochs; see :meth:`SelectionView.columns`."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"index": np.arange(len(columns["loss"])), **columns}
    judged = columns.pop(schema.JUDGED)
    known = {name: values.astype(schema.SAMPLE_COLUMNS.get(name, values.dtype), copy=False) for name, values in columns.items()}
    table = pa.table({**known, "correct": pa.array(known["correct"], mask=~judged)})
    table = table.replace_schema_metadata({schema.EPOCHS_KEY: str(epochs)})
    with replacing(folder / schema.SAMPLES) as path:
        parquet.write_table(table, path, compression="zstd")


def write_thumbnails(folder: Path, thumbnails: Thumbnails) -> None:
    """Write thumbnails.npz: the images, the indices of their samples, and two orders of these."""
    with replacing(folder / schema.THUMBNAILS) as path, path.open("wb") as file:
        np.savez_compressed(
            file,
            indices=np.array(list(thumbnails.images)),
            images=np.stack(list(thumbnails.images.values())),
            most_hidden=np.array(thumbnails.most_hidden),
            least_hidden=np.array(thumbnails.least_hidden),
        )


class BackgroundWriter:
    """One thread that writes into a folder; what cannot be written (a full disk) is a warning, once a fit, and training goes on.

    Args:
        folder: where to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[Future] = []
        self._warned = False

    def start(self) -> None:
        """Make the thread; without it, nothing is written."""
        import pyarrow.parquet  # noqa: F401  now, because in the thread it would compete with the first steps

        self._warned = False
        self._thread = ThreadPoolExecutor(1, "run recorder")

    def submit(self, write: Callable[..., None], *arguments: Any) -> None:
        """Let the thread call ``write(folder, *arguments)``."""
        if self._thread is not None:
            self._pending = [one for one in self._pending if not one.done()]
            self._pending.append(self._thread.submit(self._try, write, *arguments))

    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(self._folder, *arguments)
        except Exception as error:  # training is worth more than its record
            if self._warned:
                return
            self._warned = True
            rank_zero_warn(
                f"RunRecorder: {getattr(error, 'filename', None) or self._folder} is not written "
                f"({getattr(error, 'strerror', None) or error}), training goes on and this is tried again without another "
                "warning; make room or set another folder. What was there is whole"
            )

    def flush(self) -> None:
        """Wait until everything submitted is written."""
        for one in self._pending:
            one.result()
        self._pending = []

    def stop(self) -> None:
        """Write what was submitted, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
