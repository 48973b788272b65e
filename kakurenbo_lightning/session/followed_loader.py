"""What a session knows about the train loader whose batches it determines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.random import stream_seed
from kakurenbo_lightning.core.sampler import SelectionSampler
from kakurenbo_lightning.core.seeded_dataset import num_samples
from kakurenbo_lightning.core.shard import Shard
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.core.stream_shard import DrawSource
from kakurenbo_lightning.core.universe import Universe
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.session.epoch_state import EpochState, Phase
from kakurenbo_lightning.trainer.arrivals import Arrivals
from kakurenbo_lightning.trainer.loader import seed_workers
from kakurenbo_lightning.trainer.loader_compatibility import check_length


@dataclass(frozen=True)
class FollowedLoader:
    """The train loader of a session, with its sampler, its statistics and the identity of its data set.

    Attributes:
        loader: a copy of the user's loader, whose batches follow the plan.
        sampler: the sampler of the copy.
        public: only Lightning's public API is used (``SampleSelection.wrap``).
        fingerprint: hash of its data set.
        universe: the samples that the user's sampler yields.
        statistics: statistics with one row per sample of its data set.
        longest: number of batches of the longest epoch that may come, if that is known before.
    """

    loader: Any  # a DataLoader, or what stands in the place of one
    sampler: SelectionSampler | Arrivals
    public: bool
    fingerprint: str
    universe: Universe
    statistics: SampleStatistics
    longest: int

    @property
    def count(self) -> int:
        """How many samples can be trained; 0 where that is not known."""
        return len(self.universe)

    @property
    def full_batches(self) -> int:
        """Batches of a full epoch; 0 where that is not known."""
        return self.longest

    @property
    def identity(self) -> str:
        """What a checkpoint compares: the fingerprint, and which samples can be trained if not all can."""
        return "/".join(filter(None, (self.fingerprint, self.universe.digest)))

    def check_method(self, method: Method) -> None:
        """Raise ``ConflictError`` for a method that cannot be used with such a loader."""

    def check_length(self) -> None:
        """Raise ``ConflictError`` if the length of the data set has changed."""
        check_length(num_samples(self.loader.dataset), self.statistics.total)

    def seed_workers(self, epoch: int) -> None:
        """Seed the workers that are started from now on with the random numbers of ``epoch``."""
        seed_workers(self.loader, worker_seed(self.sampler, epoch))

    def plan(self, method: Method, epoch: Epoch, before: Plan | None) -> Plan:
        """Let ``method`` choose what ``epoch`` trains from the samples that can be trained. ``before`` is the plan of the epoch
        before.
        """
        universe = self.universe
        return universe.outside(
            method.within(universe).plan(universe.statistics(self.statistics), epoch, universe.inside(before))
        )

    def everything(self) -> Plan:
        """The plan that trains every sample that can be trained."""
        return everything(self.universe, self.statistics)

    def rows_to_score(self, method: Method, epoch: Epoch, before: Plan | None) -> Tensor | IndexSet:
        """Data set indices (``int64[n]``, ascending, or a set) that ``method`` wants to be scored before ``epoch``."""
        universe = self.universe
        rows = method.within(universe).rows_to_score(universe.statistics(self.statistics), epoch, universe.inside(before))
        return universe.samples(rows) if isinstance(rows, Tensor) else rows

    def shard(self, state: EpochState, draws: DrawSource | None) -> Shard:
        """This rank's part of the epoch, without the samples that were trained with another layout."""
        return state.plan.shard(self.sampler.layout(state.epoch, state.done), draws)

    def place(self, done: int) -> dict[str, Any] | None:
        """Where this rank's loader stands after ``done`` batches, for a checkpoint; ``None``: the plan says it."""
        return None

    def hold(self) -> None:
        """A checkpoint will say where the first epoch begins."""

    def go_on(self, places: list[dict[str, Any]], done: int) -> None:
        """Put the loader where it stood after ``done`` batches; ``places`` are those of the ranks."""

    def position(self, state: EpochState) -> str:
        """Rank, epoch and step in words, for errors."""
        steps = 0 if state.phase is Phase.IDLE else self.sampler.shard.steps
        return f"rank {self.sampler.rank}, in epoch {max(0, state.epoch)} after step {state.step} of {steps},"


def everything(universe: Universe, statistics: SampleStatistics) -> Plan:
    """The plan that trains every sample of ``universe``, as plans are kept with ``statistics``."""
    return universe.everything() if universe.indices is not None else statistics.spread.everything(statistics.total)


def worker_seed(sampler: SelectionSampler | Arrivals, epoch: int) -> int:
    """The seed of the workers that load ``epoch`` for this rank."""
    return stream_seed(sampler.seed, epoch, f"workers:{sampler.rank}")
