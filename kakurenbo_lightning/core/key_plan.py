"""What an epoch trains of a stream, whose samples are known by keys and not by their place."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from kakurenbo_lightning.core.arrivals import ArrivingShard
from kakurenbo_lightning.core.key_table import USUAL, KeyTable
from kakurenbo_lightning.core.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kakurenbo_lightning.core.index_set import IndexSet
    from kakurenbo_lightning.core.plan import EpochPlan
    from kakurenbo_lightning.core.shard import Layout
    from kakurenbo_lightning.core.stream_shard import DrawSource


@dataclass(frozen=True)
class KeyPlan:
    """The selection of one epoch of a stream, equal on every rank: the keys that are not trained as all others.

    Attributes:
        keys: ``int64[m]`` on the CPU, ascending: those whose loss weight is not 1.
        weights: ``float32[m]`` on the CPU, of them; 0: left out of this epoch.
        total: how many keys were known when it was made.
        lr_factor: factor on the learning rate of every optimizer step of the epoch.
        metrics: what the method wants logged, as ``selection/<key>``.
    """

    keys: Tensor
    weights: Tensor
    total: int
    lr_factor: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def everything(cls, total: int) -> KeyPlan:
        """The plan that trains all that arrives."""
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0), total)

    @classmethod
    def of(cls, plan: EpochPlan, keys: Tensor) -> KeyPlan:
        """The plan of a method, which knows samples by their place among ``keys`` (``int64[N]``, ascending)."""
        weights = torch.full((len(keys),), USUAL) if plan.weights is None else plan.weights.clone()
        weights[plan.hidden] = 0.0
        rows = torch.from_numpy(np.flatnonzero(weights.numpy() != USUAL))
        return cls(keys[rows], weights[rows], len(keys), plan.lr_factor, plan.metrics)

    def table(self) -> KeyTable | None:
        """The weights as a hash table; ``None``: all are 1."""
        return KeyTable(self.keys.numpy(), self.weights.numpy()) if len(self.keys) else None

    @property
    def hidden(self) -> Tensor:
        """``int64[h]`` on the CPU, ascending: the keys left out of this epoch."""
        return self.keys[self.weights == 0]

    @cached_property
    def hidden_count(self) -> int:
        """How many known samples are left out."""
        return int((self.weights == 0).sum())

    @property
    def hidden_fraction(self) -> float:
        """Share of the known samples that is left out, in [0, 1)."""
        return self.hidden_count / self.total if self.total else 0.0

    def with_lr_factor(self, lr_factor: float) -> KeyPlan:
        """The same selection with another learning-rate factor."""
        return replace(self, lr_factor=lr_factor)

    def hides(self, rows: Tensor | IndexSet) -> bool:
        """Whether all of ``rows`` are left out: none is ever scored, because it cannot be loaded again."""
        return not len(rows)

    def checksum(self) -> int:
        """A 63-bit sum that differs when keys, weights or the learning-rate factor do."""
        factor = torch.tensor([self.lr_factor], dtype=torch.float64).view(torch.int64)
        parts = (self.keys, self.weights.view(torch.int32), factor)
        sums = [int((part * torch.arange(1, 2 * len(part) + 1, 2)).sum()) for part in parts]
        return sum(value * 0x9E3779B1**power for power, value in enumerate(sums)) % (1 << 63)

    def shard(self, layout: Layout, draws: DrawSource | None = None) -> ArrivingShard:
        """One rank's part of it: what arrives there."""
        return ArrivingShard(layout.epoch, 0, layout.world_size, layout.rank, layout.batch_size)
