"""The kind of setting that holds one number per sample: an array, a file with one, or a function of the epoch that returns one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.methods.settings import Kind, plain, shown

ALLOWED = (
    "one number >= 0 for each sample (an array, tensor or list [N]), a function of the epoch that returns them, or the path of a .npy, .pt "
    "or .csv file with them"
)


@dataclass(frozen=True, eq=False)
class PerSample:
    """One number for each sample. It is compared, shown and saved by a hash, so that a checkpoint does not hold the numbers.

    Attributes:
        given: ``float64[N]``, or a function ``given(epoch)`` that returns anything that :func:`numbers` accepts.
        rows: ``int64[n]``, the samples to return numbers of; ``None`` for all N.
        source: path of the file they were read from; empty if there is none.
    """

    given: np.ndarray | Callable[[int], Any]
    rows: np.ndarray | None = None
    source: str = ""

    def at(self, epoch: int) -> np.ndarray:
        """The numbers for ``epoch``, ``float64[n]``.

        Raises:
            ValueError: the function fails or returns numbers that are not allowed.
        """
        values = self.given
        if callable(values):
            try:
                values = numbers(values(epoch))
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"the function of the epoch fails in epoch {epoch}: {error or 'it returns no numbers'}"
                ) from error
        return values if self.rows is None else values[self.rows]

    def of(self, rows: Any) -> PerSample:
        """Return the same numbers, restricted to the samples ``rows``, ``int64[n]``."""
        return replace(self, rows=np.asarray(rows))

    @cached_property
    def digest(self) -> str:
        """A hash of the numbers; for a function, of those in epoch 0."""
        return hashlib.blake2b(np.ascontiguousarray(self.at(0)).tobytes(), digest_size=8).hexdigest()

    def as_setting(self) -> str:
        """The text that a checkpoint stores. The numbers of a function are compared separately, see :meth:`Method.contents`."""
        return "a function of the epoch" if callable(self.given) else f"{len(self.at(0))} numbers with the hash {self.digest}"

    def __repr__(self) -> str:
        return f"<{self.as_setting()}{f', of {self.source}' if self.source else ''}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PerSample):
            return False
        return self.given is other.given or (not (callable(self.given) or callable(other.given)) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.as_setting())


def per_sample() -> Kind:
    """The kind of setting for numbers >= 0, one per sample and not all 0; values become :class:`PerSample`."""

    def convert(value: Any) -> PerSample:
        if isinstance(value, PerSample):
            return value
        if isinstance(value, (str, os.PathLike)):
            return PerSample(numbers(_read(Path(value))), source=os.fspath(value))
        return PerSample(value if callable(value) else numbers(value))

    return Kind(ALLOWED, Any, convert)


def numbers(value: Any) -> np.ndarray:
    """Convert ``value`` to ``float64[N]``, a read-only array.

    Raises:
        TypeError: it is not an array, tensor or list of numbers.
        ValueError: it is empty, holds a number that is not allowed, or only zeros; the message says which.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    if not hasattr(value, "__array__") and (
        not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview))
    ):
        raise TypeError
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError
    items = value if hasattr(value, "__array__") else [plain(each) for each in value]
    try:
        array = np.asarray(items)
    except ValueError:  # nested lists of different lengths
        array = np.fromiter(items, dtype=object, count=len(items))
    if array.dtype.kind not in "biuf":
        for place, each in enumerate(items if isinstance(items, list) else array.ravel().tolist()):
            if not isinstance(each, (bool, int, float)):
                raise ValueError(f"item {place} is {shown(each)}")
        raise TypeError
    if array.ndim != 1 or not len(array):
        raise ValueError(f"the shape is {list(array.shape)}, it must be [N]")
    array = np.array(array, dtype=np.float64)
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(f"item {place} is {array[place]:g}")
    if not array.any():
        raise ValueError("all of them are 0")
    array.setflags(write=False)
    return array


def _read(path: Path) -> Any:
    """Return what a ``.npy``, ``.pt`` or ``.csv`` file holds, as an array or tensor."""
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise ValueError(f"there is no file {shown(os.fspath(path))}")
    readers = {
        ".npy": np.load,
        ".pt": lambda file: torch.load(file, map_location="cpu", weights_only=True),
        ".csv": lambda file: np.loadtxt(file, delimiter=",", ndmin=1),
    }
    if path.suffix not in readers:
        raise ValueError(f"files are read by their ending, which is {shown(path.suffix)}")
    try:
        found = cast("Any", readers[path.suffix])(path)
    except Exception as error:  # the readers raise many kinds of errors for other bytes
        raise ValueError(f"the file cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, (np.ndarray, torch.Tensor)):
        raise ValueError(f"the file holds a {type(found).__name__}, it must be one tensor")
    return found
