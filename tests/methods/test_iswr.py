"""ISWR: an epoch of draws with replacement, against its reference and by chi-square."""

import numpy as np
import pod_references as references
import pod_tester as tester
import pytest
import torch
from frequencies import assert_counts
from helpers import Net, Spy, fit, loader
from pod_tester import HISTORIES, ROWS, rows_to_score, variants

from kakurenbo_lightning import Epoch, SampleSelection, get_method
from kakurenbo_lightning.methods.draw.iswr import drawn_by

every_history = pytest.mark.parametrize("name", HISTORIES)
SEEN = HISTORIES["random"]


ISWR = variants(ROWS["iswr"])
every_iswr = pytest.mark.parametrize("method", ISWR, ids=map(str, ROWS["iswr"].variants))


@every_iswr
@every_history
def test_iswr_plans_are_those_of_the_reference(method, name):
    seen = HISTORIES[name]
    statistics = tester.recorded(method, seen)
    expected = references.probabilities(method, references.start(method, seen))
    for index in range(4):
        epoch = Epoch(index, 10, seed=index % 2)
        plan = method.plan(statistics, epoch)
        assert len(plan.hidden) == 0 and plan.lr_factor == 1 and plan.indices.dtype == torch.int64
        if index == 0:
            assert plan.indices.tolist() == list(range(len(seen))) and plan.weights is None
            continue
        assert plan.indices.tolist() == references.drawn_by(expected, len(seen), epoch.generator())
        assert plan.metrics["drawn_share"] == len(set(plan.indices.tolist())) / len(seen)
        assert (plan.weights is None) == (not method.unbiased)
        if method.unbiased:
            assert plan.weights.dtype == torch.float32
            assert np.allclose(plan.weights, [1 / (len(seen) * p) for p in expected], rtol=1e-5)


@pytest.mark.slow_cases(
    "{'temperature': 0.5, 'mix': 0.5}", "{'mix': 0.3, 'unbiased': True}", "{'refresh': False, 'unbiased': True}"
)
@every_iswr
def test_iswr_draws_each_sample_in_proportion(method):
    statistics = tester.recorded(method, SEEN)
    counts = sum(torch.bincount(method.plan(statistics, Epoch(2, None, seed)).indices, minlength=60) for seed in range(2000))
    expected = np.array(references.probabilities(method, references.start(method, SEEN)))
    assert_counts(counts, expected * 2000 * 60)
    assert method.temperature == 0 or method.mix == 1 or expected.max() > 3 * expected.min(), "the test shows something"


def test_iswr_draws_anew_with_seed_and_epoch():
    method = get_method("iswr")
    statistics = tester.recorded(method, SEEN)
    plans = {tuple(method.plan(statistics, Epoch(index, None, seed)).indices.tolist()) for index in (1, 2) for seed in range(3)}
    assert len(plans) == 6
    assert len({tuple(method.plan(statistics, Epoch(0, None, seed)).indices.tolist()) for seed in range(3)}) == 1


def test_iswr_looks_at_those_the_epoch_before_did_not_draw():
    seen_in = [0, 1, 2, 2, 1, 0, 2, -1]
    assert rows_to_score(get_method("iswr"), seen_in, 3) == [0, 1, 4, 5, 7]
    assert rows_to_score(get_method("iswr"), [0] * 8, 1) == rows_to_score(get_method("iswr"), [-1] * 8, 0) == []
    assert rows_to_score(get_method("iswr"), [0, -1, 0, -1], 1) == [1, 3], "those that drop_last left out"
    assert rows_to_score(get_method("iswr", refresh=False), seen_in, 3) == []


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [0, 1, 2, 40])
@pytest.mark.parametrize(
    "probability",
    [
        [1.0],
        [0.0, 1.0],
        [1.0, 0.0],
        [0.0, 0.0, 0.3, 0.0],
        [0.1] * 10,
        [1e-300, 0.0, 1e300],
        [0.2, 0.0, 0.5, 0.0, 0.3, 0.0],
        [7.0, 21.0],
    ],
    ids=str,
)
def test_draws_with_replacement_are_those_of_the_reference(probability, count):
    """Whatever its sum is; ascending; what has none is never drawn."""
    for seed in range(5):
        drawn = drawn_by(torch.tensor(probability, dtype=torch.float64), count, generator(seed)).tolist()
        assert drawn == references.drawn_by(probability, count, generator(seed)) == sorted(drawn)
        assert len(drawn) == count and all(probability[i] > 0 for i in drawn)


@pytest.mark.parametrize(
    ("gaps", "probability", "expected"),
    [
        ([0.0, 1.0], [0.0, 1.0], [1]),
        ([1.0] * 4, [0.25] * 4, [1, 2, 3]),
        ([1.0] * 4, [0.25, 0.0, 0.75], [2, 2, 2]),
        ([1.0, 0.0], [0.5, 0.5, 0.0], [1]),
    ],
    ids=["0", "boundaries", "boundary of a 0", "1"],
)
def test_random_numbers_at_a_boundary_draw_no_0(monkeypatch, gaps, probability, expected):
    """A number at the boundary of two samples is the second's; 0 and 1, which are as good as never drawn, draw what can be drawn."""
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator: self.copy_(torch.tensor(gaps)))
    assert drawn_by(torch.tensor(probability, dtype=torch.float64), len(gaps) - 1, generator()).tolist() == expected


@pytest.mark.parametrize("size", [5, 1000])
@pytest.mark.parametrize("count", [1, 3000])
def test_draws_with_replacement_are_in_proportion(size, count):
    rng = np.random.default_rng(size)
    probability = np.where(rng.random(size) < 0.3, 0, rng.gamma(0.5, size=size))
    times = 150_000 // count if count > 1 else 5000
    counts = sum(
        torch.bincount(drawn_by(torch.from_numpy(probability), count, generator(seed)), minlength=size) for seed in range(times)
    )
    assert_counts(counts, probability / probability.sum() * count * times)


def test_draws_with_replacement_are_independent():
    """Of two draws (which come ordered) each pair is as frequent as by two coins; the generator is that of the caller alone."""
    probability, times = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), 20_000
    stream, pairs = generator(7), np.zeros((3, 3))
    before = torch.get_rng_state()
    for _ in range(times):
        first, second = drawn_by(probability, 2, stream).tolist()
        pairs[first, second] += 1
    assert torch.equal(torch.get_rng_state(), before)
    odds = np.outer(probability, probability)
    unordered = np.triu(odds) + np.tril(odds, -1).T
    assert_counts(pairs.ravel(), unordered.ravel() * times)


def test_planned_draws_are_trained_as_planned():
    """Epoch 0 trains all once, later ones N draws, of which some come twice."""
    selection = SampleSelection("iswr")
    spy = Spy(selection)
    fit(Net(), loader(), selection, spy, max_epochs=4)
    assert spy.trained(0) == list(range(64))
    for epoch in range(1, 4):
        assert len(spy.trained(epoch)) == 64 and len(set(spy.trained(epoch))) < 64
        assert spy.steps[epoch] == 8
    assert spy.trained(3) == sorted(selection.plan.indices.tolist())
    last = {index: epoch for epoch in range(4) for index in spy.trained(epoch)}
    seen = selection.statistics.epoch_seen.tolist()
    assert all(seen[index] == last[index] if last[index] == 3 else seen[index] == 2 for index in range(64))
