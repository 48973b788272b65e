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
    """A batch that was drawn, with what is needed to weight it and to say how stale its draw was.

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
        """The next ``batch_size`` samples of the one random order."""
        places = torch.arange(number * self.batch_size, (number + 1) * self.batch_size) % self.num_samples
        return Drawn(self._order[places], None, 0)

    drawn = draw


@dataclass(frozen=True)
class StreamShard:
    """One rank's part of a drawn epoch; all batches are full, so the last step may draw a few samples more than the plan says.

    What its properties and methods return is described in :class:`~kakurenbo_lightning.core.shard.Shard`.

    Attributes:
        samples: how many samples the epoch draws, on all ranks together.
        layout: ranks and batches of the epoch.
        draws: where the batches come from.
        device: the device of the tensors that :meth:`step` returns.
    """

    samples: int
    layout: Layout
    draws: DrawSource
    device: torch.device | str = field(default="cpu")

    @property
    def batch_size(self) -> int:
        return self.layout.batch_size

    @property
    def steps(self) -> int:
        done_steps, done_samples = self.layout.done
        return done_steps + max(0, -(-(self.samples - done_samples) // (self.batch_size * self.layout.world_size)))

    @property
    def expected(self) -> int:
        return self.steps

    @property
    def total(self) -> int:
        return (self.steps - self.layout.done[0]) * self.batch_size * self.layout.world_size

    def to(self, device: torch.device | str) -> StreamShard:
        return replace(self, device=device)

    def batches(self, start: int = 0) -> Iterator[list[int]]:
        """Each batch is drawn when it is asked for."""
        for number in range(max(start, self.layout.done[0]), self.steps):
            yield self.draws.draw(number).indices.tolist()

    def step(self, number: int) -> Tensor:
        """The indices of a batch that was drawn: the one that is trained, or one drawn ahead by workers."""
        return self.draws.drawn(number).indices.to(self.device, non_blocking=True)

    def step_weights(self, number: int) -> Tensor | None:
        weights = self.draws.drawn(number).weights
        return None if weights is None else weights.to(self.device, non_blocking=True)

    def step_total(self, number: int) -> int:
        return self.batch_size * self.layout.world_size

    def batch_length(self, number: int) -> int:
        return self.batch_size

    def loss_scale(self, number: int) -> float:
        """Always 1, because every rank has as many samples in a step."""
        return 1.0

    def samples_until(self, step: int) -> int:
        return self.layout.done[1] + (step - self.layout.done[0]) * self.batch_size * self.layout.world_size
