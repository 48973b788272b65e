"""What a run asks of a family that does something within the epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from kakurenbo_lightning.core.shard import EpochShard
from kakurenbo_lightning.core.timers import PhaseTimer
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values

PHASES = ("score", "forward", "backward", "data")
Counts = dict[str, float]
ScorePass = Callable[[Tensor, Callable[[Tensor, Values], None]], None]


class Engine:
    """Hooks in the order of the loop; by default nothing happens in them.

    Args:
        device: that trains.

    Attributes:
        skips: leaves out optimizer steps.
        trains_batch: the next step trains the loaded batch as it is; else :meth:`training_step` says what.
        chosen: indices of the samples it trains then, ``int64[b]``, or ``None`` when it trains none.
        phases: seconds of looking, forward, backward and data.
    """

    skips: ClassVar[bool] = False
    trains_batch: bool = True
    chosen: Tensor | None = None

    def __init__(self, device: torch.device) -> None:
        self.phases = PhaseTimer(device)

    def prepare(self, epoch: Epoch, scored: Tensor) -> None:
        """An epoch is planned; ``scored`` (``int64[n]``) were looked at since the last step. The same on every rank."""

    def checksum(self) -> int:
        """Of what must be equal on all ranks."""
        return 0

    def diagnosed(self, epoch: Epoch, score: ScorePass) -> Counts:
        """What to log of the state an epoch begins with; ``score(rows, record)`` makes a forward-only pass. Collective."""
        return {}

    def begin_epoch(self, epoch: Epoch, dealt: EpochShard, start: int, outputs: SampleOutputs) -> None:
        """An epoch begins, or goes on, at step ``start``.

        Args:
            epoch: which epoch.
            dealt: its batches, on the device.
            start: the first step.
            outputs: where per-sample values come from.
        """

    def score(self, batch: Any, number: int) -> None:
        """Batch ``number`` is there."""

    def learn(self, values: Values | None, batch: Any, number: int, scale: float) -> None:
        """Step ``number`` has trained ``batch`` as it is, and seen these."""

    def end_batch(self, number: int) -> None:
        """Step ``number`` is done."""

    def end_epoch(self, last: bool) -> tuple[Counts, Counts]:
        """What to log of the epoch, with counts of samples, and seconds of the phases; ``last``: of the run."""
        seconds = self.phases.take()
        return {}, {f"{phase}_seconds": seconds.get(phase, 0.0) for phase in PHASES}

    def state_dict(self, alone: bool, done: int) -> dict[str, Any]:
        """Of this rank; loads with ``weights_only=True``.

        Args:
            alone: the other ranks save nothing.
            done: steps of the epoch that a resumed run does not make again.
        """
        return {}

    def shared_state(self) -> Any:
        """What is the same on every rank, after :meth:`state_dict`."""
        return None

    def load_state_dict(self, states: list[dict[str, Any]], shared: Any, rank: int, world_size: int) -> None:
        """Take over :meth:`state_dict` of every rank and :meth:`shared_state`, for rank ``rank`` of ``world_size``."""
