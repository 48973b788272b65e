"""The engine of a stream: batches are drawn while it is trained, and what a step observed decides what is drawn next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.core.plan import Plan, StreamPlan
from kakurenbo_lightning.core.random import stream_generator
from kakurenbo_lightning.core.shard import Shard
from kakurenbo_lightning.core.state_schema import anything, integer, listed, mapping, number, optional, row, table, tensor
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.core.stream_shard import Drawn
from kakurenbo_lightning.core.sum_tree import SumTree
from kakurenbo_lightning.engines.base import Counts, Engine, ScorePass
from kakurenbo_lightning.engines.diagnosis import distribution_distance, ordered_share
from kakurenbo_lightning.engines.exchange import NOBODY, Exchange
from kakurenbo_lightning.errors import StateError
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.draw.base import StreamMethod
from kakurenbo_lightning.methods.topk import some_of
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values
from kakurenbo_lightning.trainer.adapter import TrainerAdapter

FEW = 0.01  # effective share of the samples below which there is a warning
# of normalised values, in float64: the mean between which nothing is done, and the one that they are scaled to
LEAST_MEAN, SCALED_MEAN, MOST_MEAN = 1e-250, 1e-20, 1e250

_STATE = {
    "cap": number(0, finite=False),
    "written": integer(),
    "drawn": mapping(row(tensor(torch.int64, indices=True), optional(tensor(torch.float32)), integer()), keys=int),
    "observed": listed(row(tensor(torch.int64), tensor(torch.float32))),
    "staleness": listed(integer()),
    "not_written": integer(),
}
_SHARED = {"values": tensor(of_n=True), "sums": listed(anything())}  # of a tree, which checks their shapes itself


class StreamEngine(Engine):
    """Draws batches and writes what their steps observed.

    The tree of values is on the CPU, where the DataLoader wants its indices, and equal on every rank: what is observed goes to all of them
    (:attr:`~StreamMethod.exchange_every`), on its way while the backward pass runs. Random numbers of a draw depend on (seed, epoch, batch,
    rank) only.

    Args:
        adapter: the Trainer's adapter.
        method: what is written.
        statistics: the statistics of all samples.
        mean_over_samples: the argument of the base engine.
    """

    timed = True

    def __init__(
        self, adapter: TrainerAdapter, method: StreamMethod, statistics: SampleStatistics, mean_over_samples: bool = False
    ) -> None:
        super().__init__(adapter, method, statistics, mean_over_samples)
        self._method: StreamMethod = method
        self._is_alone, self._rank = adapter.ranks.is_alone, adapter.ranks.rank
        self._tree: SumTree | None = None  # before the stream starts
        self._cap = float("inf")
        self._drawn: dict[int, Drawn] = {}
        self._in_step = False  # the current step has observed, and is not done
        self._written = 0  # steps of this epoch whose observations are in the tree
        self._observed: list[tuple[Tensor, Tensor]] = []  # indices and values of this rank's steps that no other rank knows
        self._exchange: Exchange | None = None
        self._staleness: list[int] = []
        self._not_written = 0
        self._warned = self._warned_of_few = False

    @property
    def draws(self) -> StreamEngine:
        """The engine itself, which draws the batches."""
        return self

    @property
    def tree(self) -> SumTree:
        """The values that batches are drawn by, once the stream has started."""
        if self._tree is None:
            raise RuntimeError(f"{self._method.name}: nothing is drawn yet, so there are no values")
        return self._tree

    # --- the epoch

    def prepare(self, epoch: Epoch, plan: Plan, scored: Tensor) -> None:
        """An epoch is planned: start the tree, or write what was scored (``int64[n]``) since the last step; the same on every rank."""
        self._forget_epoch()
        if not isinstance(plan, StreamPlan):
            return
        statistics, method = self._statistics, self._method
        self._cap = method.cap(statistics)
        if self._tree is None:
            self._tree = SumTree(method.all_values(statistics), torch.float64 if method.normalised else torch.float32)
        elif method.cap_quantile < 1 and not method.normalised:  # another cap makes other values of what is known
            unknown = ~method.known(statistics).isfinite()
            highest = float(torch.tensor(self._cap, dtype=torch.float64) ** method.temperature)
            kept = self.tree.values.clamp(max=max(self.tree.smallest, highest))
            self._tree = SumTree(torch.where(unknown, kept, method.all_values(statistics)))
        elif len(scored):
            self._write(scored, method.known(statistics)[scored])

    def _forget_epoch(self) -> None:
        self._drawn, self._written, self._staleness = {}, 0, []
        self._observed, self._exchange, self._in_step = [], None, False

    def begin_epoch(self, epoch: Epoch, plan: Plan, shard: Shard, start: int, outputs: SampleOutputs) -> None:
        """Draw from ``start`` on; what was drawn before, and not used, is used first."""
        super().begin_epoch(epoch, plan, shard, start, outputs)
        self._number = max(0, start - 1)
        self.timer.start("data")
        if start == 0 and self._written:  # an epoch that failed begins again
            self._forget_epoch()
        drawn = {number: drawn for number, drawn in self._drawn.items() if len(drawn.indices) == shard.batch_size}
        self._drawn = {number: drawn[number] for number in drawn if number >= start}

    def drawn(self, number: int) -> Drawn:
        """A batch that was drawn already: the one that is trained, or one that workers load ahead.

        Raises:
            IndexError: it is not drawn yet, or trained long ago.
        """
        if number not in self._drawn:
            raise IndexError(
                f"batch {number} is not known: a stream knows the batch that is trained, {self._number}, and those drawn ahead"
            )
        return self._drawn[number]

    def draw(self, number: int) -> Drawn:
        """Batch ``number``, drawn now unless it was before."""
        if number not in self._drawn:
            self._drawn[number] = self._draw(number)
        return self._drawn[number]

    def _draw(self, number: int) -> Drawn:
        method, tree, count = self._method, self.tree, self._shard.batch_size
        generator = stream_generator(self._epoch.seed, self._epoch.index, f"draw:{number}:{self._rank}")
        indices = tree.draw(count, generator)
        if method.mix:
            uniform = torch.randint(len(tree), (count,), generator=generator)
            indices = torch.where(torch.rand(count, generator=generator) < method.mix, uniform, indices)
        weights = None
        if method.unbiased:
            probability = (1 - method.mix) * tree.probability(indices) + method.mix / len(tree)
            weights = (1 / (len(tree) * probability)).float()
        return Drawn(indices, weights, self._written)

    def diagnosed(self, epoch: Epoch, plan: Plan, score: ScorePass) -> Counts:
        """Compare the stored values of some samples with their real ones, which ``score(rows, record)`` finds out; collective."""
        method, count = self._method, min(self._method.diagnose, len(self._statistics))
        if not count or not isinstance(plan, StreamPlan):
            return {}
        generator = stream_generator(epoch.seed, epoch.index, "diagnose")
        rows = some_of(torch.arange(len(self._statistics)), count, generator).sort().values
        seen: list[tuple[Tensor, Tensor]] = []
        score(rows, lambda indices, values: seen.append((indices.cpu(), method.observed(values).cpu())))
        parts = [part for rank in self._adapter.ranks.gather(seen) for part in rank]
        indices, observed = (torch.cat(column) for column in zip(*parts, strict=True))
        real = method.values(observed, self._cap)
        finite = real.isfinite()
        if not finite.any():
            return {}
        stored, real = self.tree.values[indices[finite]], real[finite]
        return {"distribution_distance": distribution_distance(stored, real), "ordered_share": ordered_share(stored, real)}

    # --- the step

    def begin_batch(self, batch: Any, number: int) -> None:
        """Note that the batch is there, so the wait for it ends."""
        super().begin_batch(batch, number)
        self.timer.stop("data")

    def trained_batch(self, values: Values | None, batch: Any) -> None:
        """Send what was observed to the other ranks, while the backward pass runs."""
        if not isinstance(self._plan, StreamPlan):
            return
        number = self._number
        if self._in_step:  # once more, as LBFGS does: the last time counts
            self._drop_last()
        else:
            self._staleness.append(number - self.drawn(number).written)
        self._drawn.pop(number - 1, None)
        drawn = self.drawn(number)
        if values is not None:
            self._observed.append((drawn.indices, self._method.observed(values)))
        elif not self._is_alone:  # the user skips this batch here, and perhaps not on other ranks
            nothing = torch.zeros(len(drawn.indices), device=self._statistics.device)
            self._observed.append((torch.full_like(drawn.indices, NOBODY), nothing))
        else:
            return
        self._in_step = True
        if self._is_alone or (number + 1) % self._method.exchange_every == 0:
            self._begin_exchange()

    def _drop_last(self) -> None:
        if self._exchange is not None:
            self._exchange.take()
        self._exchange = None
        self._observed.pop()

    def _begin_exchange(self) -> None:
        self._exchange = Exchange(self._observed, self._adapter.ranks, self._statistics.device)

    def end_batch(self, number: int) -> None:
        """Write what the step observed into the tree, on every rank."""
        super().end_batch(number)
        self._finish_exchange()
        self._in_step = False
        self.timer.start("data")

    def _finish_exchange(self) -> None:
        if self._exchange is None:
            return
        exchange, self._exchange, self._observed = self._exchange, None, []
        for indices, observed in exchange.take():
            self._write(indices, observed)
        self._written = self._number + 1

    def _write(self, indices: Tensor, observed: Tensor) -> None:
        """One step's observations: ``int64[n]`` and ``float32[n]`` on the CPU; the last of a sample that is there more than once counts."""
        tree, method, count = self.tree, self._method, len(self.tree)
        total = float(tree.total)
        factor = total if method.normalised else 1.0
        stored = tree.values[indices].double()
        new = method.written(observed, stored / factor, self._cap, count).double() * factor
        finite = new.isfinite()
        floor = max(tree.smallest, method.min_value * total / count)
        tree.update(indices, torch.where(finite, new.clamp(min=floor, max=tree.largest), stored))
        if not finite.all():
            self._count_not_written(int((~finite).sum()))
        if method.normalised and not LEAST_MEAN < float(tree.total) / count < MOST_MEAN:
            tree.scale(SCALED_MEAN * count / float(tree.total))

    def _count_not_written(self, count: int) -> None:
        self._not_written += count
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                f"{self._method.name}: a NaN or infinite value was observed; the sample keeps the value it had. selection/not_written "
                "counts them each epoch"
            )

    def end_epoch(self, last: bool) -> tuple[Counts, Counts]:
        """Metrics of how stale draws were, and how uneven probabilities are."""
        if self._observed:
            self._begin_exchange()
            self._finish_exchange()
        counts, seconds = super().end_epoch(last)
        if self._staleness:
            steps = torch.tensor(self._staleness, dtype=torch.float32)
            values = self.tree.values.double()
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
        if share < FEW and len(self.tree) * FEW >= 1 and not self._warned_of_few:
            self._warned_of_few = True
            rank_zero_warn(
                f"{self._method.name}: selection/effective_share is {share:.2g}: the stream draws the same few samples again and again. "
                "Use mix=0.1 to draw a part uniformly, cap_quantile or temperature where the method has them, or plb"
            )

    # --- state

    def checksum(self) -> int:
        """A number made of the tree: another one on a rank whose values differ."""
        return 0 if self._tree is None else int(self._tree.values.view(torch.int32).sum())

    def state_dict(self, alone: bool, done: int) -> dict[str, Any]:
        """What this rank has drawn and observed, without what was observed by a step that is made again."""
        again = self._in_step and done <= self._number
        if not again and (self._is_alone or not alone):
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
        """The tree, which is the same on every rank."""
        return None if self._tree is None else self._tree.state_dict()

    def check_state(self, states: list[dict[str, Any]] | None, shared: Any, count: int) -> None:
        """Raise ``StateError`` unless these are states that :meth:`state_dict` and :meth:`shared_state` made."""
        listed(table(_STATE))(states, "engines", count)
        optional(table(_SHARED))(shared, "shared", count)
        if shared is not None:
            try:
                SumTree(shared["values"], shared["values"].dtype).load_state_dict(shared)
            except (ValueError, RuntimeError, AttributeError) as error:
                raise StateError(f"shared is no sum tree of {count} values: {error}") from None

    def load_state_dict(self, states: list[dict[str, Any]], shared: dict[str, Any] | None, rank: int, world_size: int) -> None:
        """Take over saved states; on another number of ranks, what was drawn ahead is drawn again."""
        own = states[rank % len(states)]
        self._tree = None
        if shared is not None:
            self._tree = SumTree(shared["values"], shared["values"].dtype)
            self._tree.load_state_dict(shared)
        self._cap, self._written, self._staleness = own["cap"], own["written"], list(own["staleness"])
        self._not_written = own["not_written"]
        self._drawn, self._observed, self._exchange = {}, [], None
        if len(states) == world_size:
            self._drawn = {number: Drawn(*drawn) for number, drawn in own["drawn"].items()}
            self._observed = [(indices, observed.to(self._statistics.device)) for indices, observed in own["observed"]]
            return
        for step in zip(*(state["observed"] for state in states), strict=True):
            indices = torch.cat([indices for indices, _ in step])
            known = indices != NOBODY
            self._write(indices[known], torch.cat([observed for _, observed in step])[known])
