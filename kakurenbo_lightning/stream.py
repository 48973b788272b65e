"""Drives a stream: batches are drawn as training goes, and what a step observed decides what is drawn next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from kakurenbo_lightning.diagnosis import distribution_distance, ordered_share
from kakurenbo_lightning.drawing import SumTable
from kakurenbo_lightning.driver import Counts, Driver, LookAt
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.choosing import some_of
from kakurenbo_lightning.methods.pod import LARGEST, SMALLEST, StreamMethod
from kakurenbo_lightning.outputs import SampleOutputs, Values
from kakurenbo_lightning.plan import DealtEpoch
from kakurenbo_lightning.ranks import gather
from kakurenbo_lightning.seeding import stream_generator
from kakurenbo_lightning.statistics import SampleStatistics

# of normalised values: the mean between which nothing is done, and the one that they are scaled to. A step may multiply it by much
LEAST_MEAN, SCALED_MEAN, MOST_MEAN = 1e-20, 1e-15, 1e20


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


class StreamedEpoch:
    """One rank's share of a drawn epoch, with what a run asks of a :class:`~kakurenbo_lightning.plan.DealtEpoch`. All batches are full.

    Args:
        batches: of the epoch, of all ranks together.
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
        batches: int,
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
        left = batches - -(-self._samples_before // batch_size)
        self.steps = self._first + max(0, -(-left // world_size))

    def to(self, device: torch.device | str) -> StreamedEpoch:
        """Itself: it knows where its indices go."""
        return self

    def batches(self, first: int = 0) -> Iterator[list[int]]:
        """The batches of index lists from step ``first`` on, each drawn when it is asked for."""
        for number in range(max(first, self._first), self.steps):
            if self._draw is None:
                yield [place % self._num_samples for place in range(self.batch_size)]
            else:
                yield self._draw(number).indices.tolist()

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


class StreamDriver(Driver):
    """Draws batches and writes what their steps observed.

    The table of values is on the CPU, where the DataLoader wants its indices, and equal on every rank: what is observed goes to all of them
    (:attr:`~StreamMethod.exchange_every`), on its way while the backward pass runs. Random numbers of a draw depend on (seed, epoch, batch,
    rank) only.

    Args:
        method: what is written.
        statistics: of all samples.
        world_size: number of ranks.
        rank: this one.

    Attributes:
        table: the values; ``None`` before the stream starts.
    """

    def __init__(self, method: StreamMethod, statistics: SampleStatistics, world_size: int, rank: int) -> None:
        super().__init__(statistics.device)
        self._method, self._statistics, self._world_size, self._rank = method, statistics, world_size, rank
        self.table: SumTable | None = None
        self._cap = float("inf")
        self._drawn: dict[int, Drawn] = {}
        self._number, self._in_step = 0, False  # of the step that is, or was last, trained
        self._written = 0  # steps of this epoch whose observations are in the table
        self._observed: list[tuple[Tensor, Tensor]] = []  # indices and values of this rank's steps that no other rank knows
        self._exchange: _Exchange | None = None
        self._staleness: list[int] = []
        self._not_written = 0
        self._warned = False

    # --- the epoch

    def prepare(self, epoch: Epoch, looked_at: Tensor) -> None:
        """An epoch is planned: start the table, or write what was looked at (``int64[n]``) since the last step; the same on every rank."""
        self._drawn, self._written, self._staleness = {}, 0, []
        if not self._method.streams(epoch):
            return
        statistics, method = self._statistics, self._method
        self._cap = method.cap(statistics)
        if self.table is None:
            self.table = SumTable(method.all_values(statistics))
            return
        highest = float(torch.tensor(self._cap) ** method.temperature)
        if 0 < highest < LARGEST and not method.normalised:
            self.table.clamp(highest)
        if len(looked_at):
            self._write(looked_at, method.known(statistics)[looked_at])

    def begin_epoch(self, epoch: Epoch, dealt: DealtEpoch | StreamedEpoch, start: int, outputs: SampleOutputs) -> None:
        """Draw from ``start`` on; what was drawn before, and not used, is used first."""
        self._epoch, self._dealt, self._number = epoch, dealt, max(0, start - 1)
        self.phases.start("data")
        drawn = {number: drawn for number, drawn in self._drawn.items() if len(drawn.indices) == dealt.batch_size}
        self._drawn = {number: drawn[number] for number in drawn if number >= start}

    def drawn(self, number: int) -> Drawn:
        """Batch ``number``, of those that were drawn.

        Raises:
            IndexError: it is not drawn yet, or trained long ago.
        """
        if number not in self._drawn:
            raise IndexError(
                f"batch {number} is not known: a stream knows the batch that is trained, {self._number}, and those drawn ahead"
            )
        return self._drawn[number]

    def draw(self, number: int) -> Drawn:
        """Batch ``number``; it is drawn now if it was not."""
        if number not in self._drawn:
            self._drawn[number] = self._draw(number)
        return self._drawn[number]

    def _draw(self, number: int) -> Drawn:
        method, table, count = self._method, self.table, self._dealt.batch_size
        generator = stream_generator(self._epoch.seed, self._epoch.index, f"draw:{number}:{self._rank}")
        indices = table.draw(count, generator)
        if method.mix:
            uniform = torch.randint(len(table), (count,), generator=generator)
            indices = torch.where(torch.rand(count, generator=generator) < method.mix, uniform, indices)
        weights = None
        if method.unbiased:
            probability = (1 - method.mix) * table.probability(indices) + method.mix / len(table)
            weights = (1 / (len(table) * probability)).float()
        return Drawn(indices, weights, self._written)

    def diagnosed(self, epoch: Epoch, look_at: LookAt) -> Counts:
        """How far the values of some samples are from the real ones, which ``look_at(rows, record)`` finds out; collective."""
        method, count = self._method, min(self._method.diagnose, len(self._statistics))
        if not count or not method.streams(epoch):
            return {}
        generator = stream_generator(epoch.seed, epoch.index, "diagnose")
        rows = some_of(torch.arange(len(self._statistics)), count, generator).sort().values
        seen: list[tuple[Tensor, Tensor]] = []
        look_at(rows, lambda indices, values: seen.append((indices.cpu(), method.observed(values).cpu())))
        parts = [part for rank in gather(seen) for part in rank]
        indices, observed = (torch.cat(column) for column in zip(*parts, strict=True))
        real = method.values(observed, self._cap)
        finite = real.isfinite()
        if not finite.any():
            return {}
        stored, real = self.table.values[indices[finite]], real[finite]
        return {"distribution_distance": distribution_distance(stored, real), "ordered_share": ordered_share(stored, real)}

    # --- the step

    def look(self, batch: Any, number: int) -> None:
        """The batch is there."""
        self.phases.stop("data")

    def learn(self, values: Values | None, batch: Any, number: int, scale: float) -> None:
        """Send what was observed to the other ranks, while the backward pass runs."""
        if not isinstance(self._dealt, StreamedEpoch):
            return
        drawn, self._number = self.drawn(number), number
        self._drawn.pop(number - 1, None)
        self._staleness.append(number - drawn.written)
        if values is None:
            return  # the user skips this batch: nothing was observed
        self._in_step = True
        self._observed.append((drawn.indices, self._method.observed(values)))
        if self._world_size == 1 or (number + 1) % self._method.exchange_every == 0:
            self._begin_exchange()

    def _begin_exchange(self) -> None:
        self._exchange = _Exchange(self._observed, self._world_size, self._statistics.device)

    def end_batch(self, number: int) -> None:
        """Write what was observed."""
        self._finish_exchange()
        self._in_step = False

    def _finish_exchange(self) -> None:
        if self._exchange is None:
            return
        exchange, self._exchange, self._observed = self._exchange, None, []
        for indices, observed in exchange.take():
            self._write(indices, observed)
        self._written = self._number + 1

    def _write(self, indices: Tensor, observed: Tensor) -> None:
        """One step's observations: ``int64[n]`` and ``float32[n]`` on the CPU; the last of a sample that is there more than once counts."""
        table, method, count = self.table, self._method, len(self.table)
        total = float(table.total)
        factor = total if method.normalised else 1.0
        stored = table.values[indices]
        new = method.written(observed, (stored / factor).float(), self._cap, count)
        finite = new.isfinite()
        floor = max(SMALLEST, method.min_value * total / count)
        new = torch.where(finite, new.double() * factor, stored).clamp(min=floor, max=LARGEST)
        table.update(indices, torch.where(finite, new, stored.double()).float())
        if not finite.all():
            self._not_written += int((~finite).sum())
            self._warn()
        if method.normalised and not LEAST_MEAN < float(table.total) / count < MOST_MEAN:
            table.scale(SCALED_MEAN * count / float(table.total))

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                f"{self._method.name}: a NaN or infinite value was observed; the sample keeps the value it had. selection/not_written "
                "counts them each epoch"
            )

    def end_epoch(self, last: bool) -> tuple[Counts, Counts]:
        """How stale draws were, and how uneven probabilities are."""
        if self._observed:
            self._begin_exchange()
            self._finish_exchange()
        counts, seconds = super().end_epoch(last)
        if self._staleness:
            steps = torch.tensor(self._staleness, dtype=torch.float32)
            values = self.table.values.double()
            counts |= {
                "staleness": float(steps.mean()),
                "largest_staleness": float(steps.max()),
                "effective_share": float(values.sum() ** 2 / (len(values) * values.square().sum())),
                "not_written": float(self._not_written),
            }
        self._not_written = 0
        return counts, seconds

    # --- state

    def checksum(self) -> int:
        """Of the table: another one on a rank whose table differs."""
        return 0 if self.table is None else int(self.table.values.view(torch.int32).sum())

    def state_dict(self, alone: bool, done: int) -> dict[str, Any]:
        """The table once, and of each rank what it has drawn and observed; what a step observed that is made again is left out."""
        whole = alone or self._rank == 0
        again = self._in_step and done <= self._number
        if not again and not (alone and self._world_size > 1):
            self._finish_exchange()
        return {
            "table": self.table.state_dict() if whole and self.table is not None else None,
            "cap": self._cap,
            "written": self._written,
            "drawn": {number: [drawn.indices, drawn.weights, drawn.written] for number, drawn in self._drawn.items()},
            "observed": [
                [indices, observed.to("cpu", copy=True)] for indices, observed in self._observed[: len(self._observed) - again]
            ],
            "staleness": self._staleness[: len(self._staleness) - again],
            "not_written": self._not_written,
        }

    def load_state_dict(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """On another number of ranks, what was drawn ahead is drawn anew."""
        own = states[rank % len(states)]
        saved = next((state["table"] for state in states if state["table"] is not None), None)
        self.table = None
        if saved is not None:
            self.table = SumTable(saved["values"])
            self.table.load_state_dict(saved)
        self._cap, self._written, self._staleness = own["cap"], own["written"], list(own["staleness"])
        self._not_written = own["not_written"]
        self._drawn, self._observed, self._exchange = {}, [], None
        if len(states) == world_size:
            self._drawn = {number: Drawn(*drawn) for number, drawn in own["drawn"].items()}
            self._observed = [(indices, observed.to(self._statistics.device)) for indices, observed in own["observed"]]
            return
        for step in zip(*(state["observed"] for state in states), strict=True):
            self._write(torch.cat([indices for indices, _ in step]), torch.cat([observed for _, observed in step]))


class _Exchange:
    """What the steps of all ranks observed, on its way to this one.

    Args:
        observed: indices (``int64[B]`` on the CPU) and values (``float32[B]``) of each of this rank's steps.
        world_size: number of ranks; collective when there are more than one.
        device: of the values.
    """

    def __init__(self, observed: list[tuple[Tensor, Tensor]], world_size: int, device: torch.device) -> None:
        self._sizes = [len(indices) for indices, _ in observed]  # of each step; the same on every rank
        indices = torch.cat([indices for indices, _ in observed])
        values = torch.cat([values for _, values in observed])
        self._works = []
        if world_size > 1:
            indices, values = (self._gather(mine.to(device, non_blocking=True), world_size) for mine in (indices, values))
        else:
            indices, values = [indices], [values]
        self._indices, self._values = indices, values
        self._copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            for work in self._works:
                work.wait()  # the stream waits, not the host
            self._indices, self._values = ([_to_host(part) for part in parts] for parts in (indices, values))
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _gather(self, mine: Tensor, world_size: int) -> list[Tensor]:
        everyone = [torch.empty_like(mine) for _ in range(world_size)]
        self._works.append(dist.all_gather(everyone, mine, async_op=True))
        return everyone

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """Of each step the indices and values of all ranks, by rank; waits until they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        else:
            for work in self._works:
                work.wait()
        steps = [zip(*(rank.split(self._sizes) for rank in ranks), strict=True) for ranks in (self._indices, self._values)]
        return [(torch.cat(indices), torch.cat(values)) for indices, values in zip(*steps, strict=True)]


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, on its way."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
