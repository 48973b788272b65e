"""Selective-Backprop at a fixed rate: each batch shrinks to the same share of its samples.

The variant of MosaicML's Composer, after Angela H. Jiang et al.: "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kakurenbo_lightning.methods.backprop.base import BackpropMethod, Memory, Picked, at_least_two, hard, uniform
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, is_count, is_number
from kakurenbo_lightning.methods.topk import exact_floor


@register_method("sb_fixed")
@dataclass(frozen=True)
class FixedRate(BackpropMethod):
    """In a window of the training exactly ``floor(keep * B)`` samples of each batch are drawn without replacement and trained at once.

    The weight of a sample in the draw is ``((rank + 0.5) / B) ** (1 / keep - 1)``, its rank counted from the lowest loss.

    Args:
        keep: share of a batch that is trained, in (0, 1]; at least two samples are.
        start: share of the training after which the window begins, in [0, 1].
        end: share of the training after which it ends, in [0, 1].
        interrupt: in the window each ``interrupt``-th batch is trained whole, without looking; 0: none.

    Raises:
        ValueError: a setting out of range.
    """

    keep: float = 0.5
    start: float = 0.5
    end: float = 0.9
    interrupt: int = 2

    summary: ClassVar[str] = "shrinks each batch to a fixed share, drawn by the rank of the loss"
    paper: ClassVar[str] = "Jiang et al., 2019 (Composer's variant)"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    pooled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check = checker(self)
        check(is_number(self.keep) and 0 < self.keep <= 1, "keep", "a number in (0, 1]", "For example: 0.5.")
        for name in ("start", "end"):
            value = getattr(self, name)
            check(is_number(value) and 0 <= value <= 1, name, "a number in [0, 1]", "They are shares of the training.")
        check(self.start <= self.end, "start", f"at most end={self.end}", "The window goes from start to end.")
        check(is_count(self.interrupt), "interrupt", "an integer >= 0", "2 trains every second batch whole.")

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """Shares of the training need its end."""
        checker(self)(
            max_epochs is not None or (self.start == 0 and self.end == 1),
            "start",
            "0, and end=1, in a run without an end",
            "Set Trainer(max_epochs=...), of which they are shares.",
        )

    def scores(self, epoch: Epoch, step: int, steps: int, memory: Memory) -> bool:
        """In the window, but for each ``interrupt``-th batch."""
        done = (epoch.index * steps + step) / (epoch.max_epochs * steps) if epoch.max_epochs else 0.0
        regular = self.interrupt == 0 or (step + 1) % self.interrupt != 0
        return super().scores(epoch, step, steps, memory) and self.start <= done < self.end and regular

    def select(self, values: Mapping[str, Tensor], indices: Tensor, memory: Memory, generator: torch.Generator) -> Picked:
        """Draw without replacement: the k highest of ``U ** (1 / weight)``."""
        losses = hard(values["loss"])
        size = len(losses)
        rank = losses.argsort(stable=True).argsort()
        weight = ((rank + 0.5) / size) ** (1 / self.keep - 1)
        key = uniform(size, generator, losses.device).clamp(min=torch.finfo(torch.float32).tiny).log() / weight
        count = at_least_two(exact_floor(self.keep, size), size)
        return Picked(key.argsort(descending=True, stable=True), count)
