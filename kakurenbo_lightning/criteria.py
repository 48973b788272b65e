"""Criterion calls: how they are seen while a step runs, and what they say about each sample."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Values = dict[str, Tensor]
IGNORE_INDEX = -100


def class_values(scores: Tensor, target: Tensor, ignore_index: int = IGNORE_INDEX) -> Values:
    """Confidence and correctness of a classification.

    Args:
        scores: logits, float ``[B, C, ...]``; the classes are axis 1. Positions after it (segmentation, sequences) are
            averaged over those whose target is not ``ignore_index``.
        target: ``int64[B, ...]`` class indices, or float ``[B, C, ...]`` class probabilities.
        ignore_index: target of positions that do not count.

    Returns:
        ``confidence`` (``float32[B]``, mean of the largest softmax probability) and ``correct`` (``bool[B]``, at least half
        of the positions right).
    """
    confidence, predicted = scores.float().softmax(1).max(1)
    if target.shape == scores.shape and target.is_floating_point():
        target = target.argmax(1)
    right = predicted == target
    if right.dim() == 1:
        return {"confidence": confidence, "correct": right}
    counted = target != ignore_index
    return {
        "confidence": _mean_where(confidence, counted),
        "correct": _mean_where(right.float(), counted) >= 0.5,
    }


def _mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over all axes but the first, of the positions that count; ``[B]``."""
    values, counted = values.flatten(1), counted.flatten(1)
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1)


def _cross_entropy(loss: Tensor, scores: Tensor, target: Tensor, options: dict[str, Any]) -> Values:
    ignore_index = options.get("ignore_index", IGNORE_INDEX)
    values = class_values(scores, target, ignore_index)
    if loss.dim() > 1:
        counted = target != ignore_index if target.shape == loss.shape else torch.ones_like(loss, dtype=torch.bool)
        loss = _mean_where(loss, counted)
    return {"loss": loss, **values}


def binary_values(probability: Tensor, target: Tensor) -> Values:
    """Confidence and correctness of binary labels.

    Args:
        probability: float ``[B]``, ``[B, L]`` (labels), ``[B, H, W]`` (positions) or ``[B, L, ...]`` (labels at positions).
        target: the same shape, 0 to 1.

    Returns:
        As :func:`class_values`. A sample, or a position, is right when all of its labels are, and as sure as the least sure one.
    """
    confidence = torch.maximum(probability, 1 - probability).float()
    right = (probability > 0.5) == (target > 0.5)
    if right.dim() == 2 or right.dim() > 3:
        confidence, right = confidence.amin(1), right.all(1)
    if right.dim() > 1:
        confidence, right = confidence.flatten(1).mean(1), right.flatten(1).float().mean(1) >= 0.5
    return {"confidence": confidence, "correct": right}


def _with_logits(loss: Tensor, scores: Tensor, target: Tensor, options: dict[str, Any]) -> Values:
    return {"loss": _per_sample(loss), **binary_values(scores.sigmoid(), target)}


def _with_probabilities(loss: Tensor, scores: Tensor, target: Tensor, options: dict[str, Any]) -> Values:
    return {"loss": _per_sample(loss), **binary_values(scores, target)}


def _regression(loss: Tensor, scores: Tensor, target: Tensor, options: dict[str, Any]) -> Values:
    return {"loss": _per_sample(loss)}


def _per_sample(loss: Tensor) -> Tensor:
    return loss.flatten(1).mean(1) if loss.dim() > 1 else loss


# log-probabilities are logits whose softmax is themselves, so nll_loss reads as cross_entropy does
CRITERIA: dict[Callable[..., Tensor], Callable[..., Values]] = {
    F.cross_entropy: _cross_entropy,
    F.nll_loss: _cross_entropy,
    F.binary_cross_entropy_with_logits: _with_logits,
    F.binary_cross_entropy: _with_probabilities,
    F.mse_loss: _regression,
    F.l1_loss: _regression,
    F.smooth_l1_loss: _regression,
    F.huber_loss: _regression,
}


def evaluate_per_sample(criterion: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values:
    """The values of each sample of one criterion call, on detached inputs: the call itself cannot be changed by it."""
    if len(args) > 2:
        bound = inspect.signature(criterion).bind(*args, **kwargs).arguments
        options = dict(bound)
    else:
        options = dict(kwargs)
        options.update(zip(("input", "target"), args, strict=False))
    scores, target = options.pop("input").detach(), options.pop("target").detach()
    for legacy in ("reduction", "size_average", "reduce"):
        options.pop(legacy, None)
    with torch.no_grad():
        loss = criterion(scores, target, reduction="none", **options)
        return CRITERIA[criterion](loss, scores, target, options)


class CriterionCapture:
    """Sees the criterion calls of a step and evaluates them per sample.

    The first step is watched through a ``TorchFunctionMode``, which sees every call but costs about a microsecond for each torch
    call of the step. When the same calls were also seen by replacing ``F.cross_entropy`` and its like by name, only that is
    done from the second step on.

    Args:
        always_mode: keep to the function mode (when the step itself is compiled).

    Attributes:
        calls: name and values of each criterion call of the last watched step.
        criterion: name of the last criterion seen.
    """

    def __init__(self, always_mode: bool = False) -> None:
        self.calls: list[tuple[str, Values]] = []
        self.criterion = ""
        self._by_name: bool | None = False if always_mode else None
        self._reporting = _reporting(self._seen)

    @property
    def manner(self) -> str:
        """How calls are seen, for the log."""
        return "by its name in torch.nn.functional" if self._by_name else "through a torch function mode"

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """See the calls made inside; :attr:`calls` holds them afterwards."""
        self.calls = []
        if self._by_name:
            with _in_functional(self._reporting):
                yield
            return
        if self._by_name is False:
            with _Mode(self._seen):
                yield
            return
        named: list[Callable[..., Tensor]] = []
        with _in_functional(_reporting(lambda criterion, args, kwargs: named.append(criterion))), _Mode(self._seen):
            yield
        if self.calls:
            self._by_name = len(named) == len(self.calls)

    def _seen(self, criterion: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.criterion = f"F.{criterion.__name__}"
        self.calls.append((self.criterion, evaluate_per_sample(criterion, args, kwargs)))


Sink = Callable[[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]], None]


class _Mode(TorchFunctionMode):
    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        func = getattr(func, "_criterion", func)  # functionals hand over themselves by name, replaced or not
        if func in CRITERIA:
            self._sink(func, args, kwargs)
        return func(*args, **kwargs)


def _reporting(sink: Sink) -> dict[str, Callable[..., Tensor]]:
    """The functions of :data:`CRITERIA` by name, each reporting its calls to ``sink`` first."""

    def reporting(criterion: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(criterion)
        def call(*args: Any, **kwargs: Any) -> Tensor:
            sink(criterion, args, kwargs)
            return criterion(*args, **kwargs)

        call._criterion = criterion
        return call

    return {criterion.__name__: reporting(criterion) for criterion in CRITERIA}


@contextlib.contextmanager
def _in_functional(replacements: dict[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Within this context ``torch.nn.functional`` holds these functions."""
    functional = vars(F)
    # another library's patch stays: what it trains on is the user's choice
    before = {name: original for name, original in _ORIGINALS.items() if functional[name] is original}
    functional.update({name: replacements[name] for name in before})
    try:
        yield
    finally:
        functional.update(before)


_ORIGINALS = {criterion.__name__: criterion for criterion in CRITERIA}
