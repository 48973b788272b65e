"""Statistics of which each rank has a share, and what is asked of all of them, against NumPy on all rows; ranks are threads."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import on_ranks

from kakurenbo_lightning import Epoch, SampleStatistics
from kakurenbo_lightning.core import sharded_statistics
from kakurenbo_lightning.core.plan import EpochPlan, SetPlan
from kakurenbo_lightning.core.shard import Layout, same_batches
from kakurenbo_lightning.core.sharded_statistics import ShardedStatistics
from kakurenbo_lightning.core.spread import ALONE, Share
from kakurenbo_lightning.methods import Kakurenbo
from kakurenbo_lightning.methods.topk import lowest

SIZES = st.integers(1, 5)
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 3.0, float("inf"), -float("inf"), float("nan"), 3.4e38]
VALUES = st.lists(st.sampled_from(SPECIAL) | st.floats(width=32), min_size=1, max_size=60)


def spread_of(values, size):
    """A function of ranks that gives a rank its spread and its rows of ``values`` (``[N]``)."""
    return lambda ranks: (Share(ranks, len(values)), values[ranks.rank :: ranks.size])


def together(parts, total):
    """What the ranks have of a mask, as one of all rows."""
    found = torch.zeros(total, dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        found[rank :: len(parts)] = part
    return found


@given(values=VALUES, size=SIZES, data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_lowest_of_all_ranks_are_those_of_one(values, size, data, dtype):
    """Ties by the lower index, and drawn ones; NaN and infinities are never among them."""
    values = torch.tensor(values, dtype=dtype)
    count = data.draw(st.integers(0, len(values)))
    eligible = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    for seed in (None, 3):

        def choose(spread, mine, allowed, seed=seed):
            ties = None if seed is None else torch.Generator().manual_seed(seed)
            return lowest(mine, count, allowed, ties, spread)

        def on_rank(ranks):
            share, mine = spread_of(values, size)(ranks)
            return choose(share, mine, eligible[ranks.rank :: ranks.size])

        expected = choose(ALONE, values, eligible)
        assert torch.equal(together(on_ranks(size, on_rank), len(values)), expected)
    order = [i for i in np.argsort(values.numpy(), kind="stable").tolist() if eligible[i] and values[i].isfinite()]
    by_index = choose_with_numpy(order, count, len(values))
    assert torch.equal(lowest(values, count, eligible), by_index)


def choose_with_numpy(order, count, total):
    mask = torch.zeros(total, dtype=torch.bool)
    mask[order[:count]] = True
    return mask


@given(mask=st.lists(st.booleans(), min_size=1, max_size=60).map(torch.tensor), size=SIZES, data=st.data())
def test_a_draw_on_all_ranks_is_that_of_one(mask, size, data):
    count = data.draw(st.integers(0, int(mask.sum())))

    def on_rank(ranks):
        share, mine = spread_of(mask, size)(ranks)
        assert share.gathered(mine).tensor().tolist() == mask.nonzero().squeeze(1).tolist()
        return share.some(mine, count, torch.Generator().manual_seed(count))

    expected = ALONE.some(mask, count, torch.Generator().manual_seed(count))
    assert torch.equal(together(on_ranks(size, on_rank), len(mask)), expected)
    assert int(expected.sum()) == count and not (expected & ~mask).any()


@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60), size=SIZES)
def test_a_sum_has_no_rounding(values, size):
    exact, values = sum(map(Fraction, values)), torch.tensor(values)
    everyone = torch.ones(len(values), dtype=torch.bool)

    def on_rank(ranks):
        share, mine = spread_of(values, size)(ranks)
        return share.exact_sum(mine, everyone[ranks.rank :: ranks.size])

    assert {ALONE.exact_sum(values, everyone), *on_ranks(size, on_rank)} == {exact}


def recorded(rank, size, total, epoch):
    """The rows that a rank trains in an epoch, and their values; in pieces."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(epoch))[rank : total * 2 // 3 : size]
    for rows in order.split(7):
        loss = torch.where(rows % 5 == 0, float("nan"), rows / 3 + epoch).double()
        yield rows, {"loss": loss, "confidence": 1 / (rows + 1.0), "correct": (rows + epoch) % 3 == 0}


def count_records(statistics, rows, values, epoch):
    """A method's observe."""
    statistics.extra["count"][rows] += 1 + statistics.correct[rows].to(torch.int16)


COLUMNS = (sharded_statistics.Column("count", "int16", 0),)


@pytest.mark.parametrize(("size", "total", "piece"), [(1, 40, 16), (2, 101, 16), (3, 64, 5), (4, 150, 1 << 20)])
def test_records_reach_the_owners_of_their_rows(monkeypatch, size, total, piece):
    """To the bit what statistics of all rows have, method columns too; merging twice changes nothing."""
    monkeypatch.setattr(sharded_statistics, "PIECE", piece)
    monkeypatch.setattr(sharded_statistics, "BLOCK", 16)
    alone = SampleStatistics(total, columns=COLUMNS)
    for epoch in range(3):
        for rank in range(size):
            for rows, values in recorded(rank, size, total, epoch):
                alone.write(count_records, rows, values, Epoch(epoch))

    def on_rank(ranks):
        statistics = ShardedStatistics(total, ranks, COLUMNS)
        for epoch in range(3):
            for rows, values in recorded(ranks.rank, size, total, epoch):
                statistics.write(count_records, rows, values, Epoch(epoch))
            statistics.merge()
            statistics.merge()
        assert statistics.total == total and statistics.nonfinite() == alone.nonfinite()
        assert statistics.judged_since == alone.judged_since
        return statistics.collected(), statistics.state_dict(), statistics.bytes_per_sample

    parts = on_ranks(size, on_rank)
    for name, column in alone.state_dict().items():
        assert same_bits(parts[0][0][name], column)
        assert all(same_bits(part[name], column[rank::size]) for rank, (_, part, _) in enumerate(parts))
    assert all(not whole for whole, _, _ in parts[1:]) and parts[0][2] == 13

    def load(ranks):
        statistics = ShardedStatistics(total, ranks, COLUMNS)
        statistics.load_state_dict(alone.state_dict())
        return statistics.state_dict()

    for rank, part in enumerate(on_ranks(size + 1, load)):
        assert all(same_bits(part[name], column[rank :: size + 1]) for name, column in alone.state_dict().items())


def same_bits(one, other):
    views = [each.view(torch.int32) if each.is_floating_point() else each for each in (one, other)]
    return torch.equal(*views)


def test_records_of_two_epochs_do_not_wait_for_one_merge():
    def on_rank(ranks):
        statistics = ShardedStatistics(4, ranks)
        write = lambda epoch: statistics.write(lambda *_: None, torch.tensor([0]), {"loss": torch.ones(1)}, Epoch(epoch))  # noqa: E731
        write(0)
        with pytest.raises(RuntimeError, match="records of epoch 0 were not merged before those of epoch 1"):
            write(1)

    on_ranks(1, on_rank)


def test_a_loaded_state_takes_the_place_of_records_that_wait_for_a_merge():
    """Of a training that was given up, in whose place the checkpoint's goes on: nothing of them is left, and its epoch may come before."""

    def on_rank(ranks):
        method, statistics, loaded = Kakurenbo(), ShardedStatistics(7, ranks), SampleStatistics(7)
        rows, values = (
            torch.arange(ranks.rank, 7, ranks.size).flip(0),
            {"loss": torch.ones(len(range(ranks.rank, 7, ranks.size)))},
        )
        method.record(statistics, rows, values, Epoch(2))
        method.record(loaded, torch.arange(7), {"loss": torch.arange(7.0)}, Epoch(0))
        statistics.load_state_dict(loaded.state_dict())
        method.record(statistics, rows[:1], {"loss": torch.full((1,), 9.0)}, Epoch(1))
        statistics.merge()
        return statistics.loss, statistics.epoch_seen

    parts = on_ranks(2, on_rank)
    assert together([loss for loss, _ in parts], 7).tolist() == [0, 1, 2, 3, 4, 9, 9]
    assert together([seen for _, seen in parts], 7).tolist() == [0, 0, 0, 0, 0, 1, 1]


@given(
    hidden=st.lists(st.booleans(), min_size=12, max_size=60).map(torch.tensor),
    size=SIZES,
    batch=st.integers(1, 4),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    data=st.data(),
)
def test_a_set_is_laid_out_as_the_plan_it_stands_for(hidden, size, batch, flags, data):
    """Each rank's order, weights, steps and padding; also what is left of an epoch that another layout has begun."""
    drop_last, shuffle, weighted = flags
    weights = torch.where(torch.arange(len(hidden)) % 3 == 0, 2.0, 0.5) if weighted else None
    plan = EpochPlan.hide(hidden, 1.5, {"a": 1.0}, weights)
    done = data.draw(st.integers(0, len(plan.indices)))
    alike = SetPlan.of(plan, len(hidden))
    assert (alike.hidden_count, alike.hidden_fraction) == (plan.hidden_count, plan.hidden_fraction)
    assert torch.equal(alike.indices, plan.indices) and torch.equal(alike.hidden, plan.hidden)
    assert weights is None or torch.equal(alike.weights, weights)
    for rank in range(size):
        layout = Layout(batch, size, rank, drop_last, shuffle, 5, 2, (int(done > 0), done))
        try:
            expected = plan.shard(layout)
        except ValueError as error:
            with pytest.raises(ValueError) as raised:
                alike.shard(layout)
            assert str(raised.value) == str(error)
            continue
        shard = alike.shard(layout)
        assert same_batches(shard, expected) and same_batches(shard, alike.shard(layout))
        assert list(shard.batches()) == list(expected.batches())
        assert (shard.weights is None) == (weights is None)
        assert weights is None or torch.equal(shard.weights, expected.weights)
        assert all(shard.step(step).dtype is torch.int64 for step in range(shard.first, shard.steps))
