"""Which rank trains what in which step: every sample once, in equally many steps of nearly equal size."""

import itertools

import pytest
import torch
from frequencies import assert_counts
from hypothesis import given
from hypothesis import strategies as st
from shards import shard_of

from kakurenbo_lightning import EpochPlan
from kakurenbo_lightning.core.shard import accumulated_scale, scoring_shard


def shards_of(plan, batch_size, world, **options):
    return [shard_of(plan, batch_size, world, rank, **options) for rank in range(world)]


def layouts(fewest=1, batches=17, worlds=9, **more):
    """Samples, up to 200, in batches on ranks."""
    return given(samples=st.integers(fewest, 200), batch=st.integers(1, batches), world=st.integers(1, worlds), **more)


@layouts(seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_every_index_exactly_once_in_equally_many_steps(samples, batch, world, seed, epoch):
    plan = EpochPlan(torch.arange(samples) * 3, torch.empty(0, dtype=torch.int64))
    if samples < world:
        with pytest.raises(ValueError, match=f"{samples} samples to train for {world} ranks"):
            shard_of(plan, batch, world, 0, seed=seed, epoch=epoch)
        return
    shards = shards_of(plan, batch, world, seed=seed, epoch=epoch)
    trained = [index for shard in shards for index in shard.indices.tolist()]
    assert sorted(trained) == plan.indices.tolist()
    assert len({shard.steps for shard in shards}) == 1
    for shard in shards:
        batches = list(shard.batches())
        assert len(batches) == shard.steps
        assert [shard.step(s).tolist() for s in range(shard.steps)] == batches
        assert all(len(b) == batch for b in batches[:-2])
        assert all(1 <= len(b) <= max(batch, 3) + 1 for b in batches[-2:])
        if shard.steps > 1:
            assert all(len(b) > batch / 2 - 1 for b in batches[-2:]), "a tail is shared with the step before"
    for step in range(shards[0].steps):
        sizes = [len(shard.step(step)) for shard in shards]
        assert max(sizes) - min(sizes) <= 1
        assert sum(shard.loss_scale(step) for shard in shards) == pytest.approx(world)
        assert shards[0].samples_until(step + 1) - shards[0].samples_until(step) == sum(sizes)


@layouts(fewest=4, worlds=4, accumulate=st.integers(1, 5), limit=st.integers(1, 20))
def test_each_sample_counts_alike_in_a_step_of_accumulated_batches(samples, batch, world, accumulate, limit):
    shards = shards_of(EpochPlan.everything(samples), batch, world)
    batches = min(limit, shards[0].steps)
    for first in range(0, batches, accumulate):
        together = range(first, min(first + accumulate, batches))
        count = sum(len(shard.step(number)) for shard in shards for number in together)
        for shard, number in itertools.product(shards, together):
            of_a_sample = accumulated_scale(shard, number, accumulate, batches) / len(shard.step(number)) / accumulate / world
            assert of_a_sample == pytest.approx(1 / count, rel=1e-12)


@layouts()
def test_no_rank_trains_a_single_sample_when_there_are_enough(samples, batch, world):
    if samples < 2 * world or batch == 1:
        return
    for shard in shards_of(EpochPlan.everything(samples), batch, world):
        assert min(len(b) for b in shard.batches()) >= 2


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [
        (128, [64, 64]),
        (133, [64, 35, 34]),
        (159, [64, 48, 47]),
        (160, [64, 64, 32]),
        (191, [64, 64, 63]),
        (65, [33, 32]),
        (5, [5]),
    ],
)
def test_a_small_tail_is_shared_with_the_step_before(samples, sizes):
    assert [len(b) for b in shard_of(EpochPlan.everything(samples), 64).batches()] == sizes


@layouts(batches=9, worlds=4)
def test_drop_last_drops_only_the_tail(samples, batch, world):
    plan = EpochPlan.everything(samples)
    if samples < batch * world:
        with pytest.raises(ValueError, match="drop_last=True drops the rest"):
            shard_of(plan, batch, world, drop_last=True)
        return
    shards = shards_of(plan, batch, world, drop_last=True)
    trained = [index for shard in shards for index in shard.indices.tolist()]
    assert len(trained) == len(set(trained)) == samples // (batch * world) * batch * world
    assert all(len(b) == batch for shard in shards for b in shard.batches())


@layouts(batches=9, worlds=5)
def test_forward_only_gives_every_rank_the_same_batches_and_counts_nothing_twice(samples, batch, world):
    indices = torch.arange(samples) * 2
    shards = [scoring_shard(indices, batch, world, rank) for rank in range(world)]
    assert len({shard.steps for shard in shards}) == 1
    assert len({tuple(len(b) for b in shard.batches()) for shard in shards}) == 1
    recorded = [index for shard in shards for step in range(shard.steps) for index in shard.step(step).tolist()]
    assert sorted(recorded) == indices.tolist()


def test_order_depends_on_seed_and_epoch_alone():
    plan = EpochPlan.everything(50)
    orders = {
        (seed, epoch): tuple(shard_of(plan, 7, seed=seed, epoch=epoch).indices.tolist()) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    torch.manual_seed(123)
    assert tuple(shard_of(plan, 7, seed=1, epoch=1).indices.tolist()) == orders[1, 1]


def test_order_is_uniform():
    """The place of one index of ten over 2,000 seeds."""
    orders = [shard_of(EpochPlan.everything(10), 10, seed=seed).indices for seed in range(2000)]
    assert_counts(torch.stack(orders).eq(3).sum(0), [200] * 10)


def test_without_shuffle_the_order_ascends():
    assert shard_of(EpochPlan.everything(7), 3, shuffle=False).indices.tolist() == list(range(7))


def test_a_step_has_the_same_samples_on_one_rank_as_on_two():
    plan = EpochPlan.everything(40)
    whole = shard_of(plan, 8, seed=5)
    halves = shards_of(plan, 4, 2, seed=5)
    for step in range(whole.steps):
        assert sorted(whole.step(step).tolist()) == sorted(halves[0].step(step).tolist() + halves[1].step(step).tolist())


@given(
    samples=st.integers(4, 120),
    worlds=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=2, max_size=4),
    data=st.data(),
)
def test_whatever_world_sizes_share_an_epoch_each_sample_is_trained_once(samples, worlds, data):
    plan, done, trained = EpochPlan.everything(samples), (0, 0), []
    for number, (world, batch) in enumerate(worlds):
        if samples - done[1] < world:
            break
        shards = shards_of(plan, batch, world, seed=1, epoch=2, done=done)
        last = number == len(worlds) - 1
        stop = shards[0].steps if last else data.draw(st.integers(done[0], shards[0].steps))
        for shard in shards:
            steps = list(shard.batches(done[0]))
            assert [shard.step(s).tolist() for s in range(shard.first, shard.steps)] == steps
            trained += [index for batch_ in steps[: stop - done[0]] for index in batch_]
        done = (stop, shards[0].samples_until(stop))
        assert done[1] == len(trained)
        if done[1] == samples:
            rest = shard_of(plan, 3, 2, 0, seed=1, epoch=2, done=done)
            assert (rest.steps, list(rest.batches()), rest.samples_until(done[0])) == (done[0], [], samples)
    assert len(trained) == len(set(trained)) == done[1]
    if done[0] and done[1] == samples:
        assert sorted(trained) == list(range(samples))
