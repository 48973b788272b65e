"""Samples that were chosen and wait to be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.core.batch_rows import join_rows, move, take_rows


class Samples:
    """Some samples of batches, with what they are: a batch that is cut and joined by rows.

    Args:
        batch: a batch of ``size`` samples, as :func:`~kakurenbo_lightning.core.batch_rows.plain` makes it.
        indices: ``int64[size]``, which samples of the data set they are.
        weights: ``float32[size]`` or ``None``.
    """

    def __init__(self, batch: Any, indices: Tensor, weights: Tensor | None = None) -> None:
        self.batch, self.indices, self.weights = batch, indices, weights

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, rows: Tensor, weights: Tensor | None = None) -> Samples:
        """The samples at ``rows`` (``int64[k]``), with these weights or their own."""
        if weights is None and self.weights is not None:
            weights = self.weights[rows]
        return Samples(take_rows(self.batch, rows, len(self)), self.indices[rows], weights)

    def split(self, count: int) -> tuple[Samples, Samples]:
        """The first ``count`` samples, and the others."""
        order = torch.arange(len(self), device=self.indices.device)
        return self.take(order[:count]), self.take(order[count:])

    def to(self, device: torch.device | str) -> Samples:
        """The same samples with all tensors on ``device``."""
        weights = None if self.weights is None else self.weights.to(device)
        return Samples(move(self.batch, device), self.indices.to(device), weights)

    @staticmethod
    def join(parts: Sequence[Samples]) -> Samples:
        """All samples of ``parts``, of which there is at least one, in order."""
        known = [part.weights for part in parts if part.weights is not None]  # of all parts, or of none
        weights = torch.cat(known) if known else None
        batch = join_rows([part.batch for part in parts], [len(part) for part in parts])
        return Samples(batch, torch.cat([part.indices for part in parts]), weights)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Samples:
        """Make samples of what :meth:`state_dict` returned."""
        return cls(state["batch"], state["indices"], state["weights"])

    def state_dict(self) -> dict[str, Any]:
        """Batch, indices and weights, on the CPU."""
        there = self.to("cpu")
        return {"batch": there.batch, "indices": there.indices, "weights": there.weights}


class SampleBuffer:
    """A queue of samples: first in, first out.

    Args:
        device: where they wait.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = device
        self._parts: list[Samples] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def parts(self) -> list[Samples]:
        """The samples that wait, in the parts and the order in which they came."""
        return list(self._parts)

    def put(self, samples: Samples) -> None:
        """Put ``samples`` behind those that wait."""
        if len(samples):
            self._parts.append(samples.to(self._device))

    def take(self, count: int, device: torch.device | str) -> Samples:
        """The first ``count`` (at least one, at most all), on ``device``."""
        joined = Samples.join(self._parts)
        first, rest = joined.split(count) if count < len(joined) else (joined, None)
        self._parts = [] if rest is None else [rest]
        return first.to(device)

    def drop(self, keep: int) -> int:
        """Drop all but the first ``keep``; how many that were."""
        dropped = len(self) - keep
        if dropped <= 0:
            return 0
        if keep:
            self._parts = [Samples.join(self._parts).split(keep)[0]]
        else:
            self._parts = []
        return dropped

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of the parts that wait, which hold the batches themselves."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Replace what waits by what :meth:`state_dict` returned."""
        self._parts = []
        for part in state:
            self.put(Samples.of(part))
