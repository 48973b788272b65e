"""The first batch on several ranks: each runs the step equally often, for a step may wait for the other ranks, and fails with them."""

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

NONE, OTHER_NUMBERS, HALF, WHOLE = range(4)  # the run that a rank wants next; the largest is made by every rank


class Turns:
    """Before each run of the step every rank says which one it wants, and all make the largest; who wants another one makes it in vain.

    Args:
        rehearsal: runs the step.
        batch: the first.
        size: of it.
        device: where ranks exchange numbers.
    """

    def __init__(self, rehearsal: Rehearsal, batch: Any, size: int, device: torch.device) -> None:
        self._rehearsal, self._batch, self._size, self._device = rehearsal, batch, size, device

    def take(self, size: int, others: int) -> None:
        """Wait until every rank makes a run of ``size`` samples; ``others``: which other random numbers, 0: the same."""
        mine = OTHER_NUMBERS if others else HALF if size < self._size else WHOLE
        while (agreed := largest(mine, self._device)) != mine:
            self._run_in_vain(agreed)

    def end(self) -> None:
        """Take part until no rank wants another run."""
        while agreed := largest(NONE, self._device):
            self._run_in_vain(agreed)

    def _run_in_vain(self, kind: int) -> None:
        half = halve(self._batch, self._size) if kind == HALF else ""
        batch, size = (self._batch, self._size) if isinstance(half, str) else (half.batch, half.size)
        self._rehearsal.run_in_vain(batch, size)


@contextlib.contextmanager
def together(rehearsal: Rehearsal, batch: Any, size: int, device: torch.device) -> Iterator[Rehearsal]:
    """Ranks verify their first batch inside, with the rehearsal that this gives; all of them must come. Collective.

    Raises:
        OutputsError: of another rank, with its number; an error of this rank is raised as it is.
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
