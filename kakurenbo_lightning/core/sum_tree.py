"""Draw indices in proportion to values that keep changing.

The values are the leaves of a tree with :data:`FAN_OUT` children per node; a node holds the sum of its children in float64. A draw goes
down from the root, choosing a child in proportion to its sum; an update writes leaves and sums the nodes above them. Both cost
O(log N), and because a sum is recomputed from its children rather than corrected, nothing drifts however many updates there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kakurenbo_lightning.core.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

FAN_OUT = 128
_BELOW_ONE = 1 - 2.0**-50  # u * sum stays below sum, so that a value of 0 is never drawn


class SumTree:
    """``N`` values, and draws with replacement in proportion to them.

    The values take 4 bytes each (8 in float64), the sums 8 / 127 more. Everything happens on the device of the values, without
    synchronising it.

    Args:
        values: ``float[N]``, N >= 1, finite, >= 0, at least one positive.
        dtype: type in which the values are kept: ``torch.float32`` if ``None``, or ``torch.float64`` for values that span more than 70
            powers of ten.

    Attributes:
        smallest: positive value that :meth:`scale` leaves.
        largest: value to write.

    Raises:
        ValueError: the values are something else.
    """

    def __init__(self, values: Tensor, dtype: torch.dtype | None = None) -> None:
        dtype = dtype or torch.float32
        values = values.to(dtype)
        self.smallest, self.largest = (1e-37, 1e37) if dtype is torch.float32 else (1e-300, 1e300)
        _check(values)
        self._size = len(values)
        shapes, nodes = [], self._size
        while not shapes or nodes > 1:
            nodes = -(-nodes // FAN_OUT)
            shapes.append(nodes)
        dtypes = [dtype] + [torch.float64] * (len(shapes) - 1)
        # levels[0] holds the values, levels[k] the sums of the rows of levels[k - 1]
        self._levels = [
            torch.zeros(rows, FAN_OUT, dtype=dtype, device=values.device) for rows, dtype in zip(shapes, dtypes, strict=True)
        ]
        self._flat = [level.view(-1) for level in self._levels]
        self.values.copy_(values)
        self._add_up()

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> Tensor:
        """``float[N]``, a view; change it with :meth:`update`."""
        return self._flat[0][: self._size]

    @property
    def total(self) -> Tensor:
        """``float64[]``, the sum of all values."""
        return self._levels[-1].sum(dtype=torch.float64)

    def probability(self, indices: Tensor) -> Tensor:
        """``float64[k]``, with which probability each of ``indices`` (``int64[k]``) is drawn."""
        return self._flat[0][indices].double() / self.total

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw with replacement.

        Args:
            count: how many.
            generator: on the CPU; the same one draws the same on every device.

        Returns:
            ``int64[count]`` on the device of the values. When all values have become 0 nothing can be drawn: all are N - 1.
        """
        uniform = torch.rand(len(self._levels), count, dtype=torch.float64, generator=generator) * _BELOW_ONE
        uniform = uniform.to(self._flat[0].device, non_blocking=True)
        sums = self._levels[-1][0].cumsum(0, dtype=torch.float64)
        node = torch.searchsorted(sums, uniform[0] * sums[-1], right=True)
        for level, place in zip(self._levels[-2::-1], uniform[1:], strict=True):
            sums = level.index_select(0, node).cumsum(1, dtype=torch.float64)
            child = torch.searchsorted(sums, place.unsqueeze(1) * sums[:, -1:], right=True)
            node = node.mul_(FAN_OUT).add_(child.squeeze(1))
        return node.clamp_(max=self._size - 1)

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Write values; of an index given more than once the last value counts.

        Args:
            indices: ``int64[k]``.
            values: ``float[k]``, finite and >= 0.
        """
        self._flat[0].index_copy_(0, indices, values[last_rows(indices)].to(self._flat[0].dtype))
        node = indices
        for level, sums in zip(self._levels, self._flat[1:], strict=False):
            node = node // FAN_OUT
            sums.index_copy_(0, node, level.index_select(0, node).sum(1, dtype=torch.float64))

    def scale(self, factor: Tensor | float) -> None:
        """Multiply all values. O(N), for the rare time when they come near the ends of their type; a positive value stays positive."""
        zero = self.values == 0
        root = torch.as_tensor(factor, dtype=torch.float64).sqrt()  # the factor itself may be beyond float32
        self.values.mul_(root).mul_(root).clamp_(min=self.smallest).masked_fill_(zero, 0)
        self._add_up()

    def _add_up(self) -> None:
        for level, sums in zip(self._levels, self._flat[1:], strict=False):
            torch.sum(level, 1, dtype=torch.float64, out=sums[: len(level)])

    def state_dict(self) -> dict[str, Any]:
        """Values and sums on the CPU, exactly."""
        return {"values": self.values.to("cpu", copy=True), "sums": [level.to("cpu", copy=True) for level in self._levels[1:]]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over :meth:`state_dict`.

        Raises:
            ValueError: it is of another number of values.
        """
        if len(state["values"]) != self._size:
            raise ValueError(f"the saved sum tree has {len(state['values'])} values, this one {self._size}")
        self.values.copy_(state["values"])
        for level, saved in zip(self._levels[1:], state["sums"], strict=True):
            level.copy_(saved)


def last_rows(indices: Tensor) -> Tensor:
    """The row of the last occurrence of each of ``indices`` (``int64[k]``) among them, ``int64[k]``; no synchronisation."""
    indices = indices.contiguous()
    ordered, order = indices.sort(stable=True)
    return order[torch.searchsorted(ordered, indices, right=True) - 1]


def _check(values: Tensor) -> None:
    if values.dim() != 1 or len(values) == 0:
        raise ValueError(f"values: {list(values.shape)} is not allowed; they must be float32[N] with N >= 1")
    lowest, highest = values.aminmax()
    if not (lowest >= 0 and 0 < highest < float("inf")):
        raise ValueError(
            f"values: from {float(lowest)} to {float(highest)} is not allowed; they must be finite and >= 0, and one must be positive"
        )
