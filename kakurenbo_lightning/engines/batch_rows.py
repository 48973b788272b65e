"""Rows of a batch, whatever its structure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def take_rows(batch: Any, rows: Tensor, size: int) -> Any:
    """The samples ``rows`` (``int64[k]``) of a batch of ``size``.

    Tensors with ``size`` rows are indexed along axis 0, lists and tuples of ``size`` values (strings, numbers, tensors of one sample) by
    position; dicts, tuples and lists of such parts are gone into. Everything else belongs to the batch as a whole and is kept.

    Raises:
        ValueError: a tensor has another number of rows.
    """
    positions: list[int] | None = None

    def take(leaf: Any) -> Any:
        nonlocal positions
        if isinstance(leaf, Tensor):
            if leaf.dim() and len(leaf) != size:
                raise ValueError(
                    f"the batch of {size} samples holds a tensor of shape {list(leaf.shape)}: to train some of them, the first axis of "
                    "every tensor must be the samples; give it one row per sample in collate_fn, or keep it out of the batch"
                )
            return leaf.index_select(0, rows.to(leaf.device)) if leaf.dim() else leaf
        if _is_column(leaf, size):
            positions = rows.tolist() if positions is None else positions
            return type(leaf)(leaf[position] for position in positions)
        return leaf

    return _map(take, [batch], size)


def join_rows(batches: Sequence[Any], sizes: Sequence[int]) -> Any:
    """One batch of the samples of several, in order; ``sizes`` says how many each has.

    What belongs to a batch as a whole is taken from the first.
    """
    if len(batches) == 1:
        return batches[0]

    def join(*leaves: Any) -> Any:
        first = leaves[0]
        if isinstance(first, Tensor):
            if first.dim() and any(leaf.shape[1:] != first.shape[1:] for leaf in leaves):
                raise ValueError(
                    f"samples of shapes {[list(leaf.shape[1:]) for leaf in leaves]} were chosen from different batches and cannot be "
                    "trained together; pad to a fixed length in collate_fn"
                )
            return torch.cat(leaves) if first.dim() else first
        if _is_column(first, sizes[0]):
            return type(first)(value for leaf in leaves for value in leaf)
        return first

    return _map(join, batches, sizes[0])


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """The batch with ``function`` of every tensor in its place."""
    return _map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, [batch], None)


def move(batch: Any, device: torch.device | str) -> Any:
    """The batch with every tensor on ``device``."""
    return map_tensors(lambda tensor: tensor.to(device), batch)


def check_savable(batch: Any) -> None:
    """Raise ``TypeError`` for a batch that a checkpoint could not hold and load with ``weights_only=True``."""

    if isinstance(batch, Mapping) and type(batch) in (dict, OrderedDict):
        parts: list[Any] = [*batch.keys(), *batch.values()]
    elif type(batch) in (list, tuple):
        parts = list(batch)
    elif isinstance(batch, Tensor) or type(batch) in (str, bytes, int, float, bool, type(None)):
        return
    else:
        raise TypeError(
            f"the batch holds a {type(batch).__name__}: chosen samples wait for their step and are saved in checkpoints, so a batch may "
            "hold tensors, strings, numbers, None, and dicts, lists and tuples of them; convert it in collate_fn"
        )
    for part in parts:
        check_savable(part)


def versions(batch: Any) -> list[int]:
    """How often each tensor of the batch was changed in place."""
    found: list[int] = []
    map_tensors(lambda tensor: found.append(tensor._version) or tensor, batch)
    return found


def _is_column(value: Any, size: int | None) -> bool:
    """Whether ``value`` is a list or tuple of one value per sample: plain ones, or tensors that are not batches themselves."""
    if type(value) not in (list, tuple) or size is None or len(value) != size:
        return False
    if any(isinstance(part, (Mapping, list, tuple)) for part in value):
        return False
    return not all(isinstance(part, Tensor) and part.dim() and len(part) == size for part in value)


def _map(function: Callable[..., Any], batches: Sequence[Any], size: int | None) -> Any:
    """Apply ``function`` to the leaves of batches of the same structure."""
    first = batches[0]
    if isinstance(first, Mapping):
        parts = {key: _map(function, [batch[key] for batch in batches], size) for key in first}
        return parts if type(first) is dict else _rebuilt(first, parts)
    if isinstance(first, (list, tuple)) and not _is_column(first, size):
        parts = [_map(function, list(column), size) for column in zip(*batches, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return function(*batches)


def _rebuilt(mapping: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """A mapping of the same class; transformers' ``BatchEncoding`` is made from a dict."""
    return type(mapping)(parts)
