"""The metrics that are logged for an epoch, as ``selection/<name>``."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from kakurenbo_lightning.core.plan import Plan


def planned_metrics(plan: Plan, nonfinite: int, optimizers: Sequence[Optimizer]) -> dict[str, float]:
    """Metrics of an epoch's plan. ``nonfinite`` is the number of samples whose loss is not finite."""
    metrics = {
        "candidates": 0.0,
        "moved_back": 0.0,
        **plan.metrics,
        "hidden_fraction": plan.hidden_fraction,
        "lr_factor": plan.lr_factor,
        "nonfinite": float(nonfinite),
    }
    groups = optimizers[0].param_groups if optimizers else []
    if groups and groups[0].get("lr") is not None:
        metrics["lr"] = float(groups[0]["lr"]) * plan.lr_factor
    return metrics


def log_directly(trainer: pl.Trainer, metrics: dict[str, float], epoch: int) -> None:
    """Log the metrics of an epoch that Lightning itself never ends, because it has resumed at the epoch's last batch."""
    # float32, because Lightning logs metrics as float32 tensors
    values = {f"selection/{name}": float(torch.tensor(value, dtype=torch.float32)) for name, value in metrics.items()}
    for logger in trainer.loggers:
        # Lightning logs the metrics of an epoch under its last step, counted from 0
        logger.log_metrics({**values, "epoch": epoch}, step=trainer.global_step - 1)
