"""What a session knows of a train loader of iterable data: nothing of its samples, which have no index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.core.arrivals import UNKNOWN
from kakurenbo_lightning.core.plan import EpochPlan, Plan
from kakurenbo_lightning.core.shard import Shard
from kakurenbo_lightning.core.stream_shard import DrawSource
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.session.epoch_state import EpochState, Phase
from kakurenbo_lightning.session.followed_loader import FollowedLoader
from kakurenbo_lightning.trainer.arrivals import Arrivals
from kakurenbo_lightning.trainer.loader_compatibility import check_arrivals


class FollowedArrivals(FollowedLoader):
    """A loader whose every batch is followed as it arrives.

    Attributes:
        sampler: counts the batches, and says where an epoch begins.
    """

    sampler: Arrivals

    @property
    def full_batches(self) -> int:
        """Batches of an epoch as far as anything says; 0 where nothing does."""
        return self.sampler.expected + self.sampler.extra if self.sampler.expected is not None else 0

    def check_method(self, method: Method) -> None:
        """Raise ``ConflictError`` for a method that needs an index."""
        check_arrivals(self.loader, method, public=False, is_first=True)

    def check_length(self) -> None:
        """There is none to keep."""

    def seed_workers(self, epoch: int) -> None:
        """The loader is the user's own, and so are the random numbers of its workers."""

    def plan(self, method: Method, epoch: Epoch, before: Plan | None) -> Plan:
        """Train whatever arrives: nothing is known of a sample before it does."""
        return EpochPlan.everything(0)

    def rows_to_score(self, method: Method, epoch: Epoch, before: Plan | None) -> Tensor:
        """None can be loaded again."""
        return torch.empty(0, dtype=torch.int64)

    def shard(self, state: EpochState, draws: DrawSource | None) -> Shard:
        """This rank's part of the epoch."""
        return self.sampler.of_epoch(state.epoch)

    def place(self, done: int) -> dict[str, Any] | None:
        """Where this rank's loader stands after ``done`` batches."""
        return self.sampler.places.state_dict(done)

    def hold(self) -> None:
        """No batch is loaded before the checkpoint has said where."""
        self.sampler.held = True

    def go_on(self, places: list[dict[str, Any]], done: int) -> None:
        """Put the loader there; a rank's place is its own, and on another number of ranks nobody knows one."""
        sampler = self.sampler
        mine = places[sampler.rank] if len(places) == sampler.num_replicas else None
        sampler.places.load_state_dict(mine, done)

    def position(self, state: EpochState) -> str:
        """Rank, epoch and step, for errors."""
        steps = 0 if state.phase is Phase.IDLE else self.sampler.shard.steps
        of = "" if steps == UNKNOWN else f" of {steps}"
        return f"rank {self.sampler.rank}, in epoch {max(0, state.epoch)} after step {state.step}{of},"
