"""Rows of a batch, whatever its structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def take_rows(batch: Any, rows: Tensor, size: int) -> Any:
    """The samples ``rows`` (``int64[k]``) of a batch of ``size``.

    Tensors with ``size`` rows are indexed along axis 0, lists and tuples of ``size`` plain values (strings, numbers) by position;
    dicts, tuples, lists and named tuples of such parts are gone into. Everything else belongs to the batch as a whole and is kept.
    """
    positions: list[int] | None = None

    def take(leaf: Any) -> Any:
        nonlocal positions
        if isinstance(leaf, Tensor):
            return leaf.index_select(0, rows.to(leaf.device)) if leaf.dim() and len(leaf) == size else leaf
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
            return torch.cat(leaves) if first.dim() and len(first) == sizes[0] else first
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

    def check(leaf: Any) -> Any:
        if not isinstance(leaf, (Tensor, str, bytes, int, float, bool, list, tuple, type(None))):
            raise TypeError(
                f"the batch holds a {type(leaf).__name__}: chosen samples wait for their step and are saved in checkpoints, so a batch may "
                "hold tensors, strings, numbers, None, and dicts, lists and tuples of them; convert it in collate_fn"
            )
        return leaf

    _map(check, [batch], None)


def _is_column(value: Any, size: int | None) -> bool:
    """Whether ``value`` is a list or tuple of one plain value per sample."""
    if type(value) not in (list, tuple) or size is None or len(value) != size:
        return False
    return not any(isinstance(part, (Tensor, Mapping, list, tuple)) for part in value)


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
