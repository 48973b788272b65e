"""Selective-Backprop: train a sample with a probability that grows with the percentile of its loss.

Angela H. Jiang, Daniel L.-K. Wong, Giulio Zhou, David G. Andersen, Jeffrey Dean, Gregory R. Ganger, Gauri Joshi, Michael Kaminsky,
Michael Kozuch, Zachary C. Lipton, Padmanabhan Pillai: "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import EpochPlan, Plan
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.backprop.base import BackpropMethod, Memory, Picked, at_least_two, hard, uniform
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, choice, flag, integer, number, optional, setting
from kakurenbo_lightning.methods.topk import exact_floor

if TYPE_CHECKING:
    from torch import Tensor


CONTROLS = {  # what `score` makes of the method
    "random": "trains samples drawn at random, as many as Selective-Backprop expects to",
    "topk": "trains the samples of highest loss of each batch",
    "l2": "trains a sample with a probability that grows with the distance of its prediction from its target",
}


def percentile(losses: Tensor, history: Tensor) -> Tensor:
    """Share of ``history`` (``float32[h]``, no NaN) strictly below each of ``losses`` (``float32[n]``); ``float32[n]``."""
    return torch.searchsorted(history.sort().values, losses) / max(1, len(history))


@register_method("selective_backprop")
@dataclass(frozen=True)
class SelectiveBackprop(BackpropMethod):
    """Selective-Backprop (Jiang et al., 2019).

    A scored sample is trained with probability ``max(floor, percentile ** beta)``, where percentile is the share of the last losses
    that are below its own. A loss that is not finite is always trained.
    """

    beta: float = setting(
        1.0,
        number(0),
        "selectivity: the expected share is 1 / (`beta` + 1); 0 trains everything",
        fix="1 keeps a half, 2 a third, 3 a quarter.",
    )
    floor: float = setting(0.0, number(0, 1), "least probability of being trained", fix="For example: 0.05.")
    history: int = setting(
        1024,
        integer(1),
        "number of last scored losses among which the percentile is taken; each rank has its own history",
        unit="losses",
    )
    score: Literal["loss", "random", "topk", "l2"] = setting(
        "loss",
        choice("loss", "random", "topk", "l2"),
        "the method, or a control: `'random'` draws percentiles, `'topk'` takes the floor(B / (`beta` + 1)) highest losses of the batch, "
        "`'l2'` has the squared distance between one-hot target and softmax, at most 1, in the percentile's place",
        fix="'loss' is the method, the others are controls.",
    )
    keep: float | None = setting(
        None,
        optional(number(0, 1, above=True)),
        "with `score='topk'`: the share of each batch to train, instead of 1 / (`beta` + 1)",
        fix="0.5 takes the half with the highest losses.",
    )
    pool: bool = setting(
        True,
        flag(),
        "chosen samples wait until they fill a batch; `False`: each loaded batch makes a smaller step with its chosen "
        "samples at once",
        fix="False is the way of proxy masks.",
    )

    summary: ClassVar[str] = "trains a sample with a probability that grows with the percentile of its loss"
    paper: ClassVar[str] = "Jiang et al., 2019"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    needs_index: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score == "l2":
            object.__setattr__(self, "reads", ("loss", "el2n"))
        if self.score in CONTROLS:
            object.__setattr__(self, "summary", CONTROLS[self.score])
        # a frozen dataclass forbids plain assignment, and `pool=False` changes what the engine does
        object.__setattr__(self, "pooled", self.pool)

    def check_settings(self) -> None:
        """Check that ``keep`` is only given for ``score="topk"``, which alone uses it."""
        super().check_settings()
        is_read = self.keep is None or self.score == "topk"
        checker(self)(is_read, "keep", f"None with score={self.score!r}", "Write score='topk', or beta for the expected share.")

    def memory(self) -> Memory:
        """An empty history of scored losses."""
        return {"history": torch.empty(0)}

    def learn(self, memory: Memory, values: Mapping[str, Tensor], mean: Callable[[Tensor], Tensor]) -> None:
        """Append the losses to the history, and keep only the newest ones."""
        losses = hard(values["loss"])
        memory["history"] = torch.cat([memory["history"].to(losses.device), losses])[-self.history :]

    def select(self, values: Mapping[str, Tensor], indices: Tensor, memory: Memory, generator: torch.Generator) -> Picked:
        """Draw which of the scored samples are trained, by the percentile of each loss among the last ones."""
        losses = hard(values["loss"])
        if self.score == "topk":
            size = len(losses)
            count = int(size / (self.beta + 1)) if self.keep is None else exact_floor(self.keep, size)
            order = losses.argsort(descending=True, stable=True)
            return Picked(order, max(1, count) if self.pool else at_least_two(count, size))
        share = self._share(values, losses, memory, generator)
        probability = (share**self.beta).clamp(min=self.floor)
        # a loss that is NaN or infinite is always trained, so that it is seen
        probability = torch.where(losses.isfinite(), probability, 1.0)
        # equal losses have percentile 0 each: train all, because no choice is possible; a tensor, so that the host does not wait
        whole = (probability <= 0).all()
        keep = uniform(len(losses), generator, losses.device) < probability
        return Picked.mask(keep | whole, whole)

    def _share(self, values: Mapping[str, Tensor], losses: Tensor, memory: Memory, generator: torch.Generator) -> Tensor:
        if self.score == "random":
            return uniform(len(losses), generator, losses.device)
        return values["el2n"].float().square().clamp(max=1) if self.score == "l2" else percentile(losses, memory["history"])


@register_method("stale_sb")
@dataclass(frozen=True)
class StaleSB(SelectiveBackprop):
    """StaleSB (Jiang et al., 2019): scores only every few epochs. In between, the epoch is planned from the stored losses, and
    rejected samples are not loaded.

    Epochs 0, n, 2n, ... score every batch (those in the warm-up train on it); in the others the percentile is taken among the stored
    losses of all samples, and a trained sample's new loss is stored.
    """

    score: Literal["loss"] = setting(
        "loss", choice("loss"), "the controls are those of `selective_backprop`", fix="The controls are of selective_backprop."
    )
    staleness: int = setting(3, integer(1), "n: every n-th epoch is scored; 1 is Selective-Backprop", unit="epochs")

    summary: ClassVar[str] = "Selective-Backprop that scores every few epochs and does not load what it rejects in between"
    needs_index: ClassVar[bool] = True  # of the stored losses

    def scores(self, epoch: Epoch, step: int, steps: int, memory: Memory) -> bool:
        """Whether ``epoch`` is one of those that are scored: every ``staleness``-th."""
        return super().scores(epoch, step, steps, memory) and epoch.index % self.staleness == 0

    def plan(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None = None) -> EpochPlan:
        """Plan all samples for an epoch that scores, else those that the stored losses choose."""
        if epoch.index < self.warmup_epochs or epoch.index % self.staleness == 0:
            return EpochPlan.everything(len(statistics))
        loss = statistics.loss.cpu().numpy()
        known = np.isfinite(loss)
        probability = np.ones(len(loss))
        probability[known] = np.maximum(self.floor, _share_below(loss[known]) ** self.beta)
        drawn = torch.rand(len(loss), generator=epoch.generator(), dtype=torch.float64).numpy()
        keep = drawn < probability
        return EpochPlan.hide(torch.from_numpy(~keep)) if keep.any() else EpochPlan.everything(len(loss))


def _share_below(values: np.ndarray) -> np.ndarray:
    """The share of ``values`` that is strictly smaller than each of them; ``float64[n]``."""
    order = np.argsort(values)
    ordered = values[order]
    first = np.zeros(len(values), dtype=np.int64)
    first[1:] = np.where(ordered[1:] > ordered[:-1], np.arange(1, len(values)), 0)
    share = np.empty(len(values))
    share[order] = np.maximum.accumulate(first) / max(1, len(values))
    return share
