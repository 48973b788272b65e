"""What an epoch trains on: a fixed set of samples (:class:`EpochPlan`; :class:`SetPlan` in a bit for each), or draws while it is trained
(:class:`StreamPlan`). Of samples that are known by keys it is a :class:`~kakurenbo_lightning.core.key_plan.KeyPlan`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.key_plan import KeyPlan
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.set_shard import Levels, SetShard
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
    def rows(self) -> Tensor:
        """The samples to train, as they are kept: here ``int64[n]``."""
        return self.indices

    @property
    def hidden_count(self) -> int:
        """How many samples are left out."""
        return len(self.hidden)

    @property
    def hidden_fraction(self) -> float:
        """Share of the data set that is left out, in [0, 1)."""
        total = len(self.indices) + len(self.hidden)
        return len(self.hidden) / total if total else 0.0

    def hides(self, rows: Tensor | IndexSet) -> bool:
        """Whether all of ``rows`` (``int64[n]``) are left out."""
        if rows is self.hidden or not len(rows):
            return True
        rows = rows if isinstance(rows, torch.Tensor) else rows.tensor()
        size = 1 + max(int(part.max()) for part in (rows, self.hidden) if len(part))
        return bool(torch.zeros(size, dtype=torch.bool).index_fill_(0, self.hidden, True)[rows].all())

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
class SetPlan:
    """An :class:`EpochPlan` that hides, in a bit for each sample (two where there are weights): the same on every rank, as that one is.

    Attributes:
        kept: the samples to train.
        levels: the loss weights there are: one for all samples, or two.
        heavy: the samples of the second; ``None`` where there is one.
        lr_factor: factor on the learning rate of every optimizer step of the epoch.
        metrics: what the method wants logged.

    Raises:
        ValueError: more than two loss weights.
    """

    kept: IndexSet
    levels: Levels = (1.0,)
    heavy: IndexSet | None = None
    lr_factor: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.levels) > 2:
            raise ValueError(
                f"the method gives samples the loss weights {', '.join(f'{level:g}' for level in self.levels[:3])}, and others; "
                "with statistics='sharded' they may have two values; use statistics='replicated'"
            )

    @classmethod
    def of(cls, plan: EpochPlan, num_samples: int) -> SetPlan:
        """The plan of ``num_samples`` samples, whose indices do not repeat."""
        kept = torch.ones(num_samples, dtype=torch.bool).index_fill_(0, plan.hidden, False)
        levels, heavy = (1.0,), None
        if plan.weights is not None:
            levels = tuple(plan.weights.unique().tolist())
            heavy = IndexSet.of_mask(plan.weights == levels[-1]) if len(levels) == 2 else None
        return cls(IndexSet.of_mask(kept), levels, heavy, plan.lr_factor, plan.metrics)

    @property
    def indices(self) -> Tensor:
        """The samples to train, ``int64[n]``; made at each access, as are :attr:`hidden` and :attr:`weights`, since they
        take 8 bytes a sample."""
        return self.kept.tensor()

    @property
    def hidden(self) -> Tensor:
        """The samples left out, ``int64[h]``, ascending."""
        return self.kept.complement().tensor()

    @property
    def weights(self) -> Tensor | None:
        """``float32[N]`` loss weights, or ``None`` for 1 everywhere."""
        if self.levels == (1.0,):
            return None
        heavy = np.zeros(self.kept.size, dtype=bool) if self.heavy is None else self.heavy.mask()
        return torch.tensor(self.levels)[torch.from_numpy(heavy).long()]

    @property
    def rows(self) -> IndexSet:
        """The samples to train, as they are kept: here a set."""
        return self.kept

    @property
    def hidden_count(self) -> int:
        """How many samples are left out."""
        return self.kept.size - len(self.kept)

    @property
    def hidden_fraction(self) -> float:
        """Share of the data set that is left out, in [0, 1)."""
        return self.hidden_count / self.kept.size if self.kept.size else 0.0

    def with_lr_factor(self, lr_factor: float) -> SetPlan:
        """The same selection with another learning-rate factor."""
        return replace(self, lr_factor=lr_factor)

    def hides(self, rows: Tensor | IndexSet) -> bool:
        """Whether all of ``rows`` are left out."""
        return not bool(self.kept.holds(rows).any()) if isinstance(rows, torch.Tensor) else rows <= self.kept.complement()

    def is_complement(self, num_samples: int) -> bool:
        """Whether the plan is of ``num_samples`` samples; its indices always are those that are not hidden."""
        return self.kept.size == num_samples

    def checksum(self) -> int:
        """A 63-bit number that differs when the set, weights or the learning-rate factor do."""
        heavy = 0 if self.heavy is None else self.heavy.checksum()
        return hash((self.kept.checksum(), heavy, self.levels, self.lr_factor)) % (1 << 63)

    def shard(self, layout: Layout, draws: DrawSource | None = None) -> SetShard:
        """One rank's part of the plan, see :meth:`EpochPlan.shard`; ``draws`` are not used."""
        return SetShard(self.kept, self.levels, self.heavy, layout)


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
    hidden_count: ClassVar[int] = 0
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

    def hides(self, rows: Tensor | IndexSet) -> bool:
        """Whether all of ``rows`` are left out: where there are none."""
        return len(rows) == 0


Plan = EpochPlan | SetPlan | StreamPlan | KeyPlan


def _where(mask: Tensor) -> Tensor:
    """``int64`` indices of a ``bool`` mask on the CPU; NumPy is nine times as fast as ``nonzero`` of torch."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
