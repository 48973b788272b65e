"""The session's side of checkpoints: collects its state, and distributes a loaded state to its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kakurenbo_lightning.core.distributed import collective, rank_zero_warn
from kakurenbo_lightning.core.spread import ALONE
from kakurenbo_lightning.engines.base import Engine
from kakurenbo_lightning.errors import StateError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.session.checkpoint import (
    Identity,
    SessionState,
    describe_method,
    fitting_state,
    in_layout,
    saved_schedules,
    to_state,
)
from kakurenbo_lightning.session.control import Control
from kakurenbo_lightning.session.epoch_state import EpochState, Phase
from kakurenbo_lightning.session.pending import Pending
from kakurenbo_lightning.session.plain_values import default_settings
from kakurenbo_lightning.session.random_streams import RandomStreams
from kakurenbo_lightning.session.schema import check_columns, check_state
from kakurenbo_lightning.session.settings import SessionSettings
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.session.train_loader import TrainLoader
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.lr_schedule import EpochSchedules
from kakurenbo_lightning.trainer.restart import Restart
from kakurenbo_lightning.trainer.step_view import StepView


class StateKeeper:
    """Collects what a checkpoint holds, and keeps a loaded state until the data set is known and it can be applied.

    Args:
        adapter: access to the Trainer.
        method: the selection method.
        settings: the user's settings.
        loader: the train loader of the session; the next four are the session's too.
        schedules: the learning-rate schedules.
        restart: the restart of a static method.
        streams: the random streams.
        totals: sums over the epochs so far.
        step: view of the current step.
        control: overrides the method (``save``, ``guard``).

    Attributes:
        pending: what the Trainer has still to do.
        loaded: a loaded state that has not been applied yet; ``None`` if there is none.
    """

    def __init__(
        self,
        adapter: TrainerAdapter,
        method: Method,
        settings: SessionSettings,
        loader: TrainLoader,
        schedules: EpochSchedules,
        restart: Restart,
        streams: RandomStreams,
        totals: Totals,
        step: StepView,
        control: Control,
    ) -> None:
        self._adapter, self._method, self._settings = adapter, method, settings
        self._loader, self._schedules, self._restart = loader, schedules, restart
        self._streams, self._totals, self._step, self._control = streams, totals, step, control
        self.pending = Pending(adapter, step)
        self.loaded: dict[str, Any] | None = None
        self._checked = False  # whether a saved state has been checked to be readable

    @property
    def described(self) -> dict[str, Any]:
        """Name and settings of the method, of the source of sample values and of what overrides the method, as plain values."""
        return describe_method(self._method, {**self._settings.source, **self._control.settings()})

    def load(self, state: dict[str, Any]) -> None:
        """Keep a loaded state until training begins."""
        self.loaded = dict(state) or None
        if self._adapter.trainer.strategy.restore_checkpoint_after_setup:  # and after on_fit_start, where it is asked for else
            self._restart.extend(self.saved_restart)

    @property
    def saved_restart(self) -> dict[str, Any] | None:
        """The restart's part of a loaded state; ``None`` if it has none, or belongs to another method."""
        if self.loaded is None or self.loaded.get("method") != self._method.name:
            return None
        saved = self.loaded.get("restart")
        # anything else is refused when the state is applied
        return saved if isinstance(saved, dict) and "epochs" in saved and "initial" in saved else None

    def collect(self, state: EpochState, seed: int, engine: Engine, together: bool, position: str) -> dict[str, Any]:
        """Return what a checkpoint holds, as plain tensors, numbers and strings.

        Args:
            state: the current epoch.
            seed: seed of the order and the choice of samples.
            engine: the engine, which has already written the observations of all finished steps.
            together: all ranks are here, so that their engine states and random streams can be gathered (collective).
            position: rank, epoch and step, for errors.
        """
        done, data = self._step.done_batches(), self._loader.data
        if data.statistics.spread is not ALONE and not together:
            rank_zero_warn(
                "this checkpoint is saved by one rank alone, which has the statistics of a share of the samples (statistics='sharded'): it "
                "holds no selection; resume from an earlier one"
            )
            return {}
        state = self._after_step(state, done)
        columns = data.statistics.collected()
        rng, known = self._streams.of_training(in_step=self._step.begins_again), engine.state_dict(not together, done)
        mine = [rng, known, self.pending.state_dict(together), data.place(done)]
        if together:
            with collective("save a checkpoint", position):
                streams, engines, pending, places = map(list, zip(*self._adapter.ranks.gather(mine), strict=True))
        else:
            # an exception on one rank: the others do not come to a gather
            streams, engines, pending, places = ([part] for part in mine)
            if not self._adapter.ranks.is_alone:
                streams = []
        if not columns:
            return {}  # rank 0 saves, and has those of all
        saved = to_state(
            SessionState(
                method=self.described,
                fingerprint=data.identity,
                seed=seed,
                epoch=state,
                layout=data.sampler.layout(state.epoch, state.done),
                full_batches=self._schedules.full,
                schedules=self._schedules.state_dict(),
                statistics=columns,
                judged_since=data.statistics.judged_since,
                totals=self._totals,
                restart=self._restart.state_dict(),
                rng=streams,
                engines=None if known is None else [each for each in engines if each is not None],
                shared=engine.shared_state(),
                pending=pending,
                control=self._control.state_dict(),
                order=data.sampler.layout(state.epoch).order_digest,
                loader=[place for place in places if place is not None],
            )
        )
        if together and not self._checked:
            # only once, because later states have the same form
            self._check(saved)
            self._checked = True
        return saved

    def _check(self, saved: dict[str, Any]) -> None:
        """Raise ``StateError`` at the first save if a resumed session would refuse the state, because a user's ``plan`` may return
        anything.
        """
        try:
            check_state(saved)
        except StateError as error:
            raise StateError(
                f"no run could resume from this checkpoint's selection state: {error}. What {self._method.name}.plan(...) returns is "
                "saved as plan.*, and its columns as statistics.*; correct these, or report this as a fault of kakurenbo-lightning"
            ) from None

    def _after_step(self, state: EpochState, done: int) -> EpochState:
        """The epoch state with which a session resumes from a checkpoint saved now: after step ``done``, which ``state`` may not
        include yet.
        """
        if state.phase is not Phase.TRAINING or done != state.step + 1 or not self._step.in_batch:
            return state
        return state.after_step(done, self._adapter.limited(len(self._loader.data.sampler)))

    def _as_kept_here(self, epoch: EpochState) -> EpochState:
        """The plans of ``epoch`` as they are kept with these statistics."""
        statistics = self._loader.data.statistics
        adopt = statistics.spread.adopted
        kept = None if epoch.kept is None else adopt(epoch.kept, statistics.total)
        return replace(epoch, plan=adopt(epoch.plan, statistics.total), kept=kept)

    def take_over(self, engine: Engine) -> tuple[EpochState, int] | None:
        """Apply the loaded state to the parts of the session.

        Args:
            engine: engine of the method's family, whose state is restored.

        Returns:
            The epoch state for the current ranks and batch size, and the seed; ``None`` if the state belongs to other data or another
            method and is forgotten (``on_mismatch="reset"``).

        Raises:
            MismatchError: the state belongs to other data, another method or setting, or a release that cannot be read
                (``StateError``: it is damaged).
        """
        state, self.loaded, data = self.loaded or {}, None, self._loader.data
        # a checkpoint of an older release lacks newer settings, which then count as their defaults
        defaults = default_settings(self._method)
        known = None if data.statistics.grows else data.statistics.total
        identity = Identity(self.described, known, data.identity, self._settings.seed, defaults)

        def check(saved: SessionState) -> None:
            check_columns(saved.statistics, data.statistics)
            engine.check_state(saved.engines, saved.shared, saved.num_samples)

        saved = fitting_state(state, identity, self._settings.on_mismatch, check)
        if saved is None:
            if (schedules := saved_schedules(state)) is not None:
                self._schedules.go_on(*schedules)
            return None
        data.statistics.load_state_dict(saved.statistics)
        saved = replace(saved, epoch=self._as_kept_here(saved.epoch))
        data.statistics.judged_since = saved.judged_since
        data.sampler.seed, data.sampler.shuffle = saved.seed, saved.layout.shuffle
        data.go_on(saved.loader, saved.epoch.step)
        self._totals.take_over(saved.totals)
        self._control.load_state_dict(saved.control)
        self._restart.load_state_dict(saved.restart)
        if saved.engines is not None:
            engine.load_state_dict(saved.engines, saved.shared, self._adapter.ranks.rank, self._adapter.ranks.size)
        now, rng = in_layout(saved, data.sampler.layout(saved.epoch.epoch))
        self._streams.restore_later(rng)
        self.pending.load_state_dict(saved.pending, self._adapter.ranks.rank, self._adapter.ranks.size)
        self._schedules.go_on(
            saved.schedules, saved.full_batches, resharded_at=now.step if now.done != saved.epoch.done else None
        )
        return now, saved.seed
