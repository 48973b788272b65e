"""A criterion that has gradients on by itself, as every torchmetrics metric has in ``update``: scoring passes read it too."""

import contextlib

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from helpers import fit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.trainer.forward_pass import frozen

SAMPLES, BATCH = 48, 8


class Squared(torchmetrics.Metric):
    is_differentiable, higher_is_better, full_state_update = True, False, False

    def __init__(self):
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction, target):
        self.total += F.mse_loss(prediction, target, reduction="none").sum()
        self.count += target.numel()

    def compute(self):
        return self.total / self.count


class TwiceUpdated(Squared):
    full_state_update = True


@torch.enable_grad()
def partly(prediction, target):
    """A function that has gradients on, and ends; the loss goes on."""
    return F.mse_loss(prediction, target, reduction="none")[:, 0]


def beside(metric, place):
    """Another part of the loss, made before or after the metric."""
    calls = [lambda p, y: 0.5 * F.l1_loss(p, y)]
    calls.insert(1 - place, metric)
    return lambda p, y: calls[0](p, y) + calls[1](p, y)


class Net(pl.LightningModule):
    def __init__(self, loss):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.network[0].bias.requires_grad_(False)
        self.loss, self.graphs, self.fails = loss, [], False

    def training_step(self, batch, batch_idx):
        prediction = self.network(batch[0])
        if self.trainer.validating:
            self.graphs.append((prediction.requires_grad, torch.is_grad_enabled()))
            if self.fails and len(self.graphs) > 5:
                raise RuntimeError("in the middle of a scoring pass")
        return self.loss(prediction, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0, momentum=0.9)


def items():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(SAMPLES, 4, generator=generator), torch.randn(SAMPLES, 1, generator=generator))


LOSSES = {
    "metric": Squared,
    "metric updated twice": TwiceUpdated,
    "metric and another part": lambda: beside(Squared(), 1),
    "another part and metric": lambda: beside(Squared(), 0),
    "a function": lambda: lambda p, y: 2 * partly(p, y).mean(),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_a_scoring_pass_reads_a_loss_that_has_gradients_on_by_itself(name, check):
    data = items()
    module, selection = Net(LOSSES[name]()), SampleSelection("plb", start_pass=True, check_attribution=check)
    fit(module, DataLoader(data, BATCH, shuffle=True), selection, max_epochs=3)
    module.eval()
    with torch.no_grad():
        prediction, target = module.network(data.tensors[0]), data.tensors[1]
        each = (prediction - target).square()[:, 0]
        if "part" in name:
            each = each + 0.5 * (prediction - target).abs()[:, 0]
        each = 2 * each if name == "a function" else each
    # those that were trained last were in train mode, with dropout
    scored = torch.isclose(selection.statistics.loss, each, rtol=1e-4)
    assert scored.float().mean() > 0.2
    assert selection.session.outputs.report.attribution == ("verified" if check else "off")


@pytest.mark.parametrize("name", LOSSES)
def test_the_network_makes_no_graph_in_it_and_is_as_before(name):
    module = Net(LOSSES[name]())
    fit(module, DataLoader(items(), BATCH), SampleSelection("selective_backprop", warmup_epochs=0), max_epochs=2)
    assert not any(asks for asks, _ in module.graphs)
    assert any(on for _, on in module.graphs) or name == "another part and metric"  # where a graph had begun already
    asking = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert asking == {"network.0.weight", "network.3.weight", "network.3.bias"}


def test_a_loss_that_needs_no_such_thing_has_no_gradients_on_in_the_network():
    module = Net(lambda p, y: 2 * F.mse_loss(p, y))
    fit(module, DataLoader(items(), BATCH), SampleSelection("selective_backprop", warmup_epochs=0), max_epochs=2)
    assert module.graphs and not any(on for _, on in module.graphs)


def test_parameters_ask_again_after_an_error_in_a_scoring_pass():
    module = Net(Squared())
    module.fails = True
    with pytest.raises(RuntimeError, match="in the middle of a scoring pass"):
        fit(module, DataLoader(items(), BATCH), SampleSelection("selective_backprop", warmup_epochs=0), max_epochs=2)
    assert module.network[0].weight.requires_grad and not module.network[0].bias.requires_grad


def test_freezing_leaves_gradients_hooks_and_graphs_that_were_made_before():
    network, called = nn.Linear(3, 2), []
    network.bias.requires_grad_(False)
    network.weight.register_post_accumulate_grad_hook(lambda p: called.append(p))
    before = network(torch.ones(1, 3)).sum()
    before.backward(retain_graph=True)
    kept = network.weight.grad
    with contextlib.suppress(KeyError), frozen(network):
        assert not network(torch.ones(1, 3)).requires_grad
        raise KeyError
    assert network.weight.requires_grad and not network.bias.requires_grad and network.weight.grad is kept
    before.backward()
    assert torch.equal(network.weight.grad, torch.full((2, 3), 2.0)) and len(called) == 2
