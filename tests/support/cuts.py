"""Saving at any moment of a run, and runs on several ranks; needs no pytest, ranks import it."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
import torch

from recipes.benchmarks.faults import Training


@dataclass(eq=False)
class SaveAt(pl.Callback):
    """Saves one checkpoint as user code does: in the hook ``hook`` of ``epoch``, where it has one at batch ``batch``.

    ``"training_step"`` is the module's, at its begin, ``"forward"`` its end, and ``"optimizer_step"`` the end of the module's.

    Attributes:
        batch: -1 for the epoch's last one.
    """

    path: Path
    hook: str
    epoch: int
    batch: int = 0
    saved: bool = field(default=False, init=False)
    last_started: int = field(default=0, init=False)

    def _reach(self, hook, trainer, batch=None):
        wanted = trainer.num_training_batches - 1 if self.batch < 0 else self.batch
        if self.saved or (hook, trainer.current_epoch) != (self.hook, self.epoch) or batch not in (None, wanted):
            return
        self.saved = True
        self._act(trainer)

    def _act(self, trainer):
        trainer.save_checkpoint(self.path)

    def on_train_start(self, trainer, pl_module):
        self._reach("on_train_start", trainer)
        if self.hook in ("training_step", "forward"):
            step = pl_module.training_step

            def save_too(batch, batch_idx):
                training = torch.is_grad_enabled()  # and no scoring pass
                if training:
                    self._reach("training_step", trainer, batch_idx)
                loss = step(batch, batch_idx)
                if training:
                    self._reach("forward", trainer, batch_idx)
                return loss

            pl_module.training_step = save_too
        if self.hook == "optimizer_step":
            update = pl_module.optimizer_step

            def then_save(epoch, batch_idx, *args):
                update(epoch, batch_idx, *args)
                self._reach("optimizer_step", trainer, batch_idx)

            pl_module.optimizer_step = then_save

    def on_train_epoch_start(self, trainer, pl_module):
        self._reach("on_train_epoch_start", trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.last_started = batch_idx
        self._reach("on_train_batch_start", trainer, batch_idx)

    def on_before_backward(self, trainer, pl_module, loss):
        self._reach("on_before_backward", trainer, self.last_started)

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self._reach("on_before_zero_grad", trainer, self.last_started)

    def on_after_backward(self, trainer, pl_module):
        self._reach("on_after_backward", trainer, self.last_started)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self._reach("on_before_optimizer_step", trainer, self.last_started)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._reach("on_train_batch_end", trainer, batch_idx)

    def on_validation_start(self, trainer, pl_module):
        self._reach("on_validation_start", trainer)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._reach("on_validation_batch_start", trainer, batch_idx)

    def on_validation_end(self, trainer, pl_module):
        self._reach("on_validation_end", trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        self._reach("on_train_epoch_end", trainer)

    def on_train_end(self, trainer, pl_module):
        self._reach("on_train_end", trainer)


class SignalAt(SaveAt):
    """Sends this process SLURM's signal to save and requeue, in place of saving."""

    def _act(self, trainer):
        os.kill(os.getpid(), signal.SIGUSR1)


def on_ranks(folder, method, world_size, **options):
    """Results of ``fault_run.train`` on ``world_size`` new processes, by rank."""
    return Training(folder, method, world_size).finish(f"on{world_size}", **options)
