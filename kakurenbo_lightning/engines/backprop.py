"""Drives a backprop method: look at every loaded batch, choose, and train on what was chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from kakurenbo_lightning.core.random import stream_generator
from kakurenbo_lightning.core.shard import EpochShard
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.engines.base import Engine
from kakurenbo_lightning.engines.batch_rows import check_savable, versions
from kakurenbo_lightning.engines.sample_buffer import SampleBuffer, Samples
from kakurenbo_lightning.engines.scoring import ScoringPass
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.backprop.base import BackpropMethod
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.forward_pass import scoring

SMALLEST = 2  # samples per rank of a short batch: BatchNorm refuses one


@dataclass
class Counts:
    """Samples of one epoch, over all ranks. ``looked + carried == chosen_trained + rejected + pooled``.

    Attributes:
        scored: were looked at.
        carried: waited in the pool since the epoch before.
        trained: went through a training step, those that were not looked at too.
        chosen_trained: of these, the ones that were chosen.
        rejected: were looked at and are not trained.
        pooled: wait.
        unknown: could not be scored.
        steps: optimizer steps.
    """

    scored: int = 0
    carried: int = 0
    trained: int = 0
    chosen_trained: int = 0
    rejected: int = 0
    pooled: int = 0
    unknown: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Now:
    """What the current training step trains.

    Attributes:
        samples: the chosen ones; ``None`` to skip the step.
        scale: factor on this rank's mean loss.
        carried: how many of them, the first ones, were looked at in another epoch.
    """

    samples: Samples | None
    scale: float = 1.0
    carried: int = 0


class BackpropEngine(Engine):
    """Looks, chooses and trains; what the pool and the method remember lives here.

    Args:
        trainer: the Trainer.
        adapter: of it.
        method: the selection method.
        statistics: where they are kept.
        scorer: looks in the module's place, see :class:`ScoringPass`.

    Attributes:
        memory: of the method.
        counts: of the epoch.
    """

    skips = True

    def __init__(
        self,
        trainer: pl.Trainer,
        adapter: TrainerAdapter,
        method: BackpropMethod,
        statistics: SampleStatistics,
        scorer: pl.LightningModule | None = None,
    ) -> None:
        super().__init__(statistics.device)
        self._scoring = ScoringPass(trainer, method, scorer)
        self._trainer, self._adapter, self._method = trainer, adapter, method
        self._statistics = statistics
        self.memory = method.memory()
        self.counts = Counts()
        self._pool = SampleBuffer("cpu" if method.pool_on_cpu else statistics.device)
        self._candidates: list[tuple[Samples, Values]] = []
        self._undecided = 0  # samples of all ranks that are candidates
        self._carried = 0  # of the pool's, first ones that were looked at in another epoch
        self._now: Now | None = None
        self._warned: set[str] = set()
        self._checked = False
        self._seen: list[int] | None = None  # versions of the tensors of the batch that was looked at

    def begin_epoch(self, epoch: Epoch, dealt: EpochShard, start: int, outputs: SampleOutputs) -> None:
        """What waits is carried over."""
        self._epoch, self._shard, self._outputs = epoch, dealt, outputs
        self.phases.start("data")
        if start == 0:
            self._adapter.hold_step(False)
            waiting = self.counts.pooled
            self._carried = len(self._pool)
            self.counts = Counts(carried=waiting, pooled=waiting)

    # --- a batch

    def score(self, batch: Any, number: int) -> None:
        """Decide what the step of loaded batch ``number`` trains; the one after the last is there to train what is left."""
        self.phases.stop("data")
        self._now, self._seen = None, None
        extra = number >= self._shard.steps
        if not extra and not self._method.scores(self._epoch, number, self._shard.steps, self.memory):
            size = self._shard.step_total(number)
            self.counts.trained += size
            self.counts.steps += 1
            self._adapter.hold_step(False)
            return
        unknown = 0
        with self.phases.during("score"):
            if not extra:
                self._see(batch, number)
            if self._candidates and (extra or len(self._candidates) >= self._method.batches_per_choice):
                unknown = self._choose(number)
        self._decide(unknown, extra)

    def _see(self, batch: Any, number: int) -> None:
        indices, size = self._shard.step(number), self._shard.batch_length(number)
        self._seen = versions(batch)
        values = self._scoring.score(batch, number, size, self._outputs)
        self.check_untouched(batch)
        self._statistics.record(indices, values, self._epoch.index)
        if not self._checked:
            self._checked = True
            check_savable(batch)
        self._candidates.append((Samples(batch, indices), values))
        self.counts.scored += self._shard.step_total(number)
        self._undecided += self._shard.step_total(number)

    def check_untouched(self, batch: Any) -> None:
        """Raise ``ConflictError`` when tensors of the batch that was looked at have been changed in place."""
        if self._seen is not None and versions(batch) != self._seen:
            raise ConflictError(
                f"a tensor of the batch was changed in place after {self._method.name} looked at it, so what was looked at is not what "
                "would be trained; make a new tensor in training_step (x = x - mean, not x -= mean), and change batches in "
                "on_after_batch_transfer or in a callback that comes before SampleSelection"
            )

    def _choose(self, number: int) -> int:
        """Choose among the candidates; how many of this rank's could not be scored."""
        samples = Samples.join([candidate for candidate, _ in self._candidates])
        values = {name: torch.cat([seen[name] for _, seen in self._candidates]) for name in self._candidates[0][1]}
        self._candidates, self._undecided = [], 0
        self._method.learn(self.memory, values, self._mean)
        generator = stream_generator(self._epoch.seed, self._epoch.index, f"select:{number}:{self._shard.rank}")
        picked = self._method.select(values, samples.indices, self.memory, generator)
        told = [picked.count, picked.whole, picked.unknown]
        there = [value.long() for value in told if isinstance(value, Tensor)]
        known = iter(torch.stack(there).tolist() if there else [])  # the one wait for the device
        count, whole, unknown = [next(known) if isinstance(value, Tensor) else value or 0 for value in told]
        if whole:
            self._warn("whole", f"{self._method.name}: every probability of a batch was 0 (equal losses); it is trained whole")
        rows = picked.rows[:count]
        self._pool.put(samples.take(rows, None if picked.weights is None else picked.weights[:count]))
        return unknown

    def _decide(self, unknown: int, extra: bool) -> None:
        """Train or wait: the same on every rank.

        A step is made when every rank has a full batch (short ones, at the epoch's end or of a method that does not pool: when every rank
        has :data:`SMALLEST` samples). What a rank has chosen beyond one full batch that waits is rejected, the newest first; a method that
        does not pool waits with nothing.
        """
        full = self._shard.batch_size
        waiting, not_scored = self._gather(len(self._pool), unknown)
        least = full if self._method.pooled and not extra else min(SMALLEST, full)
        ready = min(waiting) >= least
        take = [(count if extra or not self._method.pooled else full) if ready else 0 for count in waiting]
        mine = take[self._shard.rank]
        self._now = Now(None)
        if ready:
            total = sum(take)
            carried = min(mine, self._carried)
            self._carried -= carried
            self._now = Now(self._pool.take(mine, self._statistics.device), mine * len(take) / total, carried)
            self.counts.trained += total
            self.counts.chosen_trained += total
            self.counts.steps += 1
        left = [count - taken for count, taken in zip(waiting, take, strict=True)]
        if len(left) > 1 or not self._method.pooled:
            most = full if self._method.pooled else 0
            self._pool.drop(most)
            left = [min(count, most) for count in left]
        self.counts.unknown += sum(not_scored)
        self.counts.pooled = sum(left) + self._undecided
        self.counts.rejected = self.counts.scored + self.counts.carried - self.counts.chosen_trained - self.counts.pooled
        self._adapter.hold_step(not ready)

    def _gather(self, *mine: int) -> list[list[int]]:
        """For each number those of all ranks; collective."""
        if self._shard.world_size == 1:
            return [[number] for number in mine]
        told = torch.tensor(mine, device=self._statistics.device)
        everyone = [torch.empty_like(told) for _ in range(self._shard.world_size)]
        dist.all_gather(everyone, told)
        return torch.stack(everyone, dim=1).tolist()

    def _mean(self, value: Tensor) -> Tensor:
        """Mean over the ranks; collective."""
        if self._shard.world_size > 1:
            dist.all_reduce(value)
            value = value / self._shard.world_size
        return value

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
            self._pool.drop(0)
        _, seconds = super().end_epoch(last)
        return {name: float(value) for name, value in asdict(self.counts).items()}, seconds

    # --- the step

    @property
    def trains_batch(self) -> bool:
        """Whether the step trains the loaded batch as it is."""
        return self._now is None

    @property
    def chosen(self) -> Tensor | None:
        """Indices of the samples that the step trains in place of the loaded batch, ``int64[b]``; ``None`` for none."""
        return None if self._now is None or self._now.samples is None else self._now.samples.indices

    def learn(self, values: Values | None, batch: Any, number: int, scale: float) -> None:
        """An ordinary step has trained ``batch`` and seen these."""
        if values is not None:
            if self._shard.total + self._shard.samples_before == len(self._statistics):  # not an epoch of samples chosen before
                self._method.learn(self.memory, values, self._mean)
            self._scoring.train(batch, number, scale)

    def training_step(self, step: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        """Train what was chosen in place of the loaded batch, or nothing; the outputs and the factor on their loss."""
        assert self._now is not None
        self.check_untouched(args[0])
        samples, scale = self._now.samples, self._now.scale
        if samples is None:
            return torch.zeros((), device=self._statistics.device), 1.0
        run = partial(step, samples.batch, *args[1:])
        with self.phases.during("forward"):
            outputs, values = self._outputs.observe(
                run, samples.batch, len(samples), partial(scoring, self._trainer), samples.weights
            )
        if values is not None and not self._method.repeats:
            # another rank may be dealt a sample that was carried over here: it records that one
            own = slice(self._now.carried, None)
            self._statistics.record(samples.indices[own], {name: value[own] for name, value in values.items()}, self._epoch.index)
        self._scoring.train(samples.batch, args[1] if len(args) > 1 else 0, scale)
        return outputs, scale

    # --- state

    def state_dict(self, alone: bool = False, done: int = 0) -> dict[str, Any]:
        """Of this rank; loads with ``weights_only=True``."""
        return {
            "memory": {name: _on_cpu(value) for name, value in self.memory.items()},
            "pool": self._pool.state_dict(),
            "candidates": [
                {"samples": samples.state_dict(), "values": {name: _on_cpu(value) for name, value in values.items()}}
                for samples, values in self._candidates
            ],
            "undecided": self._undecided,
            "carried": self._carried,
            "held": self._now is not None and self._now.samples is None,
            "counts": asdict(self.counts),
            "scorer": self._scoring.state_dict() if self._trainer.global_rank == 0 else None,
        }

    def load_state_dict(self, states: list[dict[str, Any]], shared: None, rank: int, world_size: int) -> None:
        """Take over :meth:`state_dict` of every rank; those of another number of ranks are dealt anew.

        Args:
            states: by rank.
            shared: nothing.
            rank: this one.
            world_size: of this run.
        """
        device, own = self._statistics.device, states[rank % len(states)]
        self.memory = dict(own["memory"])
        self._scoring.load_state_dict(states[0]["scorer"])
        self.counts = Counts(**own["counts"])
        self._undecided = own["undecided"]
        same = len(states) == world_size
        self._pool.load_state_dict(own["pool"] if same else reshard([state["pool"] for state in states], rank, world_size))
        self._carried = own["carried"] if same else len(self._pool)
        self._candidates = []
        for number in range(len(own["candidates"])):
            there = [own] if same else states
            parts = [[state["candidates"][number]["samples"]] for state in there]
            values = [state["candidates"][number]["values"] for state in there]
            joined = {name: torch.cat([value[name] for value in values]) for name in values[0]}
            samples = Samples.join([Samples.of(part) for [part] in parts]).to(device)
            rows = torch.arange(len(samples)) if same else torch.arange(rank, len(samples), world_size)
            self._candidates.append(
                (samples.take(rows.to(device)), {name: value[rows].to(device) for name, value in joined.items()})
            )
        self._now = Now(None) if own["held"] else None
        self._adapter.hold_step(own["held"])


def reshard(pools: list[list[dict[str, Any]]], rank: int, world_size: int) -> list[dict[str, Any]]:
    """What rank ``rank`` of ``world_size`` gets of the samples that waited on other ranks."""
    parts = [Samples.of(part) for pool in pools for part in pool]
    if not parts:
        return []
    joined = Samples.join(parts)
    rows = torch.arange(rank, len(joined), world_size)
    return [joined.take(rows).state_dict()] if len(rows) else []


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
