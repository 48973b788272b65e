"""What an epoch trains on: a fixed set of samples (:class:`EpochPlan`), or draws while it is trained (:class:`StreamPlan`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.shard import EpochShard, Layout, epoch_shard
from kakurenbo_lightning.core.stream_shard import DrawSource, StreamShard, UniformDraws

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EpochPlan:
    """The selection of one epoch, equal on every rank.

    Attributes:
        indices: ``int64[n]`` on the CPU, the data set indices to train, in no meaningful order. They repeat only for
            methods that draw with replacement.
        hidden: ``int64[h]`` on the CPU, ascending: the indices left out of this epoch.
        weights: ``float32[N]`` loss weight of every data set index, or ``None`` for 1 everywhere.
        lr_factor: factor on the learning rate of every optimizer step of the epoch.
        metrics: what the method wants logged, as ``selection/<key>``.
    """

    indices: Tensor
    hidden: Tensor
    weights: Tensor | None = None
    lr_factor: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def everything(cls, num_samples: int) -> EpochPlan:
        """The plan that trains every sample once."""
        return cls(indices=torch.arange(num_samples), hidden=torch.empty(0, dtype=torch.int64))

    @classmethod
    def hide(
        cls, mask: Tensor, lr_factor: float = 1.0, metrics: dict[str, float] | None = None, weights: Tensor | None = None
    ) -> EpochPlan:
        """The plan that leaves out the samples where ``mask`` (``bool[N]``, any device) is true."""
        mask = mask.cpu()
        return cls(
            indices=_where(~mask),
            hidden=_where(mask),
            weights=weights,
            lr_factor=lr_factor,
            metrics=metrics or {},
        )

    def with_lr_factor(self, lr_factor: float) -> EpochPlan:
        """The same selection with another learning-rate factor."""
        return replace(self, lr_factor=lr_factor)

    @property
    def hidden_fraction(self) -> float:
        """Share of the data set that is left out, in [0, 1)."""
        total = len(self.indices) + len(self.hidden)
        return len(self.hidden) / total if total else 0.0

    def is_complement(self, num_samples: int) -> bool:
        """Whether ``indices`` are those of ``num_samples`` that are not hidden, ascending, as :meth:`hide` makes them."""
        if len(self.indices) + len(self.hidden) != num_samples:
            return False
        kept = torch.ones(num_samples, dtype=torch.bool).index_fill_(0, self.hidden, False)
        return torch.equal(self.indices, _where(kept))

    def checksum(self) -> int:
        """A 63-bit sum that differs when indices, their order, the hidden set, weights or the learning-rate factor do."""
        factor = torch.tensor([self.lr_factor], dtype=torch.float64).view(torch.int64)
        weights = factor[:0] if self.weights is None else self.weights.cpu().view(torch.int32)
        parts = (self.indices, self.hidden, weights, factor)
        sums = [int((part * torch.arange(1, 2 * len(part) + 1, 2)).sum()) for part in parts]
        return sum(value * 0x9E3779B1**power for power, value in enumerate(sums)) % (1 << 63)

    def shard(self, layout: Layout, draws: DrawSource | None = None) -> EpochShard:
        """One rank's part of it, see :func:`~kakurenbo_lightning.core.shard.epoch_shard`; ``draws`` are for a :class:`StreamPlan`.

        Raises:
            ValueError: fewer samples than ranks, or (with ``drop_last``) fewer than one full step.
        """
        return epoch_shard(self.indices, self.weights, layout)


@dataclass(frozen=True)
class StreamPlan:
    """An epoch whose batches are drawn, with replacement, while it is trained: which samples those are is not known before.

    Attributes:
        num_samples: N; any of them may be drawn.
        samples: how many draws the epoch has, of all ranks together.
        metrics: what the method wants logged, as ``selection/<key>``.
    """

    num_samples: int
    samples: int
    metrics: dict[str, float] = field(default_factory=dict)

    hidden_fraction: ClassVar[float] = 0.0
    lr_factor: ClassVar[float] = 1.0

    @property
    def hidden(self) -> Tensor:
        """``int64[0]``: no sample is left out for certain."""
        return torch.empty(0, dtype=torch.int64)

    def checksum(self) -> int:
        """A number that differs when the plan does."""
        return self.num_samples * 0x9E3779B1 + self.samples

    def shard(self, layout: Layout, draws: DrawSource | None = None) -> StreamShard:
        """One rank's part of it, whose batches come from ``draws`` (uniform ones where only the length counts)."""
        return StreamShard(self.samples, layout, draws or UniformDraws(self.num_samples, layout.batch_size))


Plan = EpochPlan | StreamPlan


def _where(mask: Tensor) -> Tensor:
    """``int64`` indices of a ``bool`` mask on the CPU; NumPy is nine times as fast as ``nonzero`` of torch."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
