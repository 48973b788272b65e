"""Draws by weights that the user gives, like ``torch.utils.data.WeightedRandomSampler`` but on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import EpochPlan, Plan
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.core.universe import Universe
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.draw.base import DrawMethod
from kakurenbo_lightning.methods.draw.iswr import drawn_by
from kakurenbo_lightning.methods.per_sample import ALLOWED, per_sample
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, integer, optional, require, setting
from kakurenbo_lightning.methods.topk import as_decimal

if TYPE_CHECKING:
    from torch import Tensor

FIX = "For example: weights=1 / class_counts[targets]."


@register_method("weighted")
@dataclass(frozen=True)
class Weighted(DrawMethod):
    """Each epoch draws samples with replacement, in proportion to the user's weights. No values are read from the step, so any loss
    will do.
    """

    weights: Any = setting(  # noqa: RUF009  # PerSample or None; command lines give a path
        None,
        replace(optional(per_sample()), allowed=ALLOWED),  # None waits for the weights, and no run takes it
        "b_i of each sample, in the order of the data set; 0 is never drawn (but by `mix`); they must be given. A function is called with "
        "the number of each epoch, on every rank",
        fix=FIX,
    )
    num_samples: int | None = setting(
        None,
        optional(integer(1)),
        "number of draws of an epoch, over all ranks, at most N; `None`: N",
        unit="samples",
        fix="None draws as many as there are.",
    )

    summary: ClassVar[str] = "draws by weights that you give, on any number of ranks"
    paper: ClassVar[str] = "as in torch"
    reads: ClassVar[tuple[str, ...]] = ()
    observes: ClassVar[str] = ""

    def check_settings(self) -> None:
        """Refuse a floor, because no value is ever written."""
        super().check_settings()
        floor = type(self).__dataclass_fields__["min_value"].default
        checker(self)(
            self.min_value == floor,
            "min_value",
            f"{floor:g}, its default, because weights stay as they are given",
            "Raise the weights that are too small, or use mix.",
        )

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """Check that there is one weight per sample, and that an epoch is no longer than the data set."""
        check = checker(self)
        if self.weights is None:
            require(False, self.name, "weights", None, ALLOWED, FIX)
        values = self._weights(0, num_samples)
        check(
            self.num_samples is None or self.num_samples <= num_samples,
            "num_samples",
            f"at most the {num_samples} samples of the data set",
            "Train for more epochs to draw more.",
        )
        check(
            not self.unbiased or self.mix > 0 or bool(values.all()),
            "unbiased",
            f"False where a weight is 0 ({int((values == 0).sum())} of them are): what is never drawn cannot be made up for",
            "Give these samples a small weight, or draw a part uniformly: mix=0.1.",
        )

    def contents(self) -> dict[str, str]:
        """A hash of the weights that a function returns for the first epoch."""
        return {"weights in epoch 0": self.weights.digest} if self.weights is not None and callable(self.weights.given) else {}

    def within(self, universe: Universe) -> Weighted:
        """Return the method with the weights of the samples of ``universe``."""
        if universe.indices is None or self.weights is None:
            return self
        self._weights(0, universe.num_samples)
        return replace(self, weights=self.weights.of(universe.indices))

    def known(self, statistics: SampleStatistics) -> Tensor:
        """NaN for every sample, because nothing is observed."""
        return torch.full((len(statistics),), float("nan"))

    def _weights(self, epoch: int, total: int) -> np.ndarray:
        """The weights for ``epoch`` as they were given, ``float64[total]``."""
        if self.weights is None:
            return np.ones(total)
        try:
            values = self.weights.at(epoch)
        except ValueError as error:
            require(False, self.name, "weights", self.weights, f"{ALLOWED}; {error}", FIX)
        where = f" in epoch {epoch}" if callable(self.weights.given) else ""
        allowed = f"of a data set of {total} samples, there are {len(values)}{where}"
        require(len(values) == total, self.name, "weights", self.weights, allowed, "They are in the order of the data set.")
        return values

    def probabilities(self, epoch: int, total: int) -> Tensor:
        """The probability with which each of ``total`` samples is drawn in ``epoch``, ``float64[total]``."""
        weights = self._weights(epoch, total)
        place = ceil(as_decimal(self.cap_quantile) * total) - 1
        capped = weights if self.cap_quantile == 1 else np.minimum(weights, np.partition(weights, place)[place])
        largest = capped.max()  # divide by the largest, so that no power overflows
        require(
            largest > 0,
            self.name,
            "weights",
            self.weights,
            "above 0 for more of the samples that can be drawn",
            "Raise cap_quantile.",
        )
        values = np.where(capped > 0, (capped / largest) ** self.temperature, 0.0)
        return torch.from_numpy((1 - self.mix) * values / values.sum() + self.mix / total)

    def plan(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None = None) -> EpochPlan:
        """Plan ``num_samples`` draws, in random order."""
        total, generator = len(statistics), epoch.generator()
        probability = self.probabilities(epoch.index, total)
        ascending = drawn_by(probability, min(self.num_samples or total, total), generator)
        # shuffled here, because the loader may not shuffle
        drawn = ascending[torch.randperm(len(ascending), generator=generator)]
        weights = torch.where(probability > 0, 1 / (total * probability), 1.0).float() if self.unbiased else None
        distinct = float(len(torch.unique_consecutive(ascending)))
        return EpochPlan(drawn, torch.empty(0, dtype=torch.int64), weights, metrics={"drawn_share": distinct / total})
