"""The way of what a rank observed, of the samples it drew, to all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.core.distributed import Ranks

NOBODY = -1  # the index of what a rank sends when its step observed nothing


class Exchange:
    """What the steps of all ranks observed, on its way to this one.

    Args:
        observed: indices (``int64[B]`` on the CPU, :data:`NOBODY` for none) and values (``float32[B]``) of each of this rank's steps.
        ranks: the ranks of the training; exchanging is collective when there is more than one process.
        device: the device of the values.
    """

    def __init__(self, observed: list[tuple[Tensor, Tensor]], ranks: Ranks, device: torch.device) -> None:
        self._sizes = [len(indices) for indices, _ in observed]  # of each step; the same on every rank
        indices = torch.cat([indices for indices, _ in observed])
        values = torch.cat([values for _, values in observed])
        self._works: list[Any] = []
        if not ranks.is_alone:
            indices, values = indices.to(device, non_blocking=True), values.to(device, non_blocking=True)
        indices, values = (ranks.gather_tensors(mine, self._works) for mine in (indices, values))
        self._indices, self._values = indices, values
        self._copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            for work in self._works:
                work.wait()  # the stream waits, not the host, and with it the backward pass, for a few numbers
            self._indices, self._values = ([_to_host(part) for part in parts] for parts in (indices, values))
            self._copied = torch.cuda.Event()
            self._copied.record()
        elif device.type != "cpu":
            for work in self._works:
                work.wait()
            self._works, self._values = [], [part.cpu() for part in values]
            self._indices = [part.cpu() for part in indices]

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """Wait for, and return, the indices and values of all ranks: for each step, by rank."""
        if self._copied is not None:
            self._copied.synchronize()
        else:
            for work in self._works:
                work.wait()
        steps = [zip(*(rank.split(self._sizes) for rank in ranks), strict=True) for ranks in (self._indices, self._values)]
        joined = [(torch.cat(indices), torch.cat(values)) for indices, values in zip(*steps, strict=True)]
        return [(indices[indices != NOBODY], values[indices != NOBODY]) for indices, values in joined]


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, on its way."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
