"""What a plan of an epoch says of itself."""

import torch
from shards import shard_of

from kakurenbo_lightning import EpochPlan
from kakurenbo_lightning.core.plan import StreamPlan


def hiding(*indices, of=20):
    """The plan that hides these."""
    return EpochPlan.hide(torch.zeros(of, dtype=torch.bool).index_fill_(0, torch.tensor(indices, dtype=torch.int64), True))


def test_what_is_not_hidden_is_trained():
    plan = hiding(3, 1, of=5)
    assert (plan.indices.tolist(), plan.hidden.tolist(), plan.hidden_fraction) == ([0, 2, 4], [1, 3], 0.4)
    everything = EpochPlan.everything(5)
    assert (everything.indices.tolist(), everything.hidden.tolist(), everything.hidden_fraction) == ([0, 1, 2, 3, 4], [], 0.0)
    assert EpochPlan.everything(0).hidden_fraction == 0.0


def test_a_complement_is_distinguished_from_an_order_or_a_set_of_its_own():
    plan = hiding(3)
    assert plan.is_complement(20) and EpochPlan.everything(20).is_complement(20)
    assert not EpochPlan(plan.indices.flip(0), plan.hidden).is_complement(20)
    assert not EpochPlan(plan.indices[1:], plan.hidden).is_complement(20), "a sample is in neither set"
    assert not EpochPlan(plan.indices.clamp(max=18), plan.hidden).is_complement(20), "one is drawn twice"
    assert not plan.is_complement(21), "a sample of the data is outside the plan"


def test_checksum_sees_every_part_of_a_plan():
    plan = hiding(3)
    others = [
        EpochPlan.everything(20),
        EpochPlan(plan.indices.flip(0), plan.hidden),
        EpochPlan(plan.indices, plan.hidden + 1),
        hiding(4),
        plan.with_lr_factor(1.0000001),
        EpochPlan(plan.indices, plan.hidden, weights=torch.ones(20)),
        EpochPlan(plan.indices, plan.hidden, weights=torch.full((20,), 2.0)),
        StreamPlan(20, 19),
        StreamPlan(20, 20),
        StreamPlan(19, 20),
    ]
    assert len({p.checksum() for p in [plan, *others]}) == 1 + len(others)
    assert plan.checksum() == hiding(3).checksum()


def test_weights_follow_the_samples_to_their_steps():
    plan = EpochPlan(torch.arange(20), torch.empty(0, dtype=torch.int64), weights=torch.arange(20) / 8)
    shard = shard_of(plan, 3, 2, 1, seed=4)
    for number in range(shard.steps):
        assert torch.equal(shard.step_weights(number), shard.step(number) / 8)
    moved = shard.to("meta")
    assert {moved.step(0).device.type, moved.step_weights(0).device.type} == {"meta"}
    assert shard_of(EpochPlan.everything(20), 3).step_weights(0) is None
