"""Touches Lightning's private attributes, as :mod:`~kakurenbo_lightning.trainer.resumption` alone does beside it.

Tested against the oldest and the newest supported Lightning (``make test-all``). When a release moves one of them,
:attr:`TrainerAdapter.missing` names it, and :meth:`SampleSelection.wrap` still works, through public API only.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.core.optimizer import _configure_optimizers, _configure_schedulers_automatic_opt
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from kakurenbo_lightning.core.arrivals import UNKNOWN
from kakurenbo_lightning.core.distributed import Ranks
from kakurenbo_lightning.core.flavour import AnyTrainer, is_instance
from kakurenbo_lightning.trainer.lr_schedule import Progress
from kakurenbo_lightning.trainer.module_state import ModuleState
from kakurenbo_lightning.trainer.progress import shown_in
from kakurenbo_lightning.trainer.sharded import settle
from kakurenbo_lightning.trainer.strategy_compatibility import wraps_parameters

# dotted paths from the trainer, there before data is set up; looked up by TrainerAdapter.missing
_PRIVATE = (
    "fit_loop._data_source.dataloader",
    "fit_loop._combined_loader",  # and its _iterator
    "fit_loop._data_fetcher",
    "fit_loop.max_batches",
    "fit_loop.setup_data",
    "fit_loop.on_run_start",
    "fit_loop.epoch_loop.batch_progress",
    "fit_loop.epoch_loop.restarting",
    "fit_loop.reset_restart_stage",
    "fit_loop.restarted_on_epoch_start",
    "fit_loop.restarted_mid_epoch",
    "fit_loop.restarted_on_epoch_end",
    "fit_loop.resumed_on_epoch_end",
    "fit_loop.epoch_progress",
    "fit_loop.epoch_loop.restarted_on_train_batch_end",
    "fit_loop.epoch_loop.restarted_on_last",
    "fit_loop.epoch_loop.reset_restart_stage",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop._should_accumulate",
    "fit_loop.epoch_loop._restart_stage",
    "fit_loop.epoch_loop._skip_next_val",
    "fit_loop.epoch_loop.advance",
    "fit_loop.epoch_loop.update_lr_schedulers",
    "fit_loop.epoch_loop.val_loop._combined_loader",
    "fit_loop.epoch_loop.val_loop._has_run",
    "fit_loop.epoch_loop.val_loop.setup_data",
    "fit_loop._restarting",
    "fit_loop._skip_backward",
    "fit_loop.epoch_loop.val_loop.run",
    "fit_loop.epoch_loop.val_loop.increment_progress_to_evaluation_end",
    "strategy.training_step",
)


_VALIDATION = ("run", "increment_progress_to_evaluation_end")  # of the validation loop: both make its iterators


def _has(root: object, path: str) -> bool:
    try:
        functools.reduce(getattr, path.split("."), root)
    except AttributeError:
        return False
    return True


def validation_metrics(trainer: AnyTrainer) -> Mapping[str, Any]:
    """What the validation that is ending has logged itself; all logged values where this Lightning release keeps no such results."""
    results = getattr(trainer, "_results", None)
    return trainer.callback_metrics if results is None else results.metrics(on_step=False)["callback"]


def inside_wrapper(trainer: AnyTrainer, function: Any) -> Any:
    """A method of the Trainer's module (or ``None``), run through the strategy where the module's parameters are whole only there."""
    if function is None or not wraps_parameters(trainer.strategy):
        return function
    strategy, name = trainer.strategy, function.__name__
    return lambda batch: strategy._forward_redirection(strategy.model, trainer.lightning_module, name, batch)


class TrainerAdapter:
    """Swaps the train loader, keeps the epoch's length true, repairs restarts and wraps the training step.

    Args:
        trainer: the Trainer.
        owner: the callback whose selection the Trainer follows.

    Attributes:
        trainer: the Trainer.
        module_state: keeps what scoring passes must not change.
        missing: the private attributes this Lightning version lacks.
        ranks: who trains which part of a plan.
    """

    def __init__(self, trainer: AnyTrainer, owner: pl.Callback) -> None:
        self.trainer = trainer
        self._owner = owner
        self.module_state = ModuleState()
        self._leave_bar: Callable[[], None] = lambda: None
        self.ranks = Ranks.of(trainer.distributed_sampler_kwargs)
        self.missing = [f"trainer.{path}" for path in _PRIVATE if not _has(trainer, path)]

    def missing_message(self) -> str:
        """What to do when :attr:`missing` is not empty, for an error."""
        package = "lightning" if isinstance(self.trainer, pl.Trainer) else "pytorch_lightning"
        return (
            f"Lightning {sys.modules[package].__version__} ({package}) has no {', '.join(self.missing)}, which the loader swap needs. "
            "Return selection.wrap(DataLoader(...)) from train_dataloader (public API only), or install a Lightning release "
            "that is tested (docs/getting_started.md)"
        )

    # --- who and where

    def arrive(self, num_samples: int, fingerprint: str, position: str) -> None:
        """Let the processes meet, when the module has its device: :meth:`~kakurenbo_lightning.core.distributed.Ranks.meet`. Collective."""
        self.ranks = self.ranks.meet(num_samples, fingerprint, position)
        settle(self.trainer.lightning_module.modules())

    @property
    def passive(self) -> bool:
        """Whether Lightning's learning-rate finder or batch-size scaler has put our callback aside: every epoch is a full one then."""
        return not any(callback is self._owner for callback in self.trainer.callbacks)

    @property
    def is_fitting(self) -> bool:
        """Whether Lightning is within ``fit``, perhaps handling its exception."""
        return self.trainer.state.fn == TrainerFn.FITTING and self.trainer.state.stage is not None

    @property
    def is_apart(self) -> bool:
        """Whether this process was started for the training (``ddp_spawn``, ``ddp_fork``, ``ddp_notebook``) and ends with it. What
        callbacks know is then lost to the process that called ``fit``: Lightning brings back weights and logged metrics only."""
        return is_instance(self.trainer.strategy.launcher, _MultiProcessingLauncher)

    @property
    def other_callbacks(self) -> list[pl.Callback]:
        """The Trainer's callbacks without ours."""
        return [callback for callback in self.trainer.callbacks if callback is not self._owner]

    # --- the loader

    def install_loader_swap(self, swap: Callable[[Any], Any]) -> None:
        """Let the train loader that Lightning asks for pass through ``swap`` from now on; replaces an earlier one."""
        # at its source: Lightning asks before on_train_start, and earlier still where estimated_stepping_batches is read
        source = self.trainer.fit_loop._data_source
        source.dataloader = lambda: swap(type(source).dataloader(source))

    def remove_loader_swap(self) -> None:
        """Undo :meth:`install_loader_swap`: Lightning gets the user's loader again."""
        vars(self.trainer.fit_loop._data_source).pop("dataloader", None)

    # --- the training step

    def wrap_training_step(self, wrapper: Callable[..., Any]) -> None:
        """Let ``wrapper(step, *args)`` run in place of ``strategy.training_step``, outside DDP's wrapper."""
        # not in place of the module's, which torch.compile may trace
        strategy = self.trainer.strategy
        strategy.training_step = functools.partial(wrapper, functools.partial(type(strategy).training_step, strategy))

    def unwrap_training_step(self) -> None:
        """Undo :meth:`wrap_training_step`: the strategy's own step runs again."""
        vars(self.trainer.strategy).pop("training_step", None)

    def hold_step(self, hold: bool) -> None:
        """``True``: the current batch makes no backward pass and no step, as if gradients were accumulated; ``False``: it does."""
        # a step that returns None would be counted; a large accumulate_grad_batches would step at an epoch's last batch all the same
        fit_loop = self.trainer.fit_loop
        fit_loop._skip_backward = hold
        if hold:
            fit_loop.epoch_loop._should_accumulate = lambda: True
        else:
            vars(fit_loop.epoch_loop).pop("_should_accumulate", None)

    # --- validation

    def wrap_validation(self, around: Callable[[], AbstractContextManager[None]]) -> None:
        """Run validation during ``fit``, and what a resumed run does in its place, inside ``around()``; replaces an earlier one."""
        loop = self.trainer.fit_loop.epoch_loop.val_loop

        def inside(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with around():
                    return method(loop, *args, **kwargs)

            return call

        for name in _VALIDATION:
            setattr(loop, name, inside(getattr(type(loop), name)))

    def unwrap_validation(self) -> None:
        """Undo :meth:`wrap_validation`: Lightning validates by itself again."""
        for name in _VALIDATION:
            vars(self.trainer.fit_loop.epoch_loop.val_loop).pop(name, None)

    # --- a train batch

    def wrap_loops(
        self, around_validation: Callable[[], AbstractContextManager[None]], begin: Callable[[], None], end: Callable[[], None]
    ) -> None:
        """Wrap both loops, see :meth:`wrap_validation` and :meth:`wrap_advance`."""
        self.wrap_validation(around_validation)
        self.wrap_advance(begin, end)

    def wrap_advance(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        """Call ``begin()`` before a train batch is loaded, and ``end()`` when it is done and counted; replaces an earlier one."""
        # no hook of a callback comes as early, or as late: Lightning counts a batch after on_train_batch_end
        loop = self.trainer.fit_loop.epoch_loop

        def advance(fetcher: Any) -> None:
            begin()
            type(loop).advance(loop, fetcher)
            end()

        loop.advance = advance

    # --- the progress bar

    def show_in_bar(self, shown: Callable[[], Mapping[str, float]]) -> None:
        """Let the progress bar show ``shown()`` before the metrics that are logged; a logged one of the same name is shown in its place.

        It is logged nowhere, so that no metric of the user's shares a name with it.
        """
        self._leave_bar = shown_in(self.trainer.progress_bar_callback, shown)

    def release(self) -> None:
        """Undo every wrapping: training step, validation, batches, loader, progress bar."""
        leave, self._leave_bar = self._leave_bar, lambda: None
        leave()
        self.keep_error()
        self.unwrap_training_step()
        vars(self.trainer.fit_loop.epoch_loop).pop("advance", None)
        self.unwrap_validation()
        self.remove_loader_swap()

    # --- the epoch

    def resumed_batches(self) -> int | None:
        """Batches of the current epoch done before the checkpoint this run resumes from, ``None`` when it does not."""
        fit_loop = self.trainer.fit_loop
        epoch_loop = fit_loop.epoch_loop
        if fit_loop.restarted_on_epoch_start:  # its counters are still those of the epoch before
            epoch_loop.reset_restart_stage()
            epoch_loop.restarting = False
        return epoch_loop.batch_progress.current.processed if epoch_loop.restarting else None

    @property
    def was_last(self) -> bool:
        """Whether all batches of an epoch were trained when the checkpoint that this run resumes from was saved."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch

    @property
    def is_ending(self) -> bool:
        """Whether Lightning is to end that epoch yet: it was saved in its validation, or at the end of that."""
        return self.was_last and not self.trainer.fit_loop.epoch_loop.restarted_on_train_batch_end

    def foreign_progress(self) -> Progress | None:
        """How far the training was that this run resumes, whose epochs were full ones; ``None`` when it resumes none."""
        if self.trainer.ckpt_path is None:
            return None
        total, done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed, self.done_batches()
        epochs, steps = self.trainer.current_epoch, self.trainer.global_step
        if self.was_last:
            return Progress(done, total // max(1, done), 0, steps)
        known = epochs > 0 and (total - done) % epochs == 0  # else its loader changed
        return Progress((total - done) // epochs if known else None, epochs, done, steps)

    def done_batches(self) -> int:
        """Batches of the current epoch that a run resumed from a checkpoint saved now does not train again."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.processed

    @property
    def in_batch(self) -> bool:
        """Whether the loop has a batch, from its transfer to the end of its last hook."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.ready > progress.completed

    @property
    def in_step(self) -> bool:
        """Whether the loop has a batch that a training resumed from a checkpoint saved now would train again."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.ready > progress.processed

    def count_step(self, checkpoint: dict[str, Any]) -> None:
        """Count the step that is under way as done, in a checkpoint."""
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]
        step = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        for counters in (progress["total"], progress["current"]):
            counters["processed"] += 1
        for counters in (step["total"], step["current"]):
            counters["completed"] += 1
        checkpoint["global_step"] = step["total"]["completed"]

    def begin_fresh_epoch(self) -> None:
        """The checkpoint was taken when an epoch's batches were done: begin the next epoch as if nothing had been interrupted.

        Lightning would compare the counters of the finished epoch with the length of the next one, and with ``max_steps`` it
        leaves an epoch that was saved at its end uncounted.
        """
        fit_loop = self.trainer.fit_loop
        epoch_loop = fit_loop.epoch_loop
        if fit_loop.restarted_on_epoch_end:
            fit_loop.epoch_progress.increment_completed()
        if epoch_loop.restarted_on_train_batch_end:
            epoch_loop.batch_progress.increment_completed()
        if not epoch_loop._should_accumulate() and (epoch_loop.restarted_on_train_batch_end or not epoch_loop.restarted_on_last):
            epoch_loop._batches_that_stepped += 1
        fit_loop.reset_restart_stage()
        epoch_loop.reset_restart_stage()
        epoch_loop.restarting = False

    def refresh_lengths(self) -> None:
        """Give Lightning the length of the epoch that is about to begin, in each of the places where it keeps one."""
        # it reads it once: with an old one it cuts longer epochs off, and skips the validation of shorter ones
        trainer = self.trainer
        fit_loop = trainer.fit_loop
        combined = fit_loop._combined_loader
        lengths = [self.limited(len(loader.sampler)) for loader in combined.flattened]
        combined.limits = [float("inf") if length >= UNKNOWN else length for length in lengths]
        fit_loop.max_batches = combined.limits[0]
        interval = getattr(trainer, "val_check_interval", None)  # absent when validation goes by the clock
        if isinstance(interval, float) and fit_loop.max_batches == float("inf"):
            trainer.val_check_batch = fit_loop.max_batches  # at the epoch's end; Lightning refuses other intervals
        elif isinstance(interval, float):
            trainer.val_check_batch = max(1, int(fit_loop.max_batches * interval))
        elif isinstance(interval, int) and trainer.check_val_every_n_epoch is not None:
            trainer.val_check_batch = min(interval, fit_loop.max_batches)

    def limited(self, batches: int) -> int:
        """How many of ``batches`` the Trainer's ``limit_train_batches`` lets an epoch have."""
        limit = self.trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))

    def reiterate_if_needed(self, has_begun: bool) -> None:
        """Make the iterator of a first or resumed epoch, which Lightning makes before the epoch is planned; later ones it makes in time.

        Not so when ``has_begun``, the iterator that is there loads the batches of the first epoch, and none was taken (one may be loaded
        ahead): workers would be started twice.
        """
        fit_loop = self.trainer.fit_loop
        resumed = getattr(fit_loop, "is_resuming", False) or fit_loop.epoch_loop.restarting
        fetcher = fit_loop._data_fetcher
        fresh = has_begun and fetcher.fetched == len(getattr(fetcher, "batches", ()))
        if resumed or (self.trainer.current_epoch == 0 and not fresh):
            iter(fit_loop._data_fetcher)

    def keep_error(self) -> None:
        """Let an error that came while loaders were started be the one that the user gets; called before Lightning takes down the fit."""
        # Lightning would ask the loader, which has no iterator, for its length, and raise in place of that error
        fit_loop = self.trainer.fit_loop
        if fit_loop._combined_loader is not None and fit_loop._combined_loader._iterator is None:
            fit_loop._data_fetcher = None

    # --- a second module

    def configured(self, module: pl.LightningModule) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
        """The optimizers and schedules that ``module``, which is not the Trainer's, asks for; it may read its ``trainer`` meanwhile."""
        module.trainer = self.trainer
        try:
            made: Any = module.configure_optimizers()
        finally:
            module.trainer = None
        if made is None:
            return [], []
        optimizers, schedulers, monitor = _configure_optimizers(made)
        return optimizers, _configure_schedulers_automatic_opt(schedulers, monitor)

    # --- batches outside the loop

    def to_device(self, batch: Any) -> Any:
        """Everything Lightning does to a train batch between the loader and ``training_step``."""
        trainer = self.trainer
        combined = trainer.fit_loop._combined_loader
        if combined is not None:  # else a session with `wrap` resumes, before Lightning has its loader
            batch = tree_map(lambda loader: batch, combined.iterables)  # of a loader in a list or a dict a batch in one
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
