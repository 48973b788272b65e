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
Reads = tuple[str, ...]
IGNORE_INDEX = -100


def class_values(scores: Tensor, target: Tensor, ignore_index: int = IGNORE_INDEX, reads: Reads = ()) -> Values:
    """Confidence and correctness of a classification.

    Args:
        scores: logits, float ``[B, C, ...]``; the classes are axis 1. Positions after it (segmentation, sequences) are
            averaged over those whose target is not ``ignore_index``.
        target: ``int64[B, ...]`` class indices, or float ``[B, C, ...]`` class probabilities.
        ignore_index: target of positions that do not count.
        reads: what is wanted beside confidence and correct.

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
    averaged = {name: _mean_where(value, counted) for name, value in values.items()}
    return {**averaged, "correct": averaged["correct"] >= 0.5}


def _error_norm(probability: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Length of ``probability`` minus the target's distribution along axis 1; ``[B, ...]``."""
    if target.shape == probability.shape and target.is_floating_point():
        return (probability - target).norm(dim=1)
    here = torch.where(target == ignore_index, 0, target).unsqueeze(1)  # positions that are ignored count nowhere
    return probability.scatter_add(1, here, torch.full_like(probability[:, :1], -1.0)).norm(dim=1)


def _mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over all axes but the first, of the positions that count; ``[B]``."""
    values, counted = values.flatten(1), counted.flatten(1)
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1)


def _cross_entropy(loss: Tensor, scores: Tensor, target: Tensor, options: dict[str, Any], reads: Reads) -> Values:
    ignore_index = options.get("ignore_index", IGNORE_INDEX)
    values = class_values(scores, target, ignore_index, reads)
    if loss.dim() > 1:
        counted = target != ignore_index if target.shape == loss.shape else torch.ones_like(loss, dtype=torch.bool)
        loss = _mean_where(loss, counted)
    return {"loss": loss, **values}


def binary_values(probability: Tensor, target: Tensor, reads: Reads = ()) -> Values:
    """Confidence and correctness of binary labels.

    Args:
        probability: float ``[B]``, ``[B, L]`` (labels), ``[B, H, W]`` (positions) or ``[B, L, ...]`` (labels at positions).
        target: the same shape, 0 to 1.
        reads: what is wanted beside confidence and correct: ``entropy``.

    Returns:
        As :func:`class_values`. A sample, or a position, is right when all of its labels are, and as sure as the least sure one; its
        entropy is the mean of its labels'.
    """
    confidence = torch.maximum(probability, 1 - probability).float()
    right = (probability > 0.5) == (target > 0.5)
    further = {}
    if "entropy" in reads:
        entropy = torch.special.entr(probability.float()) + torch.special.entr(1 - probability.float())
        further["entropy"] = _per_sample(entropy)
    if right.dim() == 2 or right.dim() > 3:
        confidence, right = confidence.amin(1), right.all(1)
    if right.dim() > 1:
        confidence, right = confidence.flatten(1).mean(1), right.flatten(1).float().mean(1) >= 0.5
    return {"confidence": confidence, "correct": right, **further}


def _with_logits(loss: Tensor, scores: Tensor, target: Tensor, options: dict[str, Any], reads: Reads) -> Values:
    return {"loss": _per_sample(loss), **binary_values(scores.sigmoid(), target, reads)}


def _with_probabilities(loss: Tensor, scores: Tensor, target: Tensor, options: dict[str, Any], reads: Reads) -> Values:
    return {"loss": _per_sample(loss), **binary_values(scores, target, reads)}


def _regression(loss: Tensor, scores: Tensor, target: Tensor, options: dict[str, Any], reads: Reads) -> Values:
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


def evaluate_per_sample(
    criterion: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], reads: Reads = ()
) -> Values:
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
        return CRITERIA[criterion](loss, scores, target, options, reads)


class _WeighGradient(torch.autograd.Function):
    """The identity whose backward multiplies the gradient of sample i (axis 0) by ``weights[i]``."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        return scores.view_as(scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return gradient * weights.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1)), None


def weighted(
    criterion: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], loss: Tensor, weights: Tensor
) -> Tensor:
    """The criterion's own result with sample i counting ``weights[i]`` times in the gradient, whatever its reduction and options.

    A result that is reduced has the weighted value too (where samples have different numbers of ignored positions: nearly); one value
    per sample is left as it is, because the step may go on with any function of it.

    Args:
        criterion: of :data:`CRITERIA`.
        args: of the call.
        kwargs: of the call.
        loss: ``[B]``, of each sample, detached.
        weights: ``float32[B]``.
    """

    def weigh(value: Any) -> Any:
        has_rows = isinstance(value, Tensor) and value.requires_grad and value.dim() and len(value) == len(weights)
        return _WeighGradient.apply(value, weights) if has_rows else value

    result = criterion(
        *map(weigh, args[:2]), *args[2:], **{name: weigh(v) if name in _INPUTS else v for name, v in kwargs.items()}
    )
    if result.dim():
        return result
    total = loss.sum()
    scaled = result.detach() * torch.where(total == 0, 1.0, (loss * weights).sum() / total).to(result.dtype)
    return result + (scaled - result.detach())


_INPUTS = ("input", "target")


class CriterionCapture:
    """Sees the criterion calls of a step, evaluates them per sample, and weighs them where asked.

    The first step is watched through a ``TorchFunctionMode``, which sees every call but costs about a microsecond for each torch
    call of the step. When the same calls were also seen by replacing ``F.cross_entropy`` and its like by name, only that is
    done from the second step on.

    Args:
        reads: the values that are wanted of each call.
        always_mode: keep to the function mode (when the step itself is compiled).

    Attributes:
        reads: as given; may be changed.
        calls: name and values of each criterion call of the last watched step.
        criterion: name of the last criterion seen.
    """

    def __init__(self, reads: Reads = (), always_mode: bool = False) -> None:
        self.calls: list[tuple[str, Values]] = []
        self.criterion = ""
        self.reads = reads
        self._weights: Tensor | None = None
        self._by_name: bool | None = False if always_mode else None
        self._reporting = _reporting(self._seen)

    @property
    def manner(self) -> str:
        """How calls are seen, for the log."""
        return "by its name in torch.nn.functional" if self._by_name else "through a torch function mode"

    @contextlib.contextmanager
    def watching(self, weights: Tensor | None = None) -> Iterator[None]:
        """See the calls made inside; :attr:`calls` holds them afterwards.

        Args:
            weights: ``float32[B]``, how often each sample counts in the result of a call; ``None`` for once.
        """
        self.calls, self._weights = [], weights
        if self._by_name:
            with _in_functional(self._reporting):
                yield
            return
        if self._by_name is False:
            with _Mode(self._seen):
                yield
            return
        named: list[Callable[..., Tensor]] = []

        def called_by_name(criterion: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
            named.append(criterion)
            return criterion(*args, **kwargs)

        with _in_functional(_reporting(called_by_name)), _Mode(self._seen):
            yield
        if self.calls:
            self._by_name = len(named) == len(self.calls)

    def _seen(self, criterion: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        self.criterion = f"F.{criterion.__name__}"
        values = evaluate_per_sample(criterion, args, kwargs, self.reads)
        self.calls.append((self.criterion, values))
        if self._weights is None or values["loss"].shape != self._weights.shape:  # an error follows
            return criterion(*args, **kwargs)
        return weighted(criterion, args, kwargs, values["loss"], self._weights)


Call = Callable[[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]], Tensor]


class _Mode(TorchFunctionMode):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        func = getattr(func, "_criterion", func)  # functionals hand over themselves by name, replaced or not
        return self._call(func, args, kwargs) if func in CRITERIA else func(*args, **kwargs)


def _reporting(call: Call) -> dict[str, Callable[..., Tensor]]:
    """The functions of :data:`CRITERIA` by name, each leaving its calls to ``call``."""

    def reporting(criterion: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(criterion)
        def reported(*args: Any, **kwargs: Any) -> Tensor:
            return call(criterion, args, kwargs)

        vars(reported)["_criterion"] = criterion
        return reported

    return {criterion.__name__: reporting(criterion) for criterion in CRITERIA}


@contextlib.contextmanager
def _in_functional(replacements: dict[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Within this context ``torch.nn.functional`` holds these functions."""
    functional = F.__dict__
    # another library's patch stays: what it trains on is the user's choice
    before = {name: original for name, original in _ORIGINALS.items() if functional[name] is original}
    functional.update({name: replacements[name] for name in before})
    try:
        yield
    finally:
        functional.update(before)


_ORIGINALS = {criterion.__name__: criterion for criterion in CRITERIA}
