"""SeTa: a window that slides from the easy to the hard samples, over a random part of the data.

Jie Zhou et al.: "Scale Efficient Training for Large Datasets", CVPR 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch

from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.checks import checker, is_count, is_number, require_fraction
from kakurenbo_lightning.methods.choosing import as_decimal, exact_floor, some_of
from kakurenbo_lightning.methods.hiding import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.statistics import SampleStatistics

MAX_ITERATIONS = 100
BLOCK = 1024


@register_method("seta")
@dataclass(frozen=True)
class SeTa(HideMethod):
    """SeTa (Zhou et al., CVPR 2025).

    Each epoch draws a uniform part of the samples, splits it by 1-D k-means on the loss into groups, ordered from easy to hard, and
    trains on a window of consecutive groups that moves on by one group each epoch. Drawn samples without a finite loss are always
    trained; so are all drawn ones in epoch 0, after ``delta``, and when the window holds none.

    Args:
        prune_ratio: r, the share of the data set that is not drawn, in [0, 1).
        groups: G, how many groups, >= 1.
        window: share of the groups that is trained, in (0, 1].
        delta: share of ``max_epochs`` in which the window is used, in [0, 1]; afterwards all that is drawn is trained.

    Raises:
        ValueError: a setting out of range.
    """

    prune_ratio: float = 0.1
    groups: int = 10
    window: float = 0.5
    delta: float = 0.875

    summary: ClassVar[str] = "draws a part of the samples and trains a window of it that slides from easy to hard"
    paper: ClassVar[str] = "Zhou et al., CVPR 2025"
    reads: ClassVar[tuple[str, ...]] = ("loss",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check = checker(self)
        require_fraction(self.name, "prune_ratio", self.prune_ratio)
        check(is_count(self.groups, 1), "groups", "an integer >= 1", "For example: 10.")
        check(is_number(self.window) and 0 < self.window <= 1, "window", "a number in (0, 1]", "For example: 0.5.")
        check(is_number(self.delta) and 0 <= self.delta <= 1, "delta", "a number in [0, 1]", "For example: 0.875.")

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
    # sums of blocks, not one running sum, in which a value of 1e30 would swallow the others
    blocks = np.add.reduceat(ordered, np.arange(0, len(ordered), BLOCK))
    centres = ordered[(np.arange(groups) * 2 + 1) * len(ordered) // (2 * groups)]
    before = None
    for _ in range(MAX_ITERATIONS):
        bounds = (centres[:-1] + centres[1:]) / 2
        cuts = np.concatenate([[0], np.searchsorted(ordered, bounds, side="right"), [len(ordered)]])
        if before is not None and np.array_equal(cuts, before):
            break
        before = cuts
        for group, (start, end) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            if start < end:
                centres[group] = _sum(ordered, blocks, start, end) / (end - start)
    return bounds


def _sum(ordered: np.ndarray, blocks: np.ndarray, start: int, end: int) -> float:
    """Sum of ``ordered[start:end]``; ``blocks`` are the sums of every :data:`BLOCK` of ``ordered``."""
    first, last = -(-start // BLOCK), end // BLOCK
    if first >= last:
        return ordered[start:end].sum()
    return ordered[start : first * BLOCK].sum() + blocks[first:last].sum() + ordered[last * BLOCK : end].sum()
