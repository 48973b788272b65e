"""Which batches are verified: the first, and later ones until one shows that each value belongs to its sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from kakurenbo_lightning.core.distributed import largest, world_size
from kakurenbo_lightning.core.random import isolated_rng
from kakurenbo_lightning.signals.predictions import Values
from kakurenbo_lightning.signals.report import Report
from kakurenbo_lightning.signals.turns import together
from kakurenbo_lightning.signals.verification import Rehearsal

LAST = 1024  # number of the last batch to try if all losses before were equal

Verify = Callable[[Rehearsal], tuple[Values | None, Report]]


class Occasions:
    """Schedules verification: the first batch of each phase, on all ranks together, then trained batches 1, 2, 4, ... while any rank
    has an open question.

    A rank whose first batch had one sample verifies its next batch with more of them at once, if need be without the other ranks.
    """

    def __init__(self) -> None:
        self._met: set[str] = set()  # phases ("scoring", "training") in which the ranks have verified together
        self._number = -1  # of the current training batch
        self._open = False  # whether any rank has an open question

    def is_due(self, size: int, report: Report | None) -> bool:
        """Whether the next training batch, of ``size`` samples, is verified again. Must be called once for every training batch."""
        self._number += 1
        if not self._open or not self._number:
            return False
        scheduled = self._number <= LAST and self._number & (self._number - 1) == 0
        if world_size() == 1:
            return size > 1 and (scheduled or (report is not None and report.had_one_sample))
        if scheduled:
            self._met.discard("training")
        return scheduled or (size > 1 and report is not None and report.had_one_sample)

    def verify(
        self, phase: str, rehearsal: Rehearsal, batch: Any, size: int, device: torch.device | None, verify: Verify | None
    ) -> tuple[Values | None, Report] | None:
        """Call ``verify``, together with the other ranks if they verify this batch too.

        Args:
            phase: ``"scoring"`` or ``"training"``.
            rehearsal: runs the step.
            batch: the batch to verify.
            size: its number of samples.
            device: on which ranks exchange numbers; ``None`` if they do not, because nothing is required of the step.
            verify: is called with the rehearsal to use; ``None`` if this rank has nothing to verify and takes part only for the
                others.
        """
        alone, meets = world_size() == 1 or device is None, phase not in self._met
        self._met |= {phase, "scoring"}
        with isolated_rng():
            if alone or device is None or not meets:
                # the other ranks have verified before, when this one could not: no replay, because a run could wait for them
                if not alone:
                    rehearsal = replace(rehearsal, replay=None)
                made = None if verify is None else verify(rehearsal)
                if alone and made is not None:
                    self._open = made[1].is_open
                return made
            with together(rehearsal, batch, size, device) as turns:
                made = None if verify is None else verify(replace(rehearsal, turn=turns.turn))
            self._open = bool(largest(int(made is not None and made[1].is_open), device))
            return made
