"""One run of sample selection: from the loader it takes over to the state it can be resumed from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import ceil
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning.core.class_labels import targets_of
from kakurenbo_lightning.core.distributed import check_equal_plans, check_same_data, together
from kakurenbo_lightning.core.fingerprint import fingerprint
from kakurenbo_lightning.core.plan import EpochPlan
from kakurenbo_lightning.core.random import rng_state, set_rng_state, stream_seed
from kakurenbo_lightning.core.sampler import SelectionSampler
from kakurenbo_lightning.core.seeded_dataset import set_dataset_epoch
from kakurenbo_lightning.core.shard import EpochShard
from kakurenbo_lightning.core.statistics import MAX_EPOCHS, TARGET, SampleStatistics
from kakurenbo_lightning.core.stream_shard import StreamShard
from kakurenbo_lightning.core.timers import Stopwatch
from kakurenbo_lightning.engines import engine_for
from kakurenbo_lightning.engines.base import Engine
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.backprop.base import BackpropMethod
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.methods.draw.base import StreamMethod
from kakurenbo_lightning.session.checkpoint import Resumable
from kakurenbo_lightning.session.dealing import Dealing
from kakurenbo_lightning.session.metrics import log_directly, planned, warn_nonfinite
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values, scaled
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.compatibility import check_length, read_loader
from kakurenbo_lightning.trainer.forward_pass import refresh, scoring, wait_for
from kakurenbo_lightning.trainer.loader import follow_sampler
from kakurenbo_lightning.trainer.lr_schedule import LearningRateFactor, ScheduleAligner, estimated_epochs
from kakurenbo_lightning.trainer.restart import Restart


class Session(Dealing, Resumable):
    """What a :class:`~kakurenbo_lightning.SampleSelection` does for one Trainer.

    Attributes:
        statistics: of every sample; ``None`` before the loader is known.
        plan: of the current epoch; ``None`` before the first.
        epoch: number of the planned epoch, -1 before the first.
        step: batches of the epoch that are done.
        totals: sums over the epochs so far.
        metrics: what is logged of the planned epoch, by name.
        ended: what was logged of the last epoch that ended.
        on_trained: called in each training step with the indices that this rank trains in it, ``int64[b]`` on the device.

    Args:
        trainer: the Trainer.
        method: the selection method.
        seed: of order and choice; ``None`` for ``default_seed``, which gives way to a checkpoint's.
        default_seed: used when ``seed`` is ``None``.
        align_schedules: see :class:`SampleSelection`.
        on_mismatch: see :class:`SampleSelection`.
        scorer: see :class:`SampleSelection`.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        method: Method,
        seed: int | None,
        default_seed: int,
        align_schedules: bool,
        on_mismatch: str,
        scorer: pl.LightningModule | None,
    ) -> None:
        self._trainer, self._method, self._align_schedules, self._on_mismatch = trainer, method, align_schedules, on_mismatch
        self._given_seed, self._scorer = seed, scorer
        self._seed = default_seed if seed is None else seed
        self.adapter = TrainerAdapter(trainer)
        self.factor = LearningRateFactor(paused=lambda: self.passive)
        self.restart = Restart(trainer, method.scoring_epochs)
        self._aligner = ScheduleAligner()
        self.outputs: SampleOutputs | None = None
        self.loader: DataLoader | None = None
        self.engine: Engine | None = None
        self.statistics: SampleStatistics | None = None
        self.plan: EpochPlan | None = None
        self.epoch, self.step = -1, 0
        self.totals = Totals()
        self.metrics: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.on_trained: Callable[[Tensor], None] | None = None
        self.announced = True  # the hidden share of this epoch is in the progress bar
        self._refresh_seconds = 0.0
        self._epoch_samples: int | None = None  # that a stream draws in this epoch, where it began with another batch size
        self._done = (0, 0)  # steps and samples of this epoch that were dealt to another world size
        self._schedule_batches: int | None = None  # of a full epoch, when schedules were built for another world size
        self._rng: dict[str, Any] | None = None  # to be put back when the resumed epoch is ready
        self._training_rng: dict[str, Any] | None = None  # while validation runs
        self.fingerprint: str | None = None
        self._same_data = False  # the ranks have compared their data sets
        self._align_from: int | None = None
        self._paces: dict[str, Any] | None = None  # of the schedules, in an epoch that goes on
        self._public = False
        self._sampler: SelectionSampler | None = None
        self._shard: EpochShard | StreamShard | None = None  # the sampler's, on the device
        self._loaded: dict[str, Any] | None = None
        self._warned_nonfinite = False
        self._ends_short = isinstance(method, BackpropMethod) and method.ends_short
        self._counted = True
        self._ending = False  # the last batch is done, and neither validation nor the epoch's end has come

    # --- the loader

    def adopt(self, loader: DataLoader, *, public: bool = False) -> DataLoader:
        """A copy of the user's ``loader`` that follows this run; ``public``: without Lightning's private attributes."""
        shuffle, total = read_loader(loader), len(loader.dataset)
        if self.statistics is None:
            self.statistics = statistics_for(self._method, loader.dataset, self._epoch)
        if self._method.needs_classes and bool((self.statistics.extra[TARGET.name] < 0).any()):
            self.outputs.also_read(TARGET.name)
        check_length(total, len(self.statistics))
        trainer = self._trainer
        sampler = SelectionSampler(
            total,
            loader.batch_sampler.batch_size,
            trainer.world_size,
            trainer.global_rank,
            drop_last=loader.batch_sampler.drop_last,
            shuffle=shuffle,
            seed=self._seed,
            extra=self._ends_short and not self.passive,
            on_set_epoch=self.begin_epoch,
        )
        longest = len(sampler)
        if isinstance(self._method, StreamMethod):
            streamed = self._streamed(sampler.batch_size, sampler.num_replicas)
            longest = max(longest, streamed.steps)
            if streamed.steps == longest and not self.passive:  # Lightning hears of the longest epoch first
                sampler.follow(streamed)
        self._full_batches = self.adapter.limited(longest)
        if not self.passive:  # the LR finder has another max_steps
            self.check()
        if self.fingerprint is None:  # before any worker reads
            self.fingerprint = fingerprint(loader.dataset)
            self._method.check_data(self.fingerprint)
        if public:  # Lightning takes the first batches before set_epoch(0)
            sampler.follow(self._method.plan(self.statistics, self._epoch(0)))
        self._public, self._sampler = public, sampler
        ahead = self._method.draws_ahead if isinstance(self._method, StreamMethod) else None
        self.loader = follow_sampler(loader, sampler, sized=not public, ahead=ahead)
        # of the workers, which live on through the run
        self.loader.generator.manual_seed(stream_seed(self._seed, trainer.current_epoch, f"workers:{sampler.rank}"))
        if public and self._loaded is not None:
            self._resume_publicly()
        elif self.plan is not None and self.epoch == trainer.current_epoch:
            self._paces = self._aligner.state_dict()
            self._deal(self.epoch, self.step)  # a new loader in mid-epoch, as the LR finder leaves it
        return self.loader

    def check(self) -> None:
        """Raise ``ValueError`` when the method's settings do not fit this run."""
        max_epochs = self._max_epochs()
        self._method.check_run(max_epochs, len(self.statistics))
        if (max_epochs or 0) > MAX_EPOCHS:
            raise ConflictError(f"Trainer(max_epochs={max_epochs}): statistics count at most {MAX_EPOCHS} epochs; train fewer")

    def _max_epochs(self) -> int | None:
        trainer = self._trainer
        steps = ceil(self._full_batches / trainer.accumulate_grad_batches)
        epochs = estimated_epochs(-1 if trainer.max_epochs is None else trainer.max_epochs, trainer.max_steps, steps)
        return self.restart.user_epochs(epochs)

    # --- before each epoch

    @property
    def seed(self) -> int:
        """Of order and choice."""
        return self._seed

    @property
    def passive(self) -> bool:
        """The LR finder or the batch-size scaler has put our callback aside: every epoch is a full one."""
        return not any(getattr(callback, "session", None) is self for callback in self._trainer.callbacks)

    def begin_epoch(self, epoch: int) -> None:
        """``set_epoch``: runs before anything reads the loader's length."""
        self._sampler.extra = self._ends_short and not self.passive
        if self.passive:
            self.adapter.hold_step(False)
            return
        check_length(len(self.loader.dataset), len(self.statistics))
        if self._public and epoch < self.epoch:
            return  # Lightning completes the epoch a checkpoint was taken in; the next one is planned already
        self._arrive()
        resumed = None if self._public else self.adapter.resumed_batches()
        if epoch == self.epoch and self.plan is not None:
            start = self.step if self._public else resumed or 0
            if not start:
                self._done = (0, 0)
        else:
            start = 0
            if self.plan is not None:
                self._close_epoch()
            self._plan_epoch(epoch, self._score_rest(epoch))
            if resumed is not None:
                self.adapter.begin_fresh_epoch()
        self._follow(epoch, start)
        self._restore_rng()

    def _restore_rng(self) -> None:
        if self._rng is not None:
            set_rng_state(self._rng)
            self._rng = None

    def _arrive(self) -> None:
        """The device is known, and with it where a loaded state goes."""
        device = self._trainer.strategy.root_device
        if self._sampler.num_replicas > 1 and not self._same_data:
            check_same_data(len(self.statistics), self.fingerprint, self.position())
            self._same_data = True
        self.statistics.to(device)
        self.outputs.device = device
        if self.engine is None:
            self.engine = engine_for(self._trainer, self.adapter, self._method, self.statistics, self._scorer)
        if self._loaded is not None:
            self._apply_state(self._loaded)

    def _score_rest(self, epoch: int) -> Tensor:
        """Look at those that the plan of ``epoch`` wants to know better; which (``int64[n]``)."""
        wait_for(self.statistics.device)
        self._refresh_seconds, seen_in = 0.0, max(0, self.epoch)
        if self.statistics.repeats:
            self.merge()
        rows = self._method.rows_to_score(self.statistics, self._epoch(epoch), self.plan)
        self._score(rows, lambda indices, values: self.statistics.record(indices, values, seen_in))
        return rows

    def _score(self, rows: Tensor, record: Callable[[Tensor, Values], None]) -> None:
        """A forward-only pass over ``rows``, shared by the ranks."""
        if not len(rows):
            return
        epoch = max(0, self.epoch)
        set_dataset_epoch(self.loader.dataset, epoch)
        mode = self._method.refresh_mode or "eval"
        seed = stream_seed(self._seed, epoch, f"refresh augmentation:{self._sampler.rank}")
        seconds = refresh(self._trainer, self.adapter, self.loader, rows, self.outputs, record, mode, seed)
        self._refresh_seconds += seconds
        self.totals.refresh_seconds += seconds
        self.totals.samples_refreshed += len(rows)

    def _epoch(self, index: int) -> Epoch:
        batch_size = None if self._sampler is None else self._sampler.batch_size
        return Epoch(index, self._max_epochs(), self._seed, scoring=self.restart.epochs, batch_size=batch_size)

    def _plan_epoch(self, epoch: int, scored: Tensor) -> None:
        """Give every rank what every rank saw, of the samples that were ``scored`` too, and choose what ``epoch`` trains."""
        watch = Stopwatch(running=True)
        if len(scored) or not self.statistics.repeats:  # else it is done
            self.merge()
        if 0 < self.restart.epochs == epoch:
            self.restart.start_again()
            self.totals.scoring_epochs, self._rng = self.restart.epochs, None
        self.plan = self._method.plan(self.statistics, self._epoch(epoch), self.plan)
        if self.engine is not None:
            self.engine.prepare(self._epoch(epoch), scored)
        if self._sampler.num_replicas > 1 and dist.is_initialized():
            further = 0 if self.engine is None else self.engine.checksum()
            check_equal_plans(self.plan, self.statistics.device, self._method.name, epoch, self.position(), further)
        self.epoch, self._counted, self._done, self._epoch_samples = epoch, False, (0, 0), None
        nonfinite = self.statistics.nonfinite()
        seconds = watch.take()
        self.totals.select_seconds += seconds
        self.totals.samples_hidden += len(self.plan.hidden)
        self.totals.moved_back += int(self.plan.metrics.get("moved_back", 0))
        self.metrics = planned(self.plan, nonfinite, self._trainer.optimizers)
        if self.engine is not None:
            self.metrics.update(self.engine.diagnosed(self._epoch(epoch), self._score))
        self.metrics.update(refresh_seconds=self._refresh_seconds, select_seconds=seconds)
        if self.restart.epochs:
            self.metrics["scoring_epochs"] = float(min(epoch + 1, self.restart.epochs))
        if nonfinite and not self._warned_nonfinite:
            self._warned_nonfinite = True
            warn_nonfinite(nonfinite, len(self.statistics))

    def begin_batch(self, batch_idx: int, batch: Any) -> None:
        """Know the step; at the epoch's first, when every callback has set its accumulation, let the schedules begin; look."""
        self.step, self._ending = batch_idx, False
        start, self._align_from = self._align_from, None
        if start is not None and self._schedules_follow_epochs():
            trainer, batches = self._trainer, self.adapter.limited(len(self._sampler))
            full = self._schedule_batches or self._full_batches
            accumulate, resumed = trainer.accumulate_grad_batches, self._paces
            skips = self.engine is not None and self.engine.skips
            self._aligner.begin_epoch(trainer.lr_scheduler_configs, batches, full, accumulate, start, resumed, skips)
        self._paces = None
        if self.engine is not None:
            self.engine.score(batch, batch_idx)

    # --- the epoch

    def training_step(self, step: Callable[..., Any], *args: Any) -> Any:
        """Run the training step, record what was seen of its samples, and weigh its loss by the size of this rank's batch."""
        if self.passive:
            return step(*args)
        trainer, engine = self._trainer, self.engine
        if engine is not None and not engine.trains_batch:
            outputs = scaled(*engine.training_step(step, *args))
            if self.on_trained is not None and engine.chosen is not None:
                self.on_trained(engine.chosen)
            return outputs
        size = self._shard.batch_length(self.step)
        weights = self._shard.step_weights(self.step)
        with contextlib.nullcontext() if engine is None else engine.phases.during("forward"):
            outputs, values = self.outputs.observe(partial(step, *args), args[0], size, partial(scoring, trainer), weights)
        if values is not None:
            self.statistics.record(self._shard.step(self.step), values, self.epoch)
        if engine is not None:
            engine.learn(values, args[0], self.step, self._shard.loss_scale(self.step))
        if trainer.lightning_module.automatic_optimization:
            outputs = scaled(outputs, self._shard.loss_scale(self.step))
        if self.on_trained is not None:
            self.on_trained(self._shard.step(self.step))
        return outputs

    def release(self) -> None:
        """Let go of the Trainer: optimizers, schedulers, training step, validation, loader."""
        self.factor.detach()
        if self.engine is not None:
            self.adapter.hold_step(False)
        self._aligner.release()
        self.adapter.unwrap_training_step()
        self.adapter.unwrap_validation()
        self.adapter.remove_loader_swap()

    def end_batch(self, batch_idx: int) -> None:
        """Let the schedules catch up."""
        self.step = batch_idx + 1
        self._ending = self.step == self.adapter.limited(len(self._sampler))
        self.outputs.check_weighed()
        if self.engine is not None:
            with together("exchange what was observed", self.position()):
                self.engine.end_batch(batch_idx)
            self.engine.phases.start("data")
        self._aligner.after_batch(batch_idx, lambda s: self._trainer.lightning_module.lr_scheduler_step(s, None))

    def begin_validation(self) -> None:
        """A checkpoint is no longer of the last batch."""
        self._ending = False
        if self.engine is not None:
            self.engine.phases.drop("data")

    def end_epoch(self, seconds: float) -> None:
        """Count."""
        self.totals.train_seconds += seconds
        self._ending = False
        if not self._counted:
            dealt = self._shard or self._share(self.epoch)
            counts, phases = {}, {}
            self._counted = True
            if self.engine is not None:
                counts, phases = self.engine.end_epoch(self.epoch + 1 == self._trainer.max_epochs)
            self.metrics.update(counts, **phases)
            self.ended = self.metrics
            self.totals.add({"trained": dealt.samples_until(self.step), **counts}, phases)

    def _close_epoch(self) -> None:
        """Lightning never ends an epoch when it resumes at its last batch: count it and log its metrics all the same."""
        if self._counted:
            return
        self.end_epoch(0.0)
        log_directly(self._trainer, self.metrics, self.epoch)

    def merge(self) -> None:
        """Give every rank the statistics of all; collective."""
        with together("merge the statistics", self.position()):
            self.statistics.merge()

    def position(self) -> str:
        """Rank, epoch and step, for errors."""
        rank = self._sampler.rank if self._sampler is not None else self._trainer.global_rank
        steps = self._shard.steps if self._shard is not None else 0
        return f"rank {rank}, in epoch {self.epoch} after step {self.step} of {steps},"

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Validation runs in here: it moves no random stream of training, so a resumed run that skips a pending one is the same."""
        self._training_rng = rng_state()
        try:
            yield
        finally:
            set_rng_state(self._training_rng)
            self._training_rng = None


def statistics_for(method: Method, dataset: Dataset, epoch: Callable[[int], Epoch]) -> SampleStatistics:
    """Empty statistics with the columns ``method`` needs, and the classes where it needs them and ``dataset`` knows them.

    ``epoch`` makes the :class:`Epoch` of a number.
    """

    def observe(statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], number: int) -> None:
        method.observe(statistics, rows, values, epoch(number))

    columns = (*method.columns, TARGET) if method.needs_classes else method.columns
    statistics = SampleStatistics(len(dataset), columns=columns, observe=observe, repeats=method.family == "draw")
    if method.needs_classes and (targets := targets_of(dataset)) is not None:
        statistics.extra[TARGET.name].copy_(targets)
        method.check_classes(targets)
    return statistics
