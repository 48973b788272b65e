"""Before each epoch: score what the plan wants to know better, give every rank what every rank saw, and let the method choose."""

from __future__ import annotations

from dataclasses import replace

import torch.distributed as dist
from torch import Tensor

from kakurenbo_lightning.core.distributed import check_equal_plans, collective, rank_zero_warn
from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.random import stream_seed
from kakurenbo_lightning.core.seeded_dataset import set_dataset_epoch
from kakurenbo_lightning.core.statistics import TARGET, SampleStatistics
from kakurenbo_lightning.core.timers import Stopwatch
from kakurenbo_lightning.engines.base import Engine, RecordValues
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.session.control import Control
from kakurenbo_lightning.session.epoch_state import EpochState, Phase
from kakurenbo_lightning.session.followed_loader import FollowedLoader
from kakurenbo_lightning.session.metrics import planned_metrics
from kakurenbo_lightning.session.plain_values import plain_plan
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.compatibility import check_epochs, warn_of_idle_settings
from kakurenbo_lightning.trainer.forward_pass import score_samples, wait_for
from kakurenbo_lightning.trainer.lr_schedule import EpochSchedules, estimated_epochs
from kakurenbo_lightning.trainer.restart import Restart


class Planner:
    """Plans the epochs of a session.

    Args:
        adapter: of the Trainer.
        method: the selection method.
        control: stands above the method.
        restart: of a static method.
        schedules: know how long a full epoch is.
        totals: counts and seconds are added to them.
    """

    def __init__(
        self,
        adapter: TrainerAdapter,
        method: Method,
        control: Control,
        restart: Restart,
        schedules: EpochSchedules,
        totals: Totals,
    ) -> None:
        self._adapter, self._trainer, self._method, self._control = adapter, adapter.trainer, method, control
        self._restart, self._schedules, self.totals = restart, schedules, totals
        self._refresh_seconds = 0.0  # before the epoch that is planned
        self._warned_nonfinite = self._warned_idle = False

    def check(self, num_samples: int) -> None:
        """Raise ``ValueError`` when the method's settings do not fit a training of this length or a data set of ``num_samples``."""
        self._method.check_run(self.max_epochs, num_samples)
        check_epochs(self.max_epochs)
        self._control.check(self._trainer, self.max_epochs)

    @property
    def max_epochs(self) -> int | None:
        """Length of the training in epochs, without the scoring epochs of a static method; ``None`` when it has no end."""
        trainer = self._trainer
        limit = -1 if trainer.max_epochs is None else trainer.max_epochs
        return self._restart.user_epochs(estimated_epochs(limit, trainer.max_steps, self._schedules.steps_per_epoch))

    def epoch(self, index: int, seed: int, batch_size: int | None = None) -> Epoch:
        """Epoch ``index``, as methods know it."""
        return Epoch(index, self.max_epochs, seed, scoring=self._restart.epochs, batch_size=batch_size)

    def _score_rest(
        self, epoch: Epoch, last: int, previous: Plan | None, data: FollowedLoader, outputs: SampleOutputs, position: str
    ) -> Tensor | IndexSet:
        """Score those that the plan of ``epoch`` wants to know better; which, ``int64[n]`` or a set.

        Args:
            epoch: to be planned.
            last: the number of the epoch before.
            previous: the plan of it; ``None`` where the method must choose.
            data: that it trains.
            outputs: where sample values come from.
            position: of this rank, for errors.
        """
        statistics = data.statistics
        wait_for(statistics.device)
        self._refresh_seconds = 0.0
        if statistics.repeats:
            self.merge(statistics, position)
        rows = data.rows_to_score(self._control.method, epoch, previous)
        hidden = previous is not None and previous.hides(rows)
        if len(rows) and not hidden and not statistics.repeats:
            self.merge(statistics, position)  # some were trained too, perhaps by another rank than will score them
        seen: list[tuple[Tensor, Values]] = []

        def keep(scored: Tensor, values: Values) -> None:
            seen.append((scored, {name: value.clone() for name, value in values.items()}))  # it may be a view of much more

        self._score(rows, keep, last, data, outputs)
        for scored, values in seen:  # now: a pass that is interrupted, and made again in a resumed session, must not count twice
            known = outputs.averaged(statistics, scored, values)
            self._method.record(statistics, scored, known, replace(epoch, index=last))  # as the epoch before measured them
        return rows

    def _score(
        self, rows: Tensor | IndexSet, record: RecordValues, epoch: int, data: FollowedLoader, outputs: SampleOutputs
    ) -> None:
        """A scoring pass over ``rows``, shared by the ranks."""
        if not len(rows):
            return
        set_dataset_epoch(data.loader.dataset, epoch)
        mode = self._method.refresh_mode or "eval"
        seed = stream_seed(data.sampler.seed, epoch, f"refresh augmentation:{data.sampler.rank}")
        seconds = score_samples(self._adapter, data.loader, rows, outputs, record, mode, seed)
        self._refresh_seconds += seconds
        self.totals.refresh_seconds += seconds
        self.totals.samples_refreshed += len(rows)
        self.totals.times.scored(seconds, len(rows))

    def merge(self, statistics: SampleStatistics, position: str) -> None:
        """Give every rank the statistics of all; collective."""
        with collective("merge the statistics", position):
            statistics.merge(self._adapter.ranks.is_recorder)

    def plan(
        self,
        index: int,
        before: EpochState,
        data: FollowedLoader,
        outputs: SampleOutputs,
        engine: Engine,
        position: str,
    ) -> EpochState:
        """Score, merge, choose: the state in which epoch ``index`` begins. Collective.

        The first epoch after the scoring epochs of a static method puts the training back to its start, once everything is merged.

        Args:
            index: of the epoch.
            before: where the session is.
            data: that it trains.
            outputs: where sample values come from.
            engine: of the session.
            position: of this rank, for errors.
        """
        statistics, epoch = data.statistics, self.epoch(index, data.sampler.seed, data.sampler.batch_size)
        held, previous = self._control.begin(epoch, before, data.count, position)
        kept = previous if held and self._restart.epochs and not self._method.chooses_in(epoch) else None
        scored = self._score_rest(epoch, max(0, before.epoch), None if held else previous, data, outputs, position)
        watch = Stopwatch(running=True)
        if len(scored) or not statistics.repeats:  # else it is done
            self.merge(statistics, position)
        if 0 < self._restart.epochs == index:
            self._restart.start_again()
            self.totals.scoring_epochs = self._restart.epochs
        if held:
            plan = data.everything()
        else:
            plan = plain_plan(data.plan(self._control.method, epoch, previous), self._method.name)
            self._control.planned(epoch, plan, previous)
        engine.prepare(epoch, plan, scored)
        if not self._adapter.ranks.is_alone and dist.is_initialized():
            checksum, order = plan.checksum() ^ engine.checksum(), data.sampler.layout(index).order_checksum
            check_equal_plans(checksum, order, statistics.device, self._method.name, index, position)
        nonfinite = statistics.nonfinite()
        seconds = watch.take()
        self.totals.select_seconds += seconds
        self.totals.samples_hidden += plan.hidden_count
        self.totals.samples_spared += self._spared(index, plan.hidden_count, data)
        self.totals.moved_back += int(plan.metrics.get("moved_back", 0))
        metrics = planned_metrics(plan, nonfinite, self._trainer.optimizers)
        metrics |= engine.diagnosed(epoch, plan, lambda rows, record: self._score(rows, record, index, data, outputs))
        metrics |= {"refresh_seconds": self._refresh_seconds, "select_seconds": seconds, **self._control.metrics(index)}
        if self._restart.epochs:
            metrics["scoring_epochs"] = float(min(index + 1, self._restart.epochs))
        self._warn_idle(data)
        self._warn_nonfinite(nonfinite, statistics.total)
        return EpochState(index, 0, Phase.PLANNED, plan, metrics=metrics, ended_metrics=before.ended_metrics, kept=kept)

    def foreign_end(self, epoch: Epoch, data: FollowedLoader) -> EpochState:
        """The batches of ``epoch`` were trained without this selection: the state in which it has none left, so that Lightning ends it."""
        return EpochState(epoch.index, phase=Phase.ENDED, plan=data.plan(self._method, epoch, None))

    def _spared(self, index: int, hidden: int, data: FollowedLoader) -> int:
        """How many samples fewer epoch ``index`` trains, which hides ``hidden``, than that of plain training.

        Plain training has no scoring epochs, ``limit_train_batches`` cuts its epochs off too, and it comes to ``max_steps`` earlier.
        """
        trainer = self._trainer
        if self._method.family != "hide" or not data.count:
            return 0
        count, step = data.count, data.sampler.batch_size * data.sampler.num_replicas
        full, own = (min(n, self._adapter.limited(-(-n // step)) * step) for n in (count, count - hidden))
        if trainer.max_steps >= 0:
            done = index * self._schedules.steps_per_epoch, trainer.global_step
            left = (max(0, trainer.max_steps - steps) * trainer.accumulate_grad_batches * step for steps in done)
            full, own = map(min, (full, own), left)
        return (0 if index < self._restart.epochs else full) - own

    def _warn_idle(self, data: FollowedLoader) -> None:
        is_known = data.count or not data.statistics.grows
        if is_known and not self._warned_idle and not self._trainer.fast_dev_run:
            self._warned_idle = True
            universe = data.universe
            targets = universe.statistics(data.statistics).extra.get(TARGET.name)
            warn_of_idle_settings(self._method.within(universe), self.max_epochs, data.count, targets)

    def _warn_nonfinite(self, count: int, total: int) -> None:
        if count and not self._warned_nonfinite:
            self._warned_nonfinite = True
            rank_zero_warn(
                f"{count} of {total} samples have a NaN or infinite loss; a method that goes by the loss never hides them. "
                "selection/nonfinite counts them each epoch"
            )
