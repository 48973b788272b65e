"""How often each sample was trained and hidden, and its figures over the epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.core.distributed import Ranks
from kakurenbo_lightning.record.sample_figures import SampleFigures


class SampleCounts:
    """Counts by data set index: 4 bytes per sample on the device, 24 on the host with the figures.

    Args:
        count: N; 0 before it is known, and of samples without an index.
        device: the device that trains.
        ranks: the ranks of the training.

    Attributes:
        hidden: ``int32[N]``, epochs whose plan left the sample out.
        changed: ``int16[N]``, epoch in which the sample was hidden or came back, -1 for never.
        figures: what the epochs measured.
    """

    def __init__(self, count: int, device: torch.device, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        self._trained = torch.zeros(count, dtype=torch.int32, device=device)  # on this rank
        self._step: tuple[int, Tensor] | None = None  # number and samples of the step that is being made
        self._now = torch.zeros(count, dtype=torch.bool)
        self.hidden = torch.zeros(count, dtype=torch.int32)
        self.changed = torch.full((count,), -1, dtype=torch.int16)
        self.figures = SampleFigures(count)

    def __len__(self) -> int:
        return len(self.hidden)

    def begin_step(self, number: int, indices: Tensor) -> None:
        """Count what this rank trains in step ``number`` of the epoch (``int64[b]`` on the device); never waits for the device."""
        if not len(self):
            return
        self._step = number, indices
        self._trained.index_add_(0, indices, torch.ones_like(indices, dtype=torch.int32))

    def end_step(self) -> None:
        """Count the samples of the step, which is complete now."""
        self._step = None

    def hide(self, indices: Tensor, epoch: int) -> None:
        """Count what ``epoch`` leaves out (``int64[h]`` on the host)."""
        if not len(self):
            return  # of samples without an index, which may have keys
        now = torch.zeros_like(self._now).index_fill_(0, indices, True)
        self.hidden += now
        self.changed.masked_fill_(now ^ self._now, epoch)
        self._now = now

    def trained(self, done: int, alone: bool = False) -> Tensor:
        """How often each sample was trained on all ranks together, ``int32[N]`` on the device; collective unless ``alone``.

        Args:
            done: steps of the epoch that a resumed run does not repeat; a step that it repeats is not counted.
            alone: count this rank's only.
        """
        total = self._trained.clone()
        if self._step is not None and self._step[0] >= done:
            total.index_add_(0, self._step[1], torch.full_like(self._step[1], -1, dtype=torch.int32))
        return total if alone or not len(self) else self._ranks.sum(total)

    def state_dict(self, done: int, alone: bool) -> dict[str, Any]:
        """Copies on the host; the arguments are those of ``trained``."""
        trained = self.trained(done, alone).cpu()
        hidden = {"hidden": self.hidden.clone(), "changed": self.changed.clone(), "now": self._now.clone()}
        return {"trained": trained, **hidden, "figures": self.figures.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], first: bool) -> None:
        """Take over ``state_dict``; the ``first`` rank does so for all."""
        self._trained.copy_(state["trained"]) if first else self._trained.zero_()
        self.hidden.copy_(state["hidden"])
        self.changed.copy_(state["changed"])
        self._now.copy_(state["now"])
        if "figures" in state:  # since 0.2.0; without them they are of the epochs from here on
            self.figures.load_state_dict(state["figures"])
