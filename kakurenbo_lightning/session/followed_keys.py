"""What a session knows of a train loader of iterable data whose samples have keys."""

from __future__ import annotations

from dataclasses import dataclass

from kakurenbo_lightning.core.key_filter import KeyFilter
from kakurenbo_lightning.core.key_plan import KeyPlan
from kakurenbo_lightning.core.keyed_statistics import KeyedStatistics
from kakurenbo_lightning.core.plan import EpochPlan, Plan
from kakurenbo_lightning.core.shard import Shard
from kakurenbo_lightning.core.stream_shard import DrawSource
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.session.epoch_state import EpochState
from kakurenbo_lightning.session.followed_arrivals import FollowedArrivals
from kakurenbo_lightning.trainer.key_compatibility import check_keyed_method


@dataclass(frozen=True)
class FollowedKeys(FollowedArrivals):
    """A loader whose samples are known by keys: what an epoch leaves out does not arrive.

    Attributes:
        statistics: a row for each key, in their order.
        keep: what the user's pipeline asks.
        max_hidden_epochs: of a method that refreshes hidden samples: none is left out for more epochs in a row.
    """

    statistics: KeyedStatistics
    keep: KeyFilter
    max_hidden_epochs: int

    @property
    def count(self) -> int:
        """How many samples are known."""
        return len(self.statistics)

    def check_method(self, method: Method) -> None:
        """Raise ``ValueError`` for a method that needs more than keys."""
        check_keyed_method(method)

    def plan(self, method: Method, epoch: Epoch, before: Plan | None) -> Plan:
        """What ``method`` chooses among the known samples, which it knows by their place in the order of their keys.

        Hidden samples are not scored, as they cannot be loaded. To a method that would have them scored, values that are too old are
        none, so it trains these samples, which measures them.
        """
        statistics = self.statistics
        if not len(statistics):
            return self.everything()
        previous = before if isinstance(before, KeyPlan) and before.total else None  # nothing was known of it
        oldest = epoch.index - self.max_hidden_epochs
        plan = method.plan(statistics if method.refresh_mode is None else statistics.since(oldest), epoch, previous)
        return KeyPlan.of(plan, statistics.keys) if isinstance(plan, EpochPlan) else plan

    def everything(self) -> Plan:
        """The plan that trains all that arrives."""
        return KeyPlan.everything(len(self.statistics))

    def position(self, state: EpochState) -> str:
        """Rank, epoch and step, for errors; with why BatchNorm may have stopped."""
        alone = state.step > 0 and self.sampler.shard.batch_length(state.step) == 1
        tail = " at a batch of one sample, which is what an epoch's hidden samples left (drop_last=True of the loader leaves it out),"
        return super().position(state) + tail * alone

    def shard(self, state: EpochState, draws: DrawSource | None) -> Shard:
        """This rank's part of the epoch; from now on the pipeline lets through what the plan trains."""
        if isinstance(state.plan, KeyPlan):
            self.keep.publish(state.plan.table())
        return super().shard(state, draws)
