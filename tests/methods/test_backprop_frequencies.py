"""How often backprop methods train each sample. Bounds are 6 standard deviations: next to nothing breaks them by chance."""

from collections import Counter
from itertools import permutations

import backprop_references as references
import backprop_tester as tester
import numpy as np
import pytest
import torch

from kakurenbo_lightning.methods.backprop.katharopoulos import Katharopoulos
from kakurenbo_lightning.methods.backprop.sb_fixed import FixedRate
from kakurenbo_lightning.methods.backprop.selective_backprop import SelectiveBackprop
from kakurenbo_lightning.signals.criteria import class_values


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, 3.0, 6.0])
@pytest.mark.parametrize("score", ["loss", "random", "topk"])
def test_the_expected_share_is_one_in_beta_plus_one(score, beta):
    method, batches, size = SelectiveBackprop(beta=beta, score=score), 240, 128
    losses = torch.rand(batches, size, generator=tester.generator(1))
    memory, count = method.memory(), 0
    indices = torch.arange(size)
    for number in range(batches):
        values = {"loss": losses[number]}
        method.learn(memory, values, tester.alone)
        if number >= 40:  # the history is full
            count += int(method.select(values, indices, memory, tester.generator(number)).count)
    looked, share = (batches - 40) * size, 1 / (beta + 1)
    # a probability that is drawn itself makes the variance of a coin; the histories of neighbouring batches are alike, up to 1024
    spread = (share * (1 - share) / looked) ** 0.5 + 0.25 / 1024 + (1 / size if score == "topk" else 0)
    assert abs(count / looked - share) <= 6 * spread


def test_a_floor_lifts_the_rate_of_the_easy_ones():
    losses, times = torch.arange(20.0), torch.zeros(20)
    method = SelectiveBackprop(beta=2, floor=0.3)
    for seed in range(1500):
        picked = method.select({"loss": losses}, None, {"history": losses}, tester.generator(seed))
        times[picked.rows[: int(picked.count)]] += 1
    expected = 1500 * ((losses / 20) ** 2).clamp(min=0.3)
    assert (times - expected).abs().max() < 6 * (1500 / 4) ** 0.5


@pytest.mark.parametrize(("beta", "share"), [(1, 0.909), (2, 0.876), (3, 0.857)])
def test_the_squared_distance_trains_nearly_everything_of_random_logits(beta, share):
    """Ten classes, logits of twice the standard normal distribution; the distance is not halved, and counts as 1 beyond that."""
    stream = np.random.RandomState(1)
    logits, target = torch.from_numpy(2 * stream.randn(8192, 10)), torch.from_numpy(stream.randint(0, 10, 8192))
    error = logits.softmax(1).numpy() - np.eye(10)[target]
    assert (np.minimum(1, (error**2).sum(1)) ** beta).mean() == pytest.approx(share, abs=5e-4), "the check itself"
    values = {"loss": torch.ones(8192), **class_values(logits, target, reads=("el2n",))}
    method = SelectiveBackprop(score="l2", beta=beta)
    counts = [int(method.select(values, torch.arange(8192), {}, tester.generator(seed)).count) for seed in range(40)]
    assert np.mean(counts) / 8192 == pytest.approx(share, abs=5e-4 + 6 * (share * (1 - share) / 40 / 8192) ** 0.5)


def exact_inclusion(weights, count):
    """Probability of each row to be among ``count`` that are drawn one after another without replacement: over all sequences."""
    total, odds = sum(weights.values()), Counter()
    for rows in permutations(weights, count):
        probability, left = 1.0, total
        for row in rows:
            probability *= weights[row] / left
            left -= weights[row]
        for row in rows:
            odds[row] += probability
    return odds


@pytest.mark.slow_cases("0.25", "0.75")
@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75])
def test_the_fixed_rate_draws_as_one_after_another_without_replacement(keep):
    method, times, size = FixedRate(keep=keep), 4000, 8
    losses = torch.tensor([0.5, 0.1, 2.0, 0.7, 0.3, 1.5, 0.2, 0.9])
    weights, count = references.fixed_weights(losses.tolist(), keep), int(keep * size)
    exact, ours, slow = exact_inclusion(weights, count), torch.zeros(size), torch.zeros(size)
    rng = np.random.default_rng(0)
    for seed in range(times):
        picked = method.select({"loss": losses}, None, {}, tester.generator(seed))
        assert int(picked.count) == count == len(set(picked.rows[:count].tolist()))
        ours[picked.rows[:count]] += 1
        slow[references.drawn_one_after_another(weights, count, rng)] += seed < 1000
    odds = torch.tensor([exact[row] for row in range(size)])
    assert ((ours / times - odds).abs() <= 6 * (odds * (1 - odds) / times).sqrt() + 1e-6).all()
    assert ((slow / 1000 - odds).abs() <= 6 * (odds * (1 - odds) / 1000).sqrt() + 1e-6).all(), "the check itself"
    assert odds.max() / odds.min() > 1.5, "the odds are not alike, so the test shows something"


@pytest.mark.slow_cases("2", "5")
@pytest.mark.parametrize("presample", [2, 3, 5])
def test_weighted_means_are_those_of_all_samples_in_expectation(presample):
    method, size, times = Katharopoulos(presample=presample), 30, 4000
    generator = tester.generator(3)
    norms, column = 0.05 + torch.rand(size, generator=generator), torch.randn(size, 4, generator=generator).double()
    means = torch.zeros(times, 4, dtype=torch.float64)
    sums = torch.zeros(times)
    for seed in range(times):
        picked = method.select({"el2n": norms}, None, {}, tester.generator(seed))
        assert int(picked.count) == len(picked.rows) == size // presample
        means[seed] = (picked.weights[:, None] * column[picked.rows]).mean(0)
        sums[seed] = picked.weights.mean()
    assert ((means.mean(0) - column.mean(0)).abs() < 6 * means.std(0) / times**0.5).all()
    assert abs(sums.mean() - 1) < 6 * sums.std() / times**0.5


def test_samples_are_drawn_in_proportion_to_their_norm():
    norms, times = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 1.0]), torch.zeros(6)
    for seed in range(6000):
        picked = Katharopoulos(presample=3).select({"el2n": norms}, None, {}, tester.generator(seed))
        times += torch.bincount(picked.rows, minlength=6)
    odds = norms / norms.sum()
    assert times[0] == 0
    assert ((times / 12000 - odds).abs() <= 6 * (odds * (1 - odds) / 12000).sqrt()).all()
