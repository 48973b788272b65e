"""SeTa: a window that slides from the easy to the hard samples, over a random part of the data.

Jie Zhou et al.: "Scale Efficient Training for Large Datasets", CVPR 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, integer, number, proportion, setting
from kakurenbo_lightning.methods.topk import as_decimal, exact_floor, some_of

MAX_ITERATIONS = 100
BLOCK = 1024


@register_method("seta")
@dataclass(frozen=True)
class SeTa(HideMethod):
    """SeTa (Zhou et al., CVPR 2025).

    Each epoch draws a uniform part of the samples, splits it by 1-D k-means on the loss into groups, ordered from easy to hard, and
    trains on a window of consecutive groups that moves on by one group each epoch. Drawn samples without a finite loss are always
    trained; so are all drawn ones in epoch 0, after ``delta``, and when the window holds none.
    """

    prune_ratio: float = setting(
        0.1, proportion(), "r, the share of the data set that is not drawn", fix="For example: 0.1 leaves out 10 %."
    )
    groups: int = setting(10, integer(1), "G, into how many groups the drawn samples are split by their loss")
    window: float = setting(0.5, number(0, 1, above=True), "share of the groups that is trained")
    delta: float = setting(
        0.875,
        number(0, 1),
        "share of `max_epochs` in which the window slides; afterwards all that is drawn is trained; 1 also in a run without an end",
    )

    summary: ClassVar[str] = "draws a part of the samples and trains a window of it that slides from easy to hard"
    paper: ClassVar[str] = "Zhou et al., CVPR 2025"
    reads: ClassVar[tuple[str, ...]] = ("loss",)

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """``delta`` needs a run that has an end, unless it is 1."""
        super().check_run(max_epochs, num_samples)
        checker(self)(
            max_epochs is not None or self.delta == 1,
            "delta",
            "1 in a run without an end",
            "Set Trainer(max_epochs=...), of which it is a share.",
        )

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """The drawn samples whose loss is in the window of this epoch."""
        total = len(statistics)
        drawn = some_of(torch.arange(total), total - exact_floor(self.prune_ratio, total), epoch.generator()).numpy()
        windowed = self.delta == 1 or epoch.index < exact_floor(self.delta, epoch.max_epochs or 0)
        trained = np.ones(len(drawn), dtype=bool)
        if epoch.index > 0 and windowed:
            loss = statistics.loss.cpu().numpy()[drawn]
            finite = np.isfinite(loss)
            trained = ~finite | self._in_window(loss, finite, epoch.index)
            if not trained.any():
                trained[:] = True
        hidden = torch.ones(total, dtype=torch.bool)
        hidden[torch.from_numpy(drawn[trained])] = False
        return Choice(hidden)

    def _in_window(self, loss: np.ndarray, finite: np.ndarray, index: int) -> np.ndarray:
        """Mask of the samples whose group is in the window of epoch ``index``."""
        width = min(self.groups, max(1, int(as_decimal(self.window) * self.groups + Fraction(1, 2))))
        first = index % (self.groups - width + 1)
        bounds = np.concatenate([[-np.inf], kmeans_bounds(loss[finite], self.groups), [np.inf]])
        return (loss > bounds[first]) & (loss <= bounds[first + width])


def kmeans_bounds(values: np.ndarray, groups: int) -> np.ndarray:
    """Where 1-D k-means parts ``values`` (``float32[n]``): ``float64[groups - 1]``, ascending; group g is (bounds[g - 1], bounds[g]].

    Lloyd's iterations from the quantiles (g + 1/2) / groups, until no sample changes its group, at most :data:`MAX_ITERATIONS`. A
    sample half-way between two centres belongs to the lower one; of equal centres the first has what is not above them and the last
    what is; an empty group keeps its centre. Deterministic; on sorted values an iteration costs next to nothing.
    """
    ordered = np.sort(values).astype(np.float64)
    if not len(ordered):
        return np.zeros(groups - 1)
    total = _Sums(ordered)
    centres = ordered[(np.arange(groups) * 2 + 1) * len(ordered) // (2 * groups)]
    cuts = np.empty(groups + 1, dtype=np.int64)
    cuts[0], cuts[-1], before, bounds = 0, len(ordered), b"", centres[1:]
    for _ in range(MAX_ITERATIONS):
        bounds = (centres[:-1] + centres[1:]) / 2
        cuts[1:-1] = ordered.searchsorted(bounds, side="right")
        if (now := cuts.tobytes()) == before:
            break
        before, counts = now, cuts[1:] - cuts[:-1]
        taken = counts > 0
        centres[taken] = total(cuts[:-1][taken], cuts[1:][taken]) / counts[taken]
    return bounds


class _Sums:
    """Sums of pieces of ``values`` (``float64[n]``), quickly.

    By sums of blocks, not by differences of one running sum, in which a value of 1e30 would swallow the others.
    """

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self._blocks = np.add.reduceat(values, np.arange(0, len(values), BLOCK)) if len(values) > 64 * BLOCK else None

    def __call__(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Of the pieces from ``starts`` to ``ends``, which lie side by side and are all of ``values``."""
        blocks = self._blocks
        if blocks is None:
            return np.add.reduceat(self._values, starts)
        return np.array([self._piece(blocks, start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])

    def _piece(self, blocks: np.ndarray, start: int, end: int) -> float:
        first, last = -(-start // BLOCK), end // BLOCK
        if first >= last:
            return self._values[start:end].sum()
        inner = blocks[first:last].sum()
        return self._values[start : first * BLOCK].sum() + inner + self._values[last * BLOCK : end].sum()
