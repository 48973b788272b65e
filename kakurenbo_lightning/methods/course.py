"""What a training by a method costs: its epochs played on a table of sample values, without a network.

Time is counted in epochs that train on everything; a sample of which costs 1: its share of waiting for data, and of the forward pass, the
backward pass and the update. A sample that is scored within a step costs the forward pass more, and where it is then not trained the wait
for data too; one that is scored in a pass of its own costs what that pass takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import EpochPlan, Plan, StreamPlan
from kakurenbo_lightning.core.statistics import TARGET, SampleStatistics
from kakurenbo_lightning.methods.backprop.base import Memory
from kakurenbo_lightning.methods.base import Epoch, Method

Table = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class StepCost:
    """What parts of training a sample take, in shares of the whole.

    Attributes:
        data: waiting for it.
        forward: the forward pass.
        scored: a sample of a scoring pass, in eval mode and without gradients, its wait for data included.
    """

    data: float
    forward: float
    scored: float


@dataclass(frozen=True)
class Work:
    """What a training does, epoch by epoch, in shares of the samples.

    Attributes:
        trained: how many are trained.
        rated: how many are scored within steps, to choose among them.
        refreshed: how many are scored in a pass before the epoch.
        extra: how many of the epochs come on top of those that were asked for: the scoring epochs of a static method.
    """

    trained: tuple[float, ...]
    rated: tuple[float, ...]
    refreshed: tuple[float, ...]
    extra: int = 0

    def saving(self, cost: StepCost) -> float:
        """The share of the training time that is saved; negative where the method costs more than it leaves out."""
        asked = len(self.trained) - self.extra
        rejected = math.fsum(max(0.0, rated - trained) for rated, trained in zip(self.rated, self.trained, strict=True))
        spent = math.fsum(self.trained) + math.fsum(self.rated) * cost.forward + rejected * cost.data
        return 1 - (spent + math.fsum(self.refreshed) * cost.scored) / asked


def learned(count: int) -> Table:
    """Values of samples that are all right and sure, their losses spread evenly on a logarithmic scale, all of one class.

    Three quarters of the losses are below their mean.
    """
    spread = torch.logspace(-3, 1, count)
    ones = torch.ones(count)
    return {
        **{"loss": spread, "el2n": spread, "entropy": spread, "confidence": ones, "correct": ones.bool()},
        "target": torch.zeros(count, dtype=torch.int64),
    }


def play(method: Method, max_epochs: int, values: Table, batch_size: int, whole: int = 0) -> Work:
    """The work of a training of ``max_epochs`` by ``method``, whose samples have ``values`` throughout.

    Args:
        method: of any family.
        max_epochs: that were asked for.
        values: every value that methods read, each ``[n]``.
        batch_size: samples of a step, of ``n``.
        whole: the first so many epochs train on everything, whatever the method says.
    """
    count, scoring = len(values["loss"]), method.scoring_epochs(max_epochs)
    statistics = SampleStatistics(count, columns=(*method.columns, *([TARGET] if method.needs_classes else [])))
    if method.needs_classes:
        statistics.extra[TARGET.name].copy_(values["target"])
    plan, found = None, []
    trains = torch.arange(count)  # what the epoch before did
    chooser: Any = method  # the family's own methods
    memory = chooser.memory() if method.family == "backprop" else {}
    for index in range(max_epochs + scoring):
        epoch = Epoch(index, max_epochs, scoring=scoring, batch_size=batch_size)
        before = replace(epoch, index=max(0, index - 1))
        if index:
            method.record(statistics, trains, _of(values, trains), before)
        if index < whole:
            found.append((1.0, 0.0, 0.0))
            continue
        scored = method.rows_to_score(statistics, epoch, plan)
        method.record(statistics, scored, _of(values, scored), before)
        plan = method.plan(statistics, epoch, plan)
        found.append((*_played(method, epoch, plan, values, batch_size, memory), len(scored) / count))
        # a stream's draws are not played: it scores what no epoch has seen, which is nothing once it has begun
        trains = torch.unique(plan.indices) if isinstance(plan, EpochPlan) else torch.arange(count)
    trained, rated, passes = map(tuple, zip(*found, strict=True))
    return Work(trained, rated, passes, scoring)


def _of(values: Table, rows: torch.Tensor) -> Table:
    return {name: value[rows] for name, value in values.items()}


def _played(method: Any, epoch: Epoch, plan: Plan, values: Table, batch_size: int, memory: Memory) -> tuple[float, float]:
    """Which share of the samples ``epoch`` trains, and which it scores in its steps."""
    count = len(values["loss"])
    if isinstance(plan, StreamPlan):
        return plan.samples / count, 0.0
    assert isinstance(plan, EpochPlan)
    if method.family != "backprop":
        return len(plan.indices) / count, 0.0
    generator = epoch.generator()
    order = plan.indices[torch.randperm(len(plan.indices), generator=generator)]
    batches, trained, rated = order.split(batch_size * method.batches_per_choice), 0, 0
    for number, rows in enumerate(batches):
        known = _of(values, rows)
        method.learn(memory, known, lambda mean: mean)
        if method.scores(epoch, number, len(batches), memory):
            trained, rated = trained + int(method.select(known, rows, memory, generator).count), rated + len(rows)
        else:
            trained += len(rows)
    return trained / count, rated / count
