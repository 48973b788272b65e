import numpy as np
import pytest
import torch
from kakurenbo_mean_loss import MeanLoss

from kakurenbo_lightning import Epoch, SampleStatistics, available_methods, get_method

LOSSES = [
    [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0],
    [2.0, 7.0, 1.0, 8.0, 2.0, np.inf, 1.0, np.nan],
    [1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 1.0, 3.0],
]


def recorded(method, losses):
    """Statistics that hold the losses of each epoch."""

    def observe(statistics, rows, values, epoch):
        method.observe(statistics, rows, values, Epoch(epoch))

    statistics = SampleStatistics(len(losses[0]), columns=method.columns, observe=observe)
    for epoch, loss in enumerate(losses):
        statistics.record(torch.arange(len(loss)), {"loss": torch.tensor(loss)}, epoch)
    return statistics


def mean_loss(losses, decay):
    """The moving mean, slow and obvious."""
    mean = np.full(len(losses[0]), np.nan)
    for loss in losses:
        for i, value in enumerate(loss):
            mean[i] = decay * mean[i] + (1 - decay) * value if np.isfinite(mean[i]) else value
    return mean


def test_it_is_listed():
    assert available_methods()["mean_loss"].bytes_per_sample == 16
    assert get_method("mean_loss") == MeanLoss()


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_half_of_those_of_lowest_mean_loss_hides(epochs):
    losses, method = LOSSES[:epochs], MeanLoss(pool=0.5, decay=0.25)
    statistics, mean = recorded(method, losses), mean_loss(losses, decay=0.25)
    np.testing.assert_allclose(statistics.extra["mean_loss"], mean, rtol=1e-6)
    choice = method.choose(statistics, Epoch(epochs))
    pool = np.argsort(mean, kind="stable")[:4]  # NaN comes last
    hidden = np.flatnonzero(choice.hidden)
    assert len(hidden) == 2
    assert set(hidden) <= set(pool)
    assert np.flatnonzero(choice.keep_probability == 0.5).tolist() == sorted(pool)


def test_the_draw_is_of_the_epoch_and_the_seed():
    method = MeanLoss(pool=0.9)
    statistics = recorded(method, [torch.rand(100).tolist()])
    hidden = {tuple(np.flatnonzero(method.choose(statistics, Epoch(e, seed=s)).hidden)) for e in (1, 2) for s in (0, 1)}
    assert len(hidden) == 4
    again = method.choose(statistics, Epoch(1, seed=0)).hidden
    assert torch.equal(again, method.choose(statistics, Epoch(1, seed=0)).hidden)


def test_weights_add_up_to_the_data_set():
    method = MeanLoss(pool=0.5, unbiased=True)
    plan = method.plan(recorded(method, LOSSES), Epoch(3))
    assert plan.weights[plan.indices].sum() == 8


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"mean_loss: pool=1\.0 is not allowed; pool must be a number in \[0, 1\)"):
        MeanLoss(pool=1.0)
