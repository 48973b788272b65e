"""Rows of a batch, whatever its structure.

:func:`plain` makes dicts of the user's own containers, :func:`like` turns them back. In between are dicts, lists and tuples: they can be
cut and joined by rows, and saved.
"""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.errors import ConflictError

WHOLE = "or use a method that trains loaded batches as they are, for example kakurenbo, infobatch or plb; random needs no values of samples"


# --- containers


def plain(batch: Any) -> Any:
    """The batch with dicts in place of NamedTuples, dataclasses and classes of dicts (transformers' ``BatchEncoding``)."""
    if isinstance(batch, (dict, UserDict)):
        return {key: plain(batch[key]) for key in batch}
    if _is_record(batch):
        return {field.name: plain(getattr(batch, field.name)) for field in fields(batch)}
    names = getattr(batch, "_fields", None)  # of a NamedTuple
    if isinstance(batch, tuple) and names is not None:
        return {name: plain(part) for name, part in zip(names, batch, strict=True)}
    if type(batch) in (list, tuple):
        return type(batch)(map(plain, batch))
    return batch


def like(template: Any, batch: Any) -> Any:
    """A :func:`plain` batch in the classes of ``template``, a batch of the same structure."""
    if isinstance(template, (dict, UserDict)):
        made = copy.copy(template)  # with what else it knows
        for key in template:
            made[key] = like(template[key], batch[key])
        return made
    if _is_record(template):
        made = copy.copy(template)
        for field in fields(template):
            object.__setattr__(made, field.name, like(getattr(template, field.name), batch[field.name]))
        return made
    names = getattr(template, "_fields", None)
    if isinstance(template, tuple) and names is not None:
        return type(template)(*(like(part, batch[name]) for name, part in zip(names, template, strict=True)))
    if type(template) in (list, tuple) and len(template) == len(batch):  # else it has one value per sample
        return type(template)(like(part, value) for part, value in zip(template, batch, strict=True))
    return batch


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


# --- rows of plain batches


def take_rows(batch: Any, rows: Tensor, size: int) -> Any:
    """The samples ``rows`` (``int64[k]``) of a plain batch of ``size``.

    Tensors with ``size`` rows are indexed along axis 0, lists and tuples of ``size`` values (strings, numbers, tensors of one sample) by
    position; dicts, tuples and lists of such parts are gone into. Everything else belongs to the batch as a whole and is kept.
    """
    positions: list[int] | None = None

    def take(leaf: Any) -> Any:
        nonlocal positions
        if isinstance(leaf, Tensor):
            return leaf.index_select(0, rows.to(leaf.device)) if leaf.dim() else leaf
        if _is_column(leaf, size):
            positions = rows.tolist() if positions is None else positions
            return type(leaf)(leaf[position] for position in positions)
        return leaf

    return _map(take, [batch], size)


def slice_batch(batch: Any, rows: Tensor, size: int) -> Any:
    """The samples ``rows`` (``int64[k]``) of the user's batch of ``size``, in its own containers.

    Raises:
        ValueError: a tensor in it does not have one row per sample.
    """
    known = plain(batch)
    for shape in _shapes(known, size, "").values():
        if shape and shape[0] != size:
            raise ValueError(f"the batch of {size} samples holds a tensor of shape {list(shape)}")
    return like(batch, take_rows(known, rows, size))


def join_rows(batches: Sequence[Any], sizes: Sequence[int]) -> Any:
    """One batch of the samples of several plain ones, in order; ``sizes`` says how many each has.

    What belongs to a batch as a whole is taken from the first.
    """
    if len(batches) == 1:
        return batches[0]

    def join(*leaves: Any) -> Any:
        first = leaves[0]
        if isinstance(first, Tensor):
            if first.dim() and any(leaf.shape[1:] != first.shape[1:] for leaf in leaves):  # resumed with another length
                raise ConflictError(
                    f"samples of shapes {[list(leaf.shape[1:]) for leaf in leaves]} wait to be trained together; pad to the length that "
                    "the checkpoint's samples have"
                )
            return torch.cat(leaves) if first.dim() else first
        if _is_column(first, sizes[0]):
            return type(first)(value for leaf in leaves for value in leaf)
        return first

    return _map(join, batches, sizes[0])


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """The plain batch with ``function`` of every tensor in its place."""
    return _map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, [batch], None)


def move(batch: Any, device: torch.device | str) -> Any:
    """The plain batch with every tensor on ``device``."""
    return map_tensors(lambda tensor: tensor.to(device), batch)


def versions(batch: Any) -> list[int]:
    """The version number of each tensor of the batch, which grows whenever one is changed in place."""
    found: list[int] = []
    map_tensors(lambda tensor: found.append(tensor._version) or tensor, plain(batch))
    return found


def _is_column(value: Any, size: int | None) -> bool:
    """Whether ``value`` is a list or tuple of one value per sample: plain ones, or tensors that are not batches themselves."""
    if type(value) not in (list, tuple) or size is None or len(value) != size:
        return False
    if any(isinstance(part, (Mapping, list, tuple)) for part in value):
        return False
    tensors = [part for part in value if isinstance(part, Tensor)]
    return not tensors or not all(part.dim() and len(part) == size for part in tensors)


def _map(function: Callable[..., Any], batches: Sequence[Any], size: int | None) -> Any:
    """Apply ``function`` to the leaves of plain batches of the same structure."""
    first = batches[0]
    if isinstance(first, dict):
        return {key: _map(function, [batch[key] for batch in batches], size) for key in first}
    if type(first) in (list, tuple) and not _is_column(first, size):
        return type(first)(_map(function, list(column), size) for column in zip(*batches, strict=True))
    return function(*batches)


# --- what can be cut, joined and saved


class BatchCheck:
    """Says of a loaded batch, before anything of it is trained, why samples of it cannot be chosen.

    Args:
        method: name, for errors.
        joins: samples of several batches are trained together.
    """

    def __init__(self, method: str, joins: bool) -> None:
        self._method, self._joins = method, joins
        self._first: dict[str, Any] | None = None

    def __call__(self, batch: Any, size: int) -> bool:
        """Check a batch of ``size`` samples, and return whether it is the first.

        Raises:
            TypeError: it holds something that a checkpoint could not hold and load with ``weights_only=True``.
            ConflictError: a tensor has another number of rows, or samples have other shapes than those of the first batch.
        """
        known, before = plain(batch), self._first
        if before is None:
            self._check_savable(known)
        shapes = _shapes(known, size, "batch")
        self._check_rows(shapes, size)
        if before is None:
            self._first = shapes
        elif self._joins and (differs := _difference(before, shapes)):
            raise ConflictError(
                f"{differs}: {self._method} trains samples of different batches together, which must have one shape. Pad to a fixed length "
                "in collate_fn (for example padding='max_length'), use sb_fixed, which chooses within a batch, "
                f"{WHOLE}"
            )
        return before is None

    def _check_rows(self, shapes: dict[str, Any], size: int) -> None:
        for place, shape in shapes.items():
            if shape and shape[0] != size:
                raise ConflictError(
                    f"{place} is a tensor of shape {list(shape)} in a batch of {size} samples: {self._method} trains some of them, so the "
                    "first axis of every tensor must be the samples; give it one row per sample in collate_fn, keep it out of the batch, "
                    f"{WHOLE}"
                )

    def _check_savable(self, batch: Any) -> None:
        if isinstance(batch, dict):
            parts: list[Any] = [*batch.keys(), *batch.values()]
        elif type(batch) in (list, tuple):
            parts = list(batch)
        elif isinstance(batch, Tensor) or type(batch) in (str, bytes, int, float, bool, type(None)):
            return
        else:
            raise TypeError(
                f"the batch holds a {type(batch).__name__}: chosen samples wait for their step and are saved in checkpoints, so a batch "
                "may hold tensors, strings, numbers, None, and dicts, lists, tuples, NamedTuples and dataclasses of them; convert it in "
                f"collate_fn, {WHOLE}"
            )
        for part in parts:
            self._check_savable(part)


def _shapes(batch: Any, size: int, place: str) -> dict[str, tuple[int, ...] | None]:
    """Shapes of the tensors of a plain batch, by place; ``None`` for other leaves, and for what has one value per sample."""
    if isinstance(batch, dict):
        parts = [(f"{place}[{key!r}]", part) for key, part in batch.items()]
    elif type(batch) in (list, tuple) and not _is_column(batch, size):
        parts = [(f"{place}[{number}]", part) for number, part in enumerate(batch)]
    else:
        return {place: tuple(batch.shape) if isinstance(batch, Tensor) else None}
    return {name: shape for inner, part in parts for name, shape in _shapes(part, size, inner).items()}


def _difference(first: dict[str, Any], now: dict[str, Any]) -> str:
    """Say how the shapes of two batches differ, apart from the number of samples; empty when they do not."""
    if first.keys() != now.keys():
        return f"a batch holds {', '.join(sorted(first.keys() ^ now.keys()))}, and another one does not"
    for place, shape in now.items():
        before = first[place]
        if (shape is None) != (before is None) or (shape and shape[1:] != before[1:]):
            return f"{place} has samples of shape {list((shape or ())[1:])} in this batch and of {list((before or ())[1:])} in the first"
    return ""
