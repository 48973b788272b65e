"""Methods that force a selection; also an example of how one is added: a frozen dataclass and a name."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from kakurenbo_lightning import EpochPlan, register_method


@dataclass(frozen=True)
class _Forced:
    family: ClassVar[str] = "hide"
    paper: ClassVar[str] = "-"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    refresh_mode: ClassVar[str] = "eval"

    def check_run(self, max_epochs):
        """Any run will do."""


@register_method("given")
@dataclass(frozen=True)
class Given(_Forced):
    """Hides the listed indices of each epoch: ``hidden[epoch]``."""

    hidden: tuple[tuple[int, ...], ...] = ()
    summary: ClassVar[str] = "hides what it is told"

    def plan(self, statistics, epoch):
        hidden = torch.tensor(self.hidden[epoch.index], dtype=torch.int64)
        return EpochPlan.hide(torch.zeros(len(statistics), dtype=torch.bool).index_fill_(0, hidden, True))


@register_method("impure")
@dataclass(frozen=True)
class Impure(_Forced):
    """From epoch 1 on every rank hides another sample, or scales the learning rate by another factor."""

    hides: bool = True
    summary: ClassVar[str] = "breaks the rule that a plan is a pure function"

    def plan(self, statistics, epoch):
        mask = torch.zeros(len(statistics), dtype=torch.bool)
        own = dist.get_rank() if epoch.index > 0 else 0
        mask[own if self.hides else 0] = True
        return EpochPlan.hide(mask, lr_factor=1.0 if self.hides else 1.0 + own)
