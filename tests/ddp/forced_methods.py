"""Methods that force a selection; also an example of how one is added: a frozen dataclass and a name."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from kakurenbo_lightning import Choice, HideMethod, register_method
from kakurenbo_lightning.methods import registry


@dataclass(frozen=True)
class _Forced(HideMethod):
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    refresh_mode: ClassVar[str] = "eval"


@register_method("given")
@dataclass(frozen=True)
class Given(_Forced):
    """Hides the listed indices of each epoch: ``hidden[epoch]``."""

    hidden: tuple[tuple[int, ...], ...] = ()
    summary: ClassVar[str] = "hides what it is told"

    def choose(self, statistics, epoch):
        hidden = torch.tensor(self.hidden[epoch.index], dtype=torch.int64)
        return Choice(torch.zeros(len(statistics), dtype=torch.bool).index_fill_(0, hidden, True))


@register_method("impure")
@dataclass(frozen=True)
class Impure(_Forced):
    """From epoch 1 on every rank hides another sample, or scales the learning rate by another factor."""

    hides: bool = True
    summary: ClassVar[str] = "breaks the rule that a plan is a pure function"

    def choose(self, statistics, epoch):
        mask = torch.zeros(len(statistics), dtype=torch.bool)
        own = dist.get_rank() if epoch.index > 0 else 0
        mask[own if self.hides else 0] = True
        return Choice(mask)

    def lr_factor(self, statistics, epoch, hidden_share):
        return 1.0 if self.hides or not epoch.index else 1.0 + dist.get_rank()


for name in ("given", "impure"):
    registry._METHODS.pop(name)  # tests that go through all methods there are may import this
