"""The first batch on several ranks: all ranks run the step equally often, because a step may wait for the others, and fail
together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from kakurenbo_lightning.core.distributed import gather, largest
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.attribution import halve
from kakurenbo_lightning.signals.verification import Rehearsal

NONE, OTHER_NUMBERS, HALF, WHOLE = range(4)  # the run that a rank wants next; all ranks make the one with the largest number


class Turns:
    """Lets all ranks make the same runs of the step. Before each run every rank says which one it wants, and all make the one with the
    largest number; a rank that wanted another one discards the result.

    Args:
        rehearsal: runs the step.
        batch: the first batch.
        size: its number of samples.
        device: on which ranks exchange numbers.
    """

    def __init__(self, rehearsal: Rehearsal, batch: Any, size: int, device: torch.device) -> None:
        self._rehearsal, self._batch, self._size, self._device = rehearsal, batch, size, device

    def take(self, size: int, others: int) -> None:
        """Wait until every rank makes a run of ``size`` samples. ``others`` numbers another set of random numbers; 0 means the same
        ones.
        """
        mine = OTHER_NUMBERS if others else HALF if size < self._size else WHOLE
        while (agreed := largest(mine, self._device)) != mine:
            self._run_in_vain(agreed)

    def end(self) -> None:
        """Take part in the runs of other ranks until no rank wants another one."""
        while agreed := largest(NONE, self._device):
            self._run_in_vain(agreed)

    def _run_in_vain(self, kind: int) -> None:
        """Make a run that only other ranks need."""
        half = halve(self._batch, self._size) if kind == HALF else ""
        batch, size = (self._batch, self._size) if isinstance(half, str) else (half.batch, half.size)
        self._rehearsal.run_in_vain(batch, size)


@contextlib.contextmanager
def together(rehearsal: Rehearsal, batch: Any, size: int, device: torch.device) -> Iterator[Rehearsal]:
    """Context in which all ranks verify their first batch, with the rehearsal that this yields. Collective: every rank must enter it.

    Raises:
        OutputsError: another rank has failed; the message names it. An error of this rank is raised unchanged.
    """
    turns = Turns(rehearsal, batch, size, device)
    failure: Exception | None = None
    try:
        yield replace(rehearsal, turn=turns.take)
    except Exception as error:
        failure = error
    turns.end()
    failures = gather(None if failure is None else str(failure) or type(failure).__name__)
    if failure is not None:
        raise failure
    for rank, message in enumerate(failures):
        if message is not None:
            raise OutputsError(f"on rank {rank}: {message}")
