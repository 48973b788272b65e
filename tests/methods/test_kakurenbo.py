"""KAKURENBO against the oracles of its paper and a slow, obvious NumPy reference."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kakurenbo_lightning import Epoch, SampleStatistics, get_method
from kakurenbo_lightning.methods.hide.kakurenbo import Kakurenbo, select_hidden
from kakurenbo_lightning.methods.topk import lowest

LOSS = [0.05, 0.90, 0.10, 0.30, 0.02, 2.0, 0.15, 0.40, 0.01, 0.60]
CORRECT = [1, 1, 1, 1, 0, 0, 1, 1, 1, 1]
CONFIDENCE = [0.95, 0.8, 0.65, 0.9, 0.9, 0.3, 0.75, 0.99, 0.99, 0.85]


def statistics_of(loss, correct, confidence, epoch_seen=0):
    statistics = SampleStatistics(len(loss))
    rows = {
        "loss": torch.tensor(loss, dtype=torch.float32),
        "correct": torch.tensor(correct, dtype=torch.bool),
        "confidence": torch.tensor(confidence, dtype=torch.float32),
    }
    statistics.record(torch.arange(len(loss)), rows, epoch_seen)
    return statistics


def reference(loss, correct, confidence, measured, max_hidden, tau, drop_top=0):
    """The sets (hidden, candidates) by a Python sort."""
    finite = [i for i in range(len(loss)) if measured[i] and np.isfinite(loss[i])]
    candidates = sorted(finite, key=lambda i: (loss[i], i))[:max_hidden]
    hidden = {i for i in candidates if correct[i] and confidence[i] >= np.float32(tau)}
    hidden |= set(sorted(finite, key=lambda i: (-loss[i], i))[:drop_top])
    return hidden, set(candidates)


@pytest.mark.parametrize(
    ("max_hidden", "expected"),
    [(0, set()), (3, {0, 8}), (5, {0, 6, 8}), (10, {0, 1, 3, 6, 7, 8, 9})],
)
def test_oracle_selection(max_hidden, expected):
    s = statistics_of(LOSS, CORRECT, CONFIDENCE)
    chosen = select_hidden(s.loss, s.correct, s.confidence, s.measured, max_hidden, 0.7)
    assert set(chosen.hidden.nonzero().squeeze(1).tolist()) == expected
    assert chosen.candidates == max_hidden
    assert chosen.moved_back == max_hidden - len(expected)


@pytest.mark.parametrize(("fraction", "expected"), [(0.3, [0, 8]), (0.5, [0, 6, 8]), (0.0, [])])
def test_oracle_plan(fraction, expected):
    method = Kakurenbo(max_fraction=fraction, tau=0.7)
    plan = method.plan(statistics_of(LOSS, CORRECT, CONFIDENCE), Epoch(1, 10))
    assert plan.hidden.tolist() == expected
    assert plan.indices.tolist() == [i for i in range(10) if i not in expected]
    assert plan.lr_factor == pytest.approx(1 / (1 - len(expected) / 10), abs=0)


def test_moved_back_samples_are_not_replaced():
    plan = Kakurenbo(max_fraction=0.3, tau=0.7).plan(statistics_of(LOSS, CORRECT, CONFIDENCE), Epoch(1, 10))
    assert plan.metrics == {"candidates": 3.0, "moved_back": 1.0}
    assert len(plan.hidden) == 2


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(range(1, 60), 1.142857), (range(60, 120), 0.210526), (range(120, 160), 0.0390244), (range(160, 200), 0.00727273)],
)
def test_oracle_learning_rate_of_the_cifar100_recipe(epochs, expected):
    method = Kakurenbo(max_fraction=0.3, milestones=(60, 120, 160), lr_fraction="max")
    statistics = statistics_of(LOSS, CORRECT, CONFIDENCE)
    for epoch in epochs:
        base = 0.8 * 0.2 ** sum(epoch >= m for m in (60, 120, 160))
        assert base * method.plan(statistics, Epoch(epoch, 200)).lr_factor == pytest.approx(expected, rel=1e-5)


def test_first_epoch_hides_nothing_and_keeps_the_learning_rate():
    for lr_fraction in ("hidden", "max"):
        plan = Kakurenbo(lr_fraction=lr_fraction).plan(SampleStatistics(100), Epoch(0, 10))
        assert len(plan.hidden) == 0
        assert plan.lr_factor == 1.0


def test_warmup_epochs_hide_but_do_not_scale():
    method = Kakurenbo(max_fraction=0.3, warmup_epochs=3)
    statistics = statistics_of(LOSS, CORRECT, CONFIDENCE)
    plans = [method.plan(statistics, Epoch(epoch, 100)) for epoch in (2, 3)]
    assert [len(plan.hidden) for plan in plans] == [2, 2]
    assert [plan.lr_factor for plan in plans] == [1.0, 1.25]


def test_fraction_follows_the_milestones_exactly():
    shares = Kakurenbo(max_fraction=0.3)
    assert [shares.fraction(Epoch(e, 10)) for e in (0, 2, 3, 5, 6, 7, 8, 9)] == [
        Fraction(n, 100) for n in (30, 30, 24, 24, 18, 18, 12, 12)
    ]
    # 0.7 * 10 is 7.000000000000001 in floating point, yet the milestone is epoch 7
    assert Kakurenbo(fractions=(1, 0.5), milestones=(0.7,)).fraction(Epoch(7, 10)) == Fraction(15, 100)


def test_fraction_is_read_as_a_decimal():
    loss = [i / 100 for i in range(100)]
    plan = Kakurenbo(max_fraction=0.29).plan(statistics_of(loss, [1] * 100, [1.0] * 100), Epoch(1, 10))
    assert len(plan.hidden) == 29  # 0.29 * 100 is 28.999999999999996 in floating point


def test_confidence_equal_to_tau_hides():
    plan = Kakurenbo(max_fraction=0.5, tau=0.7).plan(statistics_of([0.1, 0.2], [1, 1], [0.7, 0.7]), Epoch(1, 10))
    assert plan.hidden.tolist() == [0]


def test_ties_go_to_the_lower_index():
    assert lowest(torch.tensor([1.0, 0.0, 1.0, 1.0]), 3, torch.ones(4, dtype=torch.bool)).tolist() == [True, True, True, False]


def test_drop_top_also_hides_the_highest_finite_losses():
    loss = [*LOSS]
    loss[1] = float("inf")
    plan = Kakurenbo(max_fraction=0.3, drop_top=0.1).plan(statistics_of(loss, CORRECT, CONFIDENCE), Epoch(1, 10))
    assert plan.hidden.tolist() == [0, 5, 8]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_losses_are_never_hidden(bad):
    loss = [bad] * 5 + [1.0] * 5
    s = statistics_of(loss, [1] * 10, [1.0] * 10)
    chosen = select_hidden(s.loss, s.correct, s.confidence, s.measured, 9, 0.0, drop_top=9)
    assert chosen.hidden.tolist() == [False] * 5 + [True] * 5
    assert s.nonfinite() == 5


def test_nan_confidence_is_never_hidden():
    s = statistics_of([0.1, 0.2], [1, 1], [float("nan"), 0.9])
    assert select_hidden(s.loss, s.correct, s.confidence, s.measured, 2, 0.0).hidden.tolist() == [False, True]


SAMPLE = st.tuples(
    st.one_of(st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), float("-inf")]), st.floats(-5, 5, width=32)),
    st.booleans(),
    st.one_of(st.sampled_from([0.5, 0.7, 1.0]), st.floats(0, 1, width=32)),
    st.booleans(),
)


@given(st.lists(SAMPLE, min_size=1, max_size=40), st.integers(0, 45), st.sampled_from([0.0, 0.5, 0.7, 1.0]), st.integers(0, 5))
def test_selection_equals_the_numpy_reference(samples, max_hidden, tau, drop_top):
    loss, correct, confidence, measured = (np.array(column) for column in zip(*samples, strict=True))
    loss, confidence = loss.astype(np.float32), confidence.astype(np.float32)
    hidden, candidates = reference(loss, correct, confidence, measured, max_hidden, tau, drop_top)
    chosen = select_hidden(
        *(torch.from_numpy(column) for column in (loss, correct, confidence, measured)), max_hidden, tau, drop_top
    )
    assert set(chosen.hidden.nonzero().squeeze(1).tolist()) == hidden
    assert chosen.candidates == len(candidates)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_fraction": 1.0}, ["max_fraction=1.0", "[0, 1)"]),
        ({"max_fraction": -0.1}, ["max_fraction=-0.1", "[0, 1)"]),
        ({"max_fraction": "a"}, ["max_fraction='a'", "[0, 1)"]),
        ({"max_fraction": float("nan")}, ["max_fraction=nan", "[0, 1)"]),
        ({"tau": 1.1}, ["tau=1.1", "[0, 1]"]),
        ({"tau": -0.1}, ["tau=-0.1", "[0, 1]"]),
        ({"milestones": (60, 60, 70)}, ["milestones=(60, 60, 70)", "strictly increasing"]),
        ({"milestones": (0.6, 0.3, 0.8)}, ["milestones=(0.6, 0.3, 0.8)", "strictly increasing"]),
        ({"milestones": (30, 0.6, 0.8)}, ["milestones=(30, 0.6, 0.8)", "one kind"]),
        ({"milestones": (30, 60)}, ["milestones=(30, 60)", "one shorter than fractions"]),
        ({"milestones": (0, 60, 70)}, ["milestones=(0, 60, 70)", "positive integers"]),
        ({"fractions": (1, 2, 0.5, 0.5)}, ["fractions=(1, 2, 0.5, 0.5)", "[0, 1]"]),
        ({"drop_top": 1}, ["drop_top=1", "[0, 1)"]),
        ({"max_fraction": 0.9, "drop_top": 0.2}, ["max_fraction + drop_top=1.1", "[0, 1)"]),
        ({"warmup_epochs": -1}, ["warmup_epochs=-1", ">= 0"]),
        ({"lr_fraction": "both"}, ["lr_fraction='both'", "'hidden' or 'max'"]),
        ({"refresh_mode": "no"}, ["refresh_mode='no'", "'eval' or 'train'"]),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_range(settings, words):
    with pytest.raises(ValueError) as error:
        get_method("kakurenbo", **settings)
    for word in ["kakurenbo", *words]:
        assert word in str(error.value)


def test_shares_of_max_epochs_need_an_end():
    with pytest.raises(ValueError, match=r"max_epochs=\.\.\."):
        Kakurenbo().check_run(None, 10)
    Kakurenbo(milestones=(30, 60, 80)).check_run(None, 10)
    Kakurenbo().check_run(10, 10)
