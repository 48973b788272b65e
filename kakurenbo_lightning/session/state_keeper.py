"""The session's side of checkpoints: what is collected for one, and how a loaded one is given to the session's parts."""

from __future__ import annotations

from typing import Any

from kakurenbo_lightning.core.distributed import collective, gather
from kakurenbo_lightning.engines.base import Engine
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.session.checkpoint import Identity, SessionState, describe_method, fitting_state, in_layout, to_state
from kakurenbo_lightning.session.epoch_state import EpochState
from kakurenbo_lightning.session.random_streams import RandomStreams
from kakurenbo_lightning.session.schema import check_columns
from kakurenbo_lightning.session.settings import SessionSettings
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.session.train_loader import TrainLoader
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.lr_schedule import EpochSchedules
from kakurenbo_lightning.trainer.restart import Restart


class StateKeeper:
    """Collects what a checkpoint holds of a session, and keeps a loaded state until the data set is there to take it over.

    Args:
        adapter: of the Trainer.
        method: the selection method.
        settings: of the user.
        loader: the session's, as the four below are.
        schedules: of the learning rate.
        restart: of a static method.
        streams: of random numbers.
        totals: sums over the epochs so far.

    Attributes:
        loaded: the state of a checkpoint that is not taken over yet; ``None`` for none.
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
    ) -> None:
        self._adapter, self._method, self._settings = adapter, method, settings
        self._loader, self._schedules, self._restart = loader, schedules, restart
        self._streams, self._totals = streams, totals
        self.loaded: dict[str, Any] | None = None

    @property
    def saved_restart(self) -> dict[str, Any] | None:
        """What a loaded state says of the restart; ``None`` when it says nothing, or is of another method."""
        if self.loaded is None or self.loaded.get("method") != self._method.name:
            return None
        saved = self.loaded.get("restart")
        return saved if isinstance(saved, dict) and "epochs" in saved and "initial" in saved else None  # else refused later

    def collect(
        self, state: EpochState, seed: int, engine: dict[str, Any] | None, shared: Any, together: bool, position: str
    ) -> dict[str, Any]:
        """What a checkpoint holds: plain tensors, numbers and strings.

        Args:
            state: where the session is.
            seed: of order and choice.
            engine: what the engine remembers on this rank; ``None`` for one that remembers nothing.
            shared: what it remembers on every rank alike.
            together: every rank is here, so that ranks can be asked for their engine's state and random streams; collective then.
            position: rank, epoch and step, for errors.
        """
        data, rng = self._loader.data, self._streams.of_training()
        if together:
            with collective("save a checkpoint", position):
                streams, engines = gather(rng), gather(engine)
        else:
            streams, engines = ([rng] if data.sampler.num_replicas == 1 else []), [engine]
        return to_state(
            SessionState(
                method=describe_method(self._method),
                fingerprint=data.identity,
                seed=seed,
                epoch=state,
                layout=data.sampler.layout(state.epoch, state.done),
                full_batches=self._schedules.full,
                schedules=self._schedules.state_dict(),
                statistics=data.statistics.state_dict(),
                judged_since=data.statistics.judged_since,
                totals=self._totals,
                restart=self._restart.state_dict(),
                rng=streams,
                engines=None if engine is None else [each for each in engines if each is not None],
                shared=shared,
            )
        )

    def take_over(self, engine: Engine) -> tuple[EpochState, int] | None:
        """Give the loaded state to the parts of the session.

        Args:
            engine: of the method's family; gets back what it remembered.

        Returns:
            Where the session is in the ranks and batches of now, and its seed; ``None`` when the state is of other data or another
            method and is forgotten (``on_mismatch="reset"``).

        Raises:
            MismatchError: it is of other data, another method or setting, or of a release that cannot be read; ``StateError``: it is
                damaged.
        """
        state, self.loaded, data = self.loaded or {}, None, self._loader.data
        identity = Identity(describe_method(self._method), len(data.statistics), data.identity, self._settings.seed)

        def check(saved: SessionState) -> None:
            check_columns(saved.statistics, data.statistics)
            engine.check_state(saved.engines, saved.shared, saved.num_samples)

        saved = fitting_state(state, identity, self._settings.on_mismatch, check)
        if saved is None:
            return None
        data.statistics.load_state_dict(saved.statistics)
        data.statistics.judged_since = saved.judged_since
        data.sampler.seed, data.sampler.shuffle = saved.seed, saved.layout.shuffle
        self._totals.take_over(saved.totals)
        self._restart.load_state_dict(saved.restart)
        if saved.engines is not None:
            engine.load_state_dict(saved.engines, saved.shared, self._adapter.rank, self._adapter.world_size)
        now, rng = in_layout(saved, data.sampler.layout(saved.epoch.epoch))
        self._streams.restore_later(rng)
        self._schedules.go_on(
            saved.schedules, saved.full_batches, resharded_at=now.step if now.done != saved.epoch.done else None
        )
        return now, saved.seed
