"""What ranks do together, with errors that say who waited where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist

from kakurenbo_lightning.plan import EpochPlan


@contextlib.contextmanager
def together(purpose: str, whereabouts: str) -> Iterator[None]:
    """Around collectives: an error in them names this rank, how far it was, and what it waited for."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(f"{whereabouts} waited for the other ranks to {purpose}, and they did not come: {error}") from error


def check_equal_plans(plan: EpochPlan, device: torch.device, method: str, epoch: int, whereabouts: str) -> None:
    """Compare the ranks' plans by a checksum; one small collective.

    Raises:
        RuntimeError: on every rank, when they differ.
    """
    mine = torch.tensor([plan.checksum()], device=device)
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    with together("compare their plans", whereabouts):
        dist.all_gather(gathered, mine)
    sums = [int(value) for value in gathered]
    if len(set(sums)) > 1:
        raise RuntimeError(
            f"{method} chose differently on different ranks for epoch {epoch} (checksums {sums}); a method must be a pure "
            "function of the merged statistics and the epoch; every rank needs the same data set, seed and settings"
        )
