"""Sample values that the user returns from ``training_step`` or ``sample_outputs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.predictions import IGNORE_INDEX, Reads, Values, predictions
from kakurenbo_lightning.signals.refusals import WAYS

NAMES = ("sample_loss", "logits", "target", "confidence", "correct", "entropy")


def from_returned(outputs: Any, size: int, source: str = "training_step", reads: Reads = ()) -> Values:
    """Read the sample values from a dict returned by ``training_step`` or ``sample_outputs``.

    Args:
        outputs: ``sample_loss`` (float ``[B]``), and either ``logits`` (``[B, C, ...]``) with ``target`` or any of ``confidence``
            (float ``[B]``) and ``correct`` (bool ``[B]``); given ones win over computed ones.
        size: B, samples in the batch.
        source: name of the function, for errors.
        reads: values that are wanted in addition to confidence and correctness.

    Raises:
        OutputsError: there is no ``sample_loss``, or something is not a tensor of B samples.
    """
    if not isinstance(outputs, Mapping) or "sample_loss" not in outputs:
        found = f"a dict with {sorted(outputs)}" if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"
        raise OutputsError(f"per-sample values: {source} returned {found}, a dict with 'sample_loss' is needed. {WAYS}")
    known = {key: _checked(key, outputs[key], size, source) for key in NAMES if key in outputs}
    values: Values = {"loss": known["sample_loss"]}
    with torch.no_grad():
        if "logits" in known and "target" in known:
            made = predictions(known["logits"], known["target"], reads)
            if made is None:
                raise OutputsError(
                    f"per-sample values: logits {list(known['logits'].shape)} and target {list(known['target'].shape)} from {source} "
                    "do not fit; they must be [B, C, ...] and [B, ...] (classes), [B, C, ...] twice (probabilities) or [B] twice (one "
                    "logit); or return confidence and correct, each [B]"
                )
            values.update(made)
        values.update({name: known[name] for name in ("confidence", "entropy") if name in known})
        if "correct" in known:
            values["correct"] = known["correct"].bool()
    return values


def _checked(name: str, value: Any, size: int, source: str) -> Tensor:
    """Return one value, detached, after checking that it has B rows and an allowed dtype; no host synchronisation."""
    if not isinstance(value, Tensor):
        raise OutputsError(f"per-sample values: {name} from {source} is a {type(value).__name__}, it must be a tensor")
    if value.dim() == 0 or len(value) != size:
        raise OutputsError(
            f"per-sample values: {name} has shape {list(value.shape)}, but the batch trains {size} samples: the first axis "
            f"must be the samples, [{size}] or [{size}, ...]. Return one value per sample, in the order of the batch. {WAYS}"
        )
    if name in ("sample_loss", "logits", "entropy") and not value.is_floating_point():
        raise OutputsError(
            f"per-sample values: {name} from {source} is {value.dtype}; it must be floating-point: return the {_MEANT[name]}"
        )
    if name in ("confidence", "correct") and value.is_complex():
        raise OutputsError(f"per-sample values: {name} from {source} is {value.dtype}; it must be {_MEANT[name]}")
    return value.detach()


_MEANT = {
    "sample_loss": "loss of each sample as the criterion gives it (not rounded, not a class)",
    "logits": "scores of the classes before softmax, not the predicted classes",
    "entropy": "entropy of each sample's prediction in nats",
    "confidence": "a probability in [0, 1]",
    "correct": "True or False",
}


def check_ranges(outputs: Mapping[str, Any], source: str) -> None:
    """Check the ranges of what was returned for the first batch; waits for the device.

    Raises:
        OutputsError: a confidence outside [0, 1], a NaN among logits, a target that is no class.
    """
    confidence, logits, target = (outputs.get(name) for name in ("confidence", "logits", "target"))
    if confidence is not None and bool(((confidence < 0) | (confidence > 1.01)).any()):
        raise OutputsError(
            f"per-sample values: confidence from {source} lies between {float(confidence.min()):.4g} and {float(confidence.max()):.4g}; "
            "it must be a probability in [0, 1] (a percentage: divide it by 100; logits: return logits and target instead)"
        )
    if logits is None or target is None:
        return
    if bool(logits.isnan().any()):
        raise OutputsError(
            f"per-sample values: logits from {source} hold NaN in the first batch, so nothing can be known of its samples; look for the "
            "cause in the data or the network (Trainer(detect_anomaly=True) helps)"
        )
    is_class = target.shape == logits.shape[:1] + logits.shape[2:] and logits.dim() > 1 and logits.shape[1] > 1
    if is_class and bool(((target < 0) & (target != IGNORE_INDEX) | (target >= logits.shape[1])).any()):
        raise OutputsError(
            f"per-sample values: target from {source} lies between {int(target.min())} and {int(target.max())}, but logits have "
            f"{logits.shape[1]} classes; it must be a class in [0, {logits.shape[1] - 1}], or {IGNORE_INDEX} for what does not count"
        )


def scaled(outputs: Any, scale: float) -> Any:
    """Return a training step's outputs with the loss multiplied by ``scale``."""
    if scale == 1.0 or outputs is None:
        return outputs
    return with_loss(outputs, loss_of(outputs) * scale)


def loss_of(outputs: Any) -> Any:
    """The loss among a training step's outputs; ``None`` if there is none."""
    return outputs.get("loss") if isinstance(outputs, Mapping) else outputs


def with_loss(outputs: Any, loss: Tensor) -> Any:
    """Return a training step's outputs with another loss in them."""
    return {**outputs, "loss": loss} if isinstance(outputs, Mapping) else loss
