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
    """What :func:`~kakurenbo_lightning.core.shard.epoch_shard` makes of the same samples, to the bit.

    Its order is made when it is asked for.

    Args:
        kept: the samples to train.
        levels: of their weights.
        heavy: the samples of the higher weight.
        layout: ranks and batches.

    Raises:
        ValueError: as there.
    """

    _source: tuple[IndexSet, Levels, IndexSet | None]
    _layout: Layout
    _numbers: dict[str, int]

    def __init__(self, kept: IndexSet, levels: Levels, heavy: IndexSet | None, layout: Layout) -> None:
        numbers = laid_out(len(kept), layout)
        # the base is frozen
        vars(self).update(numbers, _numbers=numbers, _source=(kept, levels, heavy), _layout=layout)

    @cached_property
    def indices(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See :class:`EpochShard`; ``int32`` where that is enough."""
        kept, layout = self._source[0], self._layout
        if not layout.shuffle:
            return kept.some(places(self._numbers))
        return share_of_shuffled(kept, stream_generator(layout.seed, layout.epoch, "deal"), places(self._numbers))

    @cached_property
    def weights(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See :class:`EpochShard`."""
        _, levels, heavy = self._source
        if levels == (1.0,):
            return None
        if heavy is None:
            return torch.full((len(self.indices),), levels[0])
        low, high = torch.tensor(levels)
        return torch.where(heavy.holds(self.indices), high, low)

    def to(self, device: torch.device | str) -> EpochShard:
        """See :class:`EpochShard`."""
        if torch.device(device).type == "cpu":
            return self
        weights = None if self.weights is None else self.weights.to(device)
        return EpochShard(self.indices.to(device), weights=weights, **self._numbers)

    def same_order(self, other: EpochShard) -> bool:
        """See :class:`EpochShard`."""
        if not isinstance(other, SetShard) or self._layout != other._layout:
            return super().same_order(other)
        (kept, *_), (there, *_) = self._source, other._source
        return kept.size == there.size and kept <= there <= kept
