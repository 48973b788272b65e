"""The engine of a backprop method: scores every loaded batch, chooses, and trains on what was chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from kakurenbo_lightning.core.batch_rows import BatchCheck, like, plain, versions
from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.random import stream_generator, stream_seed
from kakurenbo_lightning.core.shard import Shard
from kakurenbo_lightning.core.state_schema import listed, scalar, table, tensor
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.engines.backprop_state import STATE, Counts, Kept, candidates, reshard
from kakurenbo_lightning.engines.base import Engine
from kakurenbo_lightning.engines.sample_buffer import SampleBuffer, Samples
from kakurenbo_lightning.engines.scorer import Scorer
from kakurenbo_lightning.engines.scoring import ScoringPass
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.backprop.base import BackpropMethod
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values, scaled
from kakurenbo_lightning.trainer.adapter import TrainerAdapter

SMALLEST = 2  # samples per rank of a short batch: BatchNorm refuses one


@dataclass(frozen=True)
class TrainBatch:
    """The current step trains the loaded batch as it is."""


@dataclass(frozen=True)
class SkipStep:
    """The current batch makes no step: chosen samples wait until they fill one."""


@dataclass(frozen=True)
class TrainChosen:
    """The current step trains chosen samples in place of the loaded batch.

    Attributes:
        samples: the chosen ones.
        scale: factor on this rank's mean loss.
        carried: how many of them, the first ones, were scored in another epoch.
    """

    samples: Samples
    scale: float
    carried: int


class BackpropEngine(Engine):
    """Scores every loaded batch, chooses, and trains what was chosen; the buffer and the method's memory live here.

    Args:
        adapter: the Trainer's adapter.
        method: the selection method.
        statistics: the statistics of all samples.
        scorer: scores in the module's place, see :class:`Scorer`.

    Attributes:
        memory: the method's memory, such as its history of losses.
        counts: what the epoch has counted so far.
    """

    skips = True
    timed = True

    def __init__(
        self,
        adapter: TrainerAdapter,
        method: BackpropMethod,
        statistics: SampleStatistics,
        scorer: pl.LightningModule | None = None,
    ) -> None:
        super().__init__(adapter, method, statistics)
        self._scorer = None if scorer is None else Scorer(adapter, scorer, method.train_scorer_every)
        self.beside = None if self._scorer is None else (self._scorer.module, self._scorer.schedules)
        self._scoring = ScoringPass(adapter, method, self._scorer)
        self._method: BackpropMethod = method
        self.memory = method.memory()
        self.counts = Counts()
        self._buffer = SampleBuffer("cpu" if method.pool_on_cpu else statistics.device)
        self._candidates: list[tuple[Samples, Values]] = []
        self._undecided = 0  # samples of all ranks that are candidates
        self._carried = 0  # of the buffer's, first ones that were scored in another epoch
        self._decision: TrainBatch | SkipStep | TrainChosen = TrainBatch()
        self._warned: set[str] = set()
        self._check = BatchCheck(method.name, method.pooled or method.batches_per_choice > 1)
        self._scored_versions: list[int] | None = None  # of the tensors of the batch that was scored
        self._before_step: Kept | None = None
        self._of_choice: list[Callable[[], None]] = []  # what the step under way has to write, known before it

    def begin_epoch(self, epoch: Epoch, plan: Plan, shard: Shard, start: int, outputs: SampleOutputs) -> None:
        """Begin an epoch; samples that waited for their batch in the last one are carried over."""
        super().begin_epoch(epoch, plan, shard, start, outputs)
        self.timer.start("data")
        if start == 0:
            self._adapter.hold_step(False)
            waiting = self.counts.pooled
            self._carried = len(self._buffer)
            self.counts = Counts(carried=waiting, pooled=waiting)

    # --- a batch

    def begin_batch(self, batch: Any, number: int) -> None:
        """Decide what the step of loaded batch ``number`` trains; the one after the last is there to train what is left."""
        super().begin_batch(batch, number)
        self._before_step, self._of_choice = self._keep(), []
        self.timer.stop("data")
        self._decision, self._scored_versions = TrainBatch(), None
        extra = number >= self._shard.steps
        if not extra and self._check(batch, self._shard.batch_length(number)):
            self._scoring.check(batch, number, self._shard.batch_length(number), self._outputs)
        if not extra and not self._method.scores(self._epoch, number, self._shard.expected, self.memory):
            self.counts.trained += self._shard.step_total(number)
            self.counts.steps += 1
            self._adapter.hold_step(False)
            return
        unknown, chosen = 0, None
        with self.timer.during("score"):
            if not extra:
                self._score(batch, number)
            if self._candidates and (extra or len(self._candidates) >= self._method.batches_per_choice):
                unknown, chosen = self._choose(number)
        waiting, not_scored, counts = gathered(self._adapter, len(self._buffer), unknown, len(chosen or ()))
        self._decide(waiting, not_scored, extra)
        if chosen is not None:
            self._teach_choice(batch, chosen, counts)
        self._of_choice = list(self._after_step)

    def _score(self, batch: Any, number: int) -> None:
        """Score the batch: its samples are candidates."""
        indices, size = self._shard.step(number), self._shard.batch_length(number)
        self._scored_versions = versions(batch)
        values = self._adapter.ranks.agreed(self._scoring.score(batch, number, size, self._outputs))
        self.check_untouched(batch)
        self._after_step.append(partial(self._method.record, self._statistics, indices, values, self._epoch))
        self._candidates.append((Samples(plain(batch), indices), values))
        self.counts.scored += self._shard.step_total(number)
        self._undecided += self._shard.step_total(number)

    def check_untouched(self, batch: Any) -> None:
        """Raise ``ConflictError`` when tensors of the batch that was scored have been changed in place."""
        if self._scored_versions is not None and versions(batch) != self._scored_versions:
            raise ConflictError(
                f"a tensor of the batch was changed in place after {self._method.name} scored it, so what was scored is not what "
                "would be trained; make a new tensor in training_step (x = x - mean, not x -= mean), and change batches in "
                "on_after_batch_transfer or in a callback that comes before SampleSelection"
            )

    def _choose(self, number: int) -> tuple[int, Samples]:
        """Choose among the candidates; how many of this rank's could not be scored, and what is chosen."""
        samples = Samples.join([candidate for candidate, _ in self._candidates])
        values = {name: torch.cat([seen[name] for _, seen in self._candidates]) for name in self._candidates[0][1]}
        self._candidates, self._undecided = [], 0
        self._method.learn(self.memory, values, self._mean)
        generator = stream_generator(self._epoch.seed, self._epoch.index, f"select:{number}:{self._adapter.ranks.rank}")
        picked = self._method.select(values, samples.indices, self.memory, generator)
        numbers = [picked.count, picked.whole, picked.unknown]
        on_device = [value.long() for value in numbers if isinstance(value, Tensor)]
        known = iter(torch.stack(on_device).tolist() if on_device else [])  # the one wait for the device
        count, whole, unknown = [next(known) if isinstance(value, Tensor) else value or 0 for value in numbers]
        if whole:
            self._warn("whole", f"{self._method.name}: every probability of a batch was 0 (equal losses); it is trained whole")
        rows = picked.rows[:count]
        chosen = samples.take(rows, None if picked.weights is None else picked.weights[:count])
        self._buffer.put(chosen)
        return unknown, chosen

    def _decide(self, waiting: list[int], not_scored: list[int], extra: bool) -> None:
        """Train or wait: the same on every rank.

        A step is made when every rank has a full batch (short ones, at the epoch's end or of a method that does not pool: when every rank
        has :data:`SMALLEST` samples). What a rank has chosen beyond one full batch that waits is rejected, the newest first; a method that
        does not pool waits with nothing.
        """
        full = self._shard.batch_size
        least = full if self._method.pooled and not extra else min(SMALLEST, full)
        ready = min(waiting) >= least
        take = [(count if extra or not self._method.pooled else full) if ready else 0 for count in waiting]
        mine = take[self._adapter.ranks.rank]
        self._decision = SkipStep()
        if ready:
            total = sum(take)
            carried = min(mine, self._carried)
            self._carried -= carried
            self._decision = TrainChosen(self._buffer.take(mine, self._statistics.device), mine * len(take) / total, carried)
            self.counts.trained += total
            self.counts.chosen_trained += total
            self.counts.steps += 1
        left = [count - taken for count, taken in zip(waiting, take, strict=True)]
        if len(left) > 1 or not self._method.pooled:
            most = full if self._method.pooled else 0
            self._buffer.drop(most)
            left = [min(count, most) for count in left]
        self.counts.unknown += sum(not_scored)
        self.counts.pooled = sum(left) + self._undecided
        self.counts.rejected = self.counts.scored + self.counts.carried - self.counts.chosen_trained - self.counts.pooled
        self._adapter.hold_step(not ready)

    def _mean(self, value: Tensor) -> Tensor:
        """The mean of a value over the ranks; collective."""
        return value if self._adapter.ranks.is_alone else self._adapter.ranks.sum(value) / self._adapter.ranks.size

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            rank_zero_warn(text)

    def end_epoch(self, last: bool) -> tuple[dict[str, float], dict[str, float]]:
        """Counts to log and seconds of the phases; ``last``: what waits now is never trained."""
        if last:
            self.counts.rejected += self.counts.pooled
            self.counts.pooled = self._undecided = 0
            self._candidates = []
            self._buffer.drop(0)
        if self._scorer is not None:
            self._scorer.end_epoch()
        _, seconds = super().end_epoch(last)
        return {name: float(value) for name, value in asdict(self.counts).items()}, seconds

    # --- the step

    def trained_batch(self, values: Values | None, batch: Any) -> None:
        """An ordinary step has trained ``batch``: the method and the scorer learn from it."""
        if values is None:
            return
        if not len(self._plan.hidden):  # else its samples were chosen before, by their losses
            self._method.learn(self.memory, self._adapter.ranks.agreed(values), self._mean)
        self._teach(batch, self._shard.loss_scale(self._number))

    def training_step(self, step: Callable[..., Any], *args: Any) -> tuple[Any, Tensor | None]:
        """Train the loaded batch, what was chosen in its place, or nothing."""
        self._after_step = list(self._of_choice)
        made = self._train(step, *args)
        if self._scorer is not None:
            self._after_step.append(partial(self._scorer.end_batch, self._number, self._number >= self._shard.steps))
        return made

    def _train(self, step: Callable[..., Any], *args: Any) -> tuple[Any, Tensor | None]:
        if isinstance(self._decision, TrainBatch):
            return super().training_step(step, *args)
        self.check_untouched(args[0])
        if isinstance(self._decision, SkipStep):
            return torch.zeros((), device=self._statistics.device), None
        samples, carried = self._decision.samples, self._decision.carried
        batch = like(args[0], samples.batch)
        with self.timer.during("forward"):
            outputs, values = self._observe(partial(step, batch, *args[1:]), batch, len(samples), samples.weights)
        if values is not None and not self._method.repeats:
            # another rank may train a sample that was carried over here: it records that one
            own = {name: value[carried:] for name, value in values.items()}
            self._after_step.append(partial(self._method.record, self._statistics, samples.indices[carried:], own, self._epoch))
        if self._scorer is not None and self._scorer.every is None:
            self._teach(batch, self._decision.scale)
        return scaled(outputs, self._decision.scale), samples.indices

    def _teach_choice(self, batch: Any, chosen: Samples, counts: list[int]) -> None:
        """Train the scorer, when it is due, on what is chosen of the loaded batch, on ranks that have :data:`SMALLEST` of it or more."""
        if self._scorer is None or self._scorer.every is None or not self._scorer.is_due:
            return
        least = min(SMALLEST, self._shard.batch_size)
        counted = [count if count >= least else 0 for count in counts]
        if total := sum(counted):
            self._teach(like(batch, chosen.batch), counted[self._adapter.ranks.rank] * len(counted) / total)

    def _teach(self, batch: Any, scale: float) -> None:
        """Train the scorer on ``batch`` once the step is done."""
        if self._scorer is not None:
            seed = stream_seed(self._epoch.seed, self._epoch.index, f"scorer:{self._number}:{self._adapter.ranks.rank}")
            self._after_step.append(partial(self._scorer.learn, batch, self._number, scale, seed))

    @property
    def kind(self) -> str:
        """Whether the loaded batch was scored, and whether one was trained."""
        scored = "" if self._scored_versions is None else "scored"
        return scored if isinstance(self._decision, SkipStep) else f"{scored} trained".strip()

    def end_batch(self, number: int) -> None:
        """End the step; the wait for the next batch begins."""
        super().end_batch(number)
        self.timer.start("data")

    def release(self) -> None:
        """Let loaded batches make optimizer steps again, as Lightning has it."""
        self._adapter.hold_step(False)

    # --- state

    def _keep(self) -> Kept:
        """Keep what is known now; cheap, as nothing in it is changed in place."""
        return Kept(
            dict(self.memory),
            self._buffer.parts,
            list(self._candidates),
            self._undecided,
            self._carried,
            isinstance(self._decision, SkipStep),
            replace(self.counts),
        )

    def state_dict(self, alone: bool = False, done: int = sys.maxsize) -> dict[str, Any]:
        """This rank's state without the batch that is made again when ``done`` steps are done; loads with ``weights_only=True``."""
        again = self._before_step is not None and done <= self._number
        kept = self._before_step if again and self._before_step else self._keep()
        return {
            "memory": {name: _on_cpu(value) for name, value in kept.memory.items()},
            "pool": [part.state_dict() for part in kept.pool],
            "candidates": [
                {"samples": samples.state_dict(), "values": {name: _on_cpu(value) for name, value in values.items()}}
                for samples, values in kept.candidates
            ],
            "undecided": kept.undecided,
            "carried": kept.carried,
            "held": kept.held,
            "counts": asdict(kept.counts),
            "scorer": self._scorer.state_dict() if self._scorer is not None and self._adapter.ranks.rank == 0 else None,
        }

    def check_state(self, states: list[dict[str, Any]] | None, shared: Any, count: int) -> None:
        """Raise ``StateError`` unless these are states that :meth:`state_dict` made."""
        memory = {name: tensor() if value.dim() else scalar() for name, value in self._method.memory().items()}
        listed(table({**STATE, "memory": table(memory)}))(states, "engines", count)
        super().check_state(None, shared, count)

    def load_state_dict(self, states: list[dict[str, Any]], shared: None, rank: int, world_size: int) -> None:
        """Take over :meth:`state_dict` of every rank; what other ranks kept waiting is sharded over these.

        Args:
            states: by rank.
            shared: nothing.
            rank: this one.
            world_size: of this run.
        """
        device, own = self._statistics.device, states[rank % len(states)]
        self.memory = dict(own["memory"])
        if self._scorer is not None and states[0]["scorer"] is not None:
            self._scorer.load_state_dict(states[0]["scorer"])
        self.counts = Counts(**own["counts"])
        self._undecided = own["undecided"]
        same = len(states) == world_size
        self._buffer.load_state_dict(own["pool"] if same else reshard([state["pool"] for state in states], rank, world_size))
        self._carried = own["carried"] if same else len(self._buffer)
        saved = [state["candidates"] for state in ([own] if same else states)]
        self._candidates = candidates(saved, slice(None) if same else slice(rank, None, world_size), device)
        self._decision = SkipStep() if own["held"] else TrainBatch()
        self._adapter.hold_step(own["held"])


def gathered(adapter: TrainerAdapter, *mine: int) -> list[list[int]]:
    """Collect each of these numbers from all ranks, by rank; collective."""
    if adapter.ranks.is_alone:
        return [[number] for number in mine]
    here = torch.tensor(mine, device=adapter.trainer.strategy.root_device)
    return torch.stack(adapter.ranks.gather_tensors(here), dim=1).tolist()


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
