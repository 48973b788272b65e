"""The scoring pass of a backprop method over the loaded batch, and ways to make it cheaper."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kakurenbo_lightning.core.batch_rows import like, map_tensors, plain
from kakurenbo_lightning.engines.reference import Reference
from kakurenbo_lightning.engines.scorer import Scorer
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.backprop.base import BackpropMethod
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.forward_pass import buffers_of_rank_zero, call_training_step, forward_only, replaying

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ScoringPass:
    """Scores batches with the module, or with a small network in its place, and with the method's trained model, if it has one.

    Args:
        adapter: access to the Trainer.
        method: the method, whose settings say how to score.
        scorer: the small network that scores in place of the module; ``None`` if there is none.
    """

    def __init__(self, adapter: TrainerAdapter, method: BackpropMethod, scorer: Scorer | None) -> None:
        self._adapter, self._trainer, self._method, self._scorer = adapter, adapter.trainer, method, scorer
        of_method = [(name, value) for name, value in vars(method).items() if value is not None and value is method.reference]
        self._reference = next((Reference(adapter, frozen, name) for name, frozen in of_method), None)
        self._compiled: dict[nn.Module, Callable[..., Any]] = {}
        self._outputs_of: dict[Scorer | Reference, SampleOutputs] = {}

    def check(self, batch: Any, number: int, size: int, outputs: SampleOutputs) -> None:
        """Raise an error for a first batch that cannot be scored as the settings say, or by the method's trained model. Collective.

        Raises:
            ConflictError: the settings do not fit the batch.
            OutputsError: the trained model gives no losses.
        """
        if self._method.scale != 1.0:
            batch = scaled_images(batch, self._method.scale)
        if self._reference is not None:  # now, and not only after a warm-up
            self._reference.check(self._values(self._reference, batch, number, size, outputs)["loss"])

    def score(self, batch: Any, number: int, size: int, outputs: SampleOutputs) -> Values:
        """Return the values of the ``size`` samples of a batch. ``outputs`` computes them from the module's step.

        ``"reference"`` among them is the loss by the method's trained model, where it has one.
        """
        if self._method.scale != 1.0:
            batch = scaled_images(batch, self._method.scale)
        values = self._values(self._scorer, batch, number, size, outputs)
        if self._reference is None:
            return values
        return {**values, "reference": self._values(self._reference, batch, number, size, outputs)["loss"]}

    def _values(self, other: Scorer | Reference | None, batch: Any, number: int, size: int, outputs: SampleOutputs) -> Values:
        """The values of a batch by the module, or by the ``other`` model."""
        module = self._trainer.lightning_module if other is None else other.module
        if other is not None:
            outputs = self._outputs_of[other] = self._outputs_of.get(other) or outputs.of_module(module)
        # all ranks hold the same other model, and so the same buffers
        same = buffers_of_rank_zero(module) if other is None else contextlib.nullcontext()
        of_other = contextlib.nullcontext() if other is None else other.explained()
        with same, self._context(module), of_other:
            step = partial(call_training_step, self._trainer, module, batch, number)
            return outputs.score(step, batch, size, **replaying(self._trainer, module, number))

    @contextlib.contextmanager
    def _context(self, module: pl.LightningModule) -> Iterator[None]:
        with (
            forward_only(self._adapter, module),
            self._trainer.precision_plugin.train_step_context(),
            contextlib.ExitStack() as stack,
        ):
            if self._method.inference_mode:
                stack.enter_context(torch.inference_mode())
            if self._method.autocast is not None:
                device = self._trainer.strategy.root_device.type
                stack.enter_context(torch.autocast(device, DTYPES[self._method.autocast]))
            if self._method.compile:
                stack.enter_context(self._compiling(module))
            yield

    @contextlib.contextmanager
    def _compiling(self, module: pl.LightningModule) -> Iterator[None]:
        """Run the trainable submodules of ``module`` through ``torch.compile`` inside. Those that the user compiled stay compiled."""
        parts = [part for part in module.children() if any(True for _ in part.parameters())]
        if not parts:
            raise ConflictError(
                f"compile=True: {type(module).__name__} has no submodule with parameters to compile; put the network into one (self.net = "
                "...), or use compile=False"
            )
        parts = [part for part in parts if not hasattr(part, "_orig_mod") and part._compiled_call_impl is None]
        for part in parts:
            if part not in self._compiled:
                self._compiled[part] = torch.compile(part._call_impl)
            # a private attribute that nn.Module.compile sets; it is removed afterwards
            part._compiled_call_impl = self._compiled[part]
        try:
            yield
        finally:
            for part in parts:
                part._compiled_call_impl = None


def scaled_images(batch: Any, scale: float) -> Any:
    """Return the batch with every image (float ``[B, C, H, W]``) at ``scale`` times its resolution.

    Raises:
        ConflictError: the batch holds no image, or an image would have no pixel left.
    """
    found = False

    def resize(tensor: Tensor) -> Tensor:
        nonlocal found
        if tensor.dim() != 4 or not tensor.is_floating_point():
            return tensor
        found = True
        if min(tensor.shape[2:]) * scale < 1:
            raise ConflictError(
                f"scale={scale}: images of {list(tensor.shape[2:])} pixels would have none left; use a larger scale"
            )
        return F.interpolate(tensor, scale_factor=scale, mode="bilinear", antialias=scale < 1)

    scaled = like(batch, map_tensors(resize, plain(batch)))
    if not found:
        raise ConflictError(
            f"scale={scale}: the batch that training_step gets holds no float images [B, C, H, W] to score in a lower resolution; "
            "use scale=1"
        )
    return scaled
