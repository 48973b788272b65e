"""The order of a user's sampler: batches that lose samples are filled up from those that are alike."""

import numpy as np
import pytest
import torch

from kakurenbo_lightning.core.order import Order
from kakurenbo_lightning.core.plan import EpochPlan
from kakurenbo_lightning.core.shard import Layout

COUNT, BATCH = 2000, 8
LENGTHS = np.random.default_rng(0).lognormal(4, 0.7, COUNT)


def pooled(epoch, pool=400):
    """Batches of a random pool sorted by length, in random order: any two samples may share a batch some time."""
    generator = np.random.default_rng(epoch)
    order, batches = generator.permutation(COUNT), []
    for start in range(0, COUNT, pool):
        part = order[start : start + pool]
        part = part[np.argsort(LENGTHS[part])].reshape(-1, BATCH)
        batches.append(part[generator.permutation(len(part))])
    return np.concatenate(batches)


def nearly_sorted(epoch):
    """Batches of all samples sorted by a noisy length, in random order."""
    generator = np.random.default_rng(epoch)
    batches = np.argsort(LENGTHS * np.exp(generator.normal(0, 0.1, COUNT))).reshape(-1, BATCH)
    return batches[generator.permutation(len(batches))]


def order_of(listing, epoch):
    """The order of an epoch, with three others that show which samples are alike."""
    listed = torch.empty(3, COUNT, dtype=torch.int32)
    for row in range(3):
        listed[row, torch.from_numpy(listing(100 + row)).reshape(-1)] = torch.arange(COUNT, dtype=torch.int32) // BATCH
    return Order(torch.from_numpy(listing(epoch)).reshape(-1), torch.arange(COUNT) // BATCH, listed)


def padding(batches):
    """What padding each batch to its longest sample takes, in lengths of its samples."""
    return sum(max(LENGTHS[batch]) * len(batch) for batch in batches) / sum(sum(LENGTHS[batch]) for batch in batches)


def batches_of(shards):
    return [shard.step(step).numpy() for step in range(shards[0].steps) for shard in shards]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("listing", [pooled, nearly_sorted])
def test_lengths_in_a_batch_stay_similar(listing, share):
    """Cut again in the listed order, batches would mix parts of unlike ones."""
    order, kept = order_of(listing, 7), torch.from_numpy(np.flatnonzero(np.random.default_rng(1).random(COUNT) >= share))
    filled, plain = order.of(kept, BATCH), Order(order.indices).of(kept, BATCH)
    assert torch.equal(filled.sort().values, kept)
    own, after, cut = padding(listing(7)), padding(filled.split(BATCH)), padding(plain.split(BATCH))
    assert after - own < (cut - own) / 4


def test_whole_batches_stay_as_they_are():
    order = order_of(pooled, 7)
    assert torch.equal(order.of(torch.arange(COUNT), BATCH), order.indices)
    hidden = order.indices[torch.arange(0, COUNT, 5 * BATCH)]  # of each fifth batch one sample
    kept = torch.ones(COUNT, dtype=torch.bool).index_fill_(0, hidden, False).nonzero()[:, 0]
    whole = order.indices.reshape(-1, BATCH)[[batch for batch in range(COUNT // BATCH) if batch % 5]]
    assert set(map(tuple, whole.tolist())) <= {tuple(batch.tolist()) for batch in order.of(kept, BATCH).split(BATCH)}


def test_batches_that_never_mix_are_never_mixed():
    """But for what is left of each in the end."""
    bucket = torch.arange(500) // 100
    listings = [torch.cat([part[torch.randperm(100)] for part in torch.arange(500).split(100)]) for _ in range(4)]
    listed = torch.stack(
        [torch.empty(500, dtype=torch.int32).index_copy_(0, each, torch.arange(500).int() // 5) for each in listings[1:]]
    )
    order = Order(listings[0], torch.arange(500) // 5, listed)
    plan = EpochPlan.hide(torch.arange(500) % 3 == 0)
    for ranks in (1, 2, 3):
        shards = [plan.shard(Layout(5, ranks, rank, order=order)) for rank in range(ranks)]
        mixed = [len(set(bucket[batch].tolist())) > 1 for batch in batches_of(shards)]
        assert sum(mixed) <= 5 * 4 / 5 + ranks and not any(mixed[: -5 - 2 * ranks])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_each_rank_takes_whole_batches_in_turn(count, drop_last):
    order, plan = order_of(pooled, 7), EpochPlan.hide(torch.arange(COUNT) % 7 == 0)
    shards = [plan.shard(Layout(BATCH, count, rank, drop_last, order=order)) for rank in range(count)]
    assert len({shard.steps for shard in shards}) == 1
    batches, listed = batches_of(shards), order.of(plan.indices, BATCH)
    whole = (shards[0].steps - 2) * count
    assert [batch.tolist() for batch in batches[:whole]] == listed[: whole * BATCH].reshape(-1, BATCH).tolist()
    trained = np.concatenate(batches).tolist()
    assert trained == listed[: len(trained)].tolist() and len(listed) - len(trained) < (BATCH * count if drop_last else 1)


def test_what_is_left_of_an_epoch_does_not_depend_on_the_ranks():
    order, plan = order_of(pooled, 7), EpochPlan.hide(torch.arange(COUNT) % 7 == 0)
    two = [plan.shard(Layout(BATCH, 2, rank, order=order)) for rank in range(2)]
    for step in (1, 50, two[0].steps - 1, two[0].steps):
        done = np.concatenate([np.concatenate([shard.step(each).numpy() for each in range(step)]) for shard in two])
        rest = [plan.shard(Layout(BATCH, 3, rank, order=order, done=(step, two[0].samples_until(step)))) for rank in range(3)]
        left = [shard.step(each).numpy() for shard in rest for each in range(step, shard.steps)]
        assert sorted([*done, *np.concatenate([*left, done[:0]])]) == plan.indices.tolist()


def test_the_digest_is_that_of_the_batches():
    order = order_of(pooled, 7)
    assert order.digest(5) != order.digest(6) and Order(order.indices).digest(5) == Order(order.indices).digest(6)
    assert len({each.digest(5) for each in (order, order_of(pooled, 8), order_of(nearly_sorted, 7), Order(order.indices))}) == 4


@pytest.mark.parametrize("samples", [[], [5], [5, 7, 9]])
def test_few_samples_have_an_order(samples):
    kept = order_of(pooled, 7).of(torch.tensor(samples, dtype=torch.int64), BATCH)
    assert sorted(kept.tolist()) == samples
