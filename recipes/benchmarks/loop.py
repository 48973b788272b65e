"""KAKURENBO's selection and the dealing of its epoch, written down plainly: a sort and Python loops."""

import math
import random
from fractions import Fraction

import torch

from kakurenbo_lightning import SampleStatistics


def select_with_loops(statistics: SampleStatistics, max_fraction: str, tau: float) -> tuple[set[int], list[int]]:
    """Return the indices to hide, and those to train.

    Args:
        statistics: on the CPU.
        max_fraction: the largest share that may be hidden, as a decimal.
        tau: confidence from which a correct sample of low loss is hidden.
    """
    losses = statistics.loss.tolist()
    confidences = statistics.confidence.tolist()
    corrects = statistics.correct.tolist()
    epochs_seen = statistics.epoch_seen.tolist()
    threshold = torch.tensor(tau).item()  # as float32

    measured = [i for i in range(len(losses)) if epochs_seen[i] >= 0 and math.isfinite(losses[i])]
    measured.sort(key=lambda i: losses[i])  # stable: among equal losses the lower index first
    hidden = set()
    for i in measured[: int(Fraction(max_fraction) * len(losses))]:
        if corrects[i] and confidences[i] >= threshold:
            hidden.add(i)
    return hidden, [i for i in range(len(losses)) if i not in hidden]


def deal_with_loops(indices: list[int], batch_size: int, world_size: int, rank: int, seed: int) -> list[list[int]]:
    """Shuffle, and return the batches of one rank."""
    shuffled = list(indices)
    random.Random(seed).shuffle(shuffled)
    mine = [shuffled[position] for position in range(rank, len(shuffled), world_size)]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
