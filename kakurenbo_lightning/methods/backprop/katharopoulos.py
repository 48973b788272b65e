"""Importance sampling by an upper bound of the gradient norm, active only while it pays.

Angelos Katharopoulos, François Fleuret: "Not All Samples Are Created Equal: Deep Learning with Importance Sampling", ICML 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.methods.backprop.base import BackpropMethod, Memory, Picked, at_least_two
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import integer, number, optional, proportion, setting

if TYPE_CHECKING:
    from torch import Tensor


@register_method("katharopoulos")
@dataclass(frozen=True)
class Katharopoulos(BackpropMethod):
    """Scores ``presample`` batches, draws one batch from them with replacement in proportion to the score, and trains it with weights.

    The score is the gradient norm of the loss at the last layer's inputs, ``g = ||softmax(z) - onehot(y)||_2``; a drawn sample's weight is
    ``1 / (presample * b * g)`` with g normalised to 1. The method is active while the reduction of variance is worth the
    scoring. While it is off, it only computes the scores of trained batches, which show when it would pay.
    """

    presample: int = setting(3, integer(2), "number of batches that are scored for each one that is trained", unit="batches")
    momentum: float = setting(0.9, proportion(), "momentum of the running mean of t")
    threshold: float | None = setting(
        None,
        optional(number(0, infinite=True)),
        "the method is active while the mean of t is above this; `None`: (`presample` + 3) / 3; 0: always; `inf`: never",
        fix="0 is always on.",
    )

    summary: ClassVar[str] = "draws each batch from several by the gradient norm of the last layer, while it pays"
    paper: ClassVar[str] = "Katharopoulos & Fleuret, ICML 2018"
    reads: ClassVar[tuple[str, ...]] = ("loss", "el2n")
    needs_index: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    weighs = True

    @property
    def batches_per_choice(self) -> int:
        """The setting ``presample``: one batch is drawn from so many."""
        return self.presample

    def memory(self) -> Memory:
        """The running mean of t, which starts at 0."""
        return {"t": torch.zeros(())}

    def scores(self, epoch: Epoch, step: int, steps: int, memory: Memory) -> bool:
        """Whether the running mean of t says that scoring pays; waits for the device."""
        needed = (self.presample + 3) / 3 if self.threshold is None else self.threshold
        return super().scores(epoch, step, steps, memory) and float(memory["t"]) > needed

    def learn(self, memory: Memory, values: Mapping[str, Tensor], mean: Callable[[Tensor], Tensor]) -> None:
        """Update the running mean of t = sqrt(n sum(g^2)) = 1 / sqrt(1 - sum((g - u)^2) / sum(g^2)), with u = 1 / n."""
        score = _normalised(values["el2n"])
        t = mean((len(score) * score.square().sum()).sqrt().float())
        memory["t"] = self.momentum * memory["t"].to(t.device) + (1 - self.momentum) * t

    def select(self, values: Mapping[str, Tensor], indices: Tensor, memory: Memory, generator: torch.Generator) -> Picked:
        """Draw one batch with replacement, in proportion to the scores."""
        score = _normalised(values["el2n"])
        size = len(score)
        count = at_least_two(size // self.presample, size)
        drawn = torch.rand(count, generator=generator, dtype=torch.float64).to(score.device, non_blocking=True)
        bounds = score.cumsum(0)
        # clamp: rounding may leave the last bound below a number drawn just under 1
        rows = torch.searchsorted(bounds / bounds[-1], drawn, right=True).clamp(max=size - 1)
        return Picked(rows, count, weights=(1 / (size * score[rows])).float())


def _normalised(score: Tensor) -> Tensor:
    """Convert scores >= 0 to probabilities, ``float64[n]``. All are equal if no score is above 0; one that is not finite counts as the
    largest.
    """
    score = score.double()
    finite = score.isfinite()
    # tiny, so that scores that are all 0 do not divide 0 by 0
    largest = torch.where(finite, score, 0.0).amax().clamp(min=torch.finfo(torch.float64).tiny)
    score = torch.where(finite, score, largest)
    total = score.sum()
    return torch.where(total > 0, score / total.clamp(min=torch.finfo(torch.float64).tiny), 1 / len(score))
