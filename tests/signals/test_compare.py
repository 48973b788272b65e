"""Two runs of a step are compared: what is the same, what is in another order, what depends on the batch, and what is noise."""

import torch

from kakurenbo_lightning.signals.attribution import compare


def test_compare_tells_apart():
    whole = torch.rand(8, generator=torch.Generator().manual_seed(0))
    equal, other = (lambda others: whole), (lambda others: torch.rand(8))
    assert compare(whole, whole[:4], equal).outcome == "verified"
    assert compare(whole, whole[:4] * 1.005, equal).outcome == "verified"
    assert compare(whole, whole[[3, 1, 0, 2]], equal).outcome == "permuted"
    assert compare(whole, whole[4:], equal).outcome == "permuted"
    assert compare(whole, whole[:4] + 0.3, equal).outcome == "batch"
    assert compare(whole, whole[4:], lambda others: whole[torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])]).outcome == "permuted"
    assert compare(whole, whole[4:], other).outcome == "skipped"
    assert compare(whole, whole[:4], other).outcome == "verified", "a second run is not needed"
    contrastive = (whole[:4] + 0.3, lambda others: whole + 1e-6 * torch.randn(8))
    assert compare(whole, *contrastive).outcome == "batch", (
        "a device whose sums differ in the last digits draws no random numbers"
    )
    nan = whole.masked_fill(torch.arange(8) == 1, float("nan"))
    assert compare(nan, nan[:4], equal).outcome == "verified"
    assert compare(torch.zeros(8), torch.zeros(4), equal).reason.startswith("all losses of the first batch are the same")


def test_noise_that_only_small_losses_show_is_noise():
    """Losses of a step with random numbers late in a training: half of them wrong by far, the others almost 0."""
    whole = torch.tensor([0.0052, 0.1051, 0.1039, 0.0049, 3.654, 0.0077, 0.1034, 3.654])
    again = torch.tensor([0.0033, 0.1098, 0.1025, 0.0035, 3.654, 0.0076, 0.1062, 3.654])
    assert compare(whole, torch.tensor([0.0052, 0.1077, 0.1013, 0.0025]), lambda others: again).outcome == "verified"
    small = whole.clamp(max=0.1)
    assert compare(small, torch.tensor([0.0052, 0.098, 0.1, 0.0025]), lambda others: again.clamp(max=0.1)).outcome == "skipped"


def test_noise_is_measured_by_more_than_one_pass():
    """With dropout one repeated pass may differ little by chance; the numbers are of a training that was refused at its resume."""
    whole, half = torch.tensor([3.6e-05, 0.0833, 3.4983, 3.6e-07]), torch.tensor([3.6e-05, 5.0912])
    passes = {1: torch.tensor([2.6e-04, 0.1025, 3.2252, 3.3e-06]), 2: torch.tensor([1e-4, 1.2, 3.3, 1e-6])}
    assert compare(whole, half, lambda others: passes[min(others, 2)]).outcome == "skipped"
    assert compare(whole, half, lambda others: passes[1]).outcome == "batch", "where no pass explains it"


def test_losses_of_almost_nothing_are_rounding():
    whole = torch.tensor([1e-7, 2e-7, 3e-7, 2e-7])
    assert compare(whole, whole[:2] + 4e-7, lambda others: whole).reason.startswith("all losses of the first batch are the same")


def test_half_precision_may_differ_by_more():
    whole = torch.linspace(0.5, 1.0, 8)
    assert compare(whole, whole[:4] * 1.04, lambda others: whole).outcome == "batch"
    assert compare(whole, whole[:4] * 1.04, lambda others: whole, 0.1).outcome == "verified"


def test_half_precision_tells_losses_apart_that_differ_by_a_little():
    whole = torch.linspace(2.2, 2.5, 8)
    assert compare(whole, whole[:4] * 1.004, lambda others: whole, 0.1).outcome == "verified"
    assert compare(whole, whole[4:], lambda others: whole, 0.1).reason.startswith("all losses"), "or nearly the same"


def test_little_noise_is_not_taken_for_another_order():
    whole = torch.linspace(1, 2, 8, dtype=torch.float64)
    noise = 1 + 5e-4 * torch.linspace(-1, 1, 8, dtype=torch.float64).cos()
    assert compare(whole, 1.02 * whole[:4], lambda others: whole * noise**others).outcome != "permuted"
    assert compare(whole, 1.02 * whole[:4], lambda others: whole.roll(others)).outcome == "permuted"
