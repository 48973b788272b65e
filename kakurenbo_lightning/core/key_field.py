"""Which part of a sample, and of a batch, is the key that a sample of a stream is known by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kakurenbo_lightning.core.key_table import key_of
from kakurenbo_lightning.errors import ConflictError


@dataclass(frozen=True)
class KeyField:
    """The setting ``key``.

    Attributes:
        names: fields of a dict (or dataclass, or NamedTuple) by name, those of a tuple by position; several are one key together.
    """

    names: tuple[str | int, ...]

    def __str__(self) -> str:
        return f"key={self.setting!r}"

    @property
    def setting(self) -> str | int | tuple[str | int, ...]:
        """As the user writes it."""
        return self.names[0] if len(self.names) == 1 else self.names

    def of_sample(self, sample: Any) -> int:
        """The key of one sample.

        Raises:
            ConflictError: the sample has no such field, or what is there is no key.
        """
        return self._made(_parts(sample, self, "the sample that selection.keep was given", _IN_SAMPLE), "the sample")

    def of_parts(self, parts: Sequence[Any]) -> int:
        """The key itself, or its parts, given alone.

        Raises:
            ConflictError: it has not so many parts, or is no key.
        """
        if len(parts) != len(self.names):
            raise ConflictError(
                f"selection.keep was given {len(parts)} values, {self} has {len(self.names)}; give it these, or a sample"
            )
        return self._made(parts, "what selection.keep was given")

    def of_batch(self, batch: Any, size: int) -> Tensor:
        """The keys of a batch of ``size`` samples, ``int64[size]`` on the CPU.

        Raises:
            ConflictError: the batch has no such field, it has not one key per sample, or one of them twice.
        """
        columns = [self._column(part, size) for part in _parts(batch, self, "the batch", _IN_BATCH)]
        if len(columns) == 1 and isinstance(columns[0], Tensor):
            keys = columns[0]
        else:
            parts = [column.tolist() if isinstance(column, Tensor) else column for column in columns]
            keys = torch.tensor([self._made(each, "the batch") for each in zip(*parts, strict=True)], dtype=torch.int64)
        if len(np.unique(keys.numpy())) < size:
            raise ConflictError(f"{self}: a key comes twice in one batch, so it does not name a sample. {UNIQUE}")
        return keys

    def _made(self, parts: Sequence[Any], where: str) -> int:
        try:
            return key_of(*parts)
        except TypeError as error:
            raise ConflictError(f"{self}: {error}, in {where}; give each sample an integer or a string that names it") from None

    def _column(self, part: Any, size: int) -> Any:
        """One part of the keys: a tensor ``int64[size]`` on the CPU, or a list."""
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(part) if part.dtype.kind in "iu" else part.tolist()
        if isinstance(part, (list, tuple)) and len(part) == size:
            return part
        if not isinstance(part, Tensor) or part.shape != (size,) or part.is_floating_point() or part.dtype is torch.bool:
            found = f"a tensor {list(part.shape)} of {part.dtype}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise ConflictError(
                f"{self}: the batch has {found} there, it must have one integer or string per sample ({size} of them); let the data set "
                "yield the key of each sample, and batch it as a tensor of integers or a list"
            )
        return part.detach().to("cpu", torch.int64)


UNIQUE = (
    "Give each sample a key of its own, and each rank and worker a part of its own of the data; of webdataset, whose __key__ is unique "
    "within a shard, use key=('__url__', '__key__')"
)
_IN_SAMPLE = "give it what the data set knows before decoding, with that field, or the key itself: keep(key)"
_IN_BATCH = "let the data set yield the key that it gives selection.keep, and set key= to the key's name or position in the batch"


def _parts(holder: Any, field: KeyField, what: str, fix: str) -> list[Any]:
    """The values of ``field`` in a sample or a batch.

    Raises:
        ConflictError: they are not there.
    """
    found = []
    for name in field.names:
        try:
            found.append(holder[name] if isinstance(name, int) or isinstance(holder, Mapping) else getattr(holder, name))
        except (KeyError, IndexError, TypeError, AttributeError):
            there = f"the fields {', '.join(map(repr, holder))}" if isinstance(holder, Mapping) else f"a {type(holder).__name__}"
            if isinstance(holder, (list, tuple)):
                there += f" of {len(holder)} values"
            raise ConflictError(f"{field}: {what} has no field {name!r}, it has {there}; {fix}") from None
    return found
