"""Confidence and correctness of predictions: of classes, of binary labels, at positions."""

from __future__ import annotations

import torch
from torch import Tensor

Values = dict[str, Tensor]
Reads = tuple[str, ...]
IGNORE_INDEX = -100


def class_values(scores: Tensor, target: Tensor, ignore_index: int = IGNORE_INDEX, reads: Reads = ()) -> Values:
    """Confidence and correctness of a classification.

    Args:
        scores: logits, float ``[B, C, ...]``; the classes are axis 1. Positions after it (segmentation, sequences) are
            averaged over those whose target is not ``ignore_index``.
        target: ``int64[B, ...]`` class indices, or float ``[B, C, ...]`` class probabilities.
        ignore_index: target of positions that do not count.
        reads: values that are wanted in addition to confidence and correctness.

    Returns:
        ``confidence`` (``float32[B]``, mean of the largest softmax probability) and ``correct`` (``bool[B]``, at least half
        of the positions right). On demand ``el2n`` (``float32[B]``, ``||softmax(scores) - onehot(target)||_2``), ``entropy``
        (``float32[B]``, of the softmax, in nats) and, where a sample has one class, ``target`` (``int64[B]``).
    """
    probability = scores.float().softmax(1)
    confidence, predicted = probability.max(1)
    error_norm = _error_norm(probability, target, ignore_index) if "el2n" in reads else None
    if target.shape == scores.shape and target.is_floating_point():
        target = target.argmax(1)
    right = predicted == target
    values = {"confidence": confidence, "correct": right}
    if right.dim() == 1 and "target" in reads:
        values["target"] = target
    if error_norm is not None:
        values["el2n"] = error_norm
    if "entropy" in reads:
        values["entropy"] = torch.special.entr(probability).sum(1)
    if right.dim() == 1:
        return values
    counted = target != ignore_index
    averaged = {name: mean_where(value, counted) for name, value in values.items()}
    return {**averaged, "correct": averaged["correct"] >= 0.5}


def _error_norm(probability: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Euclidean distance between ``probability`` and the target's distribution along axis 1; ``[B, ...]``."""
    if target.shape == probability.shape and target.is_floating_point():
        return (probability - target).norm(dim=1)
    # class 0 stands in for ignored positions, which are not averaged
    here = torch.where(target == ignore_index, 0, target).unsqueeze(1)
    return probability.scatter_add(1, here, torch.full_like(probability[:, :1], -1.0)).norm(dim=1)


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over all axes but the first of the positions where ``counted`` is true; ``[B]``."""
    values, counted = values.flatten(1), counted.flatten(1)
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1)


def binary_values(probability: Tensor, target: Tensor, reads: Reads = ()) -> Values:
    """Confidence and correctness of binary labels.

    Args:
        probability: float ``[B]``, ``[B, L]`` (labels), ``[B, H, W]`` (positions) or ``[B, L, ...]`` (labels at positions).
        target: labels from 0 to 1, in the same shape.
        reads: values that are wanted in addition to confidence and correctness: ``entropy``.

    Returns:
        As :func:`class_values`. A sample, or a position, is correct if all of its labels are. Its confidence is that of the least
        confident label, its entropy the mean over the labels. One-hot targets are no exception, because the criterion trains each
        column as a label of its own, and a row with one label may come from multi-label data. Correct is then stricter than arg max.
    """
    confidence = torch.maximum(probability, 1 - probability).float()
    right = (probability > 0.5) == (target > 0.5)
    further = {}
    if "entropy" in reads:
        entropy = torch.special.entr(probability.float()) + torch.special.entr(1 - probability.float())
        further["entropy"] = entropy.flatten(1).mean(1) if entropy.dim() > 1 else entropy
    if right.dim() == 2 or right.dim() > 3:
        confidence, right = confidence.amin(1), right.all(1)
    if right.dim() > 1:
        confidence, right = confidence.flatten(1).mean(1), right.flatten(1).float().mean(1) >= 0.5
    return {"confidence": confidence, "correct": right, **further}


def predictions(logits: Tensor, target: Tensor, reads: Reads = (), distributions: bool = True) -> Values | None:
    """Confidence and correctness of ``logits`` and ``target``, judged by their shapes alone; ``None`` if these do not fit.

    Args:
        logits: float ``[B, C, ...]``; or ``[B]`` or ``[B, 1, ...]``, which means binary labels.
        target: classes ``[B, ...]``, probabilities ``[B, C, ...]``, or labels ``[B]``.
        reads: values that are wanted in addition, as for :func:`class_values`.
        distributions: whether a target of the logits' shape holds class probabilities; else each number is a label of its own.
    """
    if logits.dim() == 1 or logits.shape[1] == 1:
        if logits.numel() == target.numel():
            # labels at positions, or one label per sample
            shape = (len(logits), 1, -1) if logits.dim() > 2 else (len(logits), -1)
            return binary_values(logits.reshape(shape).sigmoid(), target.reshape(shape), reads)
    elif target.shape == logits.shape and not (distributions and target.is_floating_point()):
        return binary_values(logits.sigmoid(), target, reads)
    elif target.shape in (logits.shape, logits.shape[:1] + logits.shape[2:]):
        return class_values(logits, target, reads=reads)
    return None
