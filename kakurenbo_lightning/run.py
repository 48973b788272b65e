"""One run of sample selection: from the loader it takes over to the state it can be resumed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from math import ceil
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from kakurenbo_lightning.learning_rate import LearningRateFactor, ScheduleAligner, estimated_epochs
from kakurenbo_lightning.loaders import ConflictError, follow_sampler, read_loader
from kakurenbo_lightning.methods import Epoch, HideMethod
from kakurenbo_lightning.outputs import SampleOutputs, Values
from kakurenbo_lightning.plan import DealtEpoch, EpochPlan
from kakurenbo_lightning.refresh import looking, refresh
from kakurenbo_lightning.sampler import SelectionSampler
from kakurenbo_lightning.seeding import stream_seed
from kakurenbo_lightning.statistics import SampleStatistics
from kakurenbo_lightning.totals import RunTotals, Stopwatch
from kakurenbo_lightning.trainer_adapter import TrainerAdapter

STATE_VERSION = 1


class SelectionRun:
    """What a :class:`~kakurenbo_lightning.SampleSelection` does for one Trainer.

    Attributes:
        statistics: of every sample; ``None`` before the loader is known.
        plan: of the current epoch; ``None`` before the first.
        epoch: number of the planned epoch, -1 before the first.
        step: batches of the epoch that are done.
        totals: sums over the epochs so far.
        seconds: what selecting and refreshing before this epoch took.
        nonfinite: samples whose last loss was NaN or infinite, when the epoch was planned.
    """

    def __init__(self, trainer: pl.Trainer, method: HideMethod, seed: int, align_schedules: bool) -> None:
        self._trainer, self._method, self._seed, self._align_schedules = trainer, method, seed, align_schedules
        self.adapter = TrainerAdapter(trainer)
        self.factor = LearningRateFactor(paused=lambda: self.passive)
        self._aligner = ScheduleAligner()
        self.outputs: SampleOutputs | None = None
        self.loader: DataLoader | None = None
        self.statistics: SampleStatistics | None = None
        self.plan: EpochPlan | None = None
        self.epoch, self.step, self.nonfinite = -1, 0, 0
        self.totals = RunTotals()
        self.seconds = {"refresh_seconds": 0.0, "select_seconds": 0.0}
        self._public = False
        self._sampler: SelectionSampler | None = None
        self._dealt: DealtEpoch | None = None  # the sampler's, on the device
        self._values: Values | None = None
        self._loaded: dict[str, Any] | None = None
        self._warned_nonfinite = False
        self._counted = True

    # --- the loader

    def adopt(self, loader: DataLoader, *, public: bool = False) -> DataLoader:
        """A copy of the user's ``loader`` that follows this run; ``public``: without Lightning's private attributes."""
        shuffle, total = read_loader(loader), len(loader.dataset)
        if self.statistics is None:
            self.statistics = SampleStatistics(total)
        self._check_length(total)
        trainer = self._trainer
        sampler = SelectionSampler(
            total,
            loader.batch_sampler.batch_size,
            trainer.world_size,
            trainer.global_rank,
            drop_last=loader.batch_sampler.drop_last,
            shuffle=shuffle,
            seed=self._seed,
            on_set_epoch=self.begin_epoch,
        )
        self._full_batches = self.adapter.limited(len(sampler))
        max_epochs = self._max_epochs()
        self._method.check_run(max_epochs)
        if public:  # Lightning takes the first batches before set_epoch(0)
            sampler.follow(self._method.plan(SampleStatistics(total), Epoch(0, max_epochs, self._seed)))
        self._public, self._sampler = public, sampler
        self.loader = follow_sampler(loader, sampler, sized=not public)
        self._seed_loader("loader", 0)
        if public and self._loaded is not None:
            self._resume_publicly()
        elif self.plan is not None and self.epoch == trainer.current_epoch:
            self._deal(self.epoch, self.step)  # a new loader in mid-epoch, as the LR finder leaves it
        return self.loader

    def _check_length(self, total: int) -> None:
        if total != len(self.statistics):
            raise ConflictError(
                f"the train data set has {total} samples now and had {len(self.statistics)} before; samples are known by their "
                "index, so the data set must keep its length and order; use a new Trainer and SampleSelection for new data"
            )

    def _max_epochs(self) -> int | None:
        trainer = self._trainer
        steps = ceil(self._full_batches / trainer.accumulate_grad_batches)
        return estimated_epochs(-1 if trainer.max_epochs is None else trainer.max_epochs, trainer.max_steps, steps)

    def _seed_loader(self, stream: str, epoch: int) -> None:
        self.loader.generator.manual_seed(stream_seed(self._seed, epoch, f"{stream}:{self._sampler.rank}"))

    # --- before each epoch

    @property
    def passive(self) -> bool:
        """The LR finder or the batch-size scaler has put our callback aside: every epoch is a full one."""
        return not any(getattr(callback, "run", None) is self for callback in self._trainer.callbacks)

    def begin_epoch(self, epoch: int) -> None:
        """``set_epoch``: runs before anything reads the loader's length."""
        if self.passive:
            return
        self._check_length(len(self.loader.dataset))
        if self._public and epoch < self.epoch:
            return  # Lightning completes the epoch a checkpoint was taken in; the next one is planned already
        self._arrive()
        resumed = None if self._public else self.adapter.resumed_batches()
        if epoch == self.epoch and self.plan is not None:
            start = self.step if self._public else resumed or 0
        else:
            start = 0
            if self.plan is not None:
                self._finish_epoch()
            self._plan_epoch(epoch)
            if resumed is not None:
                self.adapter.begin_fresh_epoch()
        self._follow(epoch, start)

    def _arrive(self) -> None:
        """The device is known, and with it where a loaded state goes."""
        device = self._trainer.strategy.root_device
        self.statistics.to(device)
        self.outputs.device = device
        if self._loaded is not None:
            self._apply_state(self._loaded)

    def _resume_publicly(self) -> None:
        """Plan before Lightning takes the first batch of a resumed run, which it does not take again."""
        self._arrive()
        if self.step >= self._sampler.deal(self.plan, self.epoch).steps:
            self._finish_epoch()
            self._plan_epoch(self.epoch + 1)
            self.step = 0
        self._sampler.follow(self.plan, self.epoch, self.step)

    def _finish_epoch(self) -> None:
        """Look at what was hidden."""
        self._count()
        watch = Stopwatch(running=True)
        if self._method.refresh_mode is not None:
            self._seed_loader("refresh", self.epoch)
            refresh(
                self._trainer,
                self.adapter,
                self.loader,
                self.plan.hidden,
                self.outputs,
                self.statistics,
                self.epoch,
                self._method.refresh_mode,
            )
            self.totals.samples_refreshed += len(self.plan.hidden)
        self.seconds["refresh_seconds"] = watch.take()
        self.totals.refresh_seconds += self.seconds["refresh_seconds"]

    def _plan_epoch(self, epoch: int) -> None:
        """Give every rank what every rank saw, and choose what ``epoch`` trains."""
        watch = Stopwatch(running=True)
        self.statistics.merge()
        self.plan = self._method.plan(self.statistics, Epoch(epoch, self._max_epochs(), self._seed))
        self._check_ranks_agree(epoch)
        self.epoch, self._counted = epoch, False
        self.nonfinite = self.statistics.nonfinite()
        self.seconds["select_seconds"] = watch.take()
        self.totals.select_seconds += self.seconds["select_seconds"]
        self.totals.samples_hidden += len(self.plan.hidden)
        if self.nonfinite and not self._warned_nonfinite:
            self._warned_nonfinite = True
            rank_zero_warn(
                f"{self.nonfinite} of {len(self.statistics)} samples have a NaN or infinite loss; they are never hidden. "
                "selection/nonfinite counts them each epoch"
            )

    def _check_ranks_agree(self, epoch: int) -> None:
        if self._sampler.num_replicas == 1 or not dist.is_initialized():
            return
        mine = torch.tensor([self.plan.checksum()], device=self.statistics.device)
        gathered = [torch.empty_like(mine) for _ in range(self._sampler.num_replicas)]
        dist.all_gather(gathered, mine)
        sums = [int(value) for value in gathered]
        if len(set(sums)) > 1:
            raise RuntimeError(
                f"{self._method.name} chose differently on different ranks for epoch {epoch} (checksums {sums}); a method must "
                "be a pure function of the merged statistics and the epoch; every rank needs the same data set, seed and settings"
            )

    def _follow(self, epoch: int, start: int) -> None:
        """Make the plan what the loader and the trainer go by."""
        self._deal(epoch, start)
        self._seed_loader("loader", epoch)
        if not self._public:
            self.adapter.refresh_lengths()
            self.adapter.reiterate_if_needed()

    def _deal(self, epoch: int, start: int) -> None:
        """Make the plan what the sampler, the optimizers and the schedules go by."""
        self._sampler.follow(self.plan, epoch, start)
        self._dealt = self._sampler.dealt.to(self.statistics.device)
        self.step = start
        self.factor.value = self.plan.lr_factor
        if self._schedules_follow_epochs():
            trainer, batches = self._trainer, self.adapter.limited(len(self._sampler))
            self._aligner.begin_epoch(
                trainer.lr_scheduler_configs, batches, self._full_batches, trainer.accumulate_grad_batches, start
            )

    def _schedules_follow_epochs(self) -> bool:
        """Whether schedules are to be aligned: not when ``max_steps`` counts the steps they were built for."""
        trainer = self._trainer
        if not self._align_schedules or not trainer.lightning_module.automatic_optimization:
            return False
        steps = ceil(self._full_batches / trainer.accumulate_grad_batches)
        return trainer.max_steps < 0 or ((trainer.max_epochs or 0) > 0 and trainer.max_steps >= steps * trainer.max_epochs)

    # --- the epoch

    def training_step(self, step: Callable[..., Any], *args: Any) -> Any:
        """Run the training step, observe its samples, and weigh its loss by the size of this rank's batch."""
        if self.passive:
            return step(*args)
        trainer, size = self._trainer, self._dealt.batch_length(self.step)
        outputs, self._values = self.outputs.observe(partial(step, *args), args[0], size, partial(looking, trainer))
        if trainer.lightning_module.automatic_optimization:
            outputs = _scaled(outputs, self._dealt.loss_scale(self.step))
        return outputs

    def end_batch(self, batch_idx: int) -> None:
        """Record what was seen and let the schedules catch up."""
        if self._values is not None:
            self.statistics.record(self._dealt.step(batch_idx), self._values, self.epoch)
            self._values = None
        self.step = batch_idx + 1
        self._aligner.after_batch(batch_idx, lambda s: self._trainer.lightning_module.lr_scheduler_step(s, None))

    def end_epoch(self, seconds: float) -> None:
        """Count."""
        self.totals.train_seconds += seconds
        self._count()

    def _count(self) -> None:
        """Add the epoch's trained samples to the totals, once; a run resumed at its last batch never sees its end."""
        if not self._counted:
            dealt = self._dealt or self._sampler.deal(self.plan, self.epoch)
            self.totals.samples_trained += dealt.samples_until(self.step)
            self._counted = True

    def metrics(self) -> dict[str, float]:
        """What is logged of the planned epoch."""
        values = {"candidates": 0.0, "moved_back": 0.0, **self.plan.metrics, **self.seconds}
        values.update(lr_factor=self.plan.lr_factor, nonfinite=float(self.nonfinite))
        if self._trainer.optimizers:
            values["lr"] = float(self._trainer.optimizers[0].param_groups[0]["lr"]) * self.plan.lr_factor
        return values

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`SampleSelection.state_dict`; merge the statistics first."""
        if self.plan is None:
            return {}
        return {
            "version": STATE_VERSION,
            "method": self._method.name,
            "settings": {field.name: _plain(getattr(self._method, field.name)) for field in fields(self._method)},
            "seed": self._seed,
            "epoch": self.epoch,
            "step": self.step,
            "counted": self._counted,
            "hidden": self.plan.hidden.clone(),
            "lr_factor": self.plan.lr_factor,
            "metrics": dict(self.plan.metrics),
            "statistics": self.statistics.state_dict(),
            "totals": asdict(self.totals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until the data set is there; within a run (the LR finder restores one) take it over at once."""
        if self.plan is not None and state:
            self._apply_state(state)
        else:
            self._loaded = dict(state) or None

    def _apply_state(self, state: dict[str, Any]) -> None:
        self.statistics.load_state_dict(state["statistics"])
        mask = torch.zeros(len(self.statistics), dtype=torch.bool).index_fill_(0, state["hidden"], True)
        self.plan = EpochPlan.hide(mask, state["lr_factor"], dict(state["metrics"]))
        self.epoch, self.step, self._counted = state["epoch"], state["step"], state["counted"]
        self.totals = RunTotals(**state["totals"])
        self._loaded = None


def _scaled(outputs: Any, scale: float) -> Any:
    """A training step's outputs with the loss times ``scale``."""
    if scale == 1.0 or outputs is None:
        return outputs
    if isinstance(outputs, dict):
        return {**outputs, "loss": outputs["loss"] * scale}
    return outputs * scale


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
