"""The criteria of ``torch.nn.functional``, and what one call of them says about each sample."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.predictions import IGNORE_INDEX, Reads, Values, binary_values, class_values

Function = Callable[..., Tensor]


def _functions() -> dict[Function, tuple[str, ...]]:
    """Every function of ``torch.nn.functional`` that has a ``reduction``, with the names of its parameters in order."""
    found = {}
    for name, function in vars(F).items():
        if inspect.isfunction(function) and not name.startswith("_") and "reduction" in inspect.signature(function).parameters:
            found[function] = tuple(inspect.signature(function).parameters)
    return found


CRITERIA = _functions()
# named here, because torch.nn.functional holds other functions by these names while a step runs
_CTC, _KL_DIV, _GAUSSIAN, _LINEAR = F.ctc_loss, F.kl_div, F.gaussian_nll_loss, getattr(F, "linear_cross_entropy", None)
_CLASSES = {F.cross_entropy, F.nll_loss, _LINEAR}  # these take ignore_index and class weights
_WEIGHTED_MEAN = {F.mse_loss, F.l1_loss, F.huber_loss}  # torch divides their mean by the sum of the weights


class CriterionCall:
    """The arguments of one criterion call, from which values per sample are computed.

    Args:
        function: one of :data:`CRITERIA`.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Attributes:
        name: name of the function, for messages.
        reduction: ``"mean"``, ``"sum"``, ``"batchmean"`` or ``"none"``, whichever way it was given.
        predicts: whether the call is a classification, so that it has confidence and correctness.
    """

    def __init__(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = CRITERIA[function]  # not zip(..., strict=): torch 2.6 cannot trace it where a step is compiled
        options = {**{names[at]: value for at, value in enumerate(args)}, **kwargs}
        legacy = options.pop("size_average", None), options.pop("reduce", None)
        self.reduction = options.pop("reduction", "mean")
        if legacy != (None, None):
            self.reduction = legacy_get_string(*legacy, emit_warning=False)
        self.function, self.options = function, options
        self.name = f"F.{function.__name__}"
        self.predicts = function in _PREDICTIONS and (function is not _KL_DIV or options["input"].dim() == 2)

    def elements(self) -> Tensor:
        """Repeat the call with ``reduction="none"``, which gives one number for each row and position, ``[n, ...]``."""
        if self.function is _GAUSSIAN:
            return _gaussian_elements(**self.options)
        return self.function(**self.options, reduction="none")

    def values(self, elements: Tensor, size: int, order: str) -> Tensor:
        """What the call would have returned for each sample alone, ``[size]``: the mean or sum of its positions, as its reduction
        says.

        Ignored positions do not count. The weight of a sample's class does, as with ``reduction="none"``.

        Args:
            elements: the result of :meth:`elements`.
            size: B, samples in the batch.
            order: see :func:`grouped`.
        """
        per_sample = grouped(self._normalised(elements), size, order)
        if self.reduction in ("sum", "batchmean"):
            return total(per_sample)
        if per_sample.dim() == 1 and self.function not in _WEIGHTED_MEAN:
            return per_sample
        counts = self._counts(elements)
        if counts is None:
            return mean(per_sample)
        counts = total(grouped(counts, size, order))
        return total(per_sample) / torch.where(counts == 0, 1.0, counts)

    def shares(self, elements: Tensor, size: int, order: str) -> Tensor:
        """What each sample adds to the call's result, ``[size]``; their sum is the result."""
        share = total(grouped(self._normalised(elements), size, order))
        if self.reduction == "sum":
            return share
        if self.reduction == "batchmean":
            return share / len(elements)
        weights = self._class_weights(elements)
        if weights is None:
            weights = self._counts(elements)
        return share / (elements.numel() if weights is None else weights.sum())

    def _normalised(self, elements: Tensor) -> Tensor:
        """Divide the losses of ``ctc_loss`` by the length of each target, as torch does for its mean."""
        if self.function is not _CTC or self.reduction != "mean":
            return elements
        lengths = torch.as_tensor(self.options["target_lengths"], device=elements.device)
        return elements / lengths.clamp(min=1)

    def _counts(self, elements: Tensor) -> Tensor | None:
        """How much each element counts in the mean over a sample's positions; ``None`` if all count alike."""
        if self.function in _CLASSES and self.options["target"].shape == elements.shape:
            return (self.options["target"] != self.options.get("ignore_index", IGNORE_INDEX)).to(elements.dtype)
        if self.function in _WEIGHTED_MEAN and self.options.get("weight") is not None:
            return self.options["weight"].expand_as(elements)
        return None

    def counted(self, elements: Tensor) -> Tensor | None:
        """1 for each element whose class is not ignored, else 0; ``None`` if nothing is ignored."""
        counts = self._counts(elements) if self.function in _CLASSES else None
        return None if counts is None else counts.float()

    def _class_weights(self, elements: Tensor) -> Tensor | None:
        """The class weight of each element in the mean over the batch; ``None`` if classes have no weights."""
        counts = self._counts(elements) if self.function in _CLASSES else None
        if counts is None or self.options.get("weight") is None:
            return None
        target = torch.where(counts > 0, self.options["target"], 0)
        return self.options["weight"][target] * counts

    def predictions(self, size: int, order: str, reads: Reads) -> Values:
        """Confidence, correctness and whatever else ``reads`` names, of ``size`` samples; detached."""
        return _PREDICTIONS[self.function](self.options, size, order, reads)


def _gaussian_elements(input: Tensor, target: Tensor, var: Any, full: bool = False, eps: float = 1e-6) -> Tensor:
    """``gaussian_nll_loss`` by element. The library's own check for negative variances waits for the device, so it is left out."""
    var = torch.as_tensor(var, dtype=input.dtype, device=input.device)
    if var.dim() and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    var = var + (var.clamp(min=eps) - var).detach()  # as in torch, where clamping does not change the gradient
    loss = 0.5 * (var.log() + (input - target) ** 2 / var)
    return loss + 0.5 * math.log(2 * math.pi) if full else loss


def grouped(rows: Tensor, size: int, order: str) -> Tensor:
    """Group the rows of a loss by sample.

    Args:
        rows: float ``[n, ...]``, where n is ``size`` or a multiple of it.
        size: B, samples in the batch.
        order: order of ``k * B`` rows: ``"samples"``, k rows of the first sample, then k of the second; ``"positions"``, the first row
            of every sample, then the second of every sample.

    Returns:
        ``[B, ...]``, or ``[B, k, ...]``.

    Raises:
        OutputsError: n is no multiple of B.
    """
    if not rows.dim():  # a batch of one, whose axis the step has squeezed away
        rows = rows.reshape(1)
    if len(rows) == size:
        return rows
    if len(rows) % size:
        raise OutputsError(f"per-sample values: the loss has shape {list(rows.shape)}, but the batch trains {size} samples")
    if order == "positions":
        return rows.reshape(-1, size, *rows.shape[1:]).transpose(0, 1)
    return rows.reshape(size, -1, *rows.shape[1:])


def total(per_sample: Tensor) -> Tensor:
    """Sum over all axes but the first, ``[B]``. Half precision is summed in float32."""
    if per_sample.dim() == 1:
        return per_sample
    half = per_sample.dtype in (torch.float16, torch.bfloat16)
    return per_sample.flatten(1).sum(1, dtype=torch.float32 if half else None)


def mean(per_sample: Tensor) -> Tensor:
    """Mean over all axes but the first, ``[B]``. Half precision is averaged in float32."""
    if per_sample.dim() == 1:
        return per_sample
    half = per_sample.dtype in (torch.float16, torch.bfloat16)
    return per_sample.flatten(1).mean(1, dtype=torch.float32 if half else None)


def of_classes(scores: Tensor, target: Tensor, ignore_index: int, size: int, order: str, reads: Reads) -> Values:
    """:func:`class_values` of rows ``[n, C, ...]``, which are first grouped by sample."""
    scores, target = scores.detach(), target.detach()
    if len(scores) != size:  # move the positions behind the classes
        with_classes = target.shape == scores.shape and target.is_floating_point()
        scores, target = grouped(scores, size, order).transpose(1, 2), grouped(target, size, order)
        target = target.transpose(1, 2) if with_classes else target
    return class_values(scores, target, ignore_index, reads)


def of_labels(probability: Tensor, target: Tensor, size: int, order: str, reads: Reads) -> Values:
    """:func:`binary_values` of rows ``[n, ...]``, which are first grouped by sample."""
    if len(probability) != size:  # move the positions behind the labels
        probability, target = grouped(probability, size, order), grouped(target, size, order)
        if probability.dim() == 2:
            probability, target = probability.unsqueeze(1), target.unsqueeze(1)
        else:
            probability, target = probability.transpose(1, 2).unsqueeze(-1), target.transpose(1, 2).unsqueeze(-1)
    return binary_values(probability, target, reads)


def _classes(options: dict[str, Any], size: int, order: str, reads: Reads) -> Values:
    # log-probabilities are logits: their softmax gives back the probabilities, so nll_loss is read as cross_entropy
    ignore_index = options.get("ignore_index", IGNORE_INDEX)
    return of_classes(options["input"], options["target"], ignore_index, size, order, reads)


def _linear_classes(options: dict[str, Any], size: int, order: str, reads: Reads) -> Values:
    with torch.no_grad():
        bias = options.get("linear_bias")
        logits = F.linear(options["input"].float(), options["linear_weight"].float(), None if bias is None else bias.float())
    return _classes({**options, "input": logits}, size, order, reads)


def _logits(options: dict[str, Any], size: int, order: str, reads: Reads) -> Values:
    return of_labels(options["input"].detach().sigmoid(), options["target"].detach(), size, order, reads)


def _probabilities(options: dict[str, Any], size: int, order: str, reads: Reads) -> Values:
    return of_labels(options["input"].detach(), options["target"].detach(), size, order, reads)


def _divergence(options: dict[str, Any], size: int, order: str, reads: Reads) -> Values:
    target = options["target"].detach()
    target = target.exp() if options.get("log_target") else target
    return of_classes(options["input"], target, IGNORE_INDEX, size, order, reads)


# classifications; those most likely to be the task come first
_PREDICTIONS: dict[Function | None, Callable[..., Values]] = {
    F.cross_entropy: _classes,
    F.nll_loss: _classes,
    _LINEAR: _linear_classes,
    F.binary_cross_entropy_with_logits: _logits,
    F.binary_cross_entropy: _probabilities,
    F.multi_margin_loss: _classes,
    F.multilabel_soft_margin_loss: _logits,
    F.soft_margin_loss: _logits,  # labels -1 and 1
    F.kl_div: _divergence,
}
PRIORITY = {function: place for place, function in enumerate(_PREDICTIONS)}


def evaluate_per_sample(criterion: Function, args: tuple[Any, ...], kwargs: dict[str, Any], reads: Reads = ()) -> Values:
    """The values of each sample for one criterion call whose rows are the samples. The arguments are not changed."""
    call = CriterionCall(criterion, args, kwargs)
    with torch.no_grad():
        elements = call.elements()
        loss = call.values(elements, len(elements), "samples")
        return {"loss": loss, **(call.predictions(len(elements), "samples", reads) if call.predicts else {})}
