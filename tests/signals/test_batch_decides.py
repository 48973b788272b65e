"""Losses in which the batch decides what a sample adds: a sign, whether it counts at all, a constant."""

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, cross_entropy, each_cross_entropy, gradient, observed

from kakurenbo_lightning.errors import OutputsError

# --- a turn at a number of all samples


def flooded(loss, level):
    return (loss - level).abs() + level


TURNING = {
    "flooding": lambda h, b, level: flooded(cross_entropy(h, b), level),
    "flooding of the mean of rows": lambda h, b, level: flooded(each_cross_entropy(h, b).mean(), level),
    "flooding beside a penalty": lambda h, b, level: flooded(cross_entropy(h, b), level) + 1e-3 * h.classes.weight.norm(),
    "relu": lambda h, b, level: F.relu(cross_entropy(h, b) - level) + level,
    "clamp": lambda h, b, level: 0.5 * cross_entropy(h, b).clamp(min=level),
    "maximum": lambda h, b, level: torch.maximum(cross_entropy(h, b), F.l1_loss(h.mean(b["x"]), b["target"]) + level),
}


@pytest.mark.parametrize("level", [0.01, 20.0], ids=["above", "below"])
@pytest.mark.parametrize("name", TURNING)
def test_a_loss_that_turns_at_a_number_of_the_batch_is_refused(name, level, heads, batches):
    for checks in (True, False):
        with pytest.raises(OutputsError, match=r"it turns by \w+ at a number of all samples, as in flooding"):
            observed(lambda h, b: TURNING[name](h, b, level), heads, batches[:1], check_attribution=checks)


@pytest.mark.parametrize("level", [0.01, 1.0, 20.0])
def test_a_turn_of_each_sample_is_its_own(level, heads, batches):
    _, made = observed(lambda h, b: 0.5 * flooded(each_cross_entropy(h, b), level).mean(), heads, batches)
    for batch, (_, values) in zip(batches, made, strict=True):
        assert torch.allclose(values["loss"], 0.5 * flooded(each_cross_entropy(heads, batch), level), atol=1e-5)


@pytest.mark.parametrize("turned_first", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_loss_that_turns_by_an_if_is_refused_where_it_does(turned_first, factor, heads, batches):
    """As flooding is written too: nothing of the first batch shows that it may."""
    turns = iter([turned_first, turned_first, not turned_first])

    def step(heads, batch):
        loss = factor * cross_entropy(heads, batch)
        return 20.0 - loss if next(turns) else loss

    with pytest.raises(OutputsError, match="makes its loss in another way than the first one did"):
        observed(step, heads, batches, check_attribution=False)


def test_another_factor_by_an_if_is_followed(heads, batches):
    factors = iter([None, 0.5, None])

    def step(heads, batch):
        loss, factor = cross_entropy(heads, batch), next(factors)
        return loss if factor is None else loss * factor

    _, made = observed(step, heads, batches, check_attribution=False)
    for batch, factor, (_, values) in zip(batches, (1.0, 0.5, 1.0), made, strict=True):
        assert torch.allclose(values["loss"], factor * each_cross_entropy(heads, batch), atol=1e-5)


# --- only some are taken


def top_k(each):
    return each.topk(len(each) // 4).values.mean()


PICKING = {
    "top-k": top_k,
    "top-k times a factor": lambda each: 0.5 * top_k(each),
    "sorted": lambda each: each.sort(descending=True).values[: len(each) // 4].mean(),
    "above the median": lambda each: each[each > each.median()].mean(),
    "the hardest": lambda each: each.max(),
}


@pytest.mark.parametrize("name", PICKING)
def test_hard_examples_count_with_what_they_add_to_the_loss(name, heads, batches):
    """Which count is decided by the batch: a value is B times what the sample adds, and that is said."""
    with pytest.warns(UserWarning, match="depends on which others are in its batch, as when only the hardest"):
        _, made = observed(lambda h, b: PICKING[name](each_cross_entropy(h, b)), heads, batches[:2])
    for batch, (_, values) in zip(batches, made, strict=False):
        each = each_cross_entropy(heads, batch).detach().requires_grad_()
        (counts,) = torch.autograd.grad(PICKING[name](each), each)
        assert torch.allclose(values["loss"], BATCH * counts * each, atol=1e-5) and (values["loss"] == 0).any()


@pytest.mark.parametrize("name", PICKING)
def test_loss_weights_are_refused_where_the_batch_decides_who_counts(name, heads, batches):
    with pytest.raises(OutputsError, match=r"loss weights: how much a sample counts .* depends on which others are in its batch"):
        observed(lambda h, b: PICKING[name](each_cross_entropy(h, b)), heads, batches[:1], [torch.ones(BATCH)], weighs=True)


def test_samples_above_a_fixed_loss_decide_for_themselves(heads, batches, recwarn):
    def step(heads, batch):
        each = each_cross_entropy(heads, batch)
        return each[each > 2.0].mean()

    weights = torch.linspace(0.5, 2, BATCH)
    _, ((outputs, values),) = observed(step, heads, batches[:1], [weights], weighs=True)
    each = each_cross_entropy(heads, batches[0])
    hard = each > 2.0
    assert torch.allclose(values["loss"], torch.where(hard, each, 0), atol=1e-5)
    assert torch.allclose(gradient(outputs, heads), gradient((weights * each)[hard].sum() / hard.sum(), heads), atol=1e-6)
    assert not [one for one in recwarn if "SampleSelection" in str(one.message)]


# --- a constant beside the loss


def similarity(heads, batch):
    return F.cosine_similarity(heads.mean(batch["x"]), batch["target"])


CONSTANTS = {
    "1 - mean": (lambda h, b: 1 - similarity(h, b).mean(), lambda h, b: 1 - similarity(h, b), BATCH),
    "B - sum": (lambda h, b: len(b["x"]) - similarity(h, b).sum(), lambda h, b: 1 - similarity(h, b), 1),
    "2 - 2 * mean": (lambda h, b: 2 - 2 * similarity(h, b).mean(), lambda h, b: 2 - 2 * similarity(h, b), BATCH),
    "plus a number": (lambda h, b: cross_entropy(h, b) + 3.0, lambda h, b: each_cross_entropy(h, b) + 3.0, BATCH),
    "half, plus a number": (lambda h, b: cross_entropy(h, b) * 0.5 + 3, lambda h, b: each_cross_entropy(h, b) * 0.5 + 3, BATCH),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_is_in_the_loss_of_each_sample(name, heads, recwarn):
    step, alone, divided_by = CONSTANTS[name]
    batches = [heads.batch(0), heads.batch(BATCH, 7), heads.batch(2 * BATCH, 1)]
    weights = [torch.linspace(0.5, 2, len(batch["x"])) for batch in batches]
    source, made = observed(step, heads, batches, weights, weighs=True)
    assert source.report.decomposes and source.report.share == 1
    for batch, given, (outputs, values) in zip(batches, weights, made, strict=True):
        each = alone(heads, batch)
        assert torch.allclose(values["loss"], each, atol=1e-5)
        weighted = (given * each).sum() / (len(each) if divided_by > 1 else 1)
        assert torch.allclose(outputs, weighted, atol=1e-4)
        assert torch.allclose(gradient(outputs, heads), gradient(weighted, heads), atol=1e-5)
    assert not [one for one in recwarn if "SampleSelection" in str(one.message)]


def test_a_constant_of_another_size_in_every_batch_is_no_samples_and_said(heads, batches):
    """Its gradient is nothing, so loss weights are exact all the same."""

    def step(heads, batch):
        return 0.5 * cross_entropy(heads, batch) + heads.mean(batch["x"]).detach().square().sum()

    with pytest.warns(UserWarning, match="F.cross_entropy is a part of the loss, .* another number in another batch"):
        source, made = observed(step, heads, batches, [torch.full((BATCH,), 2.0)] * 3, weighs=True)
    assert source.report.complete and source.report.weights == "exact" and source.report.share < 0.5
    for batch, (outputs, values) in zip(batches, made, strict=True):
        each = 0.5 * each_cross_entropy(heads, batch)
        assert torch.allclose(values["loss"], each, atol=1e-5)
        assert torch.allclose(gradient(outputs, heads), gradient(2 * each.mean(), heads), atol=1e-6)
