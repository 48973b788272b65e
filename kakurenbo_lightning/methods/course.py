"""Simulates the epochs of a training by a method on a table of sample values, without a network, to find out what they cost.

The unit of time is an epoch that trains on everything, in which each sample costs 1: its share of the wait for data, the forward pass, the
backward pass and the update. A sample that is scored within a step costs one more forward pass, and the wait for data too if it is then
not trained. A sample in a scoring pass costs what that pass takes.
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
    """What the phases of training cost, as shares of the time of one trained sample.

    Attributes:
        data: the wait for its data.
        forward: the forward pass.
        scored: scoring it in a scoring pass (eval mode, without gradients), including the wait for data.
    """

    data: float
    forward: float
    scored: float


@dataclass(frozen=True)
class Work:
    """What a training does in each epoch, in shares of the samples.

    Attributes:
        trained: share that is trained, for each epoch.
        rated: share that is scored within steps to choose among them, for each epoch.
        refreshed: share that is scored in a pass before the epoch, for each epoch.
        extra: number of epochs in addition to ``max_epochs``: the scoring epochs of a static method.
    """

    trained: tuple[float, ...]
    rated: tuple[float, ...]
    refreshed: tuple[float, ...]
    extra: int = 0

    def saving(self, cost: StepCost) -> float:
        """The share of the training time that is saved; negative if the method costs more than it saves."""
        asked = len(self.trained) - self.extra
        rejected = math.fsum(max(0.0, rated - trained) for rated, trained in zip(self.rated, self.trained, strict=True))
        spent = math.fsum(self.trained) + math.fsum(self.rated) * cost.forward + rejected * cost.data
        return 1 - (spent + math.fsum(self.refreshed) * cost.scored) / asked


def learned(count: int) -> Table:
    """Values of ``count`` samples of one class, all predicted correctly and confidently, with losses evenly spread on a logarithmic
    scale.

    Three quarters of the losses lie below their mean.
    """
    spread = torch.logspace(-3, 1, count)
    ones = torch.ones(count)
    return {
        **{"loss": spread, "el2n": spread, "entropy": spread, "confidence": ones, "correct": ones.bool()},
        "target": torch.zeros(count, dtype=torch.int64),
    }


def play(method: Method, max_epochs: int, values: Table, batch_size: int, whole: int = 0) -> Work:
    """Simulate a training of ``max_epochs`` by ``method`` on samples whose ``values`` never change, and return its work.

    Args:
        method: a method of any family.
        max_epochs: epochs of the training.
        values: every value that methods read, each ``[n]``.
        batch_size: samples per step, out of ``n``.
        whole: number of first epochs that train on everything, whatever the method plans.
    """
    count, scoring = len(values["loss"]), method.scoring_epochs(max_epochs)
    statistics = SampleStatistics(count, columns=(*method.columns, *([TARGET] if method.needs_classes else [])))
    if method.needs_classes:
        statistics.extra[TARGET.name].copy_(values["target"])
    plan, found = None, []
    trains = torch.arange(count)  # what the previous epoch trained
    chooser: Any = method  # untyped, because the families have different methods
    memory = chooser.memory() if method.family == "backprop" else {}
    for index in range(max_epochs + scoring):
        epoch = Epoch(index, max_epochs, scoring=scoring, batch_size=batch_size)
        before = replace(epoch, index=max(0, index - 1))
        if index:
            method.record(statistics, trains, _of(values, trains), before)
        # epochs that train on everything instead of a plan, such as the one in which steps are timed
        if index < whole:
            found.append((1.0, 0.0, 0.0))
            continue
        rows = method.rows_to_score(statistics, epoch, plan)
        scored = rows if isinstance(rows, torch.Tensor) else rows.tensor()
        method.record(statistics, scored, _of(values, scored), before)
        plan = method.plan(statistics, epoch, plan)
        found.append((*_played(method, epoch, plan, values, batch_size, memory), len(scored) / count))
        # the draws of a stream are not simulated; it scores samples never seen, and there are none once it has started
        trains = torch.unique(plan.indices) if isinstance(plan, EpochPlan) else torch.arange(count)
    trained, rated, passes = map(tuple, zip(*found, strict=True))
    return Work(trained, rated, passes, scoring)


def _of(values: Table, rows: torch.Tensor) -> Table:
    return {name: value[rows] for name, value in values.items()}


def _played(method: Any, epoch: Epoch, plan: Plan, values: Table, batch_size: int, memory: Memory) -> tuple[float, float]:
    """The share of the samples that ``epoch`` trains, and the share that it scores within its steps."""
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
        known, scores = _of(values, rows), method.scores(epoch, number, len(batches), memory)
        if scores or not len(plan.hidden):  # else they were chosen before, by their losses
            method.learn(memory, known, lambda mean: mean)
        if scores:
            trained, rated = trained + int(method.select(known, rows, memory, generator).count), rated + len(rows)
        else:
            trained += len(rows)
    return trained / count, rated / count
