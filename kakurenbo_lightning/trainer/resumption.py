"""What a checkpoint cut short: the private attributes of Lightning that a resumed Trainer goes on by. :mod:`.adapter` names them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from kakurenbo_lightning.core.flavour import AnyTrainer, is_class

# of a ModelCheckpoint, which has no state for them: it would save the same step twice, or not at all
_CHECKPOINT_MEMORY = ("_last_global_step_saved", "_last_checkpoint_saved", "_defer_save_until_validation")


class Resumption:
    """Puts a resumed Trainer back to where its checkpoint was saved.

    Args:
        trainer: the Trainer.
    """

    def __init__(self, trainer: AnyTrainer) -> None:
        self.trainer = trainer
        self._lifted: list[
            tuple[Any, str, int, int]
        ] = []  # limits of the run: where, the name, the user's, and one that is higher

    def hold_open(self) -> None:
        """The checkpoint was saved in the run's last epoch, before that had ended: let Lightning go there all the same.

        It counts the steps, and at an epoch's end the epoch, and would find the run over, with a validation, the hooks of the epoch's end
        or ``ReduceLROnPlateau`` left out. Until :meth:`close` both limits are one higher where they are reached, but for the hooks
        ``on_train_start``, which see the user's.

        Lightning asks right after its ``setup_data``. It calls that earlier too, before it restores its counters, where
        ``configure_optimizers`` reads ``estimated_stepping_batches``.
        """
        fit_loop = self.trainer.fit_loop

        def set_up_data() -> None:
            type(fit_loop).setup_data(fit_loop)
            self._lift_limits()

        def start() -> None:
            for loop, limit, most, _ in self._lifted:
                setattr(loop, limit, most)
            type(fit_loop).on_run_start(fit_loop)
            for loop, limit, _, higher in self._lifted:  # none, if these hooks have ended the epoch
                setattr(loop, limit, higher)

        fit_loop.setup_data, fit_loop.on_run_start = set_up_data, start
        self._lift_limits()  # this is perhaps within that call

    def _lift_limits(self) -> None:
        fit_loop = self.trainer.fit_loop
        epochs, epoch_loop = fit_loop.epoch_progress.current, fit_loop.epoch_loop
        if epochs.ready == epochs.completed or self._lifted:
            return
        for loop, limit, count in ((fit_loop, "max_epochs", epochs.processed), (epoch_loop, "max_steps", epoch_loop.global_step)):
            most = getattr(loop, limit)
            if most not in (None, -1) and count >= most:
                self._lifted.append((loop, limit, most, count + 1))
                setattr(loop, limit, count + 1)

    def close(self) -> None:
        """Undo :meth:`hold_open`: the limits of the run are the user's again."""
        for name in ("setup_data", "on_run_start"):
            vars(self.trainer.fit_loop).pop(name, None)
        while self._lifted:
            loop, limit, most, _ = self._lifted.pop()
            setattr(loop, limit, most)

    def callback_metrics(self) -> dict[str, Tensor]:
        """What callbacks monitor, on the CPU. Collective where a metric is the mean of all ranks."""
        return {name: torch.as_tensor(value).detach().cpu() for name, value in self.trainer.callback_metrics.items()}

    def on_device(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Saved metrics, moved to the device of the module's."""
        return {name: value.to(self.trainer.strategy.root_device) for name, value in metrics.items()}

    @property
    def has_validation_data(self) -> bool:
        """Whether a validation has begun; a ``ModelCheckpoint`` waits for the next one only then."""
        return self.trainer.fit_loop.epoch_loop.val_loop._combined_loader is not None

    def set_up_validation(self) -> None:
        """Ask for the validation loader, as Lightning does when an epoch begins that is validated."""
        self.trainer.validating = True
        self.trainer.fit_loop.epoch_loop.val_loop.setup_data()
        self.trainer.training = True

    @property
    def checkpoints(self) -> list[Any]:
        """The Trainer's ``ModelCheckpoint``s; no subclasses, whose hooks may need the batch."""
        return [callback for callback in self.trainer.callbacks if is_class(type(callback), ModelCheckpoint)]

    def checkpoints_memory(self) -> dict[str, dict[str, Any]]:
        """What each ``ModelCheckpoint`` knows but does not save, by its state key."""
        return {
            checkpoint.state_key: {name: vars(checkpoint)[name] for name in _CHECKPOINT_MEMORY if name in vars(checkpoint)}
            for checkpoint in self.checkpoints
        }

    def recall_checkpoints(self, memory: dict[str, dict[str, Any]]) -> None:
        """Put back :meth:`checkpoints_memory`; the one that saved the file this run resumes from had not noted it yet."""
        file = str(self.trainer.ckpt_path).rpartition("/")[2]
        for checkpoint in self.checkpoints:
            vars(checkpoint).update(memory.get(checkpoint.state_key, {}))
            files = (checkpoint.best_model_path, checkpoint.last_model_path, *checkpoint.best_k_models)
            if file in [str(path).rpartition("/")[2] for path in files]:
                checkpoint._last_global_step_saved = self.trainer.global_step

    def reopen_epoch(self) -> None:
        """The checkpoint was saved when an epoch's last batch was done: do not begin the next epoch, but go on where that one ends.

        For its validation and the hooks of its end, which Lightning would leave out.
        """
        fit_loop = self.trainer.fit_loop
        epoch_loop, progress = fit_loop.epoch_loop, fit_loop.epoch_progress
        if epoch_loop.restarted_on_train_batch_end and fit_loop.restarted_mid_epoch and epoch_loop.batch_progress.is_last_batch:
            for counter in (progress.total, progress.current):
                counter.processed -= 1
                counter.completed -= 1

    def end_saved_batch(self, validated: bool, finish: Callable[..., None]) -> None:
        """The epoch goes on in which the checkpoint was saved. When it was between two batches, Lightning does first what follows a batch.

        Args:
            validated: the validation after that batch, if one was due, is over.
            finish: called when the Trainer is where it was then, with the name and arguments of the hook that it was in, if it was in one.
        """
        fit_loop = self.trainer.fit_loop
        epoch_loop = fit_loop.epoch_loop
        fit_loop._restarting = False  # else Lightning leaves out ReduceLROnPlateau when this epoch ends
        if not epoch_loop.restarting:
            return
        between = epoch_loop.restarted_on_train_batch_end or epoch_loop.restarted_on_last
        if not between:
            self._forget_begun()
            finish()
            if not epoch_loop._should_accumulate():
                epoch_loop._batches_that_stepped -= 1  # Lightning will add the step that is trained again
            return
        in_batch = epoch_loop.restarted_on_train_batch_end
        if in_batch:
            epoch_loop.batch_progress.increment_completed()
        epoch_loop._restart_stage = "restarted_on_last"  # what follows the batch is counted when it is done
        epoch_loop.val_loop.restarting = epoch_loop.val_loop._has_run = False  # a validation that was cut begins again
        number = epoch_loop.batch_progress.current.completed - 1

        usual = vars(epoch_loop).get("advance")

        def advance(_: Any) -> None:
            """In the place of a batch, once."""
            epoch_loop.advance = usual
            epoch_loop._skip_next_val = validated
            finish(*(("on_train_batch_end", None, None, number) if in_batch else ("on_validation_end",) if validated else ()))

        epoch_loop.advance = advance

    def _forget_begun(self) -> None:
        """Take back Lightning's count of the batch that is trained again: its totals, by which it resumes, would have it twice."""
        epoch_loop = self.trainer.fit_loop.epoch_loop
        batches, steps = epoch_loop.batch_progress.total, epoch_loop.automatic_optimization.optim_progress.optimizer
        for counter in (batches, steps.step.total, steps.zero_grad.total):
            counter.reset_on_restart()

    def move_schedulers(self) -> None:
        """The optimizer had stepped when the checkpoint was saved, and Lightning had not counted it: its schedulers follow now."""
        epoch_loop = self.trainer.fit_loop.epoch_loop
        epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=False)
        if epoch_loop._num_ready_batches_reached():
            epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)

    def end_saved_epoch(self, finish: Callable[..., None]) -> None:
        """If the checkpoint was saved in the hooks of an epoch's end, call ``finish`` with their name, and do what follows them."""
        fit_loop = self.trainer.fit_loop
        if not (fit_loop.resumed_on_epoch_end or fit_loop.restarted_on_epoch_end):
            if not (fit_loop.restarted_on_epoch_start or fit_loop.restarted_mid_epoch):
                finish()  # after the last epoch, also of a training that had stopped early
            return
        was_last = bool(self._lifted)
        self.close()
        completed, progress = fit_loop.epoch_progress.current.completed, fit_loop.epoch_progress.current
        progress.completed = progress.processed - 1  # it is the epoch's end still
        finish("on_train_epoch_end")
        if fit_loop.epoch_loop.batch_progress.is_last_batch:
            fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        progress.completed = completed
        if was_last and progress.completed < progress.processed:
            fit_loop.epoch_progress.increment_completed()  # with max_steps Lightning does so when the next epoch begins
