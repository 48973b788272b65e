"""Where the per-sample loss, confidence and correctness of a training step come from.

The first of these that applies, decided on the first batch:

1. ``training_step`` returns them in its dict;
2. ``sample_outputs(batch) -> dict``, a method of the module or a function given to the callback;
3. the one criterion call of the step is seen and evaluated again per sample, on detached inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.criteria import CriterionCapture, binary_values, class_values

Values = dict[str, Tensor]

EXAMPLE = """
    sample_loss = F.cross_entropy(logits, target, reduction="none")
    return {"loss": sample_loss.mean(), "sample_loss": sample_loss, "logits": logits, "target": target}"""


class SampleOutputs:
    """Observes training steps and returns what each sample's loss, confidence and correctness were.

    Args:
        reads: the values the method needs, of ``loss``, ``confidence``, ``correct``, ``el2n``, ``entropy``, ``target``.
        sample_outputs: ``sample_outputs(batch) -> dict`` (way 2), or ``None``.
        compiled: the LightningModule itself is compiled; the criterion is then watched in a way that compiles well.
        weighs: there may be loss weights later; that they cannot be applied is then said in the second step, not hours later.
        manual: the module optimizes by itself, so a step that returns nothing has trained all the same.

    Attributes:
        device: where the module is and values must be.
    """

    def __init__(
        self,
        reads: tuple[str, ...],
        sample_outputs: Callable[[Any], Mapping[str, Tensor]] | None = None,
        compiled: bool = False,
        weighs: bool = False,
        manual: bool = False,
    ) -> None:
        self._reads = reads
        self._manual = manual
        self._sample_outputs = sample_outputs
        self._capture = CriterionCapture(reads, always_mode=compiled)
        self._way: str | None = None
        self._untried = weighs
        self._weighs = False  # weights wait for the backward pass
        self.device = torch.device("cpu")

    def also_read(self, name: str) -> None:
        """One more value is needed."""
        self._reads = (*self._reads, name)
        self._capture.reads = self._reads

    @property
    def source(self) -> str | None:
        """One line saying where values come from; ``None`` before the first batch."""
        if self._way == "returned":
            return "the dict that training_step returns"
        if self._way == "function":
            return (
                "sample_outputs(batch), one more forward pass per training batch "
                "(return the values from training_step to save it)"
            )
        if self._way == "captured":
            return f"the step's call of {self._capture.criterion}, seen {self._capture.manner}"
        return "nowhere (the method needs none)" if self._way == "none" else None

    @property
    def has_function(self) -> bool:
        """Whether way 2 is there, so that samples can be looked at without running ``training_step``."""
        return self._sample_outputs is not None

    def observe(
        self, step: Callable[[], Any], batch: Any, size: int, scoring: Callable[[], Any], weights: Tensor | None = None
    ) -> tuple[Any, Values | None]:
        """Run one training step and return its outputs and the values of its samples.

        Args:
            step: runs the training step.
            batch: what the step is given.
            size: number of samples in the batch.
            looking: makes the context in which way 2 may run the network without changing the training.
            weights: ``float32[size]``, how often each sample counts in the step's loss; ``None`` for once.

        Returns:
            The step's outputs, unchanged but for the weights, and the values (each ``[size]``, detached), or ``None`` when there are none.

        Raises:
            OutputsError: the values are missing, or are not one per sample.
        """
        values: Values | None = None
        if self._untried and self._way is not None:
            self._untried = False
            weights = torch.ones(size, device=self.device) if weights is None else weights
        if self._way is None and weights is not None:  # a resumed run: which way the weights go must be known before
            with scoring(), self._capture.watching():
                self._decide(step())
        if self._way == "function":
            with scoring():
                values = self._call_function(batch, size)
        if self._way in ("returned", "function", "none"):
            outputs = step()
        else:
            with self._capture.watching(weights):
                outputs = step()
        if self._way is None:
            self._decide(outputs)
            if self._way == "function":
                with scoring():
                    values = self._call_function(batch, size)
        if outputs is not None and weights is not None:
            outputs = self._weighed(outputs, weights)
        if self._way == "none" or (outputs is None and not self._trained(values)):
            return outputs, None  # the user skips this batch, or nothing is needed
        if self._way == "returned":
            values = from_returned(outputs, size, reads=self._reads)
        elif self._way == "captured":
            if not self._reads and weights is None and len(self._capture.calls) != 1:
                return outputs, None  # a step that changes its mind may, when nothing is needed
            values = self._captured()
        self._check(values, size)
        return outputs, values

    def _trained(self, values: Values | None) -> bool:
        """Whether a step that returned nothing has trained: one that optimizes by itself, and whose values are there all the same."""
        return self._manual and (values is not None or (self._way == "captured" and bool(self._capture.calls)))

    def score(self, step: Callable[[], Any], batch: Any, size: int) -> Values:
        """Values of a batch that is not trained; the caller provides the no-grad context.

        Args:
            step: runs ``training_step`` on the batch; not called when way 2 is there.
            batch: the batch.
            size: number of samples in it.

        Raises:
            OutputsError: as :meth:`observe`.
        """
        if self._sample_outputs is not None:
            values = self._call_function(batch, size)
        else:
            with self._capture.watching():
                outputs = step()
            if self._way is None:  # a resumed run looks before it trains
                self._decide(outputs)
            values = from_returned(outputs, size, reads=self._reads) if self._way == "returned" else self._captured()
        self._check(values, size)
        return values

    def _call_function(self, batch: Any, size: int) -> Values:
        assert self._sample_outputs is not None
        return from_returned(self._sample_outputs(batch), size, "sample_outputs", self._reads)

    def _weighed(self, outputs: Any, weights: Tensor) -> Any:
        """The outputs with the weights in their loss; a captured criterion has them already."""
        if self._way == "captured":
            return outputs
        if self._way != "returned":
            raise OutputsError(
                f"loss weights: they cannot enter the loss of this training_step, because values come from {self.source}. Return them "
                f"from training_step, or use a method or setting without weights (unbiased=False):{EXAMPLE}"
            )
        loss = outputs["sample_loss"]
        if "loss" not in outputs or not (isinstance(loss, Tensor) and loss.requires_grad and loss.shape == weights.shape):
            raise OutputsError(
                "loss weights: training_step must return 'loss' and 'sample_loss', the latter with its graph (not detached), one per "
                f"sample, [{len(weights)}]:{EXAMPLE}"
            )
        self._weighs = True

        def weigh(gradient: Tensor) -> Tensor:
            self._weighs = False
            return gradient * weights.to(gradient.dtype)

        loss.register_hook(weigh)
        return outputs

    def check_weighed(self) -> None:
        """The backward pass is over: did it come through the ``sample_loss`` that carries the weights?

        Raises:
            OutputsError: it did not.
        """
        if self._weighs:
            self._weighs = False
            raise OutputsError(
                "loss weights: the 'loss' that training_step returns was not made from the 'sample_loss' it returns, so the weights "
                f"never reached the gradient; make it from that one:{EXAMPLE}"
            )

    def _decide(self, outputs: Any) -> None:
        """Choose the way, once."""
        if isinstance(outputs, Mapping) and "sample_loss" in outputs:
            self._way = "returned"
        elif self._sample_outputs is not None:
            self._way = "function"
        elif len(self._capture.calls) == 1:
            self._way = "captured"
        elif outputs is None:
            return  # a skipped batch says nothing; decide on the next one
        elif not self._reads:
            self._way = "none"
        else:
            self._captured()  # raises

    def _captured(self) -> Values:
        calls = self._capture.calls
        if len(calls) != 1:
            what = f"{len(calls)} criterion calls" if calls else "no call of a criterion that is known"
            which = ", ".join(name for name, _ in calls) or "F.cross_entropy, F.nll_loss, F.mse_loss, ..."
            raise OutputsError(
                f"per-sample values: training_step made {what} ({which}), exactly one is needed. "
                "Return the values from training_step instead (mixup: sample_loss = lam * loss_a + (1 - lam) * loss_b, with the target of "
                f"the larger weight; a criterion that is only a metric may go under another function):{EXAMPLE}"
            )
        return calls[0][1]

    def _check(self, values: Values | None, size: int) -> None:
        assert values is not None
        for name, value in values.items():
            if value.shape != (size,):
                raise OutputsError(
                    f"per-sample values: {name} has shape {list(value.shape)}, but the batch trains {size} samples: it must be "
                    f"[{size}]. Return one value per sample, in the order of the batch:{EXAMPLE}"
                )
            if value.device != self.device:
                raise OutputsError(
                    f"per-sample values: {name} is on {value.device}, the module is on {self.device}; return every value on the "
                    "module's device"
                )
        missing = [name for name in self._reads if name not in values]
        if missing == ["target"]:
            raise OutputsError(
                f"classes: balance='class' and protected_classes need the class of each sample, but {self.source} gives only "
                f"{', '.join(values)}, and the data set has no targets, labels or y. Give the data set an attribute targets (one integer "
                "per sample), return logits and target from training_step, or leave these settings out"
            )
        if missing:
            raise OutputsError(
                f"per-sample values: the method reads {', '.join(missing)}, but {self.source} gives only "
                f"{', '.join(values)}. A regression has none: use a method that reads only the loss (infobatch, seta, selective_backprop, "
                "plb) or nothing (random), or return confidence (float in [0, 1]), correct (bool) or entropy (float) of your own, each "
                f"[{size}]. A classification returns logits and target:{EXAMPLE}"
            )


def from_returned(outputs: Any, size: int, source: str = "training_step", reads: tuple[str, ...] = ()) -> Values:
    """Read the values out of a dict returned by ``training_step`` or ``sample_outputs``.

    Args:
        outputs: ``sample_loss`` (float ``[B]``), and either ``logits`` (``[B, C, ...]``) with ``target`` or any of ``confidence``
            (float ``[B]``) and ``correct`` (bool ``[B]``); given ones win over computed ones.
        size: B.
        source: named in errors.
        reads: what is wanted beside confidence and correct.

    Raises:
        OutputsError: there is no ``sample_loss``, or something is not a tensor of B samples.
    """
    if not isinstance(outputs, Mapping) or "sample_loss" not in outputs:
        found = f"a dict with {sorted(outputs)}" if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"
        raise OutputsError(f"per-sample values: {source} returned {found}, a dict with 'sample_loss' is needed:{EXAMPLE}")
    known = {
        key: outputs[key] for key in ("sample_loss", "logits", "target", "confidence", "correct", "entropy") if key in outputs
    }
    for key, value in known.items():
        if not isinstance(value, Tensor):
            raise OutputsError(f"per-sample values: {key} from {source} is a {type(value).__name__}, it must be a tensor")
        if value.dim() == 0 or len(value) != size:
            raise OutputsError(
                f"per-sample values: {key} has shape {list(value.shape)}, but the batch trains {size} samples: the first axis "
                f"must be the samples, [{size}] or [{size}, ...]. Return one value per sample, in the order of the batch:{EXAMPLE}"
            )
        known[key] = value.detach()
    values: Values = {"loss": known["sample_loss"]}
    with torch.no_grad():
        if "logits" in known and "target" in known:
            values.update(_predictions(known["logits"], known["target"], source, reads))
        if "confidence" in known:
            values["confidence"] = known["confidence"]
        if "correct" in known:
            values["correct"] = known["correct"].bool()
        if "entropy" in known:
            values["entropy"] = known["entropy"]
    return values


def _predictions(logits: Tensor, target: Tensor, source: str, reads: tuple[str, ...]) -> Values:
    """Confidence and correctness from returned ``logits`` and ``target``, one logit meaning a binary label."""
    if logits.dim() == 1 or logits.shape[1] == 1:
        if logits.numel() == target.numel():
            shape = (len(logits), 1, -1) if logits.dim() > 2 else (len(logits), -1)  # positions, or one label
            return binary_values(logits.reshape(shape).sigmoid(), target.reshape(shape), reads)
    elif target.shape in (logits.shape, logits.shape[:1] + logits.shape[2:]):
        return class_values(logits, target, reads=reads)
    raise OutputsError(
        f"per-sample values: logits {list(logits.shape)} and target {list(target.shape)} from {source} do not fit; they must be "
        "[B, C, ...] and [B, ...] (classes), [B, C, ...] twice (probabilities) or [B] twice (one logit); or return "
        "confidence and correct, each [B]"
    )


def scaled(outputs: Any, scale: float) -> Any:
    """A training step's outputs with the loss times ``scale``."""
    if scale == 1.0 or outputs is None:
        return outputs
    if isinstance(outputs, dict):
        return {**outputs, "loss": outputs["loss"] * scale}
    return outputs * scale
