"""Looking at samples without training on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torchmetrics import Metric


@contextlib.contextmanager
def forward_only(module: pl.LightningModule, mode: Literal["eval", "train"] = "eval") -> Iterator[None]:
    """Run the module inside without a trace: no gradient, no random number taken from training, nothing logged.

    Every submodule's train/eval flag and every torchmetrics state is as before afterwards. In eval mode buffers do not
    change either; ``mode="train"`` leaves the flags alone, so that BatchNorm updates its running statistics.
    """
    flags = {submodule: submodule.training for submodule in module.modules()}
    metrics = {metric: _metric_state(metric) for metric in module.modules() if isinstance(metric, Metric)}
    if mode == "eval":
        module.eval()
    try:
        with torch.no_grad(), isolate_rng(), _silenced(module):
            yield
    finally:
        for submodule, training in flags.items():
            submodule.training = training
        for metric, state in metrics.items():
            vars(metric).update(state)


@contextlib.contextmanager
def _silenced(module: pl.LightningModule) -> Iterator[None]:
    """``self.log`` and ``self.log_dict`` do nothing inside."""
    hidden = {name: vars(module).pop(name, None) for name in ("log", "log_dict")}

    def discard(*args: Any, **kwargs: Any) -> None:
        """Nothing is logged for samples that are not trained."""

    for name in hidden:
        object.__setattr__(module, name, discard)
    try:
        yield
    finally:
        for name, own in hidden.items():
            object.__delattr__(module, name)
            if own is not None:
                object.__setattr__(module, name, own)


def _metric_state(metric: Metric) -> dict[str, Any]:
    """Copies of what ``update`` and ``forward`` of a metric change."""
    state: dict[str, Any] = {
        name: list(value) if isinstance(value, list) else value.clone() for name, value in metric.metric_state.items()
    }
    for name in ("_update_count", "_computed", "_forward_cache"):
        if name in vars(metric):
            state[name] = vars(metric)[name]
    return state
