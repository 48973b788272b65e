"""Selective-Backprop: train a sample with a probability that grows with the percentile of its loss.

Angela H. Jiang, Daniel L.-K. Wong, Giulio Zhou, David G. Andersen, Jeffrey Dean, Gregory R. Ganger, Gauri Joshi, Michael Kaminsky,
Michael Kozuch, Zachary C. Lipton, Padmanabhan Pillai: "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kakurenbo_lightning.methods.backprop import BackpropMethod, Memory, Picked, hard, uniform
from kakurenbo_lightning.methods.checks import checker, is_count, is_number
from kakurenbo_lightning.methods.registry import register_method


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
