"""Selective-Backprop at a fixed rate: each batch shrinks to the same share of its samples.

The variant of MosaicML's Composer, after Angela H. Jiang et al.: "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.methods.backprop.base import BackpropMethod, Memory, Picked, at_least_two, hard, uniform
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, integer, number, setting
from kakurenbo_lightning.methods.topk import exact_floor

if TYPE_CHECKING:
    from torch import Tensor


@register_method("sb_fixed")
@dataclass(frozen=True)
class FixedRate(BackpropMethod):
    """Trains exactly ``floor(keep * B)`` samples of each batch, drawn without replacement, in a window of the training.

    The weight of a sample in the draw is ``((rank + 0.5) / B) ** (1 / keep - 1)``, its rank counted from the lowest loss.
    """

    keep: float = setting(0.5, number(0, 1, above=True), "share of a batch that is trained; at least two samples are")
    start: float = setting(
        0.5,
        number(0, 1),
        "share of the training after which the window begins; at most `end`",
        fix="They are shares of the training.",
    )
    end: float = setting(
        0.9, number(0, 1), "share of the training after which the window ends", fix="They are shares of the training."
    )
    interrupt: int = setting(
        2,
        integer(),
        "within the window, every n-th batch is trained whole, without scoring; 0: none",
        fix="2 trains every second batch whole.",
    )

    summary: ClassVar[str] = "shrinks each batch to a fixed share, drawn by the rank of the loss"
    paper: ClassVar[str] = "Jiang et al., 2019 (Composer's variant)"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    needs_index: ClassVar[bool] = False
    pooled: ClassVar[bool] = False

    def check_settings(self) -> None:
        """Check that the window does not end before it starts."""
        super().check_settings()
        checker(self)(self.start <= self.end, "start", f"at most end={self.end}", "The window goes from start to end.")

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """Check that the training has an end, if the window is given in shares of it."""
        checker(self)(
            max_epochs is not None or (self.start == 0 and self.end == 1),
            "start",
            "0, and end=1, in a run without an end",
            "Set Trainer(max_epochs=...), of which they are shares.",
        )

    def scores(self, epoch: Epoch, step: int, steps: int, memory: Memory) -> bool:
        """Whether the batch lies in the window and is not an ``interrupt``-th one."""
        done = (epoch.index * steps + step) / (epoch.max_epochs * steps) if epoch.max_epochs else 0.0
        regular = self.interrupt == 0 or (step + 1) % self.interrupt != 0
        return super().scores(epoch, step, steps, memory) and self.start <= done < self.end and regular

    def select(self, values: Mapping[str, Tensor], indices: Tensor, memory: Memory, generator: torch.Generator) -> Picked:
        """Draw without replacement by taking the k highest of ``U ** (1 / weight)``, where U is uniform in [0, 1)."""
        losses = hard(values["loss"])
        size = len(losses)
        # the argsort of an argsort is the rank; stable, so that ties are ranked in batch order on every device
        rank = losses.argsort(stable=True).argsort()
        weight = ((rank + 0.5) / size) ** (1 / self.keep - 1)
        # log(U) / weight orders like U ** (1 / weight) but does not underflow; tiny, because log(0) is -inf
        key = uniform(size, generator, losses.device).clamp(min=torch.finfo(torch.float32).tiny).log() / weight
        count = at_least_two(exact_floor(self.keep, size), size)
        return Picked(key.argsort(descending=True, stable=True), count)
