"""FORGET while training: no restart, the choice is made anew each epoch. Source as in :mod:`kakurenbo_lightning.methods.forget`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from kakurenbo_lightning.methods.base import RefreshMode
from kakurenbo_lightning.methods.checks import checker
from kakurenbo_lightning.methods.forget import Forgetting
from kakurenbo_lightning.methods.registry import register_method


@register_method("forget_online")
@dataclass(frozen=True)
class ForgetOnline(Forgetting):
    """FORGET while training: each epoch hides the samples of fewest events so far.

    Args:
        max_fraction: share of the data set hidden in every epoch, in [0, 1).
        never_learned: as in :class:`Forget`.
        start_epoch: the first epoch that hides, >= 0.
        refresh_mode: mode of the pass over the hidden samples, whose events keep counting.

    Raises:
        ValueError: a setting out of range.
    """

    _: KW_ONLY
    start_epoch: int = 2
    refresh_mode: RefreshMode = "eval"

    summary: ClassVar[str] = "hides the samples forgotten least often so far; refreshes them by a forward-only pass"

    def __post_init__(self) -> None:
        super().__post_init__()
        checker(self)(self.refresh_mode in ("eval", "train"), "refresh_mode", "'eval' or 'train'", "Use 'eval'.")
