"""Methods of 2025 and 2026 against numbers that their authors' published code gave on the same random statistics, outside this repository.

The code: shengze-xu/OrderDP at b48eacc, tmllab/2025_ICLR_IES at 7227bf3.
"""

import math

import numpy as np
import pytest
import torch
from helpers import Net, Spy, fit, loader
from histories import History, Sighting, made, recorded
from hypothesis import given
from hypothesis import strategies as st
from method_tester import ROWS, check_equals_reference

from kakurenbo_lightning import Epoch, SampleSelection, SampleStatistics, get_method
from kakurenbo_lightning.core.spread import ALONE


def statistics_of(method, losses):
    """Statistics that hold the losses of each epoch, ``float32[epochs, N]``."""
    statistics = SampleStatistics(losses.shape[1], columns=method.columns)
    for epoch, loss in enumerate(losses):
        method.record(statistics, torch.arange(len(loss)), {"loss": torch.from_numpy(loss)}, Epoch(epoch))
    return statistics


# --- OrderDP

# samples, r, q -> how many are drawn, how many trained, the sum of the trained indices and of their squares
ORDERDP = {
    (1000, 0.75, 0.85): (750, 637, 317528, 210803338),
    (1000, 0.8, 0.375): (800, 300, 153152, 102925928),
    (997, 0.29, 0.57): (289, 164, 84846, 57872954),
}


@pytest.mark.parametrize("case", ORDERDP, ids=str)
def test_orderdp_trains_what_the_authors_code_trains_of_the_same_draw(case, monkeypatch):
    count, random_fraction, top_fraction = case
    drawn, trained, total, squares = ORDERDP[case]
    method = get_method("orderdp", random_fraction=random_fraction, top_fraction=top_fraction)
    statistics = statistics_of(method, np.random.RandomState(count).gamma(2.0, size=(1, count)).astype(np.float32))

    our_draw = ALONE.some

    def their_draw(mask, number, generator):
        if not mask.all():  # ties
            return our_draw(mask, number, generator)
        assert number == drawn
        rows = np.random.RandomState(7).choice(len(mask), number, replace=False)
        return torch.zeros_like(mask).index_fill_(0, torch.from_numpy(rows), True)

    monkeypatch.setattr(ALONE, "some", their_draw)
    indices = method.plan(statistics, Epoch(1, 10)).indices
    assert (len(indices), int(indices.sum()), int((indices**2).sum())) == (trained, total, squares)


def test_orderdp_by_hand():
    """All are drawn, half of them trained; the unseen count 3, and what is not finite is trained first."""
    losses = [1.0, float("nan"), 3.5, -float("inf"), 5.0, float("inf"), 2.0, None]
    history = made([(loss, 0.9, True) for loss in losses])
    method = get_method("orderdp", random_fraction=1.0, top_fraction=0.75)
    assert method.plan(recorded(history, method), Epoch(1, 10)).hidden.tolist() == [0, 6]
    method = get_method("orderdp", random_fraction=1.0, top_fraction=0.5)
    assert method.plan(recorded(history, method), Epoch(1, 10)).hidden.tolist() == [0, 2, 6, 7]
    method = get_method("orderdp", random_fraction=1.0, top_fraction=0.1)
    assert method.plan(recorded(history, method), Epoch(1, 10)).hidden.tolist() == [0, 2, 4, 6, 7]


def test_orderdp_hides_from_the_first_epoch_on_and_trains_everything_in_the_last_eighth():
    method = get_method("orderdp")
    statistics = SampleStatistics(1000)
    trained = [len(method.plan(statistics, Epoch(epoch, 16)).indices) for epoch in range(16)]
    assert trained == [637] * 14 + [1000] * 2
    drawn = [set(method.plan(statistics, Epoch(0, 16, seed)).indices.tolist()) for seed in range(8)]
    assert 0 not in set.intersection(*drawn) and set.union(*drawn) == set(range(1000)), (
        "equal losses are drawn, not taken in order"
    )


# --- IES

# threshold, window -> how many are hidden after each of twelve epochs, and the sums of their indices
IES = {
    (1e-3, 3): (
        [0, 0, 0, 0, 0, 1154, 1226, 1293, 1352, 1426, 1482, 1553],
        [0, 0, 0, 0, 0, 1137524, 1206632, 1274803, 1330884, 1399230, 1455982, 1540433],
    ),
    (2e-3, 3): (
        [0, 0, 0, 0, 0, 1264, 1336, 1404, 1460, 1541, 1590, 1659],
        [0, 0, 0, 0, 0, 1244653, 1315765, 1388443, 1438576, 1518349, 1572286, 1652442],
    ),
    (1e-2, 5): (
        [0, 0, 0, 0, 0, 0, 0, 1591, 1651, 1726, 1789, 1858],
        [0, 0, 0, 0, 0, 0, 0, 1582051, 1647702, 1724276, 1793739, 1856038],
    ),
    (1e-3, 1): (
        [0, 0, 0, 1138, 1191, 1306, 1335, 1417, 1468, 1533, 1604, 1667],
        [0, 0, 0, 1127550, 1168541, 1274742, 1325704, 1401790, 1443530, 1514577, 1592611, 1665023],
    ),
}


@pytest.mark.parametrize("case", IES, ids=str)
def test_ies_hides_what_the_authors_code_excludes(case):
    rng = np.random.RandomState(0)
    size = 10.0 ** rng.uniform(-5, 0, size=2000)
    losses = (size * np.exp(-0.4 * np.arange(12))[:, None] * (1 + 0.2 * rng.standard_normal((12, 2000)))).astype(np.float32)
    method = get_method("ies", threshold=case[0], window=case[1])
    plans = [method.plan(statistics_of(method, losses[:epoch]), Epoch(epoch)) for epoch in range(1, 13)]
    assert ([len(plan.hidden) for plan in plans], [int(plan.hidden.sum()) for plan in plans]) == IES[case]


LOSSES = st.one_of(st.sampled_from([0.0, 0.25, math.nan, math.inf]), st.floats(0, 0.5, width=32))


@given(
    samples=st.lists(st.lists(st.one_of(st.none(), LOSSES), min_size=9, max_size=9), min_size=1, max_size=12),
    window=st.integers(1, 4),
    threshold=st.sampled_from([0.1, 0.25, 0.5]),
    most=st.sampled_from([0.3, 0.95]),
)
def test_ies_is_the_reference_whenever_a_sample_was_recorded(samples, window, threshold, most):
    seen = tuple(tuple(Sighting(e, loss, 0.9, True, 0.5) for e, loss in enumerate(row) if loss is not None) for row in samples)
    method = get_method("ies", threshold=threshold, window=window, max_fraction=most)
    check_equals_reference(ROWS["ies"], method, History(seen, (0,) * len(seen)), epochs=[9])


def test_a_window_that_takes_too_much_memory_is_refused():
    with pytest.raises(ValueError, match="ies: window=1000 is not allowed; window must be an integer from 1 to 32"):
        get_method("ies", window=1000)


def test_ies_leaves_something_to_train_and_says_how_many_have_settled():
    method = get_method("ies", max_fraction=0.9)
    plan = method.plan(statistics_of(method, np.full((6, 40), 0.5, np.float32)), Epoch(6))
    assert len(plan.indices) == 4 and plan.metrics["settled"] == 40


def test_in_a_run_ies_refreshes_each_epoch_what_it_hides_and_a_sample_returns():
    """The points of one label become another's in epoch 6, so their loss moves again, which only the scoring pass can see."""

    class Moved(Net):
        def training_step(self, batch, batch_idx):
            x, y, index = batch
            return super().training_step((x, torch.where(y == 0, 1, y) if self.current_epoch > 5 else y, index), batch_idx)

    selection = SampleSelection("ies", threshold=0.2, window=1)
    spy = Spy(selection)
    fit(Moved(), loader(), selection, spy, max_epochs=9)
    counts = [len(spy.hidden[epoch]) for epoch in range(9)]
    assert counts[:4] == [0] * 4 and min(counts[4:]) > 10
    assert selection.totals.samples_refreshed == sum(counts[:8])
    moved = {int(index) for index in spy.hidden[5] if index % 3 == 0}
    stayed = moved & {int(index) for index in spy.hidden[6]}
    assert len(moved) > 10 and len(stayed) < len(moved) / 2, "those of the first label return at once"
