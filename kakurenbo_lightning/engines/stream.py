"""Drives a stream: batches are drawn as training goes, and what a step observed decides what is drawn next."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from kakurenbo_lightning.core.distributed import gather
from kakurenbo_lightning.core.random import stream_generator
from kakurenbo_lightning.core.shard import EpochShard
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.core.stream_shard import Drawn, StreamShard
from kakurenbo_lightning.core.sum_tree import SumTree
from kakurenbo_lightning.engines.base import Counts, Engine, ScorePass
from kakurenbo_lightning.engines.diagnosis import distribution_distance, ordered_share
from kakurenbo_lightning.engines.exchange import NOBODY, Exchange
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.draw.base import StreamMethod
from kakurenbo_lightning.methods.topk import some_of
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values

FEW = 0.01  # effective share of the samples below which there is a warning
# of normalised values, in float64: the mean between which nothing is done, and the one that they are scaled to
LEAST_MEAN, SCALED_MEAN, MOST_MEAN = 1e-250, 1e-20, 1e250


class StreamEngine(Engine):
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
        self.table: SumTree | None = None
        self._cap = float("inf")
        self._drawn: dict[int, Drawn] = {}
        self._number, self._in_step = 0, False  # of the step that is, or was last, trained
        self._written = 0  # steps of this epoch whose observations are in the table
        self._observed: list[tuple[Tensor, Tensor]] = []  # indices and values of this rank's steps that no other rank knows
        self._exchange: Exchange | None = None
        self._staleness: list[int] = []
        self._not_written = 0
        self._warned = self._warned_of_few = False

    # --- the epoch

    def prepare(self, epoch: Epoch, scored: Tensor) -> None:
        """An epoch is planned: start the table, or write what was looked at (``int64[n]``) since the last step; the same on every rank."""
        self._forget_epoch()
        if not self._method.streams(epoch):
            return
        statistics, method = self._statistics, self._method
        self._cap = method.cap(statistics)
        if self.table is None:
            self.table = SumTree(method.all_values(statistics), torch.float64 if method.normalised else torch.float32)
        elif method.cap_quantile < 1 and not method.normalised:  # another cap makes other values of what is known
            unknown = ~method.known(statistics).isfinite()
            highest = float(torch.tensor(self._cap, dtype=torch.float64) ** method.temperature)
            kept = self.table.values.clamp(max=max(self.table.smallest, highest))
            self.table = SumTree(torch.where(unknown, kept, method.all_values(statistics)))
        elif len(scored):
            self._write(scored, method.known(statistics)[scored])

    def _forget_epoch(self) -> None:
        self._drawn, self._written, self._staleness = {}, 0, []
        self._observed, self._exchange, self._in_step = [], None, False

    def begin_epoch(self, epoch: Epoch, dealt: EpochShard | StreamShard, start: int, outputs: SampleOutputs) -> None:
        """Draw from ``start`` on; what was drawn before, and not used, is used first."""
        self._epoch, self._shard, self._number = epoch, dealt, max(0, start - 1)
        self.phases.start("data")
        if start == 0 and self._written:  # an epoch that failed begins again
            self._forget_epoch()
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
        method, table, count = self._method, self.table, self._shard.batch_size
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

    def diagnosed(self, epoch: Epoch, score: ScorePass) -> Counts:
        """How far the values of some samples are from the real ones, which ``score(rows, record)`` finds out; collective."""
        method, count = self._method, min(self._method.diagnose, len(self._statistics))
        if not count or not method.streams(epoch):
            return {}
        generator = stream_generator(epoch.seed, epoch.index, "diagnose")
        rows = some_of(torch.arange(len(self._statistics)), count, generator).sort().values
        seen: list[tuple[Tensor, Tensor]] = []
        score(rows, lambda indices, values: seen.append((indices.cpu(), method.observed(values).cpu())))
        parts = [part for rank in gather(seen) for part in rank]
        indices, observed = (torch.cat(column) for column in zip(*parts, strict=True))
        real = method.values(observed, self._cap)
        finite = real.isfinite()
        if not finite.any():
            return {}
        stored, real = self.table.values[indices[finite]], real[finite]
        return {"distribution_distance": distribution_distance(stored, real), "ordered_share": ordered_share(stored, real)}

    # --- the step

    def score(self, batch: Any, number: int) -> None:
        """The batch is there."""
        self.phases.stop("data")

    def learn(self, values: Values | None, batch: Any, number: int, scale: float) -> None:
        """Send what was observed to the other ranks, while the backward pass runs."""
        if not isinstance(self._shard, StreamShard):
            return
        if self._in_step and number == self._number:  # once more, as LBFGS does: the last time counts
            self._drop_last()
        else:
            self._staleness.append(number - self.drawn(number).written)
        self._drawn.pop(number - 1, None)
        drawn, self._number = self.drawn(number), number
        if values is not None:
            self._observed.append((drawn.indices, self._method.observed(values)))
        elif self._world_size > 1:  # the user skips this batch here, and perhaps not on other ranks
            nothing = torch.zeros(len(drawn.indices), device=self._statistics.device)
            self._observed.append((torch.full_like(drawn.indices, NOBODY), nothing))
        else:
            return
        self._in_step = True
        if self._world_size == 1 or (number + 1) % self._method.exchange_every == 0:
            self._begin_exchange()

    def _drop_last(self) -> None:
        if self._exchange is not None:
            self._exchange.take()
        self._exchange = None
        self._observed.pop()

    def _begin_exchange(self) -> None:
        self._exchange = Exchange(self._observed, self._world_size, self._statistics.device)

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
        stored = table.values[indices].double()
        new = method.written(observed, stored / factor, self._cap, count).double() * factor
        finite = new.isfinite()
        floor = max(table.smallest, method.min_value * total / count)
        table.update(indices, torch.where(finite, new.clamp(min=floor, max=table.largest), stored))
        if not finite.all():
            self._count_not_written(int((~finite).sum()))
        if method.normalised and not LEAST_MEAN < float(table.total) / count < MOST_MEAN:
            table.scale(SCALED_MEAN * count / float(table.total))

    def _count_not_written(self, count: int) -> None:
        self._not_written += count
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
            self._warn_of_few(counts["effective_share"])
        self._not_written = 0
        return counts, seconds

    def _warn_of_few(self, share: float) -> None:
        if share < FEW and len(self.table) * FEW >= 1 and not self._warned_of_few:
            self._warned_of_few = True
            rank_zero_warn(
                f"{self._method.name}: selection/effective_share is {share:.2g}: the stream draws the same few samples again and again. "
                "Use mix=0.1 to draw a part uniformly, cap_quantile or temperature where the method has them, or plb"
            )

    # --- state

    def checksum(self) -> int:
        """Of the table: another one on a rank whose table differs."""
        return 0 if self.table is None else int(self.table.values.view(torch.int32).sum())

    def state_dict(self, alone: bool, done: int) -> dict[str, Any]:
        """What this rank has drawn and observed; what a step observed that is made again is left out."""
        again = self._in_step and done <= self._number
        if not again and not (alone and self._world_size > 1):
            self._finish_exchange()
        return {
            "cap": self._cap,
            "written": self._written,
            "drawn": {number: [drawn.indices, drawn.weights, drawn.written] for number, drawn in self._drawn.items()},
            "observed": [
                [indices, observed.to("cpu", copy=True)] for indices, observed in self._observed[: len(self._observed) - again]
            ],
            "staleness": self._staleness[: len(self._staleness) - again],
            "not_written": self._not_written,
        }

    def shared_state(self) -> dict[str, Any] | None:
        """The table, which is the same on every rank."""
        return None if self.table is None else self.table.state_dict()

    def load_state_dict(self, states: list[dict[str, Any]], shared: dict[str, Any] | None, rank: int, world_size: int) -> None:
        """On another number of ranks, what was drawn ahead is drawn anew."""
        own = states[rank % len(states)]
        self.table = None
        if shared is not None:
            self.table = SumTree(shared["values"], shared["values"].dtype)
            self.table.load_state_dict(shared)
        self._cap, self._written, self._staleness = own["cap"], own["written"], list(own["staleness"])
        self._not_written = own["not_written"]
        self._drawn, self._observed, self._exchange = {}, [], None
        if len(states) == world_size:
            self._drawn = {number: Drawn(*drawn) for number, drawn in own["drawn"].items()}
            self._observed = [(indices, observed.to(self._statistics.device)) for indices, observed in own["observed"]]
            return
        for step in zip(*(state["observed"] for state in states), strict=True):
            self._write(torch.cat([indices for indices, _ in step]), torch.cat([observed for _, observed in step]))
