"""The learning-rate factor and the alignment of schedules, without a Trainer."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from helpers import before_update
from hypothesis import assume, given
from hypothesis import strategies as st

from kakurenbo_lightning import EpochPlan
from kakurenbo_lightning.core.shard import Layout
from kakurenbo_lightning.trainer.lr_schedule import (
    EpochSchedules,
    LearningRateFactor,
    Progress,
    ScheduleAligner,
    estimated_epochs,
    scheduler_steps,
)


def optimizer_of(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=rates[0])


def step(optimizer, *args, **kwargs):
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(2)
    return optimizer.step(*args, **kwargs)


class FailingSGD(torch.optim.SGD):
    """Fails between its closure and its update."""

    fails = True

    def step(self, closure=None):
        if self.fails:
            raise RuntimeError
        return super().step(closure)


class TwiceSGD(torch.optim.SGD):
    """Calls its closure before each of two updates, as SAM does."""

    def step(self, closure=None):
        for _ in range(2):
            super().step(closure)


def test_a_closure_that_is_called_twice_never_sees_the_factor():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer, seen = TwiceSGD([weight], lr=0.5), []
    factor = LearningRateFactor()
    factor.attach([optimizer])
    factor.value = 3.0

    def closure():
        seen.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(1)
        return torch.zeros(())

    optimizer.step(closure)
    assert seen == [0.5, 0.5] and weight == -3.0
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_lbfgs_which_reads_its_rate_before_the_closure_is_scaled_too():
    ends = []
    for rate, value in ((0.2, 2.0), (0.4, 1.0)):
        weight = torch.nn.Parameter(torch.tensor([3.0]))
        optimizer = torch.optim.LBFGS([weight], lr=rate, max_iter=1)
        factor = LearningRateFactor()
        factor.attach([optimizer])
        factor.value = value

        def closure(weight=weight, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (weight**2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert optimizer.param_groups[0]["lr"] == rate
        ends.append(float(weight))
    assert ends[0] == ends[1] < 3.0


@pytest.mark.parametrize("closure", [None, "by place", "by name"])
def test_the_factor_exists_only_during_the_update(closure):
    optimizer = optimizer_of(0.5, 0.25)
    factor = LearningRateFactor()
    factor.attach([optimizer])
    factor.value = 1.5
    seen = []
    optimizer.register_step_pre_hook(before_update(lambda optimizer: seen.append([g["lr"] for g in optimizer.param_groups])))
    in_closure = []
    look = lambda: in_closure.append([g["lr"] for g in optimizer.param_groups])  # noqa: E731
    step(optimizer, *[look] * (closure == "by place"), **{"closure": look} if closure == "by name" else {})
    assert seen == [[0.75, 0.375]]
    assert in_closure == ([[0.5, 0.25]] if closure else [])
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.25]
    assert [float(g["params"][0].detach()[0]) for g in optimizer.param_groups] == [0.25, 0.625]


def test_a_tensor_rate_is_changed_in_place():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.5), foreach=False, capturable=False)
    rate = optimizer.param_groups[0]["lr"]
    factor = LearningRateFactor()
    factor.attach([optimizer])
    factor.value = 3.0
    inside = []
    optimizer.register_step_pre_hook(before_update(lambda _: inside.append(float(rate))))
    step(optimizer)
    assert inside == [1.5]
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.5


def test_an_exception_inside_the_step_is_undone_by_restore():
    optimizer = FailingSGD([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    factor = LearningRateFactor()
    factor.attach([optimizer])
    factor.value = 2.0
    with pytest.raises(RuntimeError):
        step(optimizer)
    assert optimizer.param_groups[0]["lr"] == 1.0
    factor.restore()
    assert optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(RuntimeError):
        step(optimizer)
    factor.value, optimizer.fails = 3.0, False
    step(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5, "the next step begins from the unscaled rate"


def test_detached_optimizers_are_left_alone():
    optimizer = optimizer_of(0.5)
    factor = LearningRateFactor()
    factor.attach([optimizer])
    factor.value = 2.0
    factor.release()
    step(optimizer)
    assert float(optimizer.param_groups[0]["params"][0].detach()[0]) == 0.5


def slow_scheduler_steps(batches, accumulate, frequency):
    """Lightning's loop."""
    taken = 0
    for batch in range(batches):
        stepped = (batch + 1) % accumulate == 0 or batch + 1 == batches
        taken += stepped and (batch + 1) % frequency == 0
    return taken


@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 5))
def test_scheduler_steps_counts_as_lightning_does(batches, accumulate, frequency):
    assert scheduler_steps(batches, accumulate, frequency) == slow_scheduler_steps(batches, accumulate, frequency)


def spread(steps, way):
    """Positions that the steps of an epoch use, relative to its begin: the formula of DESIGN.md."""
    return [round(k * max(0, way - 1) / max(1, steps - 1)) for k in range(steps)]


@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=5),
    st.integers(1, 3),
    st.integers(1, 3),
    st.data(),
)
def test_epochs_of_any_length_end_where_full_ones_would(lengths, accumulate, frequency, data):
    """Also when the run is cut within an epoch and goes on in another process, with as many batches or with others left."""
    full = 30
    way = scheduler_steps(full, accumulate, frequency)
    optimizer = optimizer_of(1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0)
    config = SimpleNamespace(scheduler=scheduler, interval="step", frequency=frequency, reduce_on_plateau=False)
    optimizer.step()
    for batches, left in lengths:
        cut, resharded = data.draw(st.integers(0, batches - 1)), data.draw(st.booleans())
        origin, used, at_cut = scheduler.last_epoch, [], None
        aligner = ScheduleAligner()
        aligner.begin_epoch([config], batches, full, accumulate)
        batch = 0
        while batch < batches:
            if batch == cut and cut and at_cut is None:
                saved, at_cut = aligner.state_dict(), (len(used), scheduler.last_epoch - origin)
                config.frequency = frequency  # another process
                if resharded:
                    batches, saved = cut + left, saved | {"anchor_step": cut, "anchors": [scheduler.last_epoch]}
                aligner = ScheduleAligner()
                aligner.begin_epoch([config], batches, full, accumulate, done=cut, resumed=saved)
            stepped = (batch + 1) % accumulate == 0 or batch + 1 == batches
            if stepped and (batch + 1) % frequency == 0:
                used.append(scheduler.last_epoch - origin)
                if (batch + 1) % config.frequency == 0:  # as Lightning does
                    scheduler.step()
            aligner.after_batch(batch, lambda s: s.step())
            assert scheduler.last_epoch - origin <= way
            batch += 1
        assert scheduler.last_epoch - origin == way
        behind, position = at_cut if resharded and at_cut is not None else (0, 0)
        assert used[behind:] == [position + place for place in spread(len(used) - behind, way - position)]
        aligner.release()
        assert (config.interval, config.frequency) == ("step", frequency)


@dataclass
class Bounded:
    """A schedule of so many steps, one more of which is an error, as of OneCycle."""

    total: int
    last_epoch: int = 0

    def step(self):
        self.last_epoch += 1
        assert self.last_epoch <= self.total


@dataclass
class Cuttable:
    """A training of ``hidden`` samples less in each epoch, whose processes end and go on in other layouts.

    Args:
        samples: of the data set.
        hidden: by epoch.
        layouts: (ranks, batch size, accumulated batches) of each process.
        frequency: of the schedule.
        skipped: whether a batch makes no step, when some do; ``None``: none does.
        forgets: whether an epoch begins again that was cut, because what was selected is forgotten.
    """

    samples: int
    hidden: list
    layouts: list
    frequency: int
    skipped: object
    forgets: object

    def begin(self):
        """A process; the first one makes the schedule."""
        self.world, self.batch, self.accumulate = self.layouts.pop(0)
        full = EpochPlan.everything(self.samples).shard(self.layout()).steps
        if not hasattr(self, "scheduler"):
            self.scheduler = Bounded(len(self.hidden) * scheduler_steps(full, self.accumulate, self.frequency))
        module = SimpleNamespace(automatic_optimization=True, lr_scheduler_step=lambda scheduler, _: scheduler.step())
        self.config = SimpleNamespace(
            scheduler=self.scheduler, interval="step", frequency=self.frequency, reduce_on_plateau=False
        )
        trainer = SimpleNamespace(
            accumulate_grad_batches=self.accumulate, max_steps=-1, lr_scheduler_configs=[self.config], lightning_module=module
        )
        self.schedules = EpochSchedules(trainer, align=True)
        self.schedules.full_batches = full

    def layout(self, epoch=0, done=(0, 0)):
        return Layout(self.batch, self.world, seed=1, epoch=epoch, done=done)

    def epoch(self, epoch, cut):
        """Train it; after a batch for which ``cut()`` says so in another process. Returns the positions that steps used since then."""
        mask = torch.zeros(self.samples, dtype=torch.bool)
        mask[: self.hidden[epoch]] = True
        plan, number, used = EpochPlan.hide(mask), 0, []
        shard = plan.shard(self.layout(epoch))
        self.schedules.follow(0)
        while number < shard.steps:
            self.schedules.begin_batch(shard.steps, self.skipped is not None)
            self.batch_of(number, shard.steps, used)
            number += 1
            if self.layouts and cut():
                saved, full, before = self.schedules.state_dict(), self.schedules.full, (self.world, self.batch)
                done = number, shard.samples_until(number)
                self.begin()
                if number < shard.steps and self.forgets():
                    self.schedules.go_on(saved, full)
                    self.schedules.begin_again(number)
                    number, shard, used = 0, plan.shard(self.layout(epoch)), []
                    self.schedules.follow(0)
                    continue
                same = before == (self.world, self.batch)
                self.schedules.go_on(saved, full, resharded_at=None if same else number)
                if number < shard.steps:  # else Lightning goes on with the next epoch
                    assume(same or self.samples - self.hidden[epoch] - done[1] >= self.world)
                    shard, used = (shard if same else plan.shard(self.layout(epoch, done))), []
                    self.schedules.follow(number)
        return used

    def batch_of(self, number, steps, used):
        """As Lightning does."""
        stepped = (number + 1) % self.accumulate == 0 or number + 1 == steps
        if stepped and (number + 1) % self.frequency == 0:
            used.append(self.scheduler.last_epoch)
            if (number + 1) % self.config.frequency == 0 and not (self.skipped and self.skipped()):
                self.scheduler.step()
        self.schedules.end_batch(number)


@given(
    samples=st.integers(20, 90),
    layouts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=4),
    shares=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    frequency=st.integers(1, 3),
    data=st.data(),
)
def test_a_training_cut_anywhere_that_goes_on_in_any_layout_ends_its_schedule_exactly(samples, layouts, shares, frequency, data):
    skips = data.draw(st.booleans())
    hidden = [samples * share // 100 for share in shares]
    skipped = (lambda: data.draw(st.booleans())) if skips else None
    training = Cuttable(samples, hidden, list(layouts), frequency, skipped, forgets=lambda: data.draw(st.booleans()))
    training.begin()
    way = training.scheduler.total // len(shares)
    for epoch in range(len(shares)):
        used = training.epoch(epoch, cut=lambda: data.draw(st.integers(0, 5)) == 0)
        assert training.scheduler.last_epoch == (epoch + 1) * way
        assert len(used) < 2 or used[-1] >= training.scheduler.last_epoch - 1, "the last step uses the epoch's last rate"


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 5), st.data())
def test_counters_tell_the_batches_and_the_accumulation_of_a_training_before(full, accumulate, epochs, data):
    rest = data.draw(st.integers(0, full - 1))
    steps = epochs * scheduler_steps(full, accumulate, 1) + scheduler_steps(rest, accumulate, 1, complete=False)
    now = data.draw(st.integers(1, 9))
    batches, found = Progress(full, epochs, rest, steps).layout(7, now)
    assert batches == full
    assert steps == epochs * scheduler_steps(full, found, 1) + scheduler_steps(rest, found, 1, complete=False)
    assert Progress(full, epochs, rest, steps).layout(7, accumulate) == (full, accumulate), "when it may be that of now, it is"
    assert Progress(None, 0, rest, rest // accumulate).layout(full, accumulate) == (full, accumulate), (
        "those of now where nothing is known"
    )


def test_a_schedule_that_cannot_be_advanced_is_left_alone():
    stuck = SimpleNamespace(last_epoch=0)
    config = SimpleNamespace(scheduler=stuck, interval="step", frequency=1, reduce_on_plateau=False)
    aligner = ScheduleAligner()
    aligner.begin_epoch([config], 5, 10, 1)
    calls = []
    aligner.after_batch(0, calls.append)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "expected"), [(10, -1, 10), (-1, 100, 4), (10, 100, 4), (3, 100, 3), (-1, -1, None), (0, -1, 0)]
)
def test_length_of_a_run_in_epochs(max_epochs, max_steps, expected):
    assert estimated_epochs(max_epochs, max_steps, 30) == expected
