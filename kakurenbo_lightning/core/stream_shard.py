"""An epoch whose batches are drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Drawn:
    """A batch that was drawn.

    Attributes:
        indices: ``int64[B]`` on the CPU.
        weights: ``float32[B]`` on the CPU, 1 / (N p) with the p it was drawn with; ``None`` for 1.
        written: how many steps' observations the table held.
    """

    indices: Tensor
    weights: Tensor | None
    written: int


class StreamShard:
    """One rank's share of a drawn epoch, with what a run asks of a :class:`~kakurenbo_lightning.plan.EpochShard`. All batches are full.

    Args:
        samples: that the epoch draws, on all ranks together; the last step may draw a few more.
        num_samples: N.
        batch_size: samples of a batch.
        world_size: number of ranks.
        rank: this one.
        draw: gives batch ``number`` of this rank, drawn if need be; ``None`` where only the length counts.
        drawn: gives a batch that was drawn.
        device: of what :meth:`step` returns.
        done: steps and samples that other ranks, or other batches, have behind them.

    Attributes:
        steps: number of the epoch's steps.
    """

    def __init__(
        self,
        samples: int,
        num_samples: int,
        batch_size: int,
        world_size: int,
        rank: int,
        draw: Callable[[int], Drawn] | None = None,
        drawn: Callable[[int], Drawn] | None = None,
        device: torch.device | str = "cpu",
        done: tuple[int, int] = (0, 0),
    ) -> None:
        self.batch_size, self.world_size, self.rank = batch_size, world_size, rank
        self._num_samples, self._draw, self._drawn, self._device = num_samples, draw, drawn, device
        self._first, self._samples_before = done
        self.steps = self._first + max(0, -(-(samples - self._samples_before) // (batch_size * world_size)))

    def to(self, device: torch.device | str) -> StreamShard:
        """Itself: it knows where its indices go."""
        return self

    def batches(self, first: int = 0) -> Iterator[list[int]]:
        """The batches of index lists from step ``first`` on, each drawn when it is asked for; in random order where only the length counts,
        which a learning-rate finder trains on."""
        order = torch.randperm(self._num_samples, generator=torch.Generator().manual_seed(0)) if self._draw is None else None
        for number in range(max(first, self._first), self.steps):
            if order is None:
                yield self._draw(number).indices.tolist()
            else:
                places = torch.arange(number * self.batch_size, (number + 1) * self.batch_size) % self._num_samples
                yield order[places].tolist()

    def step(self, number: int) -> Tensor:
        """The indices of step ``number``, ``int64[B]``: of the one that is trained, or of those drawn ahead."""
        return self._drawn(number).indices.to(self._device, non_blocking=True)

    def step_weights(self, number: int) -> Tensor | None:
        """The loss weights of step ``number``, ``float32[B]``, or ``None`` for 1 everywhere."""
        weights = self._drawn(number).weights
        return None if weights is None else weights.to(self._device, non_blocking=True)

    def batch_length(self, number: int) -> int:
        """Samples of step ``number`` on this rank."""
        return self.batch_size

    def loss_scale(self, number: int) -> float:
        """Factor on this rank's mean loss: every rank has as many samples."""
        return 1.0

    def samples_until(self, step: int) -> int:
        """Samples trained by all ranks together in the first ``step`` steps; ``step >= first``."""
        return self._samples_before + (step - self._first) * self.batch_size * self.world_size
