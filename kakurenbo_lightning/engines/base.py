"""What happens within an epoch. The base engine trains every loaded batch as it is and records what its step saw."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import lightning.pytorch as pl
from torch import Tensor

from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.shard import Shard, accumulated_scale
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.core.stream_shard import DrawSource
from kakurenbo_lightning.core.timers import PhaseTimer
from kakurenbo_lightning.errors import StateError
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values, scaled
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.forward_pass import replaying, scoring

PHASES = ("score", "forward", "backward", "data")
Counts = dict[str, float]
RecordValues = Callable[[Tensor, Values], None]
ScorePass = Callable[[Tensor, RecordValues], None]


class Engine:
    """Hooks in the order of the loop. A family that does something within the epoch derives from this one.

    Args:
        adapter: the Trainer's adapter.
        method: the selection method.
        statistics: the statistics of all samples, on the device that trains.
        mean_over_samples: a step's gradient is the mean over the samples of all its accumulated batches, not of the batches' means.

    Attributes:
        skips: leaves out optimizer steps.
        timed: measures the phases of a step: scoring, forward, backward and waiting for data.
        timer: times the phases.
        beside: a module that is trained beside the Trainer's, and Lightning's configs of its schedules; ``None`` for none.
    """

    skips: ClassVar[bool] = False
    timed: ClassVar[bool] = False

    def __init__(
        self, adapter: TrainerAdapter, method: Method, statistics: SampleStatistics, mean_over_samples: bool = False
    ) -> None:
        self._adapter, self._trainer, self._method, self._statistics = adapter, adapter.trainer, method, statistics
        self._mean_over_samples = mean_over_samples
        self.timer = PhaseTimer(statistics.device, enabled=self.timed)
        self.beside: tuple[pl.LightningModule, list[Any]] | None = None
        self._number = 0  # of the batch that is, or was last, trained
        self._after_step: list[Callable[[], None]] = []  # what the step under way has to write when it is done

    @property
    def draws(self) -> DrawSource | None:
        """Where the batches of a drawn epoch come from; ``None`` for a family that draws none."""
        return None

    # --- before an epoch

    def prepare(self, epoch: Epoch, plan: Plan, scored: Tensor | IndexSet) -> None:
        """An epoch is planned; ``scored`` (``int64[n]``, or a set) were scored since the last step. The same on every rank."""

    def checksum(self) -> int:
        """A number made of all that must be equal on all ranks."""
        return 0

    def diagnosed(self, epoch: Epoch, plan: Plan, score: ScorePass) -> Counts:
        """Metrics of the state that an epoch begins with; ``score(rows, record)`` makes a scoring pass. Collective."""
        return {}

    def begin_epoch(self, epoch: Epoch, plan: Plan, shard: Shard, start: int, outputs: SampleOutputs) -> None:
        """An epoch begins, or goes on, at step ``start``.

        Args:
            epoch: which epoch.
            plan: of it.
            shard: this rank's part of the plan, on the device.
            start: the first step.
            outputs: where sample values come from.
        """
        self._epoch, self._plan, self._shard, self._outputs = epoch, plan, shard, outputs

    # --- a step

    def begin_batch(self, batch: Any, number: int) -> None:
        """Note that batch ``number`` of the epoch is there."""
        self._number = number
        self._after_step = []

    def training_step(self, step: Callable[..., Any], *args: Any) -> tuple[Any, Tensor | None]:
        """Run the user's training step, record what was seen of its samples, and scale its loss by their share of the optimizer step's.

        Args:
            step: the strategy's training step.
            args: of the step: the batch, and its number where the user's takes one.

        Returns:
            The outputs of the step, and the indices that this rank trains in it, ``int64[b]``; ``None`` for none.
        """
        shard, number = self._shard, self._number
        with self.timer.during("forward"):
            outputs, values = self._observe(partial(step, *args), args[0], shard.batch_length(number), shard.step_weights(number))
        indices = shard.step(number)
        self._after_step = []  # of an optimizer that runs the step more than once, as LBFGS does, the last time counts
        if values is not None or self._statistics.grows:
            self._after_step.append(partial(self._record, indices, values or {}))
        self.trained_batch(values, args[0])
        if self._trainer.lightning_module.automatic_optimization:
            outputs = scaled(outputs, self.loss_scale(self._trainer.accumulate_grad_batches if self._mean_over_samples else 1))
        return outputs, indices

    def loss_scale(self, accumulate: int) -> float:
        """The factor on this rank's mean loss of the current batch, see
        :func:`~kakurenbo_lightning.core.shard.accumulated_scale`."""
        return accumulated_scale(self._shard, self._number, accumulate, self._adapter.limited(self._shard.steps))

    def _observe(self, step: Callable[[], Any], batch: Any, size: int, weights: Tensor | None) -> tuple[Any, Values | None]:
        """Run ``step``, and verify on the first batch what is recorded; the module itself is run again then, outside the strategy."""
        again = replaying(self._trainer, self._trainer.lightning_module, self._number)
        return self._outputs.observe(step, batch, size, partial(scoring, self._adapter), weights, **again)

    def trained_batch(self, values: Values | None, batch: Any) -> None:
        """The current step has trained ``batch`` as it is; ``values`` of its samples, ``None`` where the step gave none."""

    def _record(self, indices: Tensor, values: Values) -> None:
        self._method.record(self._statistics, indices, self._outputs.averaged(self._statistics, indices, values), self._epoch)

    @property
    def kind(self) -> str:
        """What the current step did, in a word: steps of one kind take about the same time."""
        return "trained"

    def end_batch(self, number: int) -> None:
        """Step ``number`` is done: write what it observed, which a checkpoint saved before does not hold, as it is made again then."""
        self._outputs.check_weighed()
        self._write_step()

    def _write_step(self) -> None:
        after, self._after_step = self._after_step, []
        for write in after:
            write()

    # --- after an epoch

    def end_epoch(self, last: bool) -> tuple[Counts, Counts]:
        """Metrics and counts of the epoch, and seconds of its phases; ``last``: it is the last of the session."""
        if not self.timed:
            return {}, {}
        seconds = self.timer.take()
        return {}, {f"{phase}_seconds": seconds.get(phase, 0.0) for phase in PHASES}

    def release(self) -> None:
        """Let go of the Trainer, at the end of a fit."""

    # --- state

    def save_step(self, alone: bool, done: int) -> None:
        """A checkpoint is saved in which ``done`` steps are done: write what a step observed that is, before :meth:`end_batch` does."""
        if done > self._number and (self._adapter.ranks.is_alone or not alone):  # writing may be collective
            self._write_step()

    def state_dict(self, alone: bool, done: int) -> dict[str, Any] | None:
        """This rank's state; loads with ``weights_only=True``. ``None`` for an engine that remembers nothing.

        Args:
            alone: the other ranks save nothing.
            done: steps of the epoch that a resumed session does not make again.
        """
        return None

    def shared_state(self) -> Any:
        """The part of the state that is the same on every rank; asked for after :meth:`state_dict`."""
        return None

    def check_state(self, states: list[dict[str, Any]] | None, shared: Any, count: int) -> None:
        """Raise ``StateError`` unless these are states that the engine has saved, of a data set of ``count`` samples."""
        for name, value in (("engines", states), ("shared", shared)):
            if value is not None:
                raise StateError(f"{name} is a {type(value).__name__}, it must be None: the method remembers nothing")

    def load_state_dict(self, states: list[dict[str, Any]], shared: Any, rank: int, world_size: int) -> None:
        """Take over :meth:`state_dict` of every rank and :meth:`shared_state`, for rank ``rank`` of ``world_size``."""


def no_engine(adapter: TrainerAdapter, method: Method) -> Engine:
    """The engine of a session whose data and device are not known yet."""
    return Engine(adapter, method, SampleStatistics(0))
