"""What was seen of each sample, epoch by epoch, as plain Python; and the statistics that record it. Needs no pytest, ranks import it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import TensorDataset

from kakurenbo_lightning import Epoch
from kakurenbo_lightning.session.following import empty_statistics

NAN, INF = float("nan"), float("inf")
MAX_EPOCHS = 10
GRID = 64  # el2n values are multiples of 1 / GRID, so that their sums are exact in any precision


class Sighting(NamedTuple):
    """What one epoch saw of one sample; loss and confidence are float32 values."""

    epoch: int
    loss: float
    confidence: float
    correct: bool
    el2n: float


@dataclass(frozen=True)
class History:
    """Every sighting of every sample, in order.

    Attributes:
        samples: of each sample, at most one sighting per epoch.
        targets: class of each sample.
    """

    samples: tuple[tuple[Sighting, ...], ...]
    targets: tuple[int, ...]

    def __len__(self):
        return len(self.samples)

    def before(self, epoch):
        """What had been seen when ``epoch`` was planned."""
        return History(tuple(tuple(s for s in seen if s.epoch < epoch) for seen in self.samples), self.targets)

    def share(self, part, parts):
        """What one of so many ranks saw: each epoch deals the samples anew."""
        samples = enumerate(self.samples)
        return History(tuple(tuple(s for s in seen if (i + s.epoch) % parts == part) for i, seen in samples), self.targets)


def made(columns, targets=None, epoch=1):
    """Samples that one epoch saw: columns loss, confidence, correct and, where given, el2n; ``None`` for a loss was not seen."""
    samples = []
    for loss, confidence, correct, *el2n in columns:
        if loss is None:
            samples.append(())
            continue
        floats = (float(np.float32(value)) for value in (loss, confidence))
        samples.append((Sighting(epoch, *floats, bool(correct), *(el2n or [0.5])),))
    return History(tuple(samples), tuple(targets or (i % 3 for i in range(len(samples)))))


def drawn(count, seed, epochs=4, seen=0.8, bad=0.05):
    """A random history.

    Args:
        count: of samples.
        seed: of the draw.
        epochs: sightings are in epochs 0 to ``epochs`` - 1.
        seen: probability that an epoch sees a sample.
        bad: share of the losses that are not finite.
    """
    rng = np.random.default_rng([seed, count])
    samples = []
    for _ in range(count):
        sightings = []
        for epoch in range(epochs):
            loss = float(np.float32(rng.gamma(2.0) if rng.random() > bad else rng.choice([NAN, INF, -INF])))
            confidence, correct = float(np.float32(rng.random() ** 0.3)), bool(rng.random() < 0.7)
            if rng.random() < seen:
                sightings.append(Sighting(epoch, loss, confidence, correct, int(rng.integers(90)) / GRID))
        samples.append(tuple(sightings))
    return History(tuple(samples), tuple(rng.integers(0, 3, count).tolist()))


def _half(count):
    return made([(i / 8, 1.0, True, i % 5 / GRID) if i % 2 else (None, 0, False) for i in range(count)])


NASTY = {
    "all equal": made([(0.5, 1.0, True)] * 30),
    "all zero": made([(0.0, 0.0, False, 0.0)] * 7),
    "zeros of both signs": made([(0.0 if i % 2 else -0.0, 1.0, True) for i in range(9)]),
    "few values": made([(float(i % 3), 1.0, i % 4 > 0, i % 2 / GRID) for i in range(31)]),
    "all nan": made([(NAN, NAN, False, NAN)] * 12),
    "all inf": made([(INF, 1.0, True)] * 12),
    "all -inf": made([(-INF, 1.0, True)] * 12),
    "some not finite": made([((NAN, 0.1, INF, 0.2, -INF, 0.3)[i % 6], 1.0, True, (NAN, 0.25)[i % 5 > 0]) for i in range(40)]),
    "one finite": made([(NAN, 1.0, True)] * 5 + [(0.5, 1.0, True)]),
    "one sample": made([(0.5, 1.0, True)]),
    "one bad sample": made([(NAN, 1.0, True)]),
    "one unseen sample": made([(None, 0, False)]),
    "one class": made([(i / 16, 1.0, True, i / GRID) for i in range(20)], targets=[1] * 20),
    "all sure and right": made([(i % 7 + i / 64, 1.0, True, i / GRID) for i in range(50)]),
    "all wrong": made([(i % 7 + i / 64, 1.0, False, i / GRID) for i in range(50)]),
    "nothing measured": made([(None, 0, False)] * 10),
    "half measured": _half(24),
    "far apart": made([(10.0 ** (i % 60 - 30), 0.9, True, i / GRID) for i in range(60)]),
    "one far below": made([(-1e30, 0.9, True)] + [(float(i // 5), 0.9, True, i / GRID) for i in range(40)]),
    "negative": made([(-i / 4, 0.9, True, i / GRID) for i in range(25)]),
}
RANDOM = {
    f"{count} random, seed {seed}": drawn(count, seed) for count in (1, 2, 3, 10, 257) for seed in range(3 if count < 200 else 1)
}
HISTORIES = {**NASTY, **RANDOM}


def columns(sightings):
    """The tensors a training step hands over."""
    _, loss, confidence, correct, el2n = zip(*sightings, strict=True)
    floats = {"loss": loss, "confidence": confidence, "el2n": el2n}
    return {
        **{name: torch.tensor(value, dtype=torch.float32) for name, value in floats.items()},
        "correct": torch.tensor(correct),
    }


def empty(method, history, max_epochs=MAX_EPOCHS, seed=0):
    """Statistics in which ``method`` observes what is recorded."""

    targets = torch.tensor(history.targets, dtype=torch.int64)
    return empty_statistics(
        method, TensorDataset(torch.zeros(len(targets), 1), targets), lambda number: Epoch(number, max_epochs, seed)
    )


def record(statistics, history, epoch, batch_size=1000, order=None):
    """Record what ``epoch`` saw, in batches of ``batch_size``; ``order`` seeds the order of the samples."""
    seen = {i: s for i, sightings in enumerate(history.samples) for s in sightings if s.epoch == epoch}
    rows = list(seen)
    if order is not None:
        rows = np.random.default_rng([order, epoch]).permutation(rows).tolist()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        statistics.record(torch.tensor(batch), columns([seen[i] for i in batch]), epoch)


def recorded(history, method, max_epochs=MAX_EPOCHS, **how):
    """Statistics of the whole history."""
    statistics = empty(method, history, max_epochs)
    for epoch in sorted({s.epoch for sightings in history.samples for s in sightings}):
        record(statistics, history, epoch, **how)
    return statistics


def bits(statistics):
    """Every column as integers with the same bits, so that equality sees NaN and -0.0."""
    state = statistics.state_dict()
    return {name: c.view(torch.int32) if c.is_floating_point() else c for name, c in state.items()}


def same(one, other):
    """Whether two results of :func:`bits` are equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
