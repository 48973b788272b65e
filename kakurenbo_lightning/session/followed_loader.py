"""What a session knows of the train loader it follows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from kakurenbo_lightning.core.distributed import check_same_data
from kakurenbo_lightning.core.sampler import SelectionSampler
from kakurenbo_lightning.core.shard import Shard
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.core.stream_shard import DrawSource
from kakurenbo_lightning.session.epoch_state import EpochState, Phase
from kakurenbo_lightning.trainer.compatibility import check_length


@dataclass(frozen=True)
class FollowedLoader:
    """What a session knows of the train loader.

    Attributes:
        loader: a copy of the user's, whose batches are the plan's.
        sampler: of it.
        public: it goes through Lightning's public API only (``SampleSelection.wrap``).
        fingerprint: of its data set.
        statistics: one row per sample of its data set.
        longest: batches of the longest epoch there will be.
    """

    loader: DataLoader
    sampler: SelectionSampler
    public: bool
    fingerprint: str
    statistics: SampleStatistics
    longest: int

    def check_length(self) -> None:
        """Raise ``ConflictError`` when the data set has another length than before."""
        check_length(len(self.loader.dataset), len(self.statistics))

    def arrive(self, device: torch.device, compare: bool, position: str) -> None:
        """The device is known; ``compare``: the ranks compare their data sets (collective), ``position`` is for its errors."""
        if compare and self.sampler.num_replicas > 1:
            check_same_data(len(self.statistics), self.fingerprint, position)
        self.statistics.to(device)

    def shard(self, state: EpochState, draws: DrawSource | None) -> Shard:
        """This rank's part of the epoch, without what was trained with another layout."""
        return state.plan.shard(self.sampler.layout(state.epoch, state.done), draws)

    def position(self, state: EpochState) -> str:
        """Rank, epoch and step, for errors."""
        steps = 0 if state.phase is Phase.IDLE else self.sampler.shard.steps
        return f"rank {self.sampler.rank}, in epoch {state.epoch} after step {state.step} of {steps},"
