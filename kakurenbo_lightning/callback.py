"""The Lightning callback: hooks in the order of the training loop, which it maps onto a session and its engine.

The order of events. Planning happens in `set_epoch`, earlier than `on_train_epoch_start`, because Lightning reads the loader's length
before that hook, and its workers load the first batches of epoch 0 even before training starts::

    setup                        refuse what cannot work; stand between Lightning and the train loader
    train_dataloader             the loader is copied, and a SelectionSampler follows the plan
    load_state_dict              a checkpoint's state waits for the data set
    on_train_start               take hold of the optimizers and the training step
    for each epoch:
      sampler.set_epoch          score the hidden samples, merge the statistics, plan, shard
      on_train_epoch_start       the clock
      for each batch:
        on_train_batch_start     the engine knows the batch (backprop: scores it and chooses)
        strategy.training_step   the engine runs the step and records its sample values
        optimizer.step           with the learning-rate factor
        on_train_batch_end       schedules keep pace (draw: what was observed is written)
      on_train_epoch_end         count and log
    on_train_end                 give every rank all statistics, let go
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from weakref import WeakSet

import lightning.pytorch as pl
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import Unpack  # which torch needs; in typing since Python 3.11

from kakurenbo_lightning.core.flavour import is_class, is_instance, join, leave_log
from kakurenbo_lightning.core.key_filter import no_key
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.core.timers import Stopwatch
from kakurenbo_lightning.core.worker_errors import explain_worker_errors
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.keywords import keywords_of
from kakurenbo_lightning.methods.registry import registered
from kakurenbo_lightning.session.announcements import with_options
from kakurenbo_lightning.session.control import check_guard
from kakurenbo_lightning.session.epoch_state import Phase
from kakurenbo_lightning.session.guard import SelectionGuard
from kakurenbo_lightning.session.plain_values import savable
from kakurenbo_lightning.session.saving import Saving, method_and_saving
from kakurenbo_lightning.session.session import Session
from kakurenbo_lightning.session.settings import SessionSettings
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.session.trial import TrialReport, run_trial
from kakurenbo_lightning.trainer import compatibility
from kakurenbo_lightning.trainer.adapter import TrainerAdapter, inside_wrapper
from kakurenbo_lightning.trainer.checkpoint_io import AtomicCheckpointIO, guard_folders
from kakurenbo_lightning.trainer.key_compatibility import checked_key
from kakurenbo_lightning.trainer.loader_compatibility import check_not_followed, check_wrapped, in_place_of, only_loader
from kakurenbo_lightning.trainer.sharding_compatibility import check_spread, check_values


class SampleSelection(pl.Callback):
    """Watches every sample's loss and confidence and decides what each epoch trains on.

    Add it to a Trainer; the module and the data stay as they are::

        trainer = L.Trainer(callbacks=[SampleSelection("kakurenbo", max_fraction=0.3, tau=0.7)])
        trainer.fit(model, datamodule)

    Args:
        method: a registered name (see :func:`~kakurenbo_lightning.available_methods`) or a method object; then an attribute, the object.
        seed: of the order and of random choices; by default the one of ``seed_everything``, else 0.
        align_schedules: advance step-interval schedules evenly in shorter epochs, to the end that was planned for full ones.
        sample_outputs: ``sample_outputs(batch) -> dict`` with ``sample_loss`` and ``logits`` + ``target`` (or ``confidence`` and
            ``correct``); by default the module's method of that name, if any.
        on_mismatch: when a checkpoint's selection is of another data set, method or setting: ``"error"``, or ``"reset"`` to begin again.
        scorer: for backprop methods: a small LightningModule with ``training_step`` and one optimizer of its own that scores batches in
            the module's place and is trained beside it: on what the module trains, or, with ``train_scorer_every=n``, on every n-th choice.
        check_attribution: on the first batch, run the step forward on the whole batch and on its first half, and raise when a sample's
            value depends on which others are in its batch, or is another sample's. ``False`` goes on without this test.
        unweighted_rest: for methods with loss weights, when the values are only a part of the loss: ``True`` says that the rest is no
            sample's (a penalty on weights) and stays as it is. By default such a loss is refused.
        mean_over_samples: with ``accumulate_grad_batches``: scale each batch's loss, a mean over the batch, by its share of the step's
            samples on all ranks, so that the gradient is the mean over all of them, in the last step of an epoch too. ``False``: each
            batch counts the same, as in Lightning. By default on for methods that change batches: the hide family without ``baseline``.
        values: what is recorded of a sample: ``"sample_loss"``, its own, or, for hide methods and a loss that has none by sample (Dice
            over the batch, contrastive, detection), ``"bls"``: a moving mean of the losses of the batches it was in.
        bls_alpha: of that mean, ``bls_alpha * mean + (1 - bls_alpha) * loss``.
        save: the share of the training time to save, as 0.3, in place of the method's own share (F, the refresh interval): they are set
            when the first epoch, which trains on everything, has measured a forward pass. :class:`Saving` has limits beside it.
        statistics: ``"sharded"`` for very many samples on several ranks: each has the statistics of a share of them (docs/scale.md).
        key: of iterable data: the field of a sample, by name or position, that names it; :attr:`keep` then goes into the data's pipeline.
        max_hidden_epochs: with ``key``, of a method that refreshes hidden samples: for how many epochs in a row one may be left out.
        guard: trains on everything for some epochs when a validated value falls below a reference.
        **settings: of the method, when it is given by name; ``preset="fast"`` (of kakurenbo) gives several together.

    Attributes:
        session: the selection within the Trainer it is used with; ``None`` before ``fit``.

    Raises:
        ValueError: unknown method, a setting out of range; later: a Trainer, loader or data set that cannot work. The message names the
            setting, its value, what is allowed and the fix.
        TypeError: a setting the method does not have, or one of a method of your own whose value no checkpoint can hold.
    """

    def __init__(
        self,
        /,  # a setting may have any name, `self` too: it is refused as every unknown one
        method: str | Method,
        *,
        seed: int | None = None,
        align_schedules: bool = True,
        sample_outputs: Callable[[Any], Mapping[str, Tensor]] | None = None,
        on_mismatch: Literal["error", "reset"] = "error",
        scorer: pl.LightningModule | None = None,
        check_attribution: bool = True,
        unweighted_rest: bool = False,
        mean_over_samples: bool | None = None,
        values: Literal["sample_loss", "bls"] = "sample_loss",
        bls_alpha: float = 0.7,
        save: float | Saving | None = None,
        guard: SelectionGuard | None = None,
        statistics: Literal["replicated", "sharded"] = "replicated",
        key: str | int | Sequence[str | int] | None = None,
        max_hidden_epochs: int = 3,
        **settings: Any,
    ) -> None:
        join(SampleSelection)
        self.method, saving = method_and_saving(method, settings, save)
        savable(self.method)
        check = compatibility.checked_arguments
        checked = check(seed=seed, align_schedules=align_schedules, on_mismatch=on_mismatch, check_attribution=check_attribution)
        checked |= check(unweighted_rest=unweighted_rest, mean_over_samples=mean_over_samples, values=values, bls_alpha=bls_alpha)
        checked |= check(statistics=statistics, max_hidden_epochs=max_hidden_epochs)
        keep = checked_key(key, self.method, save=saving, values=values, statistics=statistics)
        check_values(checked["values"], checked["statistics"], self.method)
        compatibility.check_scorer(scorer, self.method)
        self.session: Session | None = None
        self._settings = SessionSettings(scorer=scorer, save=saving, guard=check_guard(guard, self.method), keep=keep, **checked)
        self.keep: Callable[..., bool] = keep or no_key
        """With ``key``, for the pipeline of iterable data: says of a sample, also in workers, whether the epoch trains it."""
        self._sample_outputs = check(sample_outputs=sample_outputs)["sample_outputs"]
        self._watch = Stopwatch()
        self._left: WeakSet[pl.Trainer] = WeakSet()  # Trainers whose session was given up for that of another one

    @property
    def statistics(self) -> SampleStatistics | None:
        """Loss, confidence and correctness of every sample; ``None`` before training."""
        return self.session.data.statistics if self.session is not None and self.session.loader.is_known else None

    @property
    def plan(self) -> Plan | None:
        """What the current epoch trains; ``None`` before the first. A draw method's is a stream: nobody knows its samples before."""
        if self.session is None or self.session.state.phase is Phase.IDLE:
            return None
        return self.session.state.plan

    @property
    def totals(self) -> Totals:
        """What was trained, hidden and refreshed so far; zeros before ``fit``, and where the training ran in processes of its own.
        Counts are ``samples_trained``, ``samples_hidden``, ``samples_refreshed``, ``samples_scored`` and ``samples_rejected``; seconds are
        ``saved_seconds`` (estimated) and others, which ``as_dict()`` has and ``help(selection.totals)`` explains.
        """
        return Totals() if self.session is None else self.session.totals

    @property
    def _active(self) -> Session:
        """The session, in hooks that Lightning calls after ``setup``."""
        if self.session is None:
            raise ConflictError(
                "SampleSelection is used before Trainer.fit; add it to the Trainer's callbacks (wrap is called inside train_dataloader)"
            )
        return self.session

    @staticmethod
    def check(model: pl.LightningModule, data: Any, *, sample_outputs: Any = None, **trainer_settings: Any) -> TrialReport:
        """Run the verification of the first batch without training; ``print`` what it returns.

        Args:
            model: its parameters and buffers are afterwards what they were.
            data: a LightningDataModule, or a train DataLoader.
            sample_outputs: as for the callback.
            trainer_settings: for example ``precision``; one device is used.

        Raises:
            ValueError: the module or the loader cannot be used with sample selection at all.
        """
        selection = SampleSelection("baseline", sample_outputs=sample_outputs)
        return run_trial(selection, model, data, sample_outputs, trainer_settings)

    def __repr__(self) -> str:
        return with_options(self.method, self._settings)

    def wrap(self, loader: DataLoader) -> DataLoader:
        """Let ``loader`` follow the selection, through Lightning's public API only.

        For a Lightning release whose internals this library does not know. Call it in ``train_dataloader``::

            def train_dataloader(self):
                return self.selection.wrap(DataLoader(dataset, batch_size=128, shuffle=True))

        The returned loader hides its length, so that Lightning takes each epoch's end from its iterator. The price: no total in
        the progress bar, and ``estimated_stepping_batches`` is infinite.
        """
        compatibility.check_wrap(self.method, self._active.adapter.trainer.max_epochs)
        return self._active.follow(loader, self._active.begin_epoch, public=True)

    def loss_scale(self, accumulate: int = 1) -> float:
        """Under manual optimization: the factor on a batch's mean loss, over ``accumulate``, that makes the gradient of a step of so many
        batches (the last of an epoch has what is left) the mean over all samples that they have on all ranks::

            self.manual_backward(loss * self.selection.loss_scale(accumulate=2) / 2)
        """
        return self._active.loss_scale(compatibility.checked_arguments(accumulate=accumulate)["accumulate"])

    # --- before training

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and stand between Lightning and the train loader."""
        if stage != "fit":
            return
        function = self._sample_outputs or getattr(pl_module, "sample_outputs", None)
        compatibility.check_fit(trainer, pl_module, self.method, function, self._settings.mean_over_samples, self._sample_outputs)
        check_spread(trainer, self._settings.statistics)
        session = self.session
        if session is not None and trainer is not session.adapter.trainer:
            compatibility.check_free(session.adapter.trainer)
            self._left.add(session.adapter.trainer)
            session = None
        if session is None:  # a second fit of the same Trainer goes on where the first one ended
            settings = replace(self._settings, default_seed=int(os.environ.get("PL_GLOBAL_SEED", 0)))
            session = self.session = Session(TrainerAdapter(trainer, owner=self), self.method, settings)
        session.begin_fit(self._settings.outputs_of(self.method, inside_wrapper(trainer, function), pl_module))
        _stand_between(session)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A static method's scoring epochs come on top: now, when schedules are made and the loop has not read its length."""
        self._active.restart.extend(self._active.keeper.saved_restart)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take hold of the optimizers and the training step."""
        if trainer in self._left and not self._active.has_state:
            compatibility.check_not_left(trainer)
        self._active.begin_training()

    # --- the epoch, which SelectionSampler.set_epoch has begun: see Session.begin_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock of training starts here."""
        self._watch.start()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Know which step of the plan comes next."""
        self._watch.start()
        self._active.begin_batch(batch_idx, batch)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """The backward pass begins: its seconds are counted."""
        self._active.engine.timer.start("backward")
        self._active.step.before_backward()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The backward pass is over."""
        self._active.engine.timer.stop("backward")
        self._active.step.after_backward()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Gradients are what the optimizer gets, but for clipping."""
        self._active.step.before_update()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the schedules keep pace, and say once where sample values come from."""
        session = self._active
        session.end_batch(batch_idx)
        session.announcements.describe(session.outputs.source)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is not training time."""
        self._watch.pause()
        if self.session is not None:
            self.session.validate(Phase.VALIDATING)
            explain_worker_errors(self.session.explain)  # there may be none but those of validation

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """SLURM does not wait for the end of a long validation."""
        if self.session is not None:
            self.session.requeue.answer(alone=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a checkpoint saved from now on has not to validate again."""
        if self.session is not None:
            self.session.validate(Phase.VALIDATED)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count, and log what was planned: here, so that an epoch resumed in its middle is logged too."""
        session = self._active
        if trainer.current_epoch < session.state.epoch:
            return  # resumed by wrap: the epoch is counted and logged, the next one planned
        session.end_epoch(self._watch.take())
        if not trainer.barebones:
            metrics = {f"selection/{name}": value for name, value in session.state.metrics.items()}
            pl_module.log_dict(metrics, batch_size=1, sync_dist=True)

    # --- after training

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give every rank all statistics, say what it came to, and let go of the optimizers."""
        session = self._active
        session.requeue.answer()
        session.merge()
        session.restart.warn_if_cut()
        session.announcements.conclude(session.totals, session.control, session.state.epoch + 1, session.data.count)
        compatibility.warn_of_processes(session.adapter.is_apart)
        session.release()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A checkpoint of a finished training leaves nothing to train: its state is taken over all the same."""
        self._active.take_over_rest()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no scaled learning rate behind for the checkpoint of the exception, and say how far this rank was."""
        self._release(trainer, exception)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the Trainer as it was, but for its checkpoint files staying atomic."""
        if stage == "fit" and self._release(trainer):
            self._active.restart.shorten()

    def _release(self, trainer: pl.Trainer, exception: BaseException | None = None) -> bool:
        """Let go of ``trainer``, unless it is another one that was refused; whether it was the session's."""
        if self.session is None or trainer is not self.session.adapter.trainer:
            return False
        self.session.release(exception)
        return True

    # --- state

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the method and the settings, and belongs to no Trainer."""
        return vars(self) | {"session": None, "_left": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_left": WeakSet()})

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers; loads with ``weights_only=True``. Collective unless an exception is being handled."""
        if self.session is None:
            return {}
        return self.session.state_dict(together=self.session.adapter.trainer.state.status != TrainerStatus.INTERRUPTED)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint saved within a step holds what the step began with."""
        if self.session is not None:
            self.session.rewind(checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the data set is there."""
        if self.session is not None:
            self.session.load_state_dict(state_dict)


def _stand_between(session: Session) -> None:
    """Between Lightning and the train loader, around its loops, and where it writes checkpoints."""
    # not so: a resumed session goes on at the right batch
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    adapter, strategy = session.adapter, session.adapter.trainer.strategy
    if not adapter.missing:
        adapter.install_loader_swap(partial(_swapped, session))
        adapter.wrap_loops(session.streams.set_aside, session.begin_step, session.requeue.answer)
    if is_class(type(strategy.checkpoint_io), TorchCheckpointIO):
        strategy.checkpoint_io = AtomicCheckpointIO()
    if is_instance(strategy, ModelParallelStrategy) or is_instance(strategy, FSDPStrategy):
        guard_folders(strategy)


def _swapped(session: Session, loaders: Any) -> Any:
    """What Lightning gets when it asks for the train loader: a copy whose sampler's ``set_epoch`` begins the session's epochs."""
    loader = only_loader(loaders)
    if session.loader.holds(loader):
        check_wrapped(loaders, loader)
        return loaders
    check_not_followed(loader)
    return in_place_of(loaders, session.follow(loader, on_set_epoch=session.begin_epoch))


join(SampleSelection)  # for a command line that asks before an instance is made
SampleSelection.__init__.__annotations__["settings"] = Unpack[keywords_of(registered())]  # which it then takes, with their types
leave_log()
