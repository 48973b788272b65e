"""Gives a run's loggers its settings, and a name and a group for tools that show runs side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import lightning as L

SHOWN = {"max_fraction": "F", "tau": "tau"}  # settings that are part of a run's name, with the name used on the command line


def group_name(*, _root_: DictConfig) -> str:
    """Return the common name of runs that differ only in their seed: `kakurenbo-F0.3-tau0.7`."""
    method = _root_.method
    return "-".join([method.method, *(f"{short}{method[name]}" for name, short in SHOWN.items() if name in method)])


def run_name(*, _root_: DictConfig) -> str:
    """Return the name of a run: its group and its seed."""
    return f"{group_name(_root_=_root_)}-seed{_root_.seed}"


OmegaConf.register_new_resolver("group_name", group_name, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def log_hyperparameters(trainer: L.Trainer, cfg: DictConfig) -> None:
    """Pass the run's resolved settings to each logger, with passwords hidden as in run.json."""
    from kakurenbo_lightning.record.machine import without_secrets

    settings = cast(dict[str, Any], without_secrets(OmegaConf.to_container(cfg, resolve=True)))
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)


@contextmanager
def own_wandb_run(trainer: L.Trainer) -> Iterator[None]:
    """End the Weights & Biases run together with this training; otherwise the next `wandb.init` of the process would continue it."""
    failed = True
    try:
        yield
        failed = False
    finally:
        names = {type(logger).__name__ for logger in trainer.loggers}
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None and "WandbLogger" in names:
            wandb.finish(exit_code=int(failed))
