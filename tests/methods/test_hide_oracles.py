"""What METHODS says of single methods, by hand; KAKURENBO's are in ``test_kakurenbo.py``."""

import histories
import numpy as np
import pytest
import torch
from histories import MAX_EPOCHS, made, recorded

from kakurenbo_lightning import Epoch, SampleStatistics, get_method
from kakurenbo_lightning.methods.hide.seta import kmeans_bounds, parted
from kakurenbo_lightning.signals.criteria import class_values

RIGHT = [[0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]]
EVENTS = [2, None, 0, 0, 3, 1]  # None: never learned


def history_of(right, losses=None):
    """Each sample is right or wrong in epochs 0, 1, ..."""
    seen = [
        tuple(histories.Sighting(e, losses[i] if losses else 1.0, 0.9, bool(ok), 0.5) for e, ok in enumerate(sample))
        for i, sample in enumerate(right)
    ]
    return histories.History(tuple(seen), (0,) * len(right))


FORGETTING = [("forget", {"static_epochs": 6}, 60), ("forget_online", {}, 6)]
forgetting = pytest.mark.parametrize(("name", "settings", "max_epochs"), FORGETTING, ids=["forget", "forget_online"])


def hidden(name, fraction, max_epochs, history, epoch=6, seed=0, **settings):
    method = get_method(name, max_fraction=fraction, **settings)
    return method.plan(recorded(history, method, max_epochs), Epoch(epoch, max_epochs, seed)).hidden.tolist()


@forgetting
def test_an_event_is_right_before_and_wrong_now(name, settings, max_epochs):
    statistics = recorded(history_of(RIGHT), get_method(name, **settings), max_epochs)
    assert statistics.extra["events"].tolist() == [events or 0 for events in EVENTS]
    assert statistics.extra["learned"].tolist() == [events is not None for events in EVENTS]


@forgetting
def test_the_least_often_forgotten_are_hidden_and_the_never_learned_last(name, settings, max_epochs):
    order = [{2, 3}, {2, 3, 5}, {0, 2, 3, 5}, {0, 2, 3, 4, 5}]
    for count, wanted in enumerate(order, start=2):
        assert set(hidden(name, count / 6 + 0.01, max_epochs, history_of(RIGHT), **settings)) == wanted


@forgetting
def test_never_learned_first_counts_them_as_never_forgotten(name, settings, max_epochs):
    settings = {**settings, "never_learned": "first"}
    assert set(hidden(name, 0.51, max_epochs, history_of(RIGHT), **settings)) == {1, 2, 3}
    assert set(hidden(name, 0.67, max_epochs, history_of(RIGHT), **settings)) == {1, 2, 3, 5}


@forgetting
def test_the_never_learned_go_when_nothing_else_is_left(name, settings, max_epochs):
    assert set(hidden(name, 0.6, max_epochs, history_of([[0, 0], [0, 0], [1, 1], [0, 0], [0, 0]]), **settings)) > {2}
    assert len(hidden(name, 0.6, max_epochs, history_of([[0]] * 5), **settings)) == 3


@forgetting
def test_samples_that_differ_leave_nothing_to_the_seed(name, settings, max_epochs):
    """Sample i is forgotten i times."""
    history = history_of([[1, 0] * i + [1, 1] * (3 - i) for i in range(4)])
    assert {tuple(hidden(name, 0.5, max_epochs, history, seed=seed, **settings)) for seed in range(20)} == {(0, 1)}


def test_a_sample_seen_in_some_epochs_only_is_compared_with_its_last_sighting():
    method = get_method("forget_online")
    samples = [[(0, 1), (4, 0), (7, 1), (8, 0)], [(2, 1), (3, 1)]]
    seen = tuple(tuple(histories.Sighting(e, 1.0, 0.9, bool(ok), 0.5) for e, ok in sample) for sample in samples)
    statistics = recorded(histories.History(seen, (0, 0)), method)
    assert statistics.extra["events"].tolist() == [2, 0]


def test_forget_chooses_once_after_its_static_epochs_and_forget_online_anew():
    for name, settings, first in (("forget", {"static_epochs": 3}, 3), ("forget_online", {}, 2)):
        method = get_method(name, max_fraction=0.5, **settings)
        history = histories.drawn(40, seed=2, epochs=14)
        statistics, plan, chosen = histories.empty(method, history), None, []
        for epoch in range(MAX_EPOCHS):
            plan = method.plan(statistics, Epoch(epoch, MAX_EPOCHS), plan)
            chosen.append(tuple(plan.hidden.tolist()))
            histories.record(method, statistics, history, Epoch(epoch, MAX_EPOCHS))
        assert not any(chosen[:first])
        assert {len(plan) for plan in chosen[first:]} == {20}
        assert len(set(chosen[first:])) == (1 if name == "forget" else MAX_EPOCHS - first)


def softmax_by_hand(logits):
    exponentials = [np.exp(np.float64(z) - max(logits)) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def error_norm(logits, target):
    """||softmax(z) - onehot(y)||_2, a loop over the classes."""
    return sum((p - (c == target)) ** 2 for c, p in enumerate(softmax_by_hand(logits))) ** 0.5


def test_el2n_removes_the_lowest_mean_error_norm_of_the_scoring_epochs():
    generator = torch.Generator().manual_seed(0)
    logits, targets = 3 * torch.randn(6, 20, 4, generator=generator), torch.randint(0, 4, (20,), generator=generator)
    method = get_method("el2n", max_fraction=0.3, score_epochs=(2, 5))
    statistics = SampleStatistics(20, columns=method.columns)
    for epoch, scores in enumerate(logits):
        for rows in torch.randperm(20, generator=generator).split(7):
            values = class_values(scores[rows], targets[rows], reads=("loss", "el2n"))
            method.record(statistics, rows, {"loss": torch.ones(len(rows)), **values}, Epoch(epoch, 10))
    mean = [np.mean([error_norm(logits[e, i].tolist(), int(targets[i])) for e in (2, 3, 4)]) for i in range(20)]
    assert (statistics.extra["el2n_sum"] / statistics.extra["el2n_count"]).tolist() == pytest.approx(mean, rel=1e-5)
    plan = method.plan(statistics, Epoch(5, 10))
    assert plan.hidden.tolist() == sorted(sorted(range(20), key=lambda i: mean[i])[:6])
    both = get_method("el2n", max_fraction=0.3, score_epochs=(2, 5), keep_hardest=False, drop_hardest=0.1)
    assert both.plan(statistics, Epoch(5, 10)).hidden.tolist() == sorted(
        [*sorted(range(20), key=lambda i: mean[i])[:6], *sorted(range(20), key=lambda i: -mean[i])[:2]]
    )


def test_el2n_of_one_sample_by_hand():
    """softmax (1/4, 3/4): 1/4 * sqrt(2) from class 1, 3/4 * sqrt(2) from class 0."""
    logits = torch.tensor([[0.0, np.log(3.0)]] * 2)
    assert class_values(logits, torch.tensor([1, 0]), reads=("el2n",))["el2n"].tolist() == pytest.approx(
        [2**0.5 / 4, 3 * 2**0.5 / 4]
    )


def test_el2n_leaves_nothing_to_the_seed_when_scores_differ():
    history = made([(1.0, 0.9, True, i / 8) for i in (5, 3, 0, 7, 1, 2)])
    for seed in range(20):
        assert hidden("el2n", 0.5, 10, history, epoch=2, seed=seed, score_epochs=(0, 2)) == [2, 4, 5]


def test_infobatch_by_hand():
    """Mean of the finite losses 3; below it are four: two stay, at weight 2, all else at weight 1."""
    loss = [1.0, 2.0, 1.0, 8.0, 2.0, 4.0, 3.0, float("nan"), float("inf")]
    method = get_method("infobatch")
    plan = method.plan(recorded(made([(value, 0.9, True) for value in loss]), method), Epoch(2, 10))
    assert len(plan.hidden) == 2 and set(plan.hidden.tolist()) < {0, 1, 2, 4}
    assert plan.weights[plan.indices].tolist() == [2.0 if i in (0, 1, 2, 4) else 1.0 for i in plan.indices.tolist()]
    assert plan.metrics["candidates"] == 4


def test_infobatch_scores_what_was_not_seen_as_1():
    history = made([(None, 0, False)] * 3 + [(3.0, 0.9, True), (0.5, 0.9, True)])
    method = get_method("infobatch", prune_ratio=0.9)  # mean 1.3
    assert set(method.plan(recorded(history, method), Epoch(1, 10)).hidden.tolist()) == {0, 1, 2, 4}
    plan = method.plan(SampleStatistics(50), Epoch(0, 10))
    assert len(plan.hidden) == 0 and plan.weights is None, "equal scores: none is below the mean"


@pytest.mark.parametrize(("max_epochs", "last"), [(10, 7), (8, 6), (200, 174)])
def test_infobatch_prunes_only_before_floor_of_delta_max_epochs(max_epochs, last):
    method = get_method("infobatch")
    statistics = recorded(made([(i / 8, 0.9, True) for i in range(20)]), method)
    sizes = [len(method.plan(statistics, Epoch(epoch, max_epochs)).hidden) for epoch in (last, last + 1, max_epochs - 1)]
    assert sizes == [5, 0, 0]
    assert method.plan(statistics, Epoch(last + 1, max_epochs)).weights is None


def windows(history, epochs, **settings):
    method = get_method("seta", prune_ratio=0.0, **settings)
    statistics = recorded(history, method, 20)
    return [method.plan(statistics, Epoch(epoch, 20)).indices.tolist() for epoch in epochs]


def test_seta_slides_a_window_from_easy_to_hard_again_and_again():
    """Four groups of three; W = 2, so three places for the window."""
    history = made([(10.0 * (i % 4) + i / 100, 0.9, True) for i in range(12)])
    group = [[i for i in range(12) if i % 4 == g] for g in range(4)]
    at = [sorted(group[first] + group[first + 1]) for first in range(3)]
    assert windows(history, range(1, 8), groups=4) == [at[1], at[2], at[0], at[1], at[2], at[0], at[1]]


def test_seta_takes_all_groups_in_epoch_0_and_after_delta():
    history = made([(float(i), 0.9, True) for i in range(30)])
    sizes = [len(indices) for indices in windows(history, range(20), groups=10)]
    assert sizes[0] == 30 and max(sizes[1:17]) < 30 and sizes[17:] == [30] * 3  # floor(.875 * 20) is 17


def test_seta_takes_all_groups_from_floor_of_delta_max_epochs_on():
    history = made([(float(i), 0.9, True) for i in range(30)])
    full = [len(indices) == 30 for indices in windows(history, range(20), groups=10, delta=0.5)]
    assert full == [True] + [False] * 9 + [True] * 10


WIDTHS = [(10, 0.5, 5), (10, 1.0, 10), (10, 0.01, 1), (10, 0.26, 3), (10, 0.24, 2), (1, 0.5, 1)]
HALVES = [(5, 0.9, 4), (5, 0.5, 2), (5, 0.3, 2), (7, 0.5, 4), (10, 0.25, 2), (10, 0.35, 4)]  # to even, as Python's round does


@pytest.mark.parametrize(("groups", "window", "width"), WIDTHS + HALVES)
def test_seta_trains_as_many_groups_as_the_window_is_wide(groups, window, width):
    history = made([(float(i % groups), 0.9, True) for i in range(3 * groups)])
    (indices,) = windows(history, [groups - width + 1], groups=groups, window=window)
    assert indices == [i for i in range(3 * groups) if i % groups < width]


def test_seta_draws_the_part_that_the_window_slides_over():
    history = made([(float(i), 0.9, True) for i in range(100)])
    method = get_method("seta", prune_ratio=0.29, groups=4, window=1.0)
    statistics = recorded(history, method)
    assert {len(method.plan(statistics, Epoch(epoch, MAX_EPOCHS)).indices) for epoch in range(MAX_EPOCHS)} == {71}


@pytest.mark.parametrize(("ratio", "count", "size"), [(0.1, 5000, 4500), (0.1, 11, 9), (0.29, 10, 7), (0.5, 3, 1), (0.9, 5, 1)])
def test_seta_draws_int_of_1_minus_r_of_the_samples_and_at_least_one(ratio, count, size):
    method = get_method("seta", prune_ratio=ratio)
    plan = method.plan(recorded(made([(float(i), 0.9, True) for i in range(count)]), method), Epoch(0, MAX_EPOCHS))
    assert len(plan.indices) == size


def test_seta_of_the_authors_cifar_setting_alternates_between_nearly_everything_and_a_fifth():
    """r = .1, 5 groups, window .9 of 5,000: 4,500 in one epoch and about 970 in the next.

    Losses are lognormal with a sigma of 1.4, of which their code takes 4,489 and 973 on average of 8 seeds.
    """
    method = get_method("seta", prune_ratio=0.1, groups=5, window=0.9)
    losses = np.random.default_rng(0).lognormal(0, 1.4, 5000)
    statistics = recorded(made([(loss, 0.9, True) for loss in losses]), method)
    sizes = np.array([[len(method.plan(statistics, Epoch(epoch, 200, seed)).indices) for epoch in range(7)] for seed in range(8)])
    assert set(sizes[:, 0]) == {4500}
    assert 4470 < sizes[:, 2::2].mean() < 4500 and 900 < sizes[:, 1::2].mean() < 1040


def test_seta_parts_equal_losses_by_the_order_they_were_drawn_in():
    """Ten in four groups are 3, 3, 3 and 1, nine in six are five groups, as the authors' code has it; the window trains some, not all."""
    for count, groups, sizes in ((10, 4, [3, 3, 3, 1]), (9, 6, [2, 2, 2, 2, 1])):
        key, bounds = parted(np.full(count, 0.5, dtype=np.float32), groups)
        assert bounds.searchsorted(key).tolist() == [g for g, size in enumerate(sizes) for _ in range(size)]
    history = made([(0.5, 0.9, True)] * 100)
    assert [len(indices) for indices in windows(history, range(1, 8), groups=10)] == [50] * 7


def test_seta_scores_what_was_not_seen_as_3():
    history = made([(None, 0, False)] * 4 + [(loss, 0.9, True) for loss in (0.1, 0.1, 9.0, 9.0)])
    assert windows(history, [3, 1, 2], groups=3, window=0.3) == [[4, 5], [0, 1, 2, 3], [6, 7]]


# sizes of the groups, from easy to hard, that the authors' code makes (scikit-learn 1.9.1)
PUBLISHED = [
    (lambda stream: stream.lognormal(0, 1, 1000), 10, [299, 271, 178, 102, 52, 45, 23, 15, 12, 3]),
    (lambda stream: stream.lognormal(0, 2, 3000), 5, [2987, 9, 2, 1, 1]),
    (lambda stream: stream.uniform(0, 5, 500), 7, [68, 68, 68, 72, 78, 69, 77]),
    (
        lambda stream: np.where(np.arange(2000) < 200, 3.0, stream.exponential(1, 2000)),
        10,
        [439, 402, 325, 249, 147, 116, 251, 44, 22, 5],
    ),
]


@pytest.mark.parametrize("number", range(len(PUBLISHED)))
def test_seta_makes_the_groups_of_the_authors_code(number):
    values, groups, sizes = PUBLISHED[number]
    key, bounds = parted(values(np.random.RandomState(number)).astype(np.float32), groups)
    assert np.bincount(bounds.searchsorted(key)).tolist() == sizes


def test_kmeans_parts_values_at_the_gaps():
    values = np.array([0.1, 0.2, 0.15, 5.0, 5.1, 9.0, 9.2, 8.9], dtype=np.float32)
    low, high = kmeans_bounds(values, 3)
    assert 0.2 < low < 5.0 and 5.1 < high < 8.9
