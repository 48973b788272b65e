"""On which batches values are verified: the first, and later ones as long as none has shown whose a value is."""

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

LAST = 1024  # number of the last batch that is tried, where the losses of all before were alike

Verify = Callable[[Rehearsal], tuple[Values | None, Report]]


class Occasions:
    """The first batch of a phase, to which all ranks come together, and trained batches 1, 2, 4, ... while a question is open on any rank.

    A rank whose first batch had one sample verifies its first batch of more at once, without the others where they do not come.
    """

    def __init__(self) -> None:
        self._met: set[str] = set()  # of "scoring" and "training", the phases in which ranks have come together
        self._number = -1  # of the batch that is trained
        self._open = False  # on any rank

    def is_due(self, size: int, report: Report | None) -> bool:
        """Whether the next batch to be trained, of ``size`` samples, is tried once more; to be asked for every one of them."""
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
        """What ``verify`` gives, with other ranks where they come.

        Args:
            phase: ``"scoring"`` or ``"training"``.
            rehearsal: runs the step.
            batch: that is tried.
            size: of it.
            device: where ranks exchange numbers; ``None``: they do not, because nothing is required of the step.
            verify: is given the rehearsal to use; ``None``: this rank has nothing to verify, and comes for the sake of the others.
        """
        alone, meets = world_size() == 1 or device is None, phase not in self._met
        self._met |= {phase, "scoring"}
        with isolated_rng():
            if alone or device is None or not meets:
                if not alone:  # the others do not come: this rank had nothing to verify when they did
                    rehearsal = replace(rehearsal, replay=None)
                made = None if verify is None else verify(rehearsal)
                if alone and made is not None:
                    self._open = made[1].is_open
                return made
            with together(rehearsal, batch, size, device) as turns:
                made = None if verify is None else verify(replace(rehearsal, turn=turns.turn))
            self._open = bool(largest(int(made is not None and made[1].is_open), device))
            return made
