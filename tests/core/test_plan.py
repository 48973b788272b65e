"""Dealing an epoch to ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shards import shard_of

from kakurenbo_lightning import EpochPlan, SelectionSampler
from kakurenbo_lightning.core.shard import scoring_shard


def shards_of(plan, batch_size, world, **options):
    return [shard_of(plan, batch_size, world, rank, **options) for rank in range(world)]


@given(
    samples=st.integers(1, 200),
    batch=st.integers(1, 17),
    world=st.integers(1, 9),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_every_index_exactly_once_in_equally_many_steps(samples, batch, world, seed, epoch):
    plan = EpochPlan(torch.arange(samples) * 3, torch.empty(0, dtype=torch.int64))
    if samples < world:
        with pytest.raises(ValueError, match=f"{samples} samples to train for {world} ranks"):
            shard_of(plan, batch, world, 0, seed=seed, epoch=epoch)
        return
    dealt = shards_of(plan, batch, world, seed=seed, epoch=epoch)
    trained = [index for share in dealt for index in share.indices.tolist()]
    assert sorted(trained) == plan.indices.tolist()
    assert len({share.steps for share in dealt}) == 1
    for share in dealt:
        batches = list(share.batches())
        assert len(batches) == share.steps
        assert [share.step(s).tolist() for s in range(share.steps)] == batches
        assert all(len(b) == batch for b in batches[:-2])
        assert all(1 <= len(b) <= max(batch, 3) + 1 for b in batches[-2:])
        if share.steps > 1:
            assert all(len(b) > batch / 2 - 1 for b in batches[-2:]), "a tail is shared with the step before"
    for step in range(dealt[0].steps):
        sizes = [len(share.step(step)) for share in dealt]
        assert max(sizes) - min(sizes) <= 1
        assert sum(share.loss_scale(step) for share in dealt) == pytest.approx(world)
        assert dealt[0].samples_until(step + 1) - dealt[0].samples_until(step) == sum(sizes)


@given(samples=st.integers(1, 200), batch=st.integers(2, 17), world=st.integers(1, 9))
def test_no_rank_trains_a_single_sample_when_there_are_enough(samples, batch, world):
    if samples < 2 * world:
        return
    for share in shards_of(EpochPlan.everything(samples), batch, world):
        assert min(len(b) for b in share.batches()) >= 2


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


@given(samples=st.integers(1, 100), batch=st.integers(1, 9), world=st.integers(1, 4))
def test_drop_last_drops_only_the_tail(samples, batch, world):
    plan = EpochPlan.everything(samples)
    if samples < batch * world:
        with pytest.raises(ValueError, match="drop_last=True drops the rest"):
            shard_of(plan, batch, world, drop_last=True)
        return
    dealt = shards_of(plan, batch, world, drop_last=True)
    trained = [index for share in dealt for index in share.indices.tolist()]
    assert len(trained) == len(set(trained)) == samples // (batch * world) * batch * world
    assert all(len(b) == batch for share in dealt for b in share.batches())


@given(samples=st.integers(1, 100), batch=st.integers(1, 9), world=st.integers(1, 5))
def test_forward_only_gives_every_rank_the_same_batches_and_counts_nothing_twice(samples, batch, world):
    indices = torch.arange(samples) * 2
    dealt = [scoring_shard(indices, batch, world, rank) for rank in range(world)]
    assert len({share.steps for share in dealt}) == 1
    assert len({tuple(len(b) for b in share.batches()) for share in dealt}) == 1
    recorded = [index for share in dealt for step in range(share.steps) for index in share.step(step).tolist()]
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
    """Chi-square over the place of one index; wrong with probability 1e-6 for a uniform order (seeds are fixed anyway)."""
    places = torch.tensor([shard_of(EpochPlan.everything(10), 10, seed=s).indices.tolist().index(3) for s in range(2000)])
    counts = torch.bincount(places, minlength=10).double()
    assert float(((counts - 200) ** 2 / 200).sum()) < 45.1


def test_without_shuffle_the_order_ascends():
    assert shard_of(EpochPlan.everything(7), 3, shuffle=False).indices.tolist() == list(range(7))


def test_single_process_order_is_the_two_rank_order_dealt():
    plan = EpochPlan.everything(40)
    whole = shard_of(plan, 8, seed=5)
    halves = shards_of(plan, 4, 2, seed=5)
    for step in range(whole.steps):
        assert sorted(whole.step(step).tolist()) == sorted(halves[0].step(step).tolist() + halves[1].step(step).tolist())


def test_checksum_sees_every_part_of_a_plan():
    mask = torch.zeros(20, dtype=torch.bool)
    mask[3] = True
    plan = EpochPlan.hide(mask)
    others = [
        EpochPlan.everything(20),
        EpochPlan(plan.indices.flip(0), plan.hidden),
        EpochPlan(plan.indices, plan.hidden + 1),
        EpochPlan.hide(mask.roll(1)),
        plan.with_lr_factor(1.0000001),
        EpochPlan(plan.indices, plan.hidden, weights=torch.ones(20)),
        EpochPlan(plan.indices, plan.hidden, weights=torch.full((20,), 2.0)),
    ]
    assert len({p.checksum() for p in [plan, *others]}) == 8
    assert plan.checksum() == EpochPlan.hide(mask.clone()).checksum()


def test_sampler_is_idempotent_and_begins_where_it_is_told():
    sampler = SelectionSampler(10, batch_size=4, shuffle=False)
    assert list(sampler) == list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    sampler.follow(EpochPlan.everything(10), start=2)
    assert list(sampler) == [[8, 9]]
    assert len(sampler) == 3


def test_sampler_tells_its_owner_about_epochs():
    told = []
    sampler = SelectionSampler(10, batch_size=4, on_set_epoch=told.append)
    sampler.set_epoch(3)
    assert told == [3]
    assert sampler.epoch == 3
