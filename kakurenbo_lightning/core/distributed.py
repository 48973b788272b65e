"""What ranks do together, with errors that say who waited where."""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from kakurenbo_lightning.core.plan import EpochPlan
from kakurenbo_lightning.errors import ConflictError

LIBRARIES = ("kakurenbo_lightning", "lightning", "pytorch_lightning", "lightning_fabric", "torch")  # no user's code


@contextlib.contextmanager
def together(purpose: str, position: str) -> Iterator[None]:
    """Around collectives: an error in them names this rank, how far it was, and what it waited for."""
    try:
        yield
    except (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)):
        raise
    except RuntimeError as error:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            raise
        raise RuntimeError(f"{position} waited for the other ranks to {purpose}, and they did not come: {error}") from error


def gather(mine: Any) -> list[Any]:
    """An object of every rank, by rank. Collective when there is more than one."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [mine]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def check_same_data(num_samples: int, fingerprint: str, position: str) -> None:
    """Compare the ranks' data sets by length and fingerprint.

    Raises:
        ConflictError: on every rank, when they differ.
    """
    with together("compare their data sets", position):
        found = gather((num_samples, fingerprint))
    if len(set(found)) > 1:
        raise ConflictError(
            f"the ranks hold different train data sets (lengths {[length for length, _ in found]}); give every rank the whole "
            "data set, the selection deals it"
        )


def check_equal_plans(plan: EpochPlan, device: torch.device, method: str, epoch: int, position: str, further: int = 0) -> None:
    """Compare the ranks' plans by a checksum, with a ``further`` one of what they are drawn by; one small collective.

    Raises:
        RuntimeError: on every rank, when they differ.
    """
    mine = torch.tensor([plan.checksum() ^ further], device=device)
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    with together("compare their plans", position):
        dist.all_gather(gathered, mine)
    sums = [int(value) for value in gathered]
    if len(set(sums)) > 1:
        raise RuntimeError(
            f"{method} chose differently on different ranks for epoch {epoch} (checksums {sums}); a method must be a pure "
            "function of the merged statistics and the epoch; every rank needs the same data set, seed and settings"
        )


def rank_zero_warn(message: str) -> None:
    """Warn on the process whose rank is 0; the warning shows the first line of the user's above the libraries' own.

    The rank is that of the process group, and before there is one what the launcher set (RANK, LOCAL_RANK, SLURM_PROCID).
    """
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank()
    else:
        rank = int(next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), 0))
    if rank != 0:
        return
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level + 1 if frame is not None else 2)
