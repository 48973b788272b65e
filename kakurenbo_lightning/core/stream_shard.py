"""One rank's part of an epoch whose batches are drawn while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.shard import Layout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Drawn:
    """A batch that was drawn.

    Attributes:
        indices: ``int64[B]`` on the CPU.
        weights: ``float32[B]`` on the CPU, 1 / (N p) with the p it was drawn with; ``None`` for 1.
        written: how many steps' observations the sum tree held.
    """

    indices: Tensor
    weights: Tensor | None
    written: int


class DrawSource(Protocol):
    """Where the batches of a stream come from."""

    def draw(self, number: int) -> Drawn:
        """Batch ``number`` of this rank, drawn if need be."""
        ...

    def drawn(self, number: int) -> Drawn:
        """Batch ``number``, which was drawn before."""
        ...


@dataclass(frozen=True)
class UniformDraws:
    """Draws that only fill an epoch: one random order again and again, which Lightning's learning-rate finder trains on.

    Args:
        num_samples: N.
        batch_size: samples of a batch.
    """

    num_samples: int
    batch_size: int

    @cached_property
    def _order(self) -> Tensor:
        return torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(0))

    def draw(self, number: int) -> Drawn:
        """The next ``batch_size`` of the order."""
        places = torch.arange(number * self.batch_size, (number + 1) * self.batch_size) % self.num_samples
        return Drawn(self._order[places], None, 0)

    drawn = draw


@dataclass(frozen=True)
class StreamShard:
    """One rank's part of a drawn epoch; all batches are full, so the last step may draw a few samples more than the plan says.

    Attributes:
        samples: that the epoch draws, on all ranks together.
        layout: ranks and batches.
        draws: where batches come from.
        device: of what :meth:`step` returns.
    """

    samples: int
    layout: Layout
    draws: DrawSource
    device: torch.device | str = field(default="cpu")

    @property
    def batch_size(self) -> int:
        """See :attr:`Shard.batch_size`."""
        return self.layout.batch_size

    @property
    def steps(self) -> int:
        """See :attr:`Shard.steps`."""
        done_steps, done_samples = self.layout.done
        return done_steps + max(0, -(-(self.samples - done_samples) // (self.batch_size * self.layout.world_size)))

    @property
    def expected(self) -> int:
        """See :attr:`Shard.expected`."""
        return self.steps

    @property
    def total(self) -> int:
        """See :attr:`Shard.total`."""
        return (self.steps - self.layout.done[0]) * self.batch_size * self.layout.world_size

    def to(self, device: torch.device | str) -> StreamShard:
        """See :meth:`Shard.to`."""
        return replace(self, device=device)

    def batches(self, start: int = 0) -> Iterator[list[int]]:
        """See :meth:`Shard.batches`; each is drawn when it is asked for."""
        for number in range(max(start, self.layout.done[0]), self.steps):
            yield self.draws.draw(number).indices.tolist()

    def step(self, number: int) -> Tensor:
        """See :meth:`Shard.step`: of the step that is trained, or of those drawn ahead."""
        return self.draws.drawn(number).indices.to(self.device, non_blocking=True)

    def step_weights(self, number: int) -> Tensor | None:
        """See :meth:`Shard.step_weights`."""
        weights = self.draws.drawn(number).weights
        return None if weights is None else weights.to(self.device, non_blocking=True)

    def step_total(self, number: int) -> int:
        """See :meth:`Shard.step_total`."""
        return self.batch_size * self.layout.world_size

    def batch_length(self, number: int) -> int:
        """See :meth:`Shard.batch_length`."""
        return self.batch_size

    def loss_scale(self, number: int) -> float:
        """See :meth:`Shard.loss_scale`: every rank has as many samples."""
        return 1.0

    def samples_until(self, step: int) -> int:
        """See :meth:`Shard.samples_until`."""
        return self.layout.done[1] + (step - self.layout.done[0]) * self.batch_size * self.layout.world_size
