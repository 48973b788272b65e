"""What ranks do together, with errors that say who waited where."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.progress import set_aside
from kakurenbo_lightning.core.worker_errors import worker_errors_wait
from kakurenbo_lightning.errors import ConflictError

if TYPE_CHECKING:
    from torch import Tensor

LIBRARIES = ("kakurenbo_lightning", "lightning", "pytorch_lightning", "lightning_fabric", "torch")  # no user's code


def world_size() -> int:
    """Number of processes; 1 where no process group is there."""
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def process() -> int:
    """The number of this process, 0 where no process group is there."""
    return torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0


def is_rank_zero() -> bool:
    """Whether this process is the one that speaks; known before the process group is there, too."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    # Lightning makes the process group late, in fit; until then only the launcher's variables say which process this is
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
    """Run collectives inside: an error in them names this rank, how far it was (``position``), and what it waited for
    (``purpose``)."""
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
    """Collect an object of every process, by its number. Collective when there is more than one."""
    if world_size() == 1:
        return [mine]
    found: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(found, mine)
    return found


def largest(mine: int, device: torch.device) -> int:
    """The largest of all processes' numbers; waits for them, and for the device. Collective when there is more than one."""
    if world_size() == 1:
        return mine
    number = torch.tensor(mine, device=device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    return int(number)


@dataclass(frozen=True)
class Ranks:
    """Who trains which part of a plan: the data-parallel ranks, and the process that records for each.

    Every process is a rank of its own, but under tensor parallelism: there the processes of one tensor-parallel group train the same
    samples, as one rank, and the first of them records for all. What ranks do together all processes do, in the default group, so that
    those of a group, whose values may differ in the last bit, end up with the same ones.

    Attributes:
        rank: the rank that this process belongs to.
        size: number of ranks.
        recorders: for each rank the process that records for it.
        peers: process group of the processes that share this rank; ``None`` where every process is a rank.
    """

    rank: int = 0
    size: int = 1
    recorders: tuple[int, ...] = (0,)
    peers: Any = None

    @classmethod
    def of(cls, replicas: Mapping[str, Any] | None) -> Ranks:
        """Read ranks from ``trainer.distributed_sampler_kwargs``; which process records is known only after :meth:`meet` under
        tensor parallelism."""
        if replicas is None:
            return cls()
        return cls(replicas["rank"], replicas["num_replicas"], tuple(range(replicas["num_replicas"])))

    def check_mesh(self, position: str) -> list[int]:
        """Compare the processes' meshes; the rank of each. Collective.

        Raises:
            ConflictError: on every process, when they differ.
        """
        with collective("compare their meshes", position):
            found = gather((self.rank, self.size))
        ranks = [rank for rank, _ in found]
        counts = Counter(ranks)
        sizes = {size for _, size in found}
        if len(sizes) > 1 or sorted(counts) != list(range(self.size)) or len(set(counts.values())) > 1:
            raise ConflictError(
                f"the processes have different data-parallel meshes (rank of size, by process: "
                f"{', '.join(f'{rank} of {size}' for rank, size in found)}); give every process the same Trainer(strategy=...)"
            )
        return ranks

    def meet(self, num_samples: int, fingerprint: str, position: str) -> Ranks:
        """Compare the processes' meshes, and data sets by length and fingerprint; who records. Collective.

        Raises:
            ConflictError: on every process, when they differ.
        """
        if self.is_alone:
            return self
        ranks = self.check_mesh(position)
        with collective("compare their data sets", position):
            found = gather((num_samples, fingerprint))
        if len(set(found)) > 1:
            raise ConflictError(
                f"the ranks hold different train data sets, or samplers that list different samples of them (lengths "
                f"{[length for length, _ in found]}); give every rank the whole data set and a sampler of all of it, the selection "
                "shards it"
            )
        if len(found) == self.size:
            return self
        members = [[process for process, rank in enumerate(ranks) if rank == each] for each in range(self.size)]
        groups = [torch.distributed.new_group(each) for each in members]  # every process makes every group
        return Ranks(self.rank, self.size, tuple(each[0] for each in members), groups[self.rank])

    @property
    def is_alone(self) -> bool:
        """There is one process, so nothing is collective."""
        return world_size() == 1

    @property
    def is_recorder(self) -> bool:
        """Whether this process records for its rank."""
        return self.peers is None or self.recorders[self.rank] == torch.distributed.get_rank()

    def gather(self, mine: Any) -> list[Any]:
        """An object of every rank, by rank. Collective when there is more than one process."""
        found = gather(mine)
        return found if self.peers is None else [found[process] for process in self.recorders]

    def gather_tensors(self, mine: Tensor, works: list[Any] | None = None) -> list[Tensor]:
        """Tensors of one shape of every rank, by rank; those who wait for ``works``, where given, have them. Collective likewise."""
        if self.is_alone:
            return [mine]
        everyone = [torch.empty_like(mine) for _ in range(world_size())]
        work = torch.distributed.all_gather(everyone, mine, async_op=works is not None)
        if works is not None:
            works.append(work)
        return [everyone[process] for process in self.recorders]

    def sum(self, value: Tensor) -> Tensor:
        """Add up the ranks' values, in place. Collective likewise."""
        if not self.is_alone:
            if not self.is_recorder:
                value.zero_()
            torch.distributed.all_reduce(value)
        return value

    def agreed(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace this process's values by those of the process that records for its rank; collective among the processes of the
        rank."""
        if self.peers is None:
            return values
        sent = {name: value.clone(memory_format=torch.contiguous_format) for name, value in sorted(values.items())}
        for value in sent.values():
            bits = value.view(torch.uint8) if value.dtype is torch.bool else value
            torch.distributed.broadcast(bits, src=self.recorders[self.rank], group=self.peers)
        return sent


def check_equal_plans(plan: int, order: int, device: torch.device, method: str, epoch: int, position: str) -> None:
    """Compare what all processes plan, and the order in which the user's sampler lists it; one small collective.

    Args:
        plan: a checksum of 63 bits, as the next.
        order: 0 where there is no such sampler.
        device: of the collective.
        method: that chose, for errors; likewise the next two.
        epoch: that is planned.
        position: of this rank.

    Raises:
        RuntimeError: on every rank, when plans differ.
        ConflictError: likewise, when orders do.
    """
    mine = torch.tensor([plan, order], device=device)
    gathered = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    with collective("compare their plans", position):
        torch.distributed.all_gather(gathered, mine)
    plans, orders = zip(*(each.tolist() for each in gathered), strict=True)
    if len(set(plans)) > 1:
        raise RuntimeError(
            f"{method} chose differently on different ranks for epoch {epoch} (checksums {list(plans)}); a method must be a pure "
            "function of the merged statistics and the epoch; every rank needs the same data set, seed and settings"
        )
    if len(set(orders)) > 1:
        raise ConflictError(
            f"the train loader's sampler lists epoch {epoch} in another order on other ranks, so that samples would be trained twice, or "
            "by none. Let it draw from the random numbers of torch, numpy or random, or from a generator that it keeps (each is seeded for "
            "an epoch), not from a new one without a seed, and let it not go through a set of strings (each process orders it differently)"
        )
