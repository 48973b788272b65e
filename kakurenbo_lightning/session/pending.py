"""Work and knowledge of a Trainer at the time of a checkpoint that Lightning does not save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping

from kakurenbo_lightning.core.flavour import is_instance
from kakurenbo_lightning.session.epoch_state import Phase
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.resumption import Resumption
from kakurenbo_lightning.trainer.step_view import StepView


class Pending:
    """Lets a resumed Trainer do what it had still to do when its checkpoint was saved, as if it had never been interrupted.

    Lightning resumes with the next batch or epoch. After a batch it skips the validation that was due, and the epoch-end hooks if that
    batch was the last one. After a validation or an epoch it skips the update of ``ReduceLROnPlateau``. It also forgets the metrics that
    callbacks monitor, that an ``EarlyStopping`` has stopped the training, and at which step a ``ModelCheckpoint`` has saved.

    Args:
        adapter: access to the Trainer.
        step: view of the current step.
    """

    def __init__(self, adapter: TrainerAdapter, step: StepView) -> None:
        self._step = step
        self._adapter, self._trainer = adapter, adapter.trainer
        self._resumption = Resumption(adapter.trainer)
        self._saved: dict[str, Any] | None = None  # loaded from the checkpoint, kept until its epoch continues
        self._stepped = False  # whether an optimizer step had not been counted yet
        self._before: dict[str, Any] = {}  # state of each EarlyStopping before its next check

    def expect_checks(self, phase: Phase) -> None:
        """Note the state of every ``EarlyStopping`` as a validation begins or an epoch ends, after which each may check."""
        if phase is Phase.VALIDATED:
            return
        self._before = {callback.state_key: _knowledge(callback) for callback in self._stoppings}

    @property
    def _stoppings(self) -> list[Any]:
        return [callback for callback in self._adapter.other_callbacks if is_instance(callback, EarlyStopping)]

    def state_dict(self, together: bool) -> dict[str, Any]:
        """What is pending on this rank. ``together``: all ranks are here, so that they can communicate."""
        # a metric that is averaged over ranks is only computed when it is read, which is collective
        known = together or self._adapter.ranks.is_alone
        return {
            "metrics": self._resumption.callback_metrics() if known else {},
            "stopped": self._trainer.should_stop and any(map(_has_stopped, self._stoppings)),
            # every check changes the state of an EarlyStopping
            "unchecked": [each.state_key for each in self._stoppings if self._before.get(each.state_key) == _knowledge(each)],
            "saved_at": self._resumption.checkpoints_memory(),
            "validated": self._resumption.has_validation_data,
            "stepped": self._step.updated,
            "gradients": self._step.gradients() if known else {},
        }

    def load_state_dict(self, states: Sequence[dict[str, Any]], rank: int, world_size: int) -> None:
        """Keep this rank's part of what was saved until the epoch continues. Checkpoints of older releases hold nothing.

        Gradients of another number of ranks are dropped, because each rank accumulated them over its own batches, which are others now.
        """
        self._saved = dict(states[rank % len(states)]) if states else {}
        if len(states) != world_size:
            self._saved["gradients"] = {}

    def hold_open(self) -> None:
        """Make Lightning believe that a resumed training has something left to train, until :meth:`release`."""
        self._resumption.hold_open()

    def release(self) -> None:
        """Undo :meth:`hold_open`, after Lightning has asked or the fit has ended."""
        self._resumption.close()

    def begin(self, public: bool) -> None:
        """Finish what was pending at the start of training, before Lightning asks whether another epoch is left.

        Args:
            public: do not touch Lightning's private attributes.
        """
        if self._saved is None or public:
            self._saved = None
            return
        saved = self._saved
        self._trainer.callback_metrics.update(self._resumption.on_device(saved.get("metrics", {})))
        self._resumption.recall_checkpoints(saved.get("saved_at", {}))
        self._step.restore(saved.get("gradients", {}))
        if saved.get("validated", False):
            self._resumption.set_up_validation()
        self._resumption.end_saved_epoch(partial(self._finish, saved, None))
        self._resumption.reopen_epoch()

    def go_on(self, phase: Phase, catch_up: Callable[[], None]) -> None:
        """Continue the epoch in which the checkpoint was saved, in its ``phase``.

        Args:
            phase: phase of the epoch.
            catch_up: moves the schedulers, if the checkpoint was saved after an optimizer step but before they moved.
        """
        if self._saved is not None:
            saved, self._saved = self._saved, None
            self._stepped = saved.get("stepped", False)
            self._resumption.end_saved_batch(phase is Phase.VALIDATED, partial(self._finish, saved, catch_up))

    def move_schedulers(self) -> None:
        """Move Lightning's schedulers, if they had not moved when the checkpoint was saved."""
        if self._stepped:
            self._resumption.move_schedulers()

    def _finish(self, saved: dict[str, Any], catch_up: Callable[[], None] | None, hook: str | None = None, *args: Any) -> None:
        """Do what was left, once the Trainer is where it was when the checkpoint was saved.

        Args:
            saved: pending work from the checkpoint.
            catch_up: as for :meth:`go_on`.
            hook: name of the hook in which the checkpoint was saved. It is called on those callbacks that monitor metrics and had not
                been called yet. A ``ModelCheckpoint`` that had been called does not save twice.
            args: arguments of the hook after the Trainer and the module.
        """
        self._trainer.should_stop = saved.get("stopped", False)
        if hook == "on_train_batch_end" and catch_up is not None:
            catch_up()
        # without "unchecked" the state is of an older release, which does not say who was called
        if hook is None or "unchecked" not in saved:
            return
        unchecked = [callback for callback in self._stoppings if callback.state_key in saved["unchecked"]]
        for callback in (*unchecked, *self._resumption.checkpoints):
            getattr(callback, hook)(self._trainer, self._trainer.lightning_module, *args)


def _has_stopped(callback: Any) -> bool:
    # stopped_epoch alone does not show it: it stays 0 when training stops in epoch 0
    return callback.stopped_epoch > 0 or callback.wait_count >= callback.patience


def _knowledge(callback: Any) -> tuple[int, int, int]:
    """A value that changes with every check of an ``EarlyStopping``, which replaces its tensor of the best score."""
    return callback.wait_count, id(callback.best_score), callback.stopped_epoch
