"""Selective-Backprop: train a sample with a probability that grows with the percentile of its loss.

Angela H. Jiang, Daniel L.-K. Wong, Giulio Zhou, David G. Andersen, Jeffrey Dean, Gregory R. Ganger, Gauri Joshi, Michael Kaminsky,
Michael Kozuch, Zachary C. Lipton, Padmanabhan Pillai: "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from kakurenbo_lightning.core.plan import EpochPlan, Plan
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.backprop.base import BackpropMethod, Memory, Picked, hard, uniform
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, is_count, is_number


def percentile(losses: Tensor, history: Tensor) -> Tensor:
    """Share of ``history`` (``float32[h]``, no NaN) strictly below each of ``losses`` (``float32[n]``); ``float32[n]``."""
    return torch.searchsorted(history.sort().values, losses) / max(1, len(history))


@register_method("selective_backprop")
@dataclass(frozen=True)
class SelectiveBackprop(BackpropMethod):
    """Selective-Backprop (Jiang et al., 2019).

    A looked-at sample is trained with probability ``max(floor, percentile ** beta)``, where percentile is the share of the last losses
    that are below its own. A loss that is not finite is always trained.

    Args:
        beta: selectivity, >= 0: the expected share is 1 / (beta + 1).
        floor: least probability, in [0, 1].
        history: how many of the last looked-at losses the percentile is taken of, >= 1 (of this rank).
        score: ``"loss"``, or a control: ``"random"`` (percentiles are drawn), ``"topk"`` (the floor(B / (beta + 1)) highest losses of the
            batch), ``"l2"`` (the squared distance between one-hot target and softmax, halved, in the percentile's place).

    Raises:
        ValueError: a setting out of range.
    """

    beta: float = 1.0
    floor: float = 0.0
    history: int = 1024
    score: Literal["loss", "random", "topk", "l2"] = "loss"

    summary: ClassVar[str] = "trains a sample with a probability that grows with the percentile of its loss"
    paper: ClassVar[str] = "Jiang et al., 2019"
    reads: ClassVar[tuple[str, ...]] = ("loss",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check = checker(self)
        check(is_number(self.beta) and self.beta >= 0, "beta", "a number >= 0", "1 keeps a half, 2 a third, 3 a quarter.")
        check(is_number(self.floor) and 0 <= self.floor <= 1, "floor", "a number in [0, 1]", "For example: 0.05.")
        check(is_count(self.history, 1), "history", "an integer >= 1", "For example: 1024.")
        known = ("loss", "random", "topk", "l2")
        check(self.score in known, "score", " or ".join(map(repr, known)), "'loss' is the method, the others are controls.")
        if self.score == "l2":
            object.__setattr__(self, "reads", ("loss", "el2n"))

    def memory(self) -> Memory:
        """The last losses."""
        return {"history": torch.empty(0)}

    def learn(self, memory: Memory, values: Mapping[str, Tensor], mean: Callable[[Tensor], Tensor]) -> None:
        """Keep the last losses."""
        losses = hard(values["loss"])
        memory["history"] = torch.cat([memory["history"].to(losses.device), losses])[-self.history :]

    def select(self, values: Mapping[str, Tensor], indices: Tensor, memory: Memory, generator: torch.Generator) -> Picked:
        """Draw."""
        losses = hard(values["loss"])
        if self.score == "topk":
            count = int(len(losses) / (self.beta + 1))
            order = losses.argsort(descending=True, stable=True)
            return Picked(order, max(1, count))
        share = self._share(values, losses, memory, generator)
        probability = (share**self.beta).clamp(min=self.floor)
        probability = torch.where(losses.isfinite(), probability, 1.0)
        whole = (probability <= 0).all()
        keep = uniform(len(losses), generator, losses.device) < probability
        return Picked.mask(keep | whole, whole)

    def _share(self, values: Mapping[str, Tensor], losses: Tensor, memory: Memory, generator: torch.Generator) -> Tensor:
        if self.score == "random":
            return uniform(len(losses), generator, losses.device)
        return values["el2n"].float().square() / 2 if self.score == "l2" else percentile(losses, memory["history"])


@register_method("stale_sb")
@dataclass(frozen=True)
class StaleSB(SelectiveBackprop):
    """StaleSB (Jiang et al., 2019): in between, the stored losses decide when the epoch is planned, and what they reject is not loaded.

    Epochs 0, n, 2n, ... look at every batch (those in the warm-up train on it); in the others the percentile is taken among the stored
    losses of all samples, and a trained sample's loss is stored anew.

    Args:
        beta: as in :class:`SelectiveBackprop`.
        floor: as in :class:`SelectiveBackprop`.
        history: as in :class:`SelectiveBackprop`.
        score: ``"loss"`` only.
        staleness: n, >= 1; 1 is Selective-Backprop.

    Raises:
        ValueError: a setting out of range.
    """

    staleness: int = 3

    summary: ClassVar[str] = "Selective-Backprop that looks every few epochs and does not load what it rejects in between"

    def __post_init__(self) -> None:
        super().__post_init__()
        check = checker(self)
        check(is_count(self.staleness, 1), "staleness", "an integer >= 1", "For example: 3.")
        check(self.score == "loss", "score", "'loss'", "The controls are of selective_backprop.")

    def scores(self, epoch: Epoch, step: int, steps: int, memory: Memory) -> bool:
        """Every ``staleness`` epochs."""
        return super().scores(epoch, step, steps, memory) and epoch.index % self.staleness == 0

    def plan(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None = None) -> EpochPlan:
        """Everything, or what the stored losses choose."""
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
    """Share of ``values`` strictly below each of them; ``float64[n]``."""
    order = np.argsort(values)
    ordered = values[order]
    first = np.zeros(len(values), dtype=np.int64)
    first[1:] = np.where(ordered[1:] > ordered[:-1], np.arange(1, len(values)), 0)
    share = np.empty(len(values))
    share[order] = np.maximum.accumulate(first) / max(1, len(values))
    return share
