"""The life of one ``Trainer.fit``: from the loader it follows, epoch by epoch, to the state it can be resumed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from kakurenbo_lightning.core.distributed import collective
from kakurenbo_lightning.core.seeded_dataset import set_dataset_epoch
from kakurenbo_lightning.core.worker_errors import explain_worker_errors
from kakurenbo_lightning.engines import engine_for
from kakurenbo_lightning.engines.base import no_engine
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.session.announcements import Announcements
from kakurenbo_lightning.session.control import Control
from kakurenbo_lightning.session.epoch_state import EpochState, Phase
from kakurenbo_lightning.session.followed_loader import FollowedLoader
from kakurenbo_lightning.session.metrics import log_directly
from kakurenbo_lightning.session.planning import Planner
from kakurenbo_lightning.session.random_streams import RandomStreams
from kakurenbo_lightning.session.settings import SessionSettings
from kakurenbo_lightning.session.state_keeper import StateKeeper
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.session.train_loader import TrainLoader, check_followed
from kakurenbo_lightning.signals.outputs import SampleOutputs
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.lr_schedule import EpochSchedules, LearningRateFactor
from kakurenbo_lightning.trainer.requeue import Requeue
from kakurenbo_lightning.trainer.restart import Restart
from kakurenbo_lightning.trainer.resume_compatibility import check_foreign_resume, check_public_foreign, check_public_resume
from kakurenbo_lightning.trainer.step_view import StepView


class Session:
    """Plans and shards once per epoch, and lets the engine work within it.

    Args:
        adapter: access to the Trainer.
        method: the selection method.
        settings: the user's settings.

    Attributes:
        state: the current epoch.
        totals: sums over the epochs so far.
        seed: seed of the order and the choice of samples.
        outputs: source of the sample values.
        control: overrides the method when epochs are planned (``save``, ``guard``).
        announcements: what the log says of the selection.
        loader: the replacement of the user's train loader.
        engine: engine of the method's family.
        factor: factor on the learning rate, applied only while the optimizer steps.
        step: view of the current step.
        requeue: handles SLURM's requeue signal between steps.
        keeper: collects and restores what a checkpoint holds.
        on_trained: called in each training step with the indices that this rank trains in it, ``int64[b]`` on the device.
    """

    def __init__(self, adapter: TrainerAdapter, method: Method, settings: SessionSettings) -> None:
        self.adapter, self._method, self._settings = adapter, method, settings
        self._trainer, self.outputs = adapter.trainer, SampleOutputs(method.reads)
        self.engine, self.factor = no_engine(adapter, method), LearningRateFactor(paused=lambda: adapter.passive)
        self.restart = Restart(adapter, method.scoring_epochs)
        self.schedules = EpochSchedules(self._trainer, settings.align_schedules)
        self.totals, self.state = Totals(), EpochState()
        self.streams, self.step, self.requeue = RandomStreams(), StepView(adapter, self.totals.times), Requeue(adapter)
        self.on_trained: Callable[[Tensor], None] | None = None
        self.control = Control(method, settings.save, settings.guard, self.totals)
        self.announcements = Announcements(method, self._trainer)
        self._planner = Planner(adapter, method, self.control, self.restart, self.schedules, self.totals)
        self.loader = TrainLoader(adapter, method, self._planner, self.schedules, settings)
        parts = (self.loader, self.schedules, self.restart, self.streams, self.totals, self.step, self.control)
        self.keeper = StateKeeper(adapter, method, settings, *parts)
        self.seed = settings.default_seed if settings.seed is None else settings.seed
        self._arrived = False  # whether the device is known and the ranks have compared their data sets

    @property
    def data(self) -> FollowedLoader:
        """The train loader that it follows, with what is known about its samples."""
        return self.loader.data

    @property
    def has_state(self) -> bool:
        """Whether the session has begun, here or in a checkpoint."""
        return self.state.phase is not Phase.IDLE or self.keeper.loaded is not None

    @property
    def position(self) -> str:
        """Rank, epoch and step in words, for errors."""
        return self.data.position(self.state)

    def _epoch(self, index: int) -> Epoch:
        return self._planner.epoch(index, self.seed, self.data.sampler.batch_size if self.loader.is_known else None)

    def explain(self, exception: BaseException) -> None:
        """Add a note to an exception of this fit that says how far this rank was; only once per exception."""
        self.loader.explain(exception, self.state)

    # --- the loader

    def begin_fit(self, outputs: SampleOutputs) -> None:
        """Prepare for a new fit, perhaps of another module than before."""
        self.outputs = outputs
        self.loader.expect()

    def follow(self, loader: Any, on_set_epoch: Callable[[int], None], *, public: bool = False) -> Any:
        """Return a copy of ``loader`` whose batches follow the plan. ``public``: do not touch Lightning's private attributes."""
        data = self.loader.follow(loader, self.seed, on_set_epoch, public)
        if public:  # with the public API alone, Lightning fetches the first batches before set_epoch(0)
            data.sampler.follow(data.plan(self.control.method, self._epoch(0), None))
        check_followed(data, self._method, self.control.largest, self.outputs, self._settings.values)
        if self.keeper.loaded is not None:
            data.hold()
            (self._resume_publicly if public else self.keeper.pending.hold_open)()
        elif self.state.phase is not Phase.IDLE and self.state.epoch == self._trainer.current_epoch:
            self.schedules.go_on()
            self._shard(self.state.step)  # a new loader in mid-epoch, which the learning-rate finder causes
        return data.loader

    # --- before each epoch

    def begin_epoch(self, epoch: int) -> None:
        """End the epoch before, then plan and shard this one, before Lightning reads the loader's length."""
        data = self.data
        self.keeper.pending.release()
        data.sampler.extra = self._method.ends_short and not self.adapter.passive
        if self.adapter.passive:
            self.adapter.hold_step(False)
            return
        data.check_length()
        if data.public and epoch < self.state.epoch:
            return  # Lightning still completes the epoch of the checkpoint, but the next one is planned already
        self._arrive()
        self.loader.measure()
        resumed = None if data.public else self.adapter.resumed_batches()
        if self.state.phase is not Phase.IDLE and epoch == self.state.epoch:
            start = self.state.step if data.public else resumed or 0
            if not start:
                self.state = replace(self.state, done=(0, 0))
        elif resumed and self.state.phase is Phase.IDLE and self.adapter.is_ending:
            self.state = self._planner.foreign_end(self._epoch(epoch), data)
            start = data.shard(self.state, self.engine.draws).steps + data.sampler.extra
        else:
            start = 0
            if resumed and self.state.phase is Phase.IDLE and not self.adapter.was_last:
                check_foreign_resume(epoch, resumed, self._settings.on_mismatch)
                self.schedules.begin_again(resumed)
            self._plan(epoch)
            if resumed is not None:
                self.adapter.begin_fresh_epoch()
        self._shard(start)
        set_dataset_epoch(data.loader.dataset, epoch)
        data.seed_workers(epoch)
        if not data.public:
            self.adapter.refresh_lengths()
            self.adapter.reiterate_if_needed(data.sampler.has_begun)
            self.keeper.pending.go_on(self.state.phase, self._catch_up)
        self.streams.restore()

    def _catch_up(self) -> None:
        """Move the schedules, if a checkpoint was saved after a step but before they moved."""
        self.schedules.begin_batch(self.adapter.limited(len(self.data.sampler)), self.engine.skips)
        self.keeper.pending.move_schedulers()
        self.schedules.catch_up(self.state.step)

    def _arrive(self) -> None:
        """Set up what needs the device, and apply a loaded state, once the device is known."""
        data, given = self.data, self._settings
        self.outputs.device = data.statistics.to(self._trainer.strategy.root_device).device
        if not self._arrived:
            self.adapter.arrive(data.statistics.total, data.identity, self.position)
            self.engine = engine_for(self.adapter, self._method, data.statistics, given.scorer, given.mean_over_samples)
            self.schedules.beside = self.engine.beside
        self._arrived = True
        if self.keeper.loaded is not None:
            self._apply_loaded()

    def _plan(self, epoch: int) -> None:
        """Close the epoch before, if Lightning did not end it, and plan ``epoch``."""
        self._close_epoch()
        self.state = self._planner.plan(epoch, self.state, self.data, self.outputs, self.engine, self.position)
        if 0 < self.restart.epochs == epoch:
            self.streams.restore_later(None)  # the restart has restored the initial streams instead

    def _shard(self, start: int) -> None:
        """Let the sampler, the optimizers, the schedules and the engine follow the plan from step ``start`` on."""
        state, sampler = self.state, self.data.sampler
        sampler.follow(self.data.shard(state, self.engine.draws), start=start)
        self.state = replace(state, step=start)
        self.factor.value = state.plan.lr_factor
        self.schedules.follow(start)
        shard = sampler.shard.to(self.data.statistics.device)
        self.engine.begin_epoch(self._epoch(state.epoch), state.plan, shard, start, self.outputs)

    # --- the epoch

    def begin_training(self) -> None:
        """Continue where a checkpoint was saved, and attach to optimizers, step and loader workers, which exist by now."""
        self.loader.check()
        if not self.has_state and (progress := self.adapter.foreign_progress()) is not None:
            check_public_foreign(self.data.public, self._trainer.current_epoch, progress.rest)
            self.schedules.go_on_from(progress)
        self._arrive()
        self.keeper.pending.begin(self.data.public)
        self.factor.attach(self._trainer.optimizers)
        self.step.attach(self._trainer.optimizers)
        self.requeue.hold()
        self.adapter.wrap_training_step(self.training_step)
        self.adapter.show_in_bar(lambda: self.state.shown)
        self.restart.keep()
        explain_worker_errors(self.explain)

    def begin_step(self) -> None:
        """Remember, before a batch is loaded, what a checkpoint needs that is saved before it is trained."""
        self.streams.begin_step()
        self.step.begin()

    def begin_batch(self, batch_idx: int, batch: Any) -> None:
        """Note the step. The first one of an epoch, or after resuming, starts the schedules."""
        if self.data.public:
            self.begin_step()
        self.step.loaded()
        self.state = self.state.enter(Phase.TRAINING, batch_idx)
        self.schedules.begin_batch(self.adapter.limited(len(self.data.sampler)), self.engine.skips)
        self.engine.begin_batch(batch, batch_idx)

    def training_step(self, step: Callable[..., Any], *args: Any) -> Any:
        """Replace the strategy's training step: the engine runs ``step`` on what the plan trains."""
        if self.adapter.passive:
            return step(*args)
        outputs, indices = self.engine.training_step(step, *args)
        if self.on_trained is not None and indices is not None:
            self.on_trained(indices)
        return outputs

    def loss_scale(self, accumulate: int) -> float:
        """The scale of the current batch's loss in a step of ``accumulate`` batches; 1 in all passes that are no training."""
        return self.engine.loss_scale(accumulate) if self.state.phase is Phase.TRAINING and not self.adapter.passive else 1.0

    def end_batch(self, batch_idx: int) -> None:
        """Finish the step and move the schedules."""
        self.state = self.state.after_step(batch_idx + 1, self.adapter.limited(len(self.data.sampler)))
        with collective("exchange what was observed", self.position):
            self.engine.end_batch(batch_idx)
        self.schedules.end_batch(batch_idx)
        self.step.end(self.engine.kind)

    def validate(self, phase: Phase) -> None:
        """Note that a validation begins or ends. Its time is not counted as waiting for data."""
        self.keeper.pending.expect_checks(phase)
        if phase is Phase.VALIDATED:
            self.control.validated(self.adapter, self.state.epoch, lambda: self.position)  # unknown in a sanity check
        self.state = self.state.validation(phase)
        self.engine.timer.drop("data")

    def end_epoch(self, seconds: float) -> None:
        """End the epoch after ``seconds`` of training, and add its counts to the totals."""
        self.totals.train_seconds += seconds
        self.keeper.pending.expect_checks(Phase.ENDED)
        state = self.state
        if state.phase is Phase.ENDED:
            return
        counts, phases = self.engine.end_epoch(state.epoch + 1 == self._trainer.max_epochs)
        metrics = {**state.metrics, **counts, **phases}
        self.state = replace(state.enter(Phase.ENDED), metrics=metrics, ended_metrics=metrics)
        self.totals.add({"trained": self.data.sampler.shard.samples_until(state.step), **counts}, phases)

    def _close_epoch(self) -> None:
        """Count an epoch and log its metrics, if Lightning never ends it because it resumed at its last batch."""
        if self.state.phase not in (Phase.IDLE, Phase.ENDED):
            self.end_epoch(0.0)
            log_directly(self._trainer, self.state.metrics, self.state.epoch)

    def merge(self) -> None:
        """Merge the statistics of all ranks, so that every rank has all of them; collective."""
        self._planner.merge(self.data.statistics, self.position)

    def release(self, exception: BaseException | None = None) -> None:
        """Detach from the Trainer: optimizers, schedulers, step, validation, loader, signals. ``exception``: what ends the fit."""
        if exception is not None:
            self.explain(exception)  # first, because the rest may fail for the same reason
            explain_worker_errors(self.explain)  # the exception may have come before training began
        for part in (self.factor, self.step, self.keeper.pending, self.requeue, self.engine, self.schedules, self.adapter):
            part.release()

    # --- state

    def state_dict(self, together: bool) -> dict[str, Any]:
        """What a checkpoint holds. ``together``: all ranks are here, so that they can communicate."""
        if self.state.phase is Phase.IDLE:
            return self.keeper.loaded or {}  # nothing has changed since it was loaded
        self.engine.save_step(not together, self.step.done_batches())
        if together:
            self.merge()
        return self.keeper.collect(self.state, self.seed, self.engine, together, self.position)

    def rewind(self, checkpoint: dict[str, Any]) -> None:
        """Change a checkpoint that is saved within a step to one that either repeats the step or comes after it."""
        self.factor.unscale(self._trainer.optimizers, checkpoint.get("optimizer_states", []))
        self.step.rewind(checkpoint)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until the data set is known. Within a fit (learning-rate finder) apply it at once."""
        self.keeper.load(state)
        if self.state.phase is not Phase.IDLE and self.loader.is_asked_for and state:
            self._apply_loaded()
            self.streams.restore_later(None)  # Lightning's learning-rate finder does not restore the random streams either

    def _apply_loaded(self) -> None:
        """Apply a loaded state if it fits the data, method and settings of this session."""
        if (saved := self.keeper.take_over(self.engine)) is not None:
            self.state, self.seed = saved
            self.data.sampler.follow(self.data.shard(self.state, self.engine.draws), start=self.state.step)

    def take_over_rest(self) -> None:
        """Apply a loaded state that no epoch has used."""
        if self.keeper.loaded is not None and self.loader.is_known:
            self._arrive()
            self._close_epoch()
        self.streams.restore()

    def _resume_publicly(self) -> None:
        """Plan before Lightning fetches the first batch of a resumed session, because it does not fetch it again."""
        self._arrive()
        if self.state.phase is Phase.IDLE:
            return
        check_public_resume(self.state.epoch, ended_unvalidated=self.state.phase is Phase.TRAINED)
        if self.state.step >= self.data.sampler.shard.steps:
            if self.state.epoch + 1 == self._planner.max_epochs:
                self._close_epoch()
                return
            self._plan(self.state.epoch + 1)
        self.data.sampler.follow(self.data.shard(self.state, self.engine.draws), start=self.state.step)
