"""One rank's part of a set of very many samples: no rank has the order of all of them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.permutation import share_of_shuffled
from kakurenbo_lightning.core.random import stream_generator
from kakurenbo_lightning.core.shard import EpochShard, Layout, laid_out, places

if TYPE_CHECKING:
    from torch import Tensor

Levels = tuple[float, ...]  # loss weights that there are: one, or a lower and a higher one


class SetShard(EpochShard):
    """The shard that :func:`~kakurenbo_lightning.core.shard.epoch_shard` makes of the same samples, equal to the bit.

    Its order is made when it is asked for first, and takes memory for this rank's samples only.

    Args:
        kept: the samples to train.
        levels: the loss weights there are, ascending.
        heavy: the samples that have the higher weight; ``None`` where all have the same.
        layout: the ranks and batches to lay them out for.

    Raises:
        ValueError: fewer samples than ranks, or (with ``drop_last``) fewer than one full step.
    """

    _source: tuple[IndexSet, Levels, IndexSet | None]
    _layout: Layout
    _numbers: dict[str, int]

    def __init__(self, kept: IndexSet, levels: Levels, heavy: IndexSet | None, layout: Layout) -> None:
        numbers = laid_out(len(kept), layout)
        # past the dataclass's own __setattr__, because the base is frozen
        vars(self).update(numbers, _numbers=numbers, _source=(kept, levels, heavy), _layout=layout)

    @cached_property
    def indices(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``int64[n_rank]`` in training order, made at the first access; ``int32`` where that is enough."""
        kept, layout = self._source[0], self._layout
        if not layout.shuffle:
            return kept.some(places(self._numbers))
        return share_of_shuffled(kept, stream_generator(layout.seed, layout.epoch, "deal"), places(self._numbers))

    @cached_property
    def weights(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``float32[n_rank]`` loss weights in the same order, or ``None`` for 1 everywhere; made at the first access."""
        _, levels, heavy = self._source
        if levels == (1.0,):
            return None
        if heavy is None:
            return torch.full((len(self.indices),), levels[0])
        low, high = torch.tensor(levels)
        return torch.where(heavy.holds(self.indices), high, low)

    def to(self, device: torch.device | str) -> EpochShard:
        """On the CPU the shard itself, elsewhere an :class:`EpochShard` with its indices on ``device``."""
        if torch.device(device).type == "cpu":
            return self
        weights = None if self.weights is None else self.weights.to(device)
        return EpochShard(self.indices.to(device), weights=weights, **self._numbers)

    def same_order(self, other: EpochShard) -> bool:
        """Whether ``other`` trains the same samples in the same order: decided by the sets, without making either order."""
        if not isinstance(other, SetShard) or self._layout != other._layout:
            return super().same_order(other)
        (kept, *_), (there, *_) = self._source, other._source
        return kept.size == there.size and kept <= there <= kept
