"""How often methods that draw hide each sample. Each bound is 6 standard deviations: less than 3e-9 that one count breaks it by chance."""

import histories
import pytest
import torch
from histories import MAX_EPOCHS, made, recorded
from method_tester import ROWS

from kakurenbo_lightning import Epoch, get_method

TIMES, COUNT = 1500, 20
EQUAL = made([(0.5, 1.0, True)] * COUNT)
TWO_LEVELS = made([(0.25 if i % 2 else 0.75, 1.0, True) for i in range(COUNT)])  # the odd ones are below the mean


def plans(method, history, epochs, seeds):
    """The plan of each epoch and seed, of the same statistics."""
    statistics = recorded(history, method)
    return [method.plan(statistics, Epoch(epoch, MAX_EPOCHS, seed)) for epoch in epochs for seed in seeds]


def times_hidden(method, history, epoch):
    """How often each sample is hidden in ``epoch``, over :data:`TIMES` seeds."""
    counts = torch.zeros(len(history))
    for plan in plans(method, history, [epoch], range(TIMES)):
        counts[plan.hidden] += 1
    return counts


def assert_binomial(counts, probability):
    assert (counts - TIMES * probability).abs().max() < 6 * (TIMES * probability * (1 - probability)) ** 0.5


@pytest.mark.slow_cases("el2n", "forget", "forget_online", "random_cycle")
@pytest.mark.parametrize(
    ("name", "settings", "epoch", "probability"),
    [
        ("random", {"max_fraction": 0.3}, 0, 0.3),
        ("random_cycle", {"max_fraction": 0.3}, 0, 0.3),
        ("random_cycle", {"max_fraction": 0.3}, 1, 0.3),
        ("random_cycle", {"max_fraction": 0.3}, 2, 0.3),
        ("random_cycle", {"max_fraction": 0.65}, 2, 0.65),
        ("seta", {"prune_ratio": 0.3}, 0, 0.3),
        ("seta", {"prune_ratio": 0.3}, 9, 0.3),
        ("orderdp", {"random_fraction": 0.5, "top_fraction": 0.6}, 2, 0.7),
        ("forget", {"max_fraction": 0.3, "static_epochs": 2}, 2, 0.3),
        ("forget_online", {"max_fraction": 0.3}, 2, 0.3),
        ("el2n", {"max_fraction": 0.3, "score_epochs": (0, 2)}, 2, 0.3),
        ("el2n", {"max_fraction": 0.3, "score_epochs": (0, 2), "keep_hardest": False, "drop_hardest": 0.2}, 2, 0.5),
    ],
    ids=str,
)
def test_equal_samples_are_hidden_equally_often(name, settings, epoch, probability):
    assert_binomial(times_hidden(get_method(name, **settings), EQUAL, epoch), probability)


def test_infobatch_keeps_each_well_learned_sample_with_probability_1_minus_r():
    for ratio in (0.5, 0.3):
        counts = times_hidden(get_method("infobatch", prune_ratio=ratio), TWO_LEVELS, 2)
        assert not counts[::2].any()
        assert_binomial(counts[1::2], ratio)


@pytest.mark.parametrize("ratio", [0.5, 0.3, 0.29, 0.9])
@pytest.mark.parametrize("history", [histories.drawn(203, seed=1), TWO_LEVELS], ids=["random", "two levels"])
def test_infobatch_weights_sum_to_the_number_of_samples_but_for_the_floor(ratio, history):
    """floor((1 - r) * n) stay, each with weight 1 / (1 - r): less than one of them is missing."""
    for plan in plans(get_method("infobatch", prune_ratio=ratio), history, range(1, 6), range(3)):
        total = float(plan.weights[plan.indices].double().sum())
        assert len(history) - 1 / (1 - ratio) < total <= len(history) + 1e-3
        if history is TWO_LEVELS and ratio != 0.29:
            assert total == pytest.approx(len(history), rel=1e-6)


@pytest.mark.parametrize("name", ["infobatch", "random", "random_cycle"])
def test_the_weighted_sum_of_the_kept_estimates_that_of_all(name):
    """Whatever is summed, as the gradient: unbiased, within 6 standard errors of the mean over the seeds."""
    method, history = get_method(name, unbiased=True), TWO_LEVELS
    values = torch.randn(COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums = torch.stack(
        [(plan.weights.double() * values)[plan.indices].sum() for plan in plans(method, history, [2], range(TIMES))]
    )
    assert sums.std() > 0.1
    assert abs(float(sums.mean() - values.sum())) < 6 * float(sums.std()) / TIMES**0.5


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.65, 0.9])
@pytest.mark.parametrize("count", [1, 7, 20])
def test_random_cycle_takes_none_twice_before_all_were_taken(fraction, count):
    for seed in range(3):
        method, history = get_method("random_cycle", max_fraction=fraction), made([(0.5, 1.0, True)] * count)
        share = len(plans(method, history, [0], [seed])[0].indices)
        assert share == count - int(fraction * count + 1e-9)
        taken = torch.zeros(count)
        for plan in plans(method, history, range(45), [seed]):
            assert len(plan.indices.unique()) == share == len(plan.indices)
            taken[plan.indices] += 1
            assert taken.max() - taken.min() <= 1
        assert taken.sum() == 45 * share


def test_random_cycle_orders_every_cycle_anew():
    method = get_method("random_cycle", max_fraction=0.5)
    halves = {tuple(plan.indices.tolist()) for plan in plans(method, EQUAL, range(0, 10, 2), range(2))}
    assert len(halves) == 10


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.draws == "always" and row.exact], ids=lambda row: row.name)
def test_the_share_is_exact_in_every_epoch(row):
    for count, fraction, hidden in ((100, 0.29, 29), (10, 0.3, 3), (7, 0.3, 2), (1, 0.9, 0), (3, 0.99, 2)):
        method, history = get_method(row.name, max_fraction=fraction), made([(0.5, 1.0, True)] * count)
        assert {len(plan.hidden) for plan in plans(method, history, range(10), range(3))} == {hidden}
