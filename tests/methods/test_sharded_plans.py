"""Plans of which no rank has the rows of all samples: to the bit those of one process. Ranks are threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import on_ranks

from kakurenbo_lightning import Epoch, SampleStatistics, available_methods, get_method
from kakurenbo_lightning.core.permutation import shuffled
from kakurenbo_lightning.core.plan import EpochPlan, SetPlan
from kakurenbo_lightning.core.sharded_statistics import ShardedStatistics
from kakurenbo_lightning.methods.registry import method_class

VARIANTS = {
    "kakurenbo": [{}, {"drop_top": 0.2, "tau": 0.2}, {"protected": (0, 1, 5)}, {"fraction_schedule": (1.5, 0.5)}],
    "random": [{}, {"unbiased": True, "protected": (2, 3)}, {"unbiased": "step"}],
    "infobatch": [{"end_fraction": 0.0}, {"unbiased": "step"}, {"unbiased": False}, {"protected": (0, 3), "prune_ratio": 0.9}],
    "orderdp": [{}, {"fraction_schedule": (0.5, 1.5), "random_fraction": 0.9}],
    "ies": [{"threshold": 1.0, "window": 1, "max_fraction": 0.3}, {"threshold": 2.0}],
    "forget": [{"static_epochs": 2}, {"static_epochs": 2, "never_learned": "first"}],
    "forget_online": [{}, {"protected": (1,), "every_n_epochs": 2}],
    "el2n": [
        {"score_epochs": (0, 2)},
        {"score_epochs": (0, 2), "keep_hardest": False},
        {"score_epochs": (0, 1), "score_pass": True},
    ],
    "baseline": [{}],
}
CASES = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]
NAN = float("nan")
VALUES = torch.tensor([0.1, 0.1, 0.5, 0.5, 0.9, 1.0, 2.0, -0.0, 0.0, 30.0, NAN, float("inf"), 1e-42])


def test_every_method_is_among_them_or_says_why_not():
    hides = {name for name, info in available_methods().items() if info.family == "hide"}
    able = {name for name in hides if not method_class(name).needs_all_rows}
    assert able == set(VARIANTS) and hides - able == {"random_cycle", "rcap", "seta"}


def fill(statistics, method, rows, epoch):
    """Record made-up values of ``rows``, full of ties, in ``epoch``."""
    generator = torch.Generator().manual_seed(epoch.index)
    draws = [torch.randint(13, (statistics.total,), generator=generator)[rows] for _ in range(3)]
    values = {"loss": VALUES[draws[0]], "confidence": draws[1] / 12, "correct": draws[2] < 8, "el2n": draws[1] / 7}
    method.record(statistics, rows, values, epoch)


def planned(method, statistics, epochs, seed, unmeasured, rank=0, size=1):
    """The plans of all epochs, as tensors; a few samples are never measured, hidden ones are where the method scores them."""
    plan, found = None, []
    for index in range(epochs):
        epoch = Epoch(index, epochs, seed)
        plan = method.plan(statistics, epoch, plan)
        weights = plan.weights
        found.append((plan.hidden, plan.indices, weights, plan.lr_factor, plan.metrics, plan.hidden_fraction))
        trained = plan.indices if method.refresh_mode is None else torch.arange(statistics.total)
        fill(statistics, method, trained[trained % 11 != unmeasured][rank::size], epoch)
        statistics.merge()
    return found


def same(one, other):
    tensors = zip(one[:3], other[:3], strict=True)
    return one[3:] == other[3:] and all((a is None and b is None) or torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize(("name", "variant"), CASES)
@settings(max_examples=4)
@given(total=st.integers(8, 60), size=st.integers(2, 4), seed=st.integers(0, 99), unmeasured=st.integers(0, 11))
def test_plans_are_those_of_one_process(name, variant, total, size, seed, unmeasured):
    """Samples, weights, learning-rate factor and what is logged, over epochs in which plans decide what is measured."""
    method = get_method(name, **variant)
    expected = planned(method, SampleStatistics(total, columns=method.columns), 4, seed, unmeasured)

    def on_rank(ranks):
        statistics = ShardedStatistics(total, ranks, method.columns)
        return planned(method, statistics, 4, seed, unmeasured, ranks.rank, ranks.size)

    for plans in on_ranks(size, on_rank):
        assert all(same(*pair) for pair in zip(plans, expected, strict=True))


def test_weights_of_three_values_are_refused():
    def on_rank(ranks):
        spread = ShardedStatistics(9, ranks).spread
        weights = torch.arange(len(range(ranks.rank, 9, ranks.size))).float()
        with pytest.raises(ValueError, match="the loss weights 0, 1, 2, and others; with statistics='sharded' they may have two"):
            spread.plan(torch.zeros(len(weights), dtype=torch.bool), {}, weights)

    on_ranks(2, on_rank)


def test_a_saved_plan_with_weights_of_three_values_is_refused():
    """A checkpoint of replicated statistics may hold one, whose weights would be lost."""

    def on_rank(ranks):
        saved = EpochPlan.everything(9), EpochPlan.hide(torch.arange(9) < 2, weights=torch.arange(9).float())
        spread = ShardedStatistics(9, ranks).spread
        assert isinstance(spread.adopted(saved[0], 9), SetPlan)
        with pytest.raises(ValueError, match="the loss weights 0, 1, 2, and others; with statistics='sharded' they may have two"):
            spread.adopted(saved[1], 9)

    on_ranks(2, on_rank)


def test_choices_are_drawn_as_ever():
    """Runs that were begun by an older release go on with the same samples."""
    plan = get_method("random", max_fraction=0.4).plan(SampleStatistics(50), Epoch(3, 10, 7))
    assert plan.hidden.tolist() == shuffled(torch.arange(50), Epoch(3, 10, 7).generator())[:20].sort().values.tolist()
