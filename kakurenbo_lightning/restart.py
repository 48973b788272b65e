"""Static methods: the training begins again from its initial state, inside one ``trainer.fit``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils._pytree import tree_map

from kakurenbo_lightning.loaders import ConflictError
from kakurenbo_lightning.ranks import gather
from kakurenbo_lightning.rng import rng_state, set_rng_state

_FILES = ("last_model_path",)  # of a ModelCheckpoint, which would begin last-v1.ckpt without it


class Restart:
    """Keeps the initial state of a training and puts it back when the scoring epochs are over.

    Put back are the module's parameters and buffers, optimizers, schedulers, the precision plug-in's scaler, the random streams of this
    process and the state of the other callbacks (the best score of a ``ModelCheckpoint`` or an ``EarlyStopping`` is of another
    training). Counters of epochs and steps go on.

    Args:
        trainer: the Trainer.
        scoring_epochs: tells how many epochs are scored before a training of ``max_epochs``; 0: there is no restart.

    Attributes:
        epochs: that number, once the training has begun.
    """

    def __init__(self, trainer: pl.Trainer, scoring_epochs: Callable[[int | None], int]) -> None:
        self._trainer, self._scoring_epochs = trainer, scoring_epochs
        self.epochs = 0
        self._initial: dict[str, Any] | None = None

    def extend(self) -> None:
        """The scoring epochs come before those that the user asked for.

        Raises:
            ConflictError: the run's length is not counted in epochs.
        """
        trainer = self._trainer
        if self.epochs or trainer.fast_dev_run or not self._scoring_epochs(trainer.max_epochs):
            return
        if trainer.max_steps >= 0 or trainer.max_epochs is None or trainer.max_epochs < 0:
            raise ConflictError(
                f"Trainer(max_steps={trainer.max_steps}, max_epochs={trainer.max_epochs}): the method scores some epochs, chooses, "
                "and starts again for max_epochs, so the run must be counted in epochs; set max_epochs and leave max_steps at -1"
            )
        self.epochs = self._scoring_epochs(trainer.max_epochs)
        trainer.fit_loop.max_epochs += self.epochs

    def shorten(self) -> None:
        """Undo :meth:`extend`."""
        if self.epochs:
            self._trainer.fit_loop.max_epochs -= self.epochs
            self.epochs = 0

    def user_epochs(self, max_epochs: int | None) -> int | None:
        """``max_epochs`` without the scoring epochs."""
        return None if max_epochs is None else max_epochs - self.epochs

    def keep(self) -> None:
        """Keep the state of a training that is about to begin; collective."""
        trainer = self._trainer
        if trainer.current_epoch >= self.epochs or self._initial is not None:
            return
        self._initial = _copied(
            {
                "module": trainer.lightning_module.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
                "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
                "precision": trainer.precision_plugin.state_dict(),
                "callbacks": {callback.state_key: callback.state_dict() for callback in self._others()},
                "rng": gather(rng_state()),
            }
        )

    def start_again(self) -> None:
        """Put it back."""
        trainer, initial = self._trainer, self._initial
        assert initial is not None
        trainer.lightning_module.load_state_dict(initial["module"])
        for optimizer, state in zip(trainer.optimizers, _copied(initial["optimizers"]), strict=True):
            optimizer.load_state_dict(state)
            optimizer.zero_grad()
        for config, state in zip(trainer.lr_scheduler_configs, _copied(initial["schedulers"]), strict=True):
            config.scheduler.load_state_dict(state)
        trainer.precision_plugin.load_state_dict(initial["precision"])
        for callback in self._others():
            if state := _copied(initial["callbacks"].get(callback.state_key)):
                now = callback.state_dict()
                callback.load_state_dict({**state, **{key: now[key] for key in _FILES if key in now}})
        if trainer.global_rank < len(initial["rng"]):
            set_rng_state(initial["rng"][trainer.global_rank])
        self._initial = None
        rank_zero_info(f"SampleSelection: {self.epochs} epochs are scored, the training starts again from its initial state")

    def _others(self) -> list[pl.Callback]:
        return [callback for callback in self._trainer.callbacks if getattr(callback, "run", None) is None]

    def state_dict(self) -> dict[str, Any] | None:
        """The initial state, until it is put back."""
        return self._initial

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take over :meth:`state_dict`."""
        self._initial = state


def _copied(state: Any) -> Any:
    """A deep copy with tensors on the CPU."""
    return tree_map(
        lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, torch.Tensor) else copy.deepcopy(leaf), state
    )
