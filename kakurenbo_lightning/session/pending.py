"""What a Trainer still has to do, and still knows, when a checkpoint is saved, and what Lightning does not save of it."""

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
    """Lets a resumed Trainer do what it had still to do when its checkpoint was saved, as if nothing had been interrupted.

    Lightning resumes with the next batch or epoch. Left out are, after a batch, the validation that was due, and the hooks of the epoch's
    end when that batch was its last one; after a validation and after an epoch the update of ``ReduceLROnPlateau``; and it forgets the
    metrics that callbacks monitor, that an ``EarlyStopping`` has stopped the training, and at which step a ``ModelCheckpoint`` has saved.

    Args:
        adapter: of the Trainer.
        step: the one under way.
    """

    def __init__(self, adapter: TrainerAdapter, step: StepView) -> None:
        self._step = step
        self._adapter, self._trainer = adapter, adapter.trainer
        self._resumption = Resumption(adapter.trainer)
        self._saved: dict[str, Any] | None = None  # of the checkpoint, until its epoch goes on
        self._stepped = False  # an optimizer's step was not counted yet
        self._before: dict[str, Any] = {}  # what each EarlyStopping knew before it is asked

    def expect_checks(self, phase: Phase) -> None:
        """A validation begins or an epoch ends: every ``EarlyStopping`` may check from now on. When a validation ends some have."""
        if phase is Phase.VALIDATED:
            return
        self._before = {callback.state_key: _knowledge(callback) for callback in self._stoppings}

    @property
    def _stoppings(self) -> list[Any]:
        return [callback for callback in self._adapter.other_callbacks if is_instance(callback, EarlyStopping)]

    def state_dict(self, together: bool) -> dict[str, Any]:
        """Of this rank; ``together``: every rank is here."""
        # metrics that are the mean of all ranks are computed when they are asked for
        known = together or self._adapter.ranks.is_alone
        return {
            "metrics": self._resumption.callback_metrics() if known else {},
            "stopped": self._trainer.should_stop and any(map(_has_stopped, self._stoppings)),
            # every check changes what it knows
            "unchecked": [each.state_key for each in self._stoppings if self._before.get(each.state_key) == _knowledge(each)],
            "saved_at": self._resumption.checkpoints_memory(),
            "validated": self._resumption.has_validation_data,
            "stepped": self._step.updated,
            "gradients": self._step.gradients() if known else {},
        }

    def load_state_dict(self, states: Sequence[dict[str, Any]], rank: int, world_size: int) -> None:
        """Keep what was saved, by rank, until the epoch goes on; of a checkpoint of an older release, nothing.

        Gradients are those of each rank's own batches; on another number of ranks there are other batches, and they are left out.
        """
        self._saved = dict(states[rank % len(states)]) if states else {}
        if len(states) != world_size:
            self._saved["gradients"] = {}

    def hold_open(self) -> None:
        """Before Lightning asks whether there is anything left to train of a run that is resumed: there is, until :meth:`release`."""
        self._resumption.hold_open()

    def release(self) -> None:
        """Lightning has asked, or the fit has ended."""
        self._resumption.close()

    def begin(self, public: bool) -> None:
        """Training begins: before Lightning asks whether another epoch is left.

        Args:
            public: without Lightning's private attributes.
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
        """The epoch that the checkpoint was saved in goes on, in ``phase``.

        Args:
            phase: of the epoch.
            catch_up: moves the schedulers, where the checkpoint was saved between an optimizer's step and that.
        """
        if self._saved is not None:
            saved, self._saved = self._saved, None
            self._stepped = saved.get("stepped", False)
            self._resumption.end_saved_batch(phase is Phase.VALIDATED, partial(self._finish, saved, catch_up))

    def move_schedulers(self) -> None:
        """Lightning's, where it had not moved them when the checkpoint was saved."""
        if self._stepped:
            self._resumption.move_schedulers()

    def _finish(self, saved: dict[str, Any], catch_up: Callable[[], None] | None, hook: str | None = None, *args: Any) -> None:
        """The Trainer is where it was when the checkpoint was saved.

        Args:
            saved: what the checkpoint holds.
            catch_up: of :meth:`go_on`.
            hook: that the checkpoint was saved in: it is called of those callbacks that go by metrics and had not been called then. A
                ``ModelCheckpoint`` that had been called saves nothing twice.
            args: of the hook, after the Trainer and the module.
        """
        self._trainer.should_stop = saved.get("stopped", False)
        if hook == "on_train_batch_end" and catch_up is not None:
            catch_up()
        if hook is None or "unchecked" not in saved:
            return
        unchecked = [callback for callback in self._stoppings if callback.state_key in saved["unchecked"]]
        for callback in (*unchecked, *self._resumption.checkpoints):
            getattr(callback, hook)(self._trainer, self._trainer.lightning_module, *args)


def _has_stopped(callback: Any) -> bool:
    return callback.stopped_epoch > 0 or callback.wait_count >= callback.patience


def _knowledge(callback: Any) -> tuple[int, int, int]:
    """Changes with every check of an ``EarlyStopping``; the best score is another tensor then."""
    return callback.wait_count, id(callback.best_score), callback.stopped_epoch
