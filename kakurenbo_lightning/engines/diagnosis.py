"""How far the values that a stream draws by are from the real ones."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # samples that are compared with all others at a time


def distribution_distance(stored: Tensor, real: Tensor) -> float:
    """Total variation distance, in [0, 1], between the probabilities that two sets of values give.

    Args:
        stored: ``float[n]``, >= 0.
        real: ``float[n]``, >= 0.
    """
    one, other = (_probabilities(values.double()) for values in (stored, real))
    return float((one - other).abs().sum() / 2)


def _probabilities(values: Tensor) -> Tensor:
    total = values.sum()
    return torch.where(total > 0, values / total, 1 / len(values))  # all 0: all alike


def ordered_share(stored: Tensor, real: Tensor) -> float:
    """The share of the pairs of samples, among those whose real values differ, that stored values order alike; equal stored
    values count a half.

    1 is a perfect order, 0.5 none at all. Time O(n^2), memory O(n).

    Args:
        stored: ``float[n]``.
        real: ``float[n]``.
    """
    agreement = pairs = 0
    for begin in range(0, len(real), BLOCK):
        truth = torch.sign(real[begin : begin + BLOCK, None] - real)
        agreement += int((torch.sign(stored[begin : begin + BLOCK, None] - stored) * truth).sum(dtype=torch.float64))
        pairs += int(truth.count_nonzero())
    return (agreement / pairs + 1) / 2 if pairs else 1.0
