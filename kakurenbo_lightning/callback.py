"""The Lightning callback: hooks in the order of the training loop, nothing else."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from kakurenbo_lightning.core.plan import EpochPlan
from kakurenbo_lightning.core.sampler import SelectionSampler
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.core.timers import Stopwatch
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods import get_method
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.draw.base import StreamMethod
from kakurenbo_lightning.methods.registry import check_method
from kakurenbo_lightning.session.checkpoint import brief
from kakurenbo_lightning.session.session import Session
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.signals.outputs import SampleOutputs
from kakurenbo_lightning.trainer.checkpoint_io import AtomicCheckpointIO
from kakurenbo_lightning.trainer.compatibility import only_loader, refuse_conflicts


class SampleSelection(pl.Callback):
    """Watches every sample's loss and confidence and decides what each epoch trains on.

    Add it to a Trainer; the module and the data stay as they are::

        trainer = L.Trainer(callbacks=[SampleSelection("kakurenbo", max_fraction=0.3, tau=0.7)])
        trainer.fit(model, datamodule)

    Before each epoch the hidden samples are looked at once more (forward only), the statistics are merged over the
    ranks, the method chooses what to train, and the chosen indices are dealt to the ranks. Within the epoch the callback only
    records; it never waits for the device.

    Args:
        method: a registered name (see :func:`~kakurenbo_lightning.available_methods`) or a method object.
        seed: of the order and of random choices; by default the one of ``seed_everything``, else 0.
        align_schedules: advance step-interval learning-rate schedules evenly when an epoch is shorter than a full one, so that
            one built from ``trainer.estimated_stepping_batches`` ends where it should.
        sample_outputs: ``sample_outputs(batch) -> dict`` with ``sample_loss`` and ``logits`` + ``target`` (or ``confidence`` and
            ``correct``); by default the module's method of that name, if any.
        on_mismatch: what to do when a checkpoint's selection is of another data set, method or setting: ``"error"``, or ``"reset"``
            to forget it and select anew.
        scorer: for backprop methods: a small LightningModule with ``training_step`` and one optimizer of its own, that looks at
            batches in the module's place and is trained alongside, on the same batches.
        **settings: of the method, when it is given by name.

    Attributes:
        method: the method object.
        run: the selection of the Trainer it is used with; ``None`` before ``fit``.

    Raises:
        ValueError: unknown method, a setting out of range; at setup or when training begins: a Trainer, loader or data set
            that cannot work. The message names the setting, its value, what is allowed and the fix.
        TypeError: a setting the method does not have.
    """

    def __init__(
        self,
        method: str | Method,
        *,
        seed: int | None = None,
        align_schedules: bool = True,
        sample_outputs: Callable[[Any], Mapping[str, Tensor]] | None = None,
        on_mismatch: Literal["error", "reset"] = "error",
        scorer: pl.LightningModule | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(method, str) and settings:
            raise TypeError(
                f"settings {sorted(settings)} are given beside a method object; put them into {type(method).__name__}(...)"
            )
        self.method: Method = get_method(method, **settings) if isinstance(method, str) else check_method(method)
        self.session: Session | None = None
        self._seed = seed
        self._align_schedules = align_schedules
        self._sample_outputs = sample_outputs
        if on_mismatch not in ("error", "reset"):
            raise ValueError(f"on_mismatch={on_mismatch!r} is not allowed; it must be 'error' or 'reset'")
        self._on_mismatch = on_mismatch
        if scorer is not None and (self.method.family != "backprop" or not isinstance(scorer, pl.LightningModule)):
            raise ValueError(
                f"scorer={type(scorer).__name__} is not allowed with method {self.method.name}; it must be a LightningModule, and the "
                "method one of the backprop family, for example 'selective_backprop'"
            )
        self._scorer = scorer
        self._trainer: pl.Trainer | None = None
        self._watch = Stopwatch()
        self._described = False

    @property
    def statistics(self) -> SampleStatistics | None:
        """Loss, confidence and correctness of every sample; ``None`` before training."""
        return self.session.statistics if self.session else None

    @property
    def plan(self) -> EpochPlan | None:
        """What the current epoch trains; ``None`` before the first epoch."""
        return self.session.plan if self.session else None

    @property
    def totals(self) -> Totals:
        """What the run trained, hid and refreshed so far."""
        return self.session.totals if self.session else Totals()

    def wrap(self, loader: DataLoader) -> DataLoader:
        """Let ``loader`` follow the selection, through Lightning's public API only.

        For a Lightning release whose internals this library does not know. Call it in ``train_dataloader``::

            def train_dataloader(self):
                return self.selection.wrap(DataLoader(dataset, batch_size=128, shuffle=True))

        The returned loader hides its length, so that Lightning takes each epoch's end from its iterator. The price: no total in
        the progress bar, and ``estimated_stepping_batches`` is infinite.
        """
        if self.session is None:
            raise ConflictError(
                "SampleSelection.wrap was called before Trainer.fit; call it inside train_dataloader, with the "
                "SampleSelection that is among the Trainer's callbacks"
            )
        max_epochs = None if self._trainer is None else self._trainer.max_epochs
        if self.method.family == "backprop" or isinstance(self.method, StreamMethod) or self.method.scoring_epochs(max_epochs):
            raise ConflictError(
                f"selection.wrap(...) cannot skip steps, draw while training or start again, which {self.method.name} needs; leave out "
                "wrap, or use another method, for example kakurenbo"
            )
        return self.session.adopt(loader, public=True)

    # --- before training

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and stand between Lightning and the train loader."""
        if stage != "fit":
            return
        refuse_conflicts(trainer)
        if trainer is not self._trainer:  # a second fit of the same Trainer goes on where the first one ended
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            self.session = Session(trainer, self.method, self._seed, seed, self._align_schedules, self._on_mismatch, self._scorer)
            self._trainer, self._described = trainer, False
        session = self.session
        session.loader = None
        function = self._sample_outputs or getattr(pl_module, "sample_outputs", None)
        if function is not None and not callable(function):
            raise ConflictError(
                f"sample_outputs={function!r} is not callable; it must be a function of a batch that returns a dict, or absent"
            )
        session.outputs = SampleOutputs(
            self.method.reads,
            function,
            compiled=session.adapter.is_compiled(pl_module),
            weighs=self.method.weighs,
            manual=not pl_module.automatic_optimization,
        )
        self._refuse_module(pl_module)
        # not so: a resumed run goes on at the right batch
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        if not session.adapter.missing:
            session.adapter.install_loader_swap(self._swap)
            session.adapter.wrap_validation(session.aside)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        fixed = isinstance(trainer.limit_train_batches, int) and trainer.limit_train_batches > 1 and not trainer.fast_dev_run
        if fixed and self.method.family != "draw":
            rank_zero_warn(
                f"Trainer(limit_train_batches={trainer.limit_train_batches}) fixes the number of batches per epoch, so hiding "
                "samples saves no time; use a float to limit a share of each epoch"
            )
        if trainer.reload_dataloaders_every_n_epochs:
            rank_zero_warn(
                "Trainer(reload_dataloaders_every_n_epochs) starts new workers at each reload; the data set must keep its length "
                "and order, because samples are known by their index"
            )

    def _refuse_module(self, module: pl.LightningModule) -> None:
        if "dataloader_iter" in inspect.signature(module.training_step).parameters:
            raise ConflictError(
                "training_step(dataloader_iter) is not supported: the index of a sample comes from the batch number; use "
                "training_step(batch, batch_idx)"
            )
        if self.method.family == "backprop":
            self._refuse_for_backprop(module)
        if self.method.weighs and not module.automatic_optimization:
            raise ConflictError(
                f"automatic_optimization=False: the loss weights of {self.method.name} enter the loss that training_step returns; use "
                "automatic optimization, or unbiased=False"
            )
        if self.method.refresh_mode and not module.automatic_optimization and not self.session.outputs.has_function:
            raise ConflictError(
                f"automatic_optimization=False: {self.method.name} looks at samples by running training_step, which would "
                "step your optimizers; give the module (or the callback) sample_outputs(batch), which returns "
                "{'sample_loss': ..., 'logits': ..., 'target': ...}"
            )

    def _refuse_for_backprop(self, module: pl.LightningModule) -> None:
        if not module.automatic_optimization:
            raise ConflictError(
                f"automatic_optimization=False: {self.method.name} decides which batches make a step, so Lightning must make it; use "
                "automatic optimization"
            )
        if self._trainer.accumulate_grad_batches != 1:
            raise ConflictError(
                f"Trainer(accumulate_grad_batches={self._trainer.accumulate_grad_batches}): {self.method.name} waits until chosen samples "
                "fill a batch; use accumulate_grad_batches=1 and the batch size you want"
            )

        for callback in self._trainer.callbacks:
            if isinstance(callback, GradientAccumulationScheduler):
                raise ConflictError(
                    f"GradientAccumulationScheduler: {self.method.name} waits until chosen samples fill a batch; remove it, and use the "
                    "batch size you want"
                )
        if self.method.ends_short and self._trainer.limit_train_batches != 1.0 and not self._trainer.fast_dev_run:
            rank_zero_warn(
                f"Trainer(limit_train_batches={self._trainer.limit_train_batches}) cuts off the step that trains what is left at an "
                "epoch's end: it is carried over into the next epoch"
            )

    def _swap(self, loaders: Any) -> Any:
        """What Lightning gets when it asks for the train loader."""
        loader = only_loader(loaders)
        if loader is self.session.loader:
            return loaders  # wrapped by the user
        if isinstance(loader.sampler, SelectionSampler):
            raise ConflictError(
                "this DataLoader already follows a selection; pass the original one, not trainer.train_dataloader"
            )
        follower = self.session.adopt(loader)
        if isinstance(loaders, CombinedLoader):
            loaders = copy.copy(loaders)
            loaders.flattened = [follower]
            return loaders
        return follower

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A static method's scoring epochs come on top: now, when schedules are made and the loop has not looked at its length."""
        self.session.restart.extend(self.session.saved_restart)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take hold of the optimizers and the training step."""
        if self.session.loader is None:
            raise ConflictError(self.session.adapter.missing_message())
        self.session.check()
        self.session.factor.attach(trainer.optimizers)
        self.session.adapter.wrap_training_step(self.session.training_step)
        self.session.restart.keep()

    # --- the epoch, which SelectionSampler.set_epoch has planned

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock of training runs from here."""
        self._watch.start()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Know which step of the plan comes next, and show the hidden share in the progress bar."""
        self._watch.start()
        self.session.begin_batch(batch_idx, batch)
        if not self.session.announced:
            self.session.announced = True
            share = self.plan.hidden_fraction
            if not trainer.barebones and (share or self.method.family == "hide"):
                pl_module.log("selection/hidden_fraction", share, on_step=True, on_epoch=False, prog_bar=True, logger=False)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """The clock of the backward pass."""
        if self.session.engine is not None:
            self.session.engine.phases.start("backward")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock of the backward pass."""
        if self.session.engine is not None:
            self.session.engine.phases.stop("backward")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the schedules keep pace, and say once where per-sample values come from."""
        self.session.end_batch(batch_idx)
        if not self._described and self.session.outputs.source:
            self._described = True
            changed = (field for field in fields(self.method) if getattr(self.method, field.name) != field.default)
            settings = ", ".join(f"{field.name}={brief(getattr(self.method, field.name))}" for field in changed)
            rank_zero_info(
                f"SampleSelection: {self.method.name}({settings}) {self.method.summary}. Per-sample values come from "
                f"{self.session.outputs.source}."
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is not training time."""
        self._watch.pause()
        if self.session is not None:
            self.session.begin_validation()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count, and log what was planned: here, so that an epoch resumed in its middle is logged too."""
        if trainer.current_epoch < self.session.epoch:
            return  # resumed by wrap: the epoch is counted and logged, the next one planned
        self.session.end_epoch(self._watch.take())
        if not trainer.barebones:
            metrics = {f"selection/{name}": value for name, value in self.session.metrics.items()}
            pl_module.log_dict(metrics, batch_size=1, sync_dist=True)

    # --- after training

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give every rank all statistics, say what it came to, and let go of the optimizers."""
        self.session.merge()
        self.session.restart.warn_if_cut()
        rank_zero_info(f"SampleSelection: {self.method.name} {self.totals.summary(self.method.family)}")
        self._release()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A checkpoint of a finished run leaves nothing to train: its state is taken over all the same."""
        self.session.take_over_rest()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no scaled learning rate behind for the checkpoint of the exception, and say how far this rank was."""
        started = self.plan is not None and trainer.state.fn == TrainerFn.FITTING
        if started and hasattr(exception, "add_note"):  # Python 3.11
            exception.add_note(f"SampleSelection: {self.session.position()} when this happened")
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the Trainer as it was, but for its checkpoint files staying atomic."""
        if stage == "fit" and self.session is not None:
            self._release()
            self.session.restart.shorten()

    def _release(self) -> None:
        if self.session is not None:
            self.session.release()

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers; loads with ``weights_only=True``. Collective unless an exception is being handled."""
        if self.session is None:
            return {}
        return self.session.state_dict(collective=self._trainer.state.status != TrainerStatus.INTERRUPTED)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint saved by user code within a step holds the unscaled learning rate too."""
        if self.session is not None:
            self.session.factor.unscale(trainer.optimizers, checkpoint.get("optimizer_states", []))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the data set is there."""
        if self.session is not None:
            self.session.load_state_dict(state_dict)
