"""Static methods: the training begins again from its initial state, inside one ``trainer.fit``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils._pytree import tree_map

from kakurenbo_lightning.core.distributed import gather, rank_zero_info, rank_zero_warn
from kakurenbo_lightning.core.flavour import is_instance
from kakurenbo_lightning.core.random import rng_state, set_rng_state
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.compatibility import check_restart
from kakurenbo_lightning.trainer.sharded import is_sharded, load_whole_parameters, reshard, whole_parameters
from kakurenbo_lightning.trainer.strategy_compatibility import check_sharded_restart

_FILES = ("last_model_path",)  # of a ModelCheckpoint, which would begin last-v1.ckpt without it
_ONLY_FILES = ("best_model_path",)  # of one that monitors nothing


class Restart:
    """Keeps the initial state of a training and puts it back when the scoring epochs are over.

    Put back are the module's parameters and buffers, optimizers, schedulers, the precision plug-in's scaler, the random streams of this
    process and the state of the other callbacks (the best score of a ``ModelCheckpoint`` or an ``EarlyStopping`` is of another
    training). Counters of epochs and steps go on. While it scores, nothing stops the training early.

    Args:
        adapter: the Trainer's adapter.
        scoring_epochs: function of ``max_epochs`` that returns how many epochs are scored before it; 0: there is no restart.

    Attributes:
        epochs: how many epochs are scored, decided when the first training begins; a resumed one has the number of the checkpoint.
    """

    def __init__(self, adapter: TrainerAdapter, scoring_epochs: Callable[[int | None], int]) -> None:
        self._adapter, self._trainer, self._scoring_epochs = adapter, adapter.trainer, scoring_epochs
        self.epochs = 0
        self._extended: tuple[int, int | None] | None = None  # max_epochs and min_epochs as the user gave them
        self._initial: dict[str, Any] | None = None
        self._begun = False  # a training of this method, here or in a checkpoint

    def extend(self, saved: dict[str, Any] | None) -> None:
        """The scoring epochs come before those that the user asked for; ``saved`` is the :meth:`state_dict` that is resumed from.

        Raises:
            ConflictError: the run's length is not counted in epochs, or a callback cannot be put back.
        """
        trainer = self._trainer
        if saved is not None:  # after it was extended, where a strategy loads checkpoints late
            self.shorten()
        if self._extended is not None or trainer.fast_dev_run or not self._scoring_epochs(trainer.max_epochs):
            return
        check_restart(trainer, self._adapter.other_callbacks)
        self._begun = self._begun or saved is not None
        self.epochs = saved["epochs"] if saved else self.epochs or self._scoring_epochs(trainer.max_epochs)
        if trainer.check_val_every_n_epoch and self.epochs % trainer.check_val_every_n_epoch:
            rank_zero_warn(
                f"the method scores {self.epochs} epochs first, which is no multiple of check_val_every_n_epoch="
                f"{trainer.check_val_every_n_epoch}: the last epoch may not be validated; change one of them"
            )
        loop = trainer.fit_loop
        self._extended = loop.max_epochs, loop.min_epochs
        loop.max_epochs += self.epochs
        loop.min_epochs = self.epochs + max(1, loop.min_epochs or 0)

    def shorten(self) -> None:
        """Undo :meth:`extend`: the Trainer has the user's number of epochs again."""
        if self._extended is not None:
            self._trainer.fit_loop.max_epochs -= self.epochs
            self._trainer.fit_loop.min_epochs = self._extended[1]
            self._extended = None

    def user_epochs(self, max_epochs: int | None) -> int | None:
        """The user's number of epochs: ``max_epochs`` without the scoring epochs."""
        return max_epochs if max_epochs is None or self._extended is None else max_epochs - self.epochs

    def keep(self) -> None:
        """Keep the state of a training that is about to begin; collective."""
        trainer = self._trainer
        if self.epochs and trainer.current_epoch > 0 and not self._begun:
            raise ConflictError(self._not_scored())
        self._begun = True
        if trainer.current_epoch >= self.epochs or self._initial is not None:
            return
        check_sharded_restart(trainer)
        reshard(trainer.lightning_module.modules())
        module = {**dict(self._tensors()), **whole_parameters(trainer.lightning_module)}
        self._initial = copied(
            {
                "module": module,
                "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
                "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
                "precision": trainer.precision_plugin.state_dict(),
                "callbacks": {callback.state_key: callback.state_dict() for callback in self._adapter.other_callbacks},
                "rng": gather(rng_state()),
            }
        )

    def start_again(self) -> None:
        """Put the initial state back, so that the training begins on the samples that are left."""
        trainer, initial = self._trainer, self._initial
        if initial is None:
            raise ConflictError(self._not_scored())
        reshard(trainer.lightning_module.modules())
        self._check_unchanged(initial)
        for name, tensor in self._tensors():
            tensor.data.copy_(initial["module"][name])
        load_whole_parameters(trainer.lightning_module, initial["module"])
        for optimizer, state in zip(trainer.optimizers, copied(initial["optimizers"]), strict=True):
            optimizer.load_state_dict(state)
            optimizer.zero_grad()
        for config, state in zip(trainer.lr_scheduler_configs, copied(initial["schedulers"]), strict=True):
            config.scheduler.load_state_dict(state)
        trainer.precision_plugin.load_state_dict(initial["precision"])
        for callback in self._adapter.other_callbacks:
            if state := copied(initial["callbacks"].get(callback.state_key)):
                _put_back(callback, state)
        if trainer.global_rank < len(initial["rng"]):
            set_rng_state(initial["rng"][trainer.global_rank])
        trainer.should_stop = False  # an EarlyStopping may have asked for it
        self._initial = None
        scored = "1 epoch is" if self.epochs == 1 else f"{self.epochs} epochs are"
        rank_zero_info(f"SampleSelection: {scored} scored, the training starts again from its initial state")

    def _not_scored(self) -> str:
        return (
            f"the training of epochs 0 to {self.epochs - 1} was not scored by this method, so there is no initial state to start again "
            "from, and on_mismatch='reset' makes none; leave out ckpt_path"
        )

    def warn_if_cut(self) -> None:
        """The run has ended: say so when it never started again."""
        if self._initial is not None:
            rank_zero_warn(
                f"the run ended in its {self.epochs} scoring epochs: nothing was hidden and the training did not start again. Something "
                "stopped it early (max_time, an exception handled elsewhere); give it more time"
            )

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and buffer of the module that is not sharded, those that a state_dict leaves out too."""
        module = self._trainer.lightning_module
        yield from ((name, each) for name, each in module.named_parameters() if not is_sharded(each))
        yield from module.named_buffers()

    def _check_unchanged(self, initial: dict[str, Any]) -> None:
        """Raise ``ConflictError`` when the scored training changed what it is made of."""
        trainer = self._trainer
        sharded = {name for name, each in trainer.lightning_module.named_parameters() if is_sharded(each)}  # on process 0 alone
        then = (
            [len(state["param_groups"]) for state in initial["optimizers"]],
            len(initial["schedulers"]),
            sorted(initial["module"].keys() - sharded),
        )
        groups = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        now = groups, len(trainer.lr_scheduler_configs), sorted(name for name, _ in self._tensors())
        for what, before, after in zip(("parameter groups", "schedulers", "parameters or buffers"), then, now, strict=True):
            if before != after:
                raise ConflictError(
                    f"the training cannot start again: its {what} changed while it was scored (a callback or the module adds or replaces "
                    "some); remove what does, or use a method that does not start again, for example forget_online"
                )

    def state_dict(self) -> dict[str, Any]:
        """How many epochs are scored, and the initial state, until it is put back."""
        return {"epochs": self.epochs, "initial": self._initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.epochs, self._initial = state["epochs"], state["initial"]


def _put_back(callback: pl.Callback, state: dict[str, Any]) -> None:
    """Load a callback's initial state; a ModelCheckpoint goes on with its files, which the first new checkpoint replaces."""
    now = callback.state_dict()
    files = _FILES if getattr(callback, "monitor", None) is not None else (*_FILES, *_ONLY_FILES)
    callback.load_state_dict({**state, **{key: now[key] for key in files if key in now}})
    checkpoint: Any = callback  # of either name of Lightning
    if is_instance(callback, ModelCheckpoint) and checkpoint.monitor is not None and now.get("best_k_models"):
        worst = torch.tensor(float("inf") if checkpoint.mode == "min" else -float("inf"))
        checkpoint.best_k_models = dict.fromkeys(now["best_k_models"], worst)
        checkpoint.kth_best_model_path, checkpoint.kth_value = now["kth_best_model_path"], worst


def copied(state: Any) -> Any:
    """A deep copy with tensors on the CPU."""
    return tree_map(lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else copy.deepcopy(leaf), state)
