"""What `unbiased` of the hide family keeps in expectation: the sum of an epoch's gradients, or the gradient of each step."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FEATURES, Net, Points, fit, loader
from torch import nn

from kakurenbo_lightning import SampleSelection

SAMPLES, BATCH, EPOCHS = 60, 20, 64


class Fixed(Net):
    """Its weights never move.

    Attributes:
        steps: by epoch, of each step how many samples it trained, and how much of the full data set's gradient G its own has: g G / G G.
    """

    def __init__(self):
        super().__init__(rate=0.0, dropout=0.0)
        self.network = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 3))
        self.steps, data = {}, Points(SAMPLES, noise=2.0)
        whole = F.cross_entropy(self.network(data.x), data.y)
        self.whole = nn.utils.parameters_to_vector(torch.autograd.grad(whole, list(self.parameters())))

    def training_step(self, batch, batch_idx):
        self.size = len(batch[2])
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        gradient = nn.utils.parameters_to_vector([parameter.grad for parameter in self.parameters()])
        part = float(gradient @ self.whole / self.whole.square().sum())
        self.steps.setdefault(self.trainer.current_epoch, []).append((self.size, part))


def parts_by_epoch(method, **settings):
    """Of each epoch that hides: the share kept, the mean part of its steps, and their sum over that of an epoch with all samples."""
    torch.manual_seed(1)
    module, train = Fixed(), loader(SAMPLES, BATCH)
    train.dataset.x = Points(SAMPLES, noise=2.0).x
    fit(module, train, SampleSelection(method, **settings), max_epochs=EPOCHS)
    made = []
    for steps in module.steps.values():
        kept = sum(size for size, _ in steps) / SAMPLES
        whole = sum(size * part for size, part in steps) / SAMPLES
        made += [(kept, whole / kept, whole)] if kept < 1 else []
    assert len(made) >= 60
    return torch.tensor(made, dtype=torch.float64)


def assert_expected(values, expected):
    """Within 5 standard errors, which are small."""
    error = float(values.std()) / len(values) ** 0.5
    assert error < 0.03
    assert abs(float(values.mean()) - expected) < 5 * error + 1e-6, (float(values.mean()), expected)


METHODS = [("random", {"max_fraction": 0.4}), ("random_cycle", {"max_fraction": 0.4}), ("infobatch", {"end_fraction": 0.0})]


@pytest.mark.slow_cases("random_cycle")
@pytest.mark.parametrize(("method", "settings"), METHODS, ids=[name for name, _ in METHODS])
def test_an_unbiased_epoch_has_larger_steps_and_an_unbiased_step_has_not(method, settings):
    for unbiased in ("epoch", "step"):
        kept, step, epoch = parts_by_epoch(method, unbiased=unbiased, **settings).unbind(1)
        share = float(kept.mean())
        assert share < 0.8
        assert_expected(step, 1.0 if unbiased == "step" else 1 / share)
        assert_expected(epoch, share if unbiased == "step" else 1.0)
