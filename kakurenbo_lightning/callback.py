"""The Lightning callback: hooks in the order of the training loop, nothing else."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from math import ceil
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from kakurenbo_lightning.learning_rate import LearningRateFactor, ScheduleAligner, estimated_epochs
from kakurenbo_lightning.methods import Epoch, HideMethod, get_method
from kakurenbo_lightning.outputs import SampleOutputs, Values
from kakurenbo_lightning.plan import DealtEpoch, EpochPlan
from kakurenbo_lightning.refresh import looking, refresh
from kakurenbo_lightning.sampler import SelectionSampler
from kakurenbo_lightning.seeding import stream_seed
from kakurenbo_lightning.statistics import SampleStatistics
from kakurenbo_lightning.totals import RunTotals, Stopwatch
from kakurenbo_lightning.trainer_adapter import (
    ConflictError,
    TrainerAdapter,
    follow_sampler,
    only_loader,
    read_loader,
    refuse_conflicts,
)

STATE_VERSION = 1


class SampleSelection(pl.Callback):
    """Watches every sample's loss and confidence and decides what each epoch trains on.

    Add it to a Trainer; the module and the data stay as they are::

        trainer = L.Trainer(callbacks=[SampleSelection("kakurenbo", max_fraction=0.3, tau=0.7)])
        trainer.fit(model, datamodule)

    Before each epoch the statistics of the last one are merged over the ranks, the hidden samples are looked at once more
    (forward only), the method chooses what to train, and the chosen indices are dealt to the ranks. Within the epoch the
    callback only records; it never waits for the device.

    Args:
        method: a registered name (see :func:`~kakurenbo_lightning.available_methods`) or a method object.
        seed: of the order and of random choices; by default the one of ``seed_everything``, else 0.
        align_schedules: advance step-interval learning-rate schedules evenly when an epoch is shorter than a full one, so that
            one built from ``trainer.estimated_stepping_batches`` ends where it should.
        sample_outputs: ``sample_outputs(batch) -> dict`` with ``sample_loss`` and ``logits`` + ``target`` (or ``confidence`` and
            ``correct``); by default the module's method of that name, if any.
        **settings: of the method, when it is given by name.

    Raises:
        ValueError: unknown method, a setting out of range; at setup or when training begins: a Trainer, loader or data set
            that cannot work. The message names the setting, its value, what is allowed and the fix.
        TypeError: a setting the method does not have.
    """

    def __init__(
        self,
        method: str | HideMethod,
        *,
        seed: int | None = None,
        align_schedules: bool = True,
        sample_outputs: Callable[[Any], Mapping[str, Tensor]] | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(method, str) and settings:
            raise TypeError(
                f"settings {sorted(settings)} are given beside a method object; put them into {type(method).__name__}(...)"
            )
        self.method: HideMethod = get_method(method, **settings) if isinstance(method, str) else method
        if not isinstance(self.method, HideMethod):
            raise TypeError(f"method={method!r} is neither a registered name nor a method object with plan(statistics, epoch)")
        self._seed_setting = seed
        self._align_schedules = align_schedules
        self._sample_outputs = sample_outputs
        self._factor = LearningRateFactor()
        self._aligner = ScheduleAligner()
        self._trainer: pl.Trainer | None = None
        self._begin_run()

    def _begin_run(self) -> None:
        """Forget everything about an earlier run."""
        self.totals = RunTotals()
        self.statistics: SampleStatistics | None = None
        self.plan: EpochPlan | None = None
        self._epoch = -1
        self._step = 0
        self._dealt: DealtEpoch | None = None
        self._values: Values | None = None
        self._loaded: dict[str, Any] | None = None
        self._outputs: SampleOutputs | None = None
        self._watch = Stopwatch()
        self._seconds = {"refresh_seconds": 0.0, "select_seconds": 0.0}
        self._nonfinite = 0
        self._told: set[str] = set()

    # --- before training

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and stand between Lightning and the train loader."""
        if stage != "fit":
            return
        if trainer is not self._trainer:
            self._begin_run()
        self._trainer = trainer
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self._seed_setting is None else self._seed_setting
        self._public = False
        self._loader: DataLoader | None = None
        refuse_conflicts(trainer)
        self._adapter = TrainerAdapter(trainer)
        function = self._sample_outputs or getattr(pl_module, "sample_outputs", None)
        self._outputs = SampleOutputs(self.method.reads, function, compiled=self._adapter.is_compiled(pl_module))
        self._refuse_module(pl_module)
        if not self._adapter.missing():
            self._adapter.install_loader_swap(self._swap)
        if isinstance(trainer.limit_train_batches, int) and trainer.limit_train_batches > 1 and not trainer.fast_dev_run:
            rank_zero_warn(
                f"Trainer(limit_train_batches={trainer.limit_train_batches}) fixes the number of batches per epoch, so hiding samples "
                "saves no time; use a float to limit a share of each epoch"
            )
        if trainer.reload_dataloaders_every_n_epochs:
            rank_zero_warn(
                "Trainer(reload_dataloaders_every_n_epochs) starts new workers at each reload; the data set must keep its length "
                "and order, because samples are known by their index"
            )

    def _refuse_module(self, module: pl.LightningModule) -> None:
        assert self._outputs is not None
        if "dataloader_iter" in inspect.signature(module.training_step).parameters:
            raise ConflictError(
                "training_step(dataloader_iter) is not supported: the index of a sample comes from the batch number; use "
                "training_step(batch, batch_idx)"
            )
        if self.method.refresh_mode and not module.automatic_optimization and not self._outputs.has_function:
            raise ConflictError(
                f"automatic_optimization=False: {self.method.name} looks at hidden samples by running training_step, which would "
                "step your optimizers; give the module (or the callback) sample_outputs(batch), which returns "
                "{'sample_loss': ..., 'logits': ..., 'target': ...}"
            )

    def _swap(self, loaders: Any) -> Any:
        """What Lightning gets when it asks for the train loader."""
        loader = only_loader(loaders)
        if isinstance(loader.sampler, SelectionSampler):
            return loaders  # wrapped by the user
        self._public = False
        follower = self._adopt(loader)
        if isinstance(loaders, CombinedLoader):
            loaders.flattened = [follower]
            return loaders
        return follower

    def wrap(self, loader: DataLoader) -> DataLoader:
        """Let ``loader`` follow the selection, through Lightning's public API only.

        For a Lightning release whose internals this library does not know. Call it in ``train_dataloader``::

            def train_dataloader(self):
                return self.selection.wrap(DataLoader(dataset, batch_size=128, shuffle=True))

        The returned loader hides its length, so that Lightning takes each epoch's end from its iterator. The price: no total in
        the progress bar, and ``estimated_stepping_batches`` is infinite.
        """
        if self._trainer is None:
            raise ConflictError(
                "SampleSelection.wrap was called before Trainer.fit; call it inside train_dataloader, with the "
                "SampleSelection that is among the Trainer's callbacks"
            )
        self._public = True
        return self._adopt(loader)

    def _adopt(self, loader: DataLoader) -> DataLoader:
        """A copy of the user's loader that follows a new sampler."""
        shuffle, total = read_loader(loader), len(loader.dataset)
        if self.statistics is None:
            self.statistics = SampleStatistics(total)
        self._check_length(total)
        trainer = self._trainer
        assert trainer is not None
        sampler = SelectionSampler(
            total,
            loader.batch_size,
            trainer.world_size,
            trainer.global_rank,
            drop_last=loader.drop_last,
            shuffle=shuffle,
            seed=self._seed,
            on_set_epoch=self._begin_epoch,
        )
        self._full_batches = self._adapter.limited(len(sampler))
        max_epochs = self._max_epochs()
        self.method.check_run(max_epochs)
        if self._public:
            # Lightning takes the first batches before set_epoch(0)
            sampler.follow(self.method.plan(SampleStatistics(total), Epoch(0, max_epochs, self._seed)))
        self._sampler = sampler
        self._loader = follow_sampler(loader, sampler, sized=not self._public)
        self._seed_loader("loader", 0)
        return self._loader

    def _check_length(self, total: int) -> None:
        assert self.statistics is not None
        if total != len(self.statistics):
            raise ConflictError(
                f"the train data set has {total} samples now and had {len(self.statistics)} before; samples are known by their "
                "index, so the data set must keep its length and order; use a new Trainer and SampleSelection for new data"
            )

    def _max_epochs(self) -> int | None:
        trainer = self._trainer
        assert trainer is not None
        steps = ceil(self._full_batches / trainer.accumulate_grad_batches)
        max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        return estimated_epochs(max_epochs, trainer.max_steps, steps)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take hold of the optimizers and the training step."""
        if self._loader is None:
            raise ConflictError(self._adapter.missing_message())
        self._factor.attach(trainer.optimizers)
        self._adapter.wrap_training_step(self._training_step)

    # --- before each epoch

    def _begin_epoch(self, epoch: int) -> None:
        """``set_epoch``: runs before anything reads the loader's length."""
        trainer = self._trainer
        assert trainer is not None and self.statistics is not None and self._loader is not None
        if self not in trainer.callbacks:
            return  # the LR finder or the batch-size scaler is running: every epoch is a full one
        self._check_length(len(self._loader.dataset))
        self.statistics.to(trainer.strategy.root_device)
        if self._loaded is not None:
            self._apply_state(self._loaded)
        resumed = None if self._public else self._adapter.resumed_batches()
        if epoch == self._epoch and self.plan is not None:
            start = (resumed or 0) if not self._public else self._step
        else:
            if self.plan is not None:
                self._finish_epoch()
            self._plan_epoch(epoch)
            start = 0
            if resumed is not None:
                self._adapter.begin_fresh_epoch()
        self._follow(epoch, start)

    def _finish_epoch(self) -> None:
        """Look at what was hidden, and give every rank what every rank saw."""
        assert self.plan is not None and self.statistics is not None and self._trainer is not None
        assert self._outputs is not None and self._loader is not None
        watch = Stopwatch()
        watch.start()
        if self.method.refresh_mode is not None:
            self._seed_loader("refresh", self._epoch)
            refresh(
                self._trainer,
                self._adapter,
                self._loader,
                self.plan.hidden,
                self._outputs,
                self.statistics,
                self._epoch,
                self.method.refresh_mode,
            )
            self.totals.samples_refreshed += len(self.plan.hidden)
        self._seconds["refresh_seconds"] = watch.take()
        self.totals.refresh_seconds += self._seconds["refresh_seconds"]

    def _plan_epoch(self, epoch: int) -> None:
        """Choose what ``epoch`` trains."""
        assert self.statistics is not None
        watch = Stopwatch()
        watch.start()
        self.statistics.merge()
        self.plan = self.method.plan(self.statistics, Epoch(epoch, self._max_epochs(), self._seed))
        self._check_ranks_agree(epoch)
        self._epoch = epoch
        self._nonfinite = self.statistics.nonfinite()
        self._seconds["select_seconds"] = watch.take()
        self.totals.select_seconds += self._seconds["select_seconds"]
        self.totals.samples_hidden += len(self.plan.hidden)
        if self._nonfinite:
            self._tell_once(
                "nonfinite",
                f"{self._nonfinite} of {len(self.statistics)} samples have a NaN or infinite loss; they are never hidden. See "
                "selection/nonfinite",
                rank_zero_warn,
            )

    def _follow(self, epoch: int, start: int) -> None:
        """Make the plan what the loader, the trainer and the schedules go by."""
        trainer = self._trainer
        assert trainer is not None and self.plan is not None and self.statistics is not None
        self._sampler.follow(self.plan, epoch, start)
        self._dealt = self._sampler.dealt.to(self.statistics.device)
        self._step = start
        self._factor.value = self.plan.lr_factor
        batches = self._adapter.limited(len(self._sampler))
        if self._schedules_follow_epochs():
            accumulate = trainer.accumulate_grad_batches
            self._aligner.begin_epoch(trainer.lr_scheduler_configs, batches, self._full_batches, accumulate, start)
        self._seed_loader("loader", epoch)
        if not self._public:
            self._adapter.refresh_lengths()
            self._adapter.reiterate_if_needed()

    def _schedules_follow_epochs(self) -> bool:
        """Whether schedules are to be aligned: not when ``max_steps`` counts the steps they were built for."""
        trainer = self._trainer
        assert trainer is not None
        if not self._align_schedules or not trainer.lightning_module.automatic_optimization:
            return False
        steps = ceil(self._full_batches / trainer.accumulate_grad_batches)
        return trainer.max_steps < 0 or (trainer.max_epochs or 0) > 0 and trainer.max_steps >= steps * trainer.max_epochs

    def _seed_loader(self, stream: str, epoch: int) -> None:
        assert self._loader is not None
        self._loader.generator.manual_seed(stream_seed(self._seed, epoch, f"{stream}:{self._sampler.rank}"))

    def _check_ranks_agree(self, epoch: int) -> None:
        assert self.plan is not None and self.statistics is not None
        if self._sampler.num_replicas == 1 or not dist.is_initialized():
            return
        mine = torch.tensor([self.plan.checksum()], device=self.statistics.device)
        sums = [torch.empty_like(mine) for _ in range(self._sampler.num_replicas)]
        dist.all_gather(sums, mine)
        if len({int(value) for value in sums}) > 1:
            raise RuntimeError(
                f"{self.method.name} chose differently on different ranks for epoch {epoch} (checksums "
                f"{[int(value) for value in sums]}); a method must be a pure function of the merged statistics, the epoch and its "
                "generator, and every rank needs the same data set, seed and settings"
            )

    # --- the epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was planned."""
        self._watch.start()
        if self.plan is None or trainer.barebones:
            return
        metrics: dict[str, float] = {"candidates": 0.0, "moved_back": 0.0, **self.plan.metrics, **self._seconds}
        metrics.update(lr_factor=self.plan.lr_factor, nonfinite=float(self._nonfinite))
        if trainer.optimizers:
            metrics["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"]) * self.plan.lr_factor
        pl_module.log_dict({f"selection/{name}": value for name, value in metrics.items()}, batch_size=1)
        pl_module.log("selection/hidden_fraction", self.plan.hidden_fraction, prog_bar=True, batch_size=1)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Know which step of the plan comes next."""
        self._watch.start()
        self._step = batch_idx

    def _training_step(self, step: Callable[..., Any], *args: Any) -> Any:
        """Run the training step, observe its samples, and weigh its loss by the size of the rank's batch."""
        trainer = self._trainer
        assert trainer is not None and self._dealt is not None and self._outputs is not None
        if self not in trainer.callbacks:
            return step(*args)
        size = self._dealt.batch_length(self._step)
        outputs, self._values = self._outputs.observe(partial(step, *args), args[0], size, partial(looking, trainer))
        self._tell_once("start", self._description(), rank_zero_info)
        return _scaled(outputs, self._dealt.loss_scale(self._step)) if trainer.lightning_module.automatic_optimization else outputs

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record what was seen."""
        assert self._dealt is not None and self.statistics is not None
        if self._values is not None:
            self.statistics.record(self._dealt.step(batch_idx), self._values, self._epoch)
            self._values = None
        self._step = batch_idx + 1
        self._aligner.after_batch(lambda scheduler: pl_module.lr_scheduler_step(scheduler, None))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is not training time."""
        self._watch.pause()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count."""
        self.totals.train_seconds += self._watch.take()
        if self._dealt is not None:
            self.totals.samples_trained += self._dealt.samples_until(self._step)

    # --- after training

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what it came to, and let go of the optimizers."""
        rank_zero_info(f"SampleSelection({self.method.name}): {self.totals.summary()}")
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no scaled learning rate behind for the checkpoint of the exception."""
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the Trainer as it was."""
        if stage == "fit":
            self._release()
            self._adapter.remove_loader_swap()

    def _release(self) -> None:
        self._factor.detach()
        if self._trainer is not None:
            self._adapter.unwrap_training_step()

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers; loads with ``weights_only=True``. Collective unless an exception is being handled."""
        if self.statistics is None or self.plan is None or self._trainer is None:
            return {}
        if self._trainer.state.status != TrainerStatus.INTERRUPTED:
            self.statistics.merge()
        return {
            "version": STATE_VERSION,
            "method": self.method.name,
            "settings": {field.name: _plain(getattr(self.method, field.name)) for field in fields(self.method)},
            "seed": self._seed,
            "epoch": self._epoch,
            "step": self._step,
            "hidden": self.plan.hidden.clone(),
            "lr_factor": self.plan.lr_factor,
            "metrics": dict(self.plan.metrics),
            "statistics": self.statistics.state_dict(),
            "totals": asdict(self.totals),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the data set is there."""
        self._loaded = dict(state_dict) or None

    def _apply_state(self, state: dict[str, Any]) -> None:
        assert self.statistics is not None
        self.statistics.load_state_dict(state["statistics"])
        mask = torch.zeros(len(self.statistics), dtype=torch.bool).index_fill_(0, state["hidden"], True)
        self.plan = EpochPlan.hide(mask, state["lr_factor"], dict(state["metrics"]))
        self._epoch, self._step = state["epoch"], state["step"]
        self.totals = RunTotals(**state["totals"])
        self._loaded = None

    # --- words

    def _description(self) -> str:
        assert self._outputs is not None
        settings = ", ".join(f"{field.name}={getattr(self.method, field.name)!r}" for field in fields(self.method))
        return (
            f"SampleSelection: {self.method.name}({settings}) {self.method.summary}. Per-sample values come from "
            f"{self._outputs.source}."
        )

    def _tell_once(self, key: str, message: str, tell: Callable[[str], None]) -> None:
        if key not in self._told:
            self._told.add(key)
            tell(message)


def _scaled(outputs: Any, scale: float) -> Any:
    """A training step's outputs with the loss times ``scale``."""
    if scale == 1.0 or outputs is None:
        return outputs
    if isinstance(outputs, Mapping):
        return {**outputs, "loss": outputs["loss"] * scale}
    return outputs * scale


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
