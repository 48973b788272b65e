"""Says of a sample of a stream, before it is decoded, whether the epoch trains it: in the workers that read the stream, too."""

from __future__ import annotations

import mmap
import os
import shutil
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kakurenbo_lightning.core.key_field import KeyField
from kakurenbo_lightning.core.key_table import KeyTable, weight_at
from kakurenbo_lightning.errors import ConflictError

_WORD = 8  # bytes
_NEVER, _EVERYTHING = 0, 1  # in place of a table's number: none was published, all samples are kept


class KeyFilter:
    """``selection.keep``: whether the epoch trains a sample, by its key. Put it into the data's pipeline, before what is dear::

        wds.WebDataset(shards).select(selection.keep).decode()...       # a pipeline of webdataset
        dataset.filter(selection.keep)                                  # Hugging Face, streaming
        for key in keys:                                                # an IterableDataset of your own
            if keep(key):
                yield load(key), key

    It may be pickled and forked. The plan of each epoch is a hash table in a file, which all processes of a rank map into their memory;
    one that reads takes the new table with its next sample. A sample whose key is not known yet is kept.

    Args:
        field: what the key is.

    Attributes:
        folder: where the tables are, until the process that made it ends.
    """

    def __init__(self, field: KeyField) -> None:
        self.field, self.folder = field, Path(tempfile.mkdtemp(prefix="kakurenbo-keys-"))
        self._own()
        self._reset()

    def __repr__(self) -> str:
        return repr(self.field.setting)

    def _own(self) -> None:
        """The folder goes with this object."""
        weakref.finalize(self, _remove, self.folder, os.getpid())

    def _reset(self) -> None:
        """Nothing was published or read."""
        self._published: tuple[int, KeyTable | None] = _NEVER, None  # by this object
        self._read, self._current = -1, memoryview(bytes(_WORD)).cast("q")
        self._mapped: tuple[memoryview[int], memoryview[float], int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy reads what this one publishes."""
        return {"field": self.field, "folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.field, self.folder = state["field"], state["folder"]
        self._reset()

    # --- in the pipeline

    def __call__(self, *sample: Any) -> bool:
        """Whether the epoch trains a sample.

        Args:
            sample: a sample that has the field ``key=`` (a dict, tuple, NamedTuple or dataclass), or the key itself, or its parts.

        Raises:
            ConflictError: it has no such field, or what is there is no key.
        """
        field = self.field
        is_key = len(sample) != 1 or isinstance(sample[0], (int, str, bytes)) or getattr(sample[0], "ndim", None) == 0
        key = field.of_parts(sample) if is_key else field.of_sample(sample[0])
        if self._current[0] != self._read:
            self._refresh()
        return self._mapped is None or weight_at(*self._mapped, key) > 0

    def _refresh(self) -> None:
        """Map the table that was published last."""
        current = self.folder / "current"
        if self._read < 0:
            if not current.exists():
                return
            self._current = _mapped(current).cast("q")
        while (number := self._current[0]) != self._read:
            try:
                self._mapped = _table_in(self.folder / str(number)) if number > _EVERYTHING else None
            except FileNotFoundError:  # there is a newer one by now
                continue
            self._read = number

    # --- where epochs are planned

    def publish(self, table: KeyTable | None) -> None:
        """From now on keep what has no weight 0 in ``table``; ``None``: everything."""
        before = self._published[0]
        number = _EVERYTHING if table is None else time.time_ns()  # also unlike the numbers of a copy
        self._published = number, table
        if not self.folder.exists():  # that of another object, which is gone
            self.folder.mkdir()
            self._own()
        if table is not None:
            path = self.folder / str(number)
            with path.open("xb") as file:
                for part in (np.array([table.bits]), table.places, table.weights):
                    part.tofile(file)
        current = os.open(self.folder / "current", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(current, number.to_bytes(_WORD, sys.byteorder), 0)  # in place: workers have mapped it
        finally:
            os.close(current)
        if before > _EVERYTHING:
            (self.folder / str(before)).unlink(missing_ok=True)

    def weights(self, keys: Tensor) -> Tensor | None:
        """Loss weights (``float32[n]``) of ``keys`` (``int64[n]`` on the CPU) in this epoch, 0 where hidden; ``None``: 1 for all."""
        table = self._published[1]
        return None if table is None else torch.from_numpy(table.look_up(keys.numpy()))


def no_key(*sample: Any) -> bool:
    """``selection.keep`` without ``key=``: raises ``ConflictError``."""
    raise ConflictError("selection.keep knows samples by a key; name the field that it is in: SampleSelection(..., key='id')")


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _table_in(path: Path) -> tuple[memoryview[int], memoryview[float], int]:
    """Places, weights and bits of the table in a file."""
    memory = _mapped(path)
    bits = memory[:_WORD].cast("q")[0]
    end = _WORD + (_WORD << bits)
    return memory[_WORD:end].cast("Q"), memory[end:].cast("f"), bits


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in workers, which are forked with it
        shutil.rmtree(folder, ignore_errors=True)
