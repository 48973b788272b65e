"""Samples without an index: batches that arrive one by one, of which nobody knows before how many there are and what is in them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.errors import ConflictError

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = sys.maxsize  # batches of an epoch whose length is not known
NO_INDEX = -1  # of a sample
_KEPT = 8  # batches whose sizes are known: the current one, those that are loaded ahead, and some before


class ArrivingShard:
    """One rank's part of an epoch whose batches arrive one by one; unlike other shards it grows while the epoch is trained.

    Args:
        epoch: which epoch.
        first: number of the first batch, in an epoch that goes on.
        world_size: number of ranks.
        rank: this one.
        batch_size: samples of a full batch, per rank; 0 where only the batches will say.
        samples_before: of all ranks, in the batches before ``first``.
        expected: loaded batches of the epoch as far as anything says, :data:`UNKNOWN` where nothing does.
    """

    def __init__(
        self,
        epoch: int,
        first: int,
        world_size: int,
        rank: int,
        batch_size: int,
        samples_before: int = 0,
        expected: int = UNKNOWN,
    ) -> None:
        self.epoch, self.first, self.expected = epoch, first, expected
        self._world_size, self._rank, self._before = world_size, rank, samples_before
        self._given_size, self._device = batch_size, torch.device("cpu")
        self.clear()

    def clear(self) -> None:
        """Forget all batches, as before the first one of the epoch arrives."""
        self.batch_size, self.steps = self._given_size, UNKNOWN
        self._sizes: dict[int, Sequence[int]] = {}  # of each rank, by batch
        self._keys: dict[int, tuple[Tensor | None, Tensor | None]] = {}  # and loss weights, of this rank
        self._until = {self.first: self._before}  # samples of all ranks in the batches before

    def arrive(self, number: int, sizes: Sequence[int], keys: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Note a batch that the loader has yielded.

        Args:
            number: of the batch, from the epoch's first one on.
            sizes: how many samples each rank has.
            keys: those of this rank's, ``int64[b]`` on the CPU, where they have any.
            weights: of their losses, ``float32[b]``; ``None``: 1.
        """
        self.batch_size = self.batch_size or max(sizes)
        self._sizes[number], self._keys[number] = sizes, (keys, weights)
        self._until[number + 1] = self._until[number] + sum(sizes)
        self._sizes.pop(number - _KEPT, None)
        self._keys.pop(number - _KEPT, None)
        self._until.pop(number - _KEPT, None)

    def end(self, steps: int) -> None:
        """Note that the stream has ended, after ``steps`` batches of the epoch."""
        self.steps = steps

    @property
    def total(self) -> int:
        """Samples of the batches that have arrived, on all ranks together."""
        return max(self._until.values()) - self._before

    def step(self, number: int) -> Tensor:
        """The keys of batch ``number``, ``int64[b]`` on the CPU, where there are any; else :data:`NO_INDEX` for each sample."""
        keys = self._keys.get(number, (None, None))[0]
        if keys is not None:
            return keys
        return torch.full((self.batch_length(number),), NO_INDEX, device=self._device)

    def step_weights(self, number: int) -> Tensor | None:
        """The loss weights of batch ``number``, ``float32[b]`` on the device, or ``None`` for 1 everywhere."""
        weights = self._keys.get(number, (None, None))[1]
        return None if weights is None else weights.to(self._device, non_blocking=True)

    def step_total(self, number: int) -> int:
        """Samples of batch ``number`` on all ranks together; 0 if it has not arrived."""
        return sum(self._sizes.get(number, ()))

    def batch_length(self, number: int) -> int:
        """Samples of batch ``number`` on this rank; 0 if it has not arrived."""
        sizes = self._sizes.get(number)
        return 0 if sizes is None else sizes[self._rank]

    def loss_scale(self, number: int) -> float:
        """Factor on this rank's mean loss that makes the average of the ranks' gradients the mean over all samples."""
        return self.batch_length(number) * self._world_size / self.step_total(number)

    def samples_until(self, step: int) -> int:
        """Samples that all ranks have in the batches before ``step``.

        Raises:
            ConflictError: batches are asked for that have not arrived.
        """
        known = max(self._until.values()) if step >= self.steps else self._until.get(step)  # its end may be before its first
        if known is None:
            raise ConflictError(
                "the mean over the samples of several batches (mean_over_samples=True, or loss_scale(accumulate=...) above 1) needs the "
                "sizes of all of them before the first is trained, and batches of iterable data have arrived one by one; use "
                "mean_over_samples=None and loss_scale(accumulate=1), or a map-style data set"
            )
        return known

    def batches(self, start: int = 0) -> Iterator[list[int]]:
        """See :meth:`Shard.batches`: there are no indices to load by."""
        return iter(())

    def to(self, device: torch.device | str) -> ArrivingShard:
        """See :meth:`Shard.to`; the same object, whose batches go on to arrive."""
        self._device = torch.device(device)
        return self
