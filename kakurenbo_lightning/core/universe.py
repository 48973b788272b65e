"""The part of a data set that a loader's sampler yields: the selection lives on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import EpochPlan, Plan
from kakurenbo_lightning.core.statistics import SampleStatistics

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Universe:
    """The samples that can be trained at all. Statistics have a row for every sample of the data set; others are never measured.

    A method plans within it, on the statistics of its n samples, which it knows by their place: it need not know of the others.

    Attributes:
        num_samples: N, of the data set.
        indices: ``int64[n]`` on the CPU, ascending, data set indices; ``None`` for all N.
    """

    num_samples: int
    indices: Tensor | None = None

    def __len__(self) -> int:
        """n, how many samples can be trained."""
        return self.num_samples if self.indices is None else len(self.indices)

    @cached_property
    def digest(self) -> str:
        """A hash of the indices; empty for all."""
        return "" if self.indices is None else hashlib.blake2b(self.indices.numpy().tobytes(), digest_size=8).hexdigest()

    def everything(self) -> EpochPlan:
        """The plan that trains every one of its samples once."""
        if self.indices is None:
            return EpochPlan.everything(self.num_samples)
        return EpochPlan(self.indices, hidden=torch.empty(0, dtype=torch.int64))

    def statistics(self, statistics: SampleStatistics) -> SampleStatistics:
        """The rows of its samples, for reading, out of statistics of all N."""
        return statistics if self.indices is None else statistics.subset(self.indices)

    def places(self, indices: Tensor) -> Tensor:
        """The places within the universe of some of its samples (``int64[k]`` data set indices)."""
        return indices if self.indices is None else torch.searchsorted(self.indices, indices)

    def samples(self, places: Tensor) -> Tensor:
        """The data set indices at ``places``, ``int64[k]``."""
        return places if self.indices is None else self.indices[places]

    def inside(self, plan: Plan | None) -> Plan | None:
        """A plan of the data set as one of its places; weights become those of its samples, ``float32[n]``."""
        if self.indices is None or not isinstance(plan, EpochPlan):
            return plan
        weights = None if plan.weights is None else plan.weights[self.indices]
        return replace(plan, indices=self.places(plan.indices), hidden=self.places(plan.hidden), weights=weights)

    def outside(self, plan: Plan) -> Plan:
        """A plan of its places as one of the data set; the inverse of :meth:`inside`."""
        if self.indices is None or not isinstance(plan, EpochPlan):
            return plan
        weights = None
        if plan.weights is not None:
            weights = torch.ones(self.num_samples).index_copy_(0, self.indices, plan.weights)
        return replace(plan, indices=self.samples(plan.indices), hidden=self.samples(plan.hidden), weights=weights)
