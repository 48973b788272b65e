"""SeTa: a window that slides from the easy to the hard samples, over a random part of the data.

Qing Zhou, Junyu Gao, Qi Wang: "Scale Efficient Training for Large Datasets", CVPR 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, integer, number, proportion, setting
from kakurenbo_lightning.methods.topk import as_decimal, exact_floor, some_of

MAX_ITERATIONS = 300
TOLERANCE = 1e-4  # of the variance
START = 1 << 16  # values that the first centres are chosen among
NOT_MEASURED = 3.0  # the score that the authors' code begins with
BLOCK = 1024


@register_method("seta")
@dataclass(frozen=True)
class SeTa(HideMethod):
    """SeTa (Zhou et al., CVPR 2025).

    Each epoch draws a uniform part of the samples, splits it by 1-D k-means on the loss into groups, ordered from easy to hard, and
    trains on a window of consecutive groups that moves on by one group each epoch. Drawn samples whose loss is not finite are always
    trained; so are all drawn ones in epoch 0, after ``delta``, and when the window holds none.
    """

    prune_ratio: float = setting(
        0.1, proportion(), "r; int((1 - r) N) samples are drawn, at least one", fix="For example: 0.1 leaves out 10 %."
    )
    groups: int = setting(10, integer(1), "G, into how many groups the drawn samples are split by their loss")
    window: float = setting(
        0.5, number(0, 1, above=True), "share of the groups that is trained; their number is rounded, a half to even"
    )
    delta: float = setting(
        0.875,
        number(0, 1),
        "share of `max_epochs` in which the window slides; afterwards all that is drawn is trained; 1 also in a run without an end",
    )

    summary: ClassVar[str] = "draws a part of the samples and trains a window of it that slides from easy to hard"
    paper: ClassVar[str] = "Zhou et al., CVPR 2025"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    needs_all_rows: ClassVar[str] = "its groups are of the sorted losses of all samples"

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
        count = max(1, exact_floor(1 - as_decimal(self.prune_ratio), total))
        drawn = some_of(torch.arange(total), count, epoch.generator()).numpy()
        windowed = self.delta == 1 or epoch.index < exact_floor(self.delta, epoch.max_epochs or 0)
        trained = np.ones(len(drawn), dtype=bool)
        if epoch.index > 0 and windowed:
            loss = torch.where(statistics.measured, statistics.loss, NOT_MEASURED).cpu().numpy()[drawn]
            finite = np.isfinite(loss)
            trained[finite] = self._in_window(loss[finite], epoch.index)
            if not trained.any():
                trained[:] = True
        hidden = torch.ones(total, dtype=torch.bool)
        hidden[torch.from_numpy(drawn[trained])] = False
        return Choice(hidden)

    def _in_window(self, loss: np.ndarray, index: int) -> np.ndarray:
        """Mask of the samples whose group is in the window of epoch ``index``."""
        key, bounds = parted(loss, self.groups)
        count = len(bounds) + 1
        width = max(1, round(count * self.window))  # Python rounds a half to even, as the authors' code does: 4.5 groups are 4
        first = index % (count - width + 1)
        bounds = np.concatenate([[-np.inf], bounds, [np.inf]])
        return (key > bounds[first]) & (key <= bounds[first + width])


def parted(values: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the bounds that part ``values`` (``float32[n]``, in the order they were drawn in) into at most ``groups`` groups, from
    easy to hard.

    Returns:
        ``key[n]`` and ``float64[groups - 1]``, ascending: those with a key in (bounds[g - 1], bounds[g]] are group g. The key is the
        value or, where all are equal, its place: then groups are of one length, but for the last.
    """
    if len(values) and values.min() < values.max():
        return values, kmeans_bounds(values, groups)
    places = np.arange(len(values))
    return places, places[:: max(1, -(-len(places) // groups))][1:] - 0.5


def kmeans_bounds(values: np.ndarray, groups: int) -> np.ndarray:
    """Find where 1-D k-means parts ``values`` (``float32[n]``): ``float64[groups - 1]``, ascending.

    Lloyd's iterations from :func:`kmeans_start`, until no sample changes its group or the centres hardly move. A sample half-way
    between two centres belongs to the lower one; an empty group keeps its centre; there are no more groups than different values.
    Of at most :data:`START` values start and end are those of scikit-learn's ``KMeans(random_state=0)``; of more the first ones, which
    were drawn as the others, give the start. The same on every rank. On sorted values an iteration costs next to nothing.
    """
    ordered = np.sort(values).astype(np.float64)
    groups = min(groups, 1 + np.count_nonzero(ordered[1:] > ordered[:-1]))
    total, tolerance = _Sums(ordered), TOLERANCE * ordered.var()
    centres = np.sort(kmeans_start(values[:START].astype(np.float64), groups))
    cuts = np.empty(groups + 1, dtype=np.int64)
    cuts[0], cuts[-1], before = 0, len(ordered), b""
    for _ in range(MAX_ITERATIONS):
        cuts[1:-1] = ordered.searchsorted((centres[:-1] + centres[1:]) / 2, side="right")
        if (now := cuts.tobytes()) == before:
            break
        before, counts, left = now, cuts[1:] - cuts[:-1], centres.copy()
        taken = counts > 0
        centres[taken] = total(cuts[:-1][taken], cuts[1:][taken]) / counts[taken]
        if np.square(centres - left).sum() <= tolerance:
            break
    return (centres[:-1] + centres[1:]) / 2


def kmeans_start(values: np.ndarray, groups: int) -> np.ndarray:
    """The first centres of k-means, ``float64[groups]`` of ``values`` (``float64[n]``), by greedy k-means++.

    Each centre is the best of a few values that are drawn in proportion to their squared distance from the centres so far. The stream
    is always the same one, of a generator that NumPy keeps as it is.
    """
    stream, trials = np.random.RandomState(0), 2 + int(np.log(groups))
    centres = np.full(groups, values[int(stream.random_sample() * len(values))])
    nearest = np.square(values - centres[0])
    for place in range(1, groups):
        sums = nearest.cumsum()
        rows = sums.searchsorted(stream.random_sample(trials) * sums[-1])
        least = np.inf
        for value in values[rows.clip(max=len(values) - 1)]:
            squares = np.minimum(nearest, np.square(values - value))
            if (left := squares.sum()) < least:
                least, centres[place], best = left, value, squares
        nearest = best
    return centres


class _Sums:
    """Sums of neighbouring pieces of ``values`` (``float64[n]``), with work for the pieces' ends only.

    By sums of blocks, not by differences of one running sum, in which a value of 1e30 would swallow the others.
    """

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self._blocks = np.add.reduceat(values, np.arange(0, len(values), BLOCK)) if len(values) > 64 * BLOCK else None

    def __call__(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Sum up the pieces from ``starts`` to ``ends``, which lie side by side and cover all of ``values``."""
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
