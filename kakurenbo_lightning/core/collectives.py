"""What the ranks do together with plain NumPy arrays, whatever device their process group needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kakurenbo_lightning.core.distributed import collective, gather
from kakurenbo_lightning.core.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


class Collectives:
    """What the ranks of the default process group do together, each process being a rank. All of its methods are collective.

    Args:
        rank: number of this process.
        size: how many processes there are.

    Attributes:
        device: the device of the tensors that go through the process group.
        sent: bytes that this rank has sent to others.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.device: torch.device = torch.device("cpu")
        self.sent = 0

    def _together(self) -> Any:
        return collective("put their shares of the statistics together", f"rank {self.rank}")

    def sum(self, counts: np.ndarray) -> np.ndarray:
        """Add up the ranks' arrays, ``int64[n]``, element by element."""
        mine = torch.from_numpy(np.array(counts, dtype=np.int64)).to(self.device)
        self.sent += mine.nbytes
        with self._together():
            torch.distributed.all_reduce(mine)
        return mine.cpu().numpy()

    def gather(self, data: np.ndarray) -> list[np.ndarray]:
        """Collect the ranks' arrays, ``uint8[n]`` of one length, by rank."""
        mine = self._tensor(data)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        self.sent += len(data) * (self.size - 1)
        with self._together():
            torch.distributed.all_gather(found, mine)
        return [part.cpu().numpy() for part in found]

    def gather_objects(self, mine: Any) -> list[Any]:
        """Collect small plain objects of all ranks, by rank."""
        with self._together():
            return gather(mine)

    def exchange(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Give ``parts[r]`` (``uint8[n]``, of any length) to rank ``r``; what the ranks have for this one, by rank."""
        there = [len(part) for part in parts]
        lengths = torch.tensor(there, device=self.device)
        coming = torch.empty_like(lengths)
        self.sent += sum(there) - there[self.rank] + 8 * (self.size - 1)
        with self._together():
            torch.distributed.all_to_all_single(coming, lengths)
            here = coming.tolist()
            found = torch.empty(sum(here), dtype=torch.uint8, device=self.device)
            torch.distributed.all_to_all_single(found, self._tensor(np.concatenate(parts)), here, there)
        return [part.cpu().numpy() for part in found.split(here)]

    def _tensor(self, data: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(data)).to(self.device)
