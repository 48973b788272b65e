"""One rank's part of a drawn epoch; draws by a sum tree are tested in tests/engines."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shards import shard_of

from kakurenbo_lightning.core.plan import StreamPlan
from kakurenbo_lightning.core.shard import Layout
from kakurenbo_lightning.core.stream_shard import Drawn


class Ahead:
    """Draws batches of the numbers of their steps, once each."""

    def __init__(self):
        self.batches = {}

    def draw(self, number):
        assert number not in self.batches
        self.batches[number] = Drawn(torch.full((3,), number), torch.full((3,), number / 2), 0)
        return self.batches[number]

    def drawn(self, number):
        return self.batches[number]


def test_batches_are_drawn_when_they_are_asked_for():
    draws = Ahead()
    shard = StreamPlan(num_samples=9, samples=12).shard(Layout(batch_size=3), draws)
    batches = shard.batches(1)
    assert draws.batches == {}
    assert next(batches) == [1, 1, 1] and list(draws.batches) == [1]
    assert shard.step(1).tolist() == [1, 1, 1] and shard.step_weights(1).tolist() == [0.5, 0.5, 0.5]
    assert list(batches) == [[2, 2, 2], [3, 3, 3]]


@given(samples=st.integers(1, 60), batch=st.integers(1, 7), world=st.integers(1, 4), data=st.data())
def test_steps_are_full_and_no_more_than_the_plan_needs(samples, batch, world, data):
    whole = shard_of(StreamPlan(50, samples), batch, world)
    full = batch * world
    assert 0 <= whole.steps * full - samples < full
    steps = data.draw(st.integers(0, whole.steps))
    rest = shard_of(StreamPlan(50, samples), 2, 1, done=(steps, whole.samples_until(steps)))
    assert rest.samples_until(rest.steps) >= samples and rest.samples_until(steps) == whole.samples_until(steps)
    for shard in (whole, rest):
        numbers = range(shard.layout.done[0], shard.steps)
        assert [len(indices) for indices in shard.batches()] == [shard.batch_length(number) for number in numbers]
        assert sum(shard.step_total(number) for number in numbers) == shard.total
        assert all(shard.loss_scale(number) == 1 for number in numbers)


def test_without_draws_of_a_method_every_sample_comes_in_turn():
    shard = shard_of(StreamPlan(6, 12), 4)
    drawn = torch.cat([shard.step(number) for number in range(3)])
    assert sorted(drawn[:6].tolist()) == sorted(drawn[6:].tolist()) == list(range(6))
    assert shard.step_weights(0) is None


@pytest.mark.parametrize("weights", [True, False])
def test_steps_come_on_the_device_asked_for(weights):
    draws = Ahead() if weights else None
    shard = StreamPlan(6, 12).shard(Layout(batch_size=3), draws).to("meta")
    next(shard.batches())
    assert shard.step(0).device.type == "meta"
    assert weights is (shard.step_weights(0) is not None and shard.step_weights(0).device.type == "meta")
