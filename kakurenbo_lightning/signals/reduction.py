"""Detects the reduction of a loss: a mean or sum over a tensor whose first axis is the samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_NAMES = ("mean", "sum", "nanmean", "nansum")
OF_TENSOR: dict[str, Callable[..., Tensor]] = {name: getattr(Tensor, name) for name in _NAMES}
REDUCTIONS = {function: name for name, function in OF_TENSOR.items()} | {getattr(torch, name): name for name in _NAMES}


def rows_reduced(args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> Tensor | None:
    """Return the tensor whose mean or sum over the samples a call takes; ``None`` if it does not reduce over samples.

    Args:
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        size: B. The first axis must have B rows or a multiple, and must be among the reduced axes.
    """
    rows = args[0] if args else kwargs.get("input")
    if not isinstance(rows, Tensor) or rows.is_complex():
        return None
    if not rows.dim():  # a batch of one sample, whose axis the step has squeezed away
        return rows if size == 1 else None
    if not len(rows) or len(rows) % size:
        return None
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    if dim is not None:
        dims = dim if isinstance(dim, (tuple, list)) else (dim,)
        if dims and 0 not in dims and -rows.dim() not in dims:
            return None
    return rows


@contextlib.contextmanager
def methods_replaced(replacements: Mapping[str, Any]) -> Iterator[None]:
    """Replace these methods of ``Tensor`` inside this context.

    ``torch.mean`` and ``torch.sum`` are left alone, because Lightning compares the ``reduce_fx`` of ``self.log`` with them by identity.
    """
    mine = [name for name in replacements if name not in vars(Tensor)]  # inherited ones are set on Tensor and deleted again
    for name in mine:
        setattr(Tensor, name, replacements[name])
    try:
        yield
    finally:
        for name in mine:
            if vars(Tensor).get(name) is replacements[name]:
                delattr(Tensor, name)
