"""What ranks do together, with errors that say who waited where."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.progress import set_aside
from kakurenbo_lightning.core.worker_errors import worker_errors_wait
from kakurenbo_lightning.errors import ConflictError

LIBRARIES = ("kakurenbo_lightning", "lightning", "pytorch_lightning", "lightning_fabric", "torch")  # no user's code


def world_size() -> int:
    """Number of ranks; 1 where no process group is there."""
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def is_rank_zero() -> bool:
    """Whether this process is the one that speaks; known before the process group is there, too."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    # before the process group is there, the launcher's variables tell
    return int(next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if os.environ.get(name)), "0")) == 0


def rank_zero_warn(message: str) -> None:
    """Warn, on the process of rank 0 only; the warning shows the first line of the user's above the libraries' own."""
    if not is_rank_zero():
        return
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level + 1 if frame is not None else 2)


def rank_zero_info(message: str) -> None:
    """Log, on the process of rank 0 only, where Lightning logs."""
    if is_rank_zero():
        lightning = sys.modules.get("lightning_utilities.core.rank_zero")  # its log is the one of the name the user imports
        with set_aside():
            (logging.getLogger(__name__) if lightning is None else lightning.log).info(message)


@contextlib.contextmanager
def collective(purpose: str, position: str) -> Iterator[None]:
    """Around collectives: an error in them names this rank, how far it was (``position``), and what it waited for (``purpose``)."""
    with worker_errors_wait():
        try:
            yield
        except (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)):
            raise
        except RuntimeError as error:
            if world_size() == 1:
                raise
            raise RuntimeError(f"{position} waited for the other ranks to {purpose}, and they did not come: {error}") from error


def gather(mine: Any) -> list[Any]:
    """An object of every rank, by rank. Collective when there is more than one."""
    if world_size() == 1:
        return [mine]
    found: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(found, mine)
    return found


def largest(mine: int, device: torch.device) -> int:
    """The largest of the ranks' numbers; waits for them, and for the device. Collective when there is more than one."""
    if world_size() == 1:
        return mine
    number = torch.tensor(mine, device=device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    return int(number)


def check_same_data(num_samples: int, fingerprint: str, position: str) -> None:
    """Compare the ranks' data sets by length and fingerprint.

    Raises:
        ConflictError: on every rank, when they differ.
    """
    with collective("compare their data sets", position):
        found = gather((num_samples, fingerprint))
    if len(set(found)) > 1:
        raise ConflictError(
            f"the ranks hold different train data sets (lengths {[length for length, _ in found]}); give every rank the whole "
            "data set, the selection shards it"
        )


def check_equal_plans(checksum: int, device: torch.device, method: str, epoch: int, position: str) -> None:
    """Compare the ranks' plans by a checksum of 63 bits; one small collective.

    Raises:
        RuntimeError: on every rank, when they differ.
    """
    mine = torch.tensor([checksum], device=device)
    gathered = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    with collective("compare their plans", position):
        torch.distributed.all_gather(gathered, mine)
    sums = [int(value) for value in gathered]
    if len(set(sums)) > 1:
        raise RuntimeError(
            f"{method} chose differently on different ranks for epoch {epoch} (checksums {sums}); a method must be a pure "
            "function of the merged statistics and the epoch; every rank needs the same data set, seed and settings"
        )
