"""One rank's part of an epoch: which samples it trains in which step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Protocol

from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.order import Order, by_ranks
from kakurenbo_lightning.core.permutation import shuffled
from kakurenbo_lightning.core.random import stream_generator

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How an epoch is laid out over ranks, steps and batches.

    Attributes:
        batch_size: samples per rank and step.
        world_size: number of ranks.
        rank: the rank whose part is wanted.
        drop_last: drop an incomplete last step.
        shuffle: train in random order, else in that of the plan.
        seed: seed of the random order; the same on every rank.
        epoch: number of the epoch, which seeds the order too.
        done: how many steps and how many samples of the epoch were trained already, by other ranks or in other batches.
        order: the order in which the epoch trains its samples, in place of a random one.
    """

    batch_size: int
    world_size: int = 1
    rank: int = 0
    drop_last: bool = False
    shuffle: bool = True
    seed: int = 0
    epoch: int = 0
    done: tuple[int, int] = (0, 0)
    order: Order | None = field(default=None, compare=False, repr=False)

    @property
    def order_digest(self) -> str:
        """A hash of the order as it is laid out; empty for a random one."""
        return "" if self.order is None else self.order.digest(self.batch_size)

    @property
    def order_checksum(self) -> int:
        """The same as a number of 63 bits; 0 for a random one."""
        return int(self.order_digest or "0", 16) >> 1


class Shard(Protocol):
    """What engines, samplers and schedules ask of one rank's part of an epoch. All ranks have the same number of steps."""

    @property
    def batch_size(self) -> int:
        """Samples of a full step, per rank."""
        ...

    @property
    def steps(self) -> int:
        """Number of the epoch's steps, those that are done included."""
        ...

    @property
    def expected(self) -> int:
        """The number of steps as far as it is known now; an estimate where only the epoch's end will show :attr:`steps`."""
        ...

    @property
    def total(self) -> int:
        """Samples of all ranks together, without those that are done."""
        ...

    def step(self, number: int) -> Tensor:
        """The indices of step ``number``, ``int64[b]``, without those that are only padding."""
        ...

    def step_weights(self, number: int) -> Tensor | None:
        """The loss weights of step ``number``, ``float32[b]``, or ``None`` for 1 everywhere."""
        ...

    def step_total(self, number: int) -> int:
        """Samples of step ``number`` on all ranks together, without padding."""
        ...

    def batch_length(self, number: int) -> int:
        """Samples of step ``number`` on this rank, padding included."""
        ...

    def loss_scale(self, number: int) -> float:
        """Factor on this rank's mean loss that makes the average of the ranks' gradients the mean over all samples."""
        ...

    def samples_until(self, step: int) -> int:
        """Samples that all ranks train in the first ``step`` steps; steps done in another layout count as full ones."""
        ...

    def batches(self, start: int = 0) -> Iterator[list[int]]:
        """The batches of index lists from step ``start`` of the epoch on, padding included."""
        ...

    def to(self, device: torch.device | str) -> Shard:
        """The same shard with its indices on ``device``."""
        ...


@dataclass(frozen=True)
class EpochShard:
    """One rank's part of a fixed set of samples. In each step the ranks' sizes differ by at most one.

    What its properties and methods return is described in :class:`Shard`.

    Attributes:
        indices: ``int64[n_rank]``, in training order: this rank's of a global order strided over the ranks.
        batch_size: samples of a full step, per rank.
        steps: number of the epoch's steps.
        world_size: number of ranks that share the epoch.
        rank: the rank whose part this is.
        total: samples of all ranks together.
        last_start: place in the global order where the last step begins.
        first: number of the first step of this layout; the steps before it had another one (another world size).
        samples_before: samples that all ranks trained in those.
        weights: ``float32[n_rank]`` loss weights in the same order, or ``None`` for 1 everywhere.
        padding: how many indices at the end are duplicates, there only to give every rank the same number of
            forward passes. They must not be recorded.
    """

    indices: Tensor
    batch_size: int
    steps: int
    world_size: int
    rank: int
    total: int
    last_start: int
    first: int = 0
    samples_before: int = 0
    weights: Tensor | None = None
    padding: int = 0

    @property
    def expected(self) -> int:
        return self.steps

    def _begin(self, number: int) -> int:
        """Place in the global order where step ``number`` begins."""
        if number >= self.steps:
            return self.total
        return self.last_start if number == self.steps - 1 else (number - self.first) * self.batch_size * self.world_size

    def _mine(self, place: int) -> int:
        """How many of the first ``place`` samples of the global order are this rank's."""
        return (place - self.rank + self.world_size - 1) // self.world_size

    def step(self, number: int) -> Tensor:
        """A slice of :attr:`indices`, so nothing waits for the device."""
        return self.indices[self._mine(self._begin(number)) : self._mine(self._begin(number + 1))].long()

    def step_weights(self, number: int) -> Tensor | None:
        if self.weights is None:
            return None
        return self.weights[self._mine(self._begin(number)) : self._mine(self._begin(number + 1))]

    def step_total(self, number: int) -> int:
        return self._begin(number + 1) - self._begin(number)

    def batch_length(self, number: int) -> int:
        end = len(self.indices) if number == self.steps - 1 else self._mine(self._begin(number + 1))
        return end - self._mine(self._begin(number))

    def to(self, device: torch.device | str) -> EpochShard:
        weights = None if self.weights is None else self.weights.to(device)
        return replace(self, indices=self.indices.to(device), weights=weights)

    def same_order(self, other: EpochShard) -> bool:
        """Whether the samples of ``other``, of equal numbers, are the same in the same order."""
        return torch.equal(self.indices, other.indices)

    def batches(self, start: int = 0) -> Iterator[list[int]]:
        for number in range(max(start, self.first), self.steps):
            begin = self._mine(self._begin(number))
            yield self.indices[begin : begin + self.batch_length(number)].tolist()

    def loss_scale(self, number: int) -> float:
        return len(self.step(number)) * self.world_size / self.step_total(number)

    def samples_until(self, step: int) -> int:
        return self.samples_before + self._begin(step)


def accumulated_scale(shard: Shard, number: int, accumulate: int, batches: int) -> float:
    """Factor on this rank's mean loss of batch ``number``, over ``accumulate``, that makes an optimizer step's gradient the mean over all
    samples that its batches have on all ranks. Batches of the step that were trained in another layout count as full ones.

    Args:
        shard: this rank's part of the epoch.
        number: number of the batch in the epoch.
        accumulate: batches of an optimizer step; the last step of an epoch has what is left.
        batches: how many batches of the epoch are trained.
    """
    begin = number - number % accumulate
    samples = shard.samples_until(min(begin + accumulate, batches)) - shard.samples_until(begin)
    return shard.loss_scale(number) * (shard.step_total(number) * accumulate / samples)


def same_batches(one: Shard, other: Shard) -> bool:
    """Whether both are the same batches; ``False`` for those that are drawn, each time others."""
    if not isinstance(one, EpochShard) or not isinstance(other, EpochShard):
        return False
    numbers = [field.name for field in fields(EpochShard) if field.name not in ("indices", "weights")]
    return all(getattr(one, name) == getattr(other, name) for name in numbers) and one.same_order(other)


def epoch_shard(indices: Tensor, weights: Tensor | None, layout: Layout) -> EpochShard:
    """Lay out ``indices``, or what is left of them, for one rank.

    The order is the layout's, or a permutation from its own generator, seeded by ``(seed, epoch)``. A step takes the next
    ``batch_size * world_size`` indices, strided over the ranks, so that sizes differ by at most one. A tail of less than half a
    step is shared evenly with the step before it, because a hidden part leaves any number of samples, and a batch of a
    few spoils BatchNorm's statistics (one of a single sample stops it). Nothing is trained twice and nothing is left out,
    unless ``drop_last`` drops the tail.

    Args:
        indices: ``int64[n]`` on the CPU, the samples to train in the epoch.
        weights: ``float32[N]`` loss weight of every data set index, or ``None`` for 1 everywhere.
        layout: the ranks and batches to lay them out for.

    Raises:
        ValueError: fewer samples than ranks, or (with ``drop_last``) fewer than one full step.
    """
    if layout.order is not None:
        indices = layout.order.of(indices, layout.batch_size)
    elif layout.shuffle:  # "deal" names this random stream since the first release: another name would be another order
        indices = shuffled(indices, stream_generator(layout.seed, layout.epoch, "deal"))
    numbers = laid_out(len(indices), layout)
    begin, total, world_size = numbers["samples_before"], numbers["total"], layout.world_size
    indices = indices[begin : begin + total]
    if layout.order is not None and layout.order.batches is not None and world_size > 1:
        indices = indices[by_ranks(total, numbers["last_start"], layout.batch_size, world_size)]
    indices = indices[layout.rank :: world_size].contiguous()
    return EpochShard(indices, weights=None if weights is None else weights[indices], **numbers)


def laid_out(count: int, layout: Layout) -> dict[str, int]:
    """The attributes of an :class:`EpochShard` of ``count`` samples that are plain numbers, by name.

    Raises:
        ValueError: as :func:`epoch_shard`.
    """
    first, samples_before = layout.done
    world_size, total = layout.world_size, max(0, count - samples_before)
    full = layout.batch_size * world_size
    steps, tail = divmod(total, full)
    _check_enough(total, layout)
    if layout.drop_last:
        total, tail = total - tail, 0
    steps, last_start = _cut(steps, tail, full, world_size)
    return {
        "batch_size": layout.batch_size,
        "steps": first + steps,
        "world_size": world_size,
        "rank": layout.rank,
        "total": total,
        "last_start": last_start,
        "first": first,
        "samples_before": samples_before,
    }


def places(numbers: Mapping[str, int]) -> range:
    """The places of the epoch's order that belong to the rank whose numbers :func:`laid_out` returned."""
    before, total = numbers["samples_before"], numbers["total"]
    return range(before + numbers["rank"], before + total, numbers["world_size"])


def _check_enough(total: int, layout: Layout) -> None:
    """Raise ``ValueError`` when ``total`` samples do not make a step; an epoch that has begun may have none left."""
    begun, world_size = layout.done[1] > 0, layout.world_size
    if total == 0 and not begun:
        raise ValueError(
            f"epoch {layout.epoch} has 0 samples to train: the train loader's sampler yields none, or everything is hidden; give the "
            "loader a sampler that yields some, or hide fewer"
        )
    if layout.drop_last and total < layout.batch_size * world_size and not begun:
        raise ValueError(
            f"epoch {layout.epoch} has {total} samples to train, but one step takes batch_size * world_size = "
            f"{layout.batch_size} * {world_size} and drop_last=True drops the rest; use drop_last=False, a smaller batch_size or "
            "hide fewer samples"
        )
    if not layout.drop_last and 0 < total < world_size:
        raise ValueError(
            f"epoch {layout.epoch} has {total} samples to train for {world_size} ranks, at least one each is needed; hide fewer samples "
            "or use fewer ranks"
        )


def _cut(steps: int, tail: int, full: int, world_size: int) -> tuple[int, int]:
    """How many steps ``steps`` full ones and a tail make, and the place in the order where the last one begins."""
    if tail and (steps == 0 or tail >= max(full / 2, 2 * world_size)):  # a step of its own
        return steps + 1, steps * full
    if tail and full + tail >= 4 * world_size:  # shared with the step before
        return steps + 1, (steps - 1) * full + (full + tail + 1) // 2
    return steps, max(0, steps - 1) * full  # nothing left, or a step that is a little longer


def scoring_shard(indices: Tensor | IndexSet, batch_size: int, world_size: int = 1, rank: int = 0) -> EpochShard:
    """Lay out ``indices`` (``int64[h]``, at least one, or a set) for a scoring pass: the same number of batches on every rank.

    A rank that would come one sample short is padded with a duplicate, see :attr:`EpochShard.padding`.
    """
    share = -(-len(indices) // world_size)
    steps = -(-share // batch_size)
    batch_size = -(-share // steps)  # even, so that no batch of one spoils BatchNorm when the pass is in train mode
    mine = _some(indices, range(rank, len(indices), world_size))
    padding = share - len(mine)
    if padding:
        mine = torch.cat([mine, _some(indices, range(padding))])
    return EpochShard(
        indices=mine,
        batch_size=batch_size,
        steps=steps,
        world_size=world_size,
        rank=rank,
        total=len(indices),
        last_start=min(len(indices), (steps - 1) * batch_size * world_size),
        padding=padding,
    )


def _some(indices: Tensor | IndexSet, numbers: range) -> Tensor:
    return indices[numbers.start : numbers.stop : numbers.step] if isinstance(indices, torch.Tensor) else indices.some(numbers)
