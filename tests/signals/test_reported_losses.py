"""Losses of foreign code of which wrong values were recorded, in a Trainer that stands still: values, what is hidden, and gradients."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import fit
from losses import LOSSES, OUTPUTS, SAMPLES, Heads, Loss, each_cross_entropy, gradient, squared
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import sigmoid_focal_loss

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import OutputsError

BATCH = 32


class Items(Dataset):
    """The samples of ``Heads`` with their index; a target that is not known is NaN."""

    def __init__(self):
        self.data = {**Heads().data, "index": torch.arange(SAMPLES)}
        self.data["target"] = self.data["target"].masked_fill(self.data["known"] == 0, float("nan"))

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.data.items()}


class Module(pl.LightningModule):
    """Heads, a loss of them, and metrics that are only logged."""

    def __init__(self, loss, logged=None):
        super().__init__()
        self.heads, self.loss, self.logged = Heads(), loss, logged

    def training_step(self, batch, batch_idx):
        if self.logged is not None:
            self.log("metric", self.logged(self.heads, batch))
        return self.loss(self.heads, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Steps(pl.Callback):
    """The batch, the weights and the gradient of each step."""

    def __init__(self, selection):
        self.selection, self.made = selection, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        weights = self.selection.plan.weights
        given = torch.ones(len(self.batch["x"])) if weights is None else weights[self.batch["index"]]
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        made = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
        self.made.append((self.batch, given, made.clone()))


def no_gap(batch):
    return {**batch, "target": batch["target"].nan_to_num()}


def tasks_with_gaps(heads, batch):
    """Missing targets are NaN; tasks and samples have weights."""
    known = ~batch["target"].isnan()
    squares = squared(heads, no_gap(batch)) * known * torch.linspace(0.5, 2, OUTPUTS)
    return (squares.sum(1) / known.sum(1) * batch["weight"]).mean()


def gaussian(heads, batch):
    mean, log_variance = heads.mean(batch["x"]), heads.spread(batch["x"])
    return (0.5 * (log_variance + (mean - batch["target"].nan_to_num()) ** 2 / log_variance.exp())).mean()


def absolute(heads, batch):
    return F.l1_loss(heads.mean(batch["x"]), batch["target"].nan_to_num())


def torchvision_focal(heads, batch):
    target = F.one_hot(batch["y"], 10).float()
    return sigmoid_focal_loss(heads.classes(batch["x"]), target, reduction="mean")


REPORTED = {
    "cross entropy times a weight": (LOSSES["times a weight"].step, None),
    "cross entropy times a mask": (LOSSES["times a mask"].step, None),
    "tasks with gaps": (tasks_with_gaps, None),
    "focal": (LOSSES["focal"].step, None),
    "focal of torchvision": (torchvision_focal, None),
    "distillation": (LOSSES["distillation"].step, None),
    "squares and a divergence": (lambda h, b: LOSSES["variational"].step(h, no_gap(b)), None),
    "gaussian by hand, another loss logged": (gaussian, absolute),
    "squares, another loss logged": (lambda h, b: F.mse_loss(h.mean(b["x"]), b["target"].nan_to_num()), absolute),
}


@pytest.mark.parametrize("name", REPORTED)
def test_infobatch_hides_and_weights_by_the_loss_of_each_sample_alone(name):
    loss, logged = REPORTED[name]
    selection, module = SampleSelection("infobatch", seed=0, end_fraction=0.0), Module(loss, logged)
    steps = Steps(selection)
    fit(module, DataLoader(Items(), BATCH, shuffle=True), selection, steps, max_epochs=3)
    alone = Loss(loss).of_each(module.heads, Items().data).detach()
    assert (selection.statistics.loss - alone).abs().max() <= 1e-5
    hidden = selection.plan.hidden
    assert len(hidden) > 20 and bool((alone[hidden] < alone.mean()).all())
    for batch, weights, made in steps.made[-3:]:
        expected = gradient(Loss(loss).with_weights(module.heads, batch, weights), module.heads)
        assert weights.max() == 2 and (made - expected).norm() <= 1e-4 * expected.norm()


def dice(heads, batch):
    p, target = heads.classes(batch["x"]).sigmoid(), F.one_hot(batch["y"], 10).float()
    return 1 - 2 * (p * target).sum() / (p.sum() + target.sum())


def pairs(heads, batch):
    z = F.normalize(heads.mean(batch["x"]), dim=1)
    return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)))


def shuffled(heads, batch):
    order = torch.randperm(len(batch["x"]))
    return F.cross_entropy(heads.classes(batch["x"][order]), batch["y"][order])


@pytest.mark.parametrize("method", ["kakurenbo", "infobatch"])
@pytest.mark.parametrize(
    ("loss", "logged", "said"),
    [
        (dice, lambda h, b: F.cross_entropy(h.classes(b["x"]), b["y"]), "cannot be split into one value for each sample"),
        (pairs, None, "depends on which others are in its batch"),
        (shuffled, None, "puts the samples into another order"),
    ],
)
def test_what_has_no_loss_of_each_sample_is_refused_before_a_step(loss, logged, said, method):
    selection, module = SampleSelection(method), Module(loss, logged)
    steps = Steps(selection)
    with pytest.raises(OutputsError, match=said):
        fit(module, DataLoader(Items(), BATCH, shuffle=True), selection, steps, max_epochs=3)
    assert not steps.made


@pytest.mark.parametrize("most", [1e-3, 1.2])
def test_a_clamped_loss_is_recorded_as_it_is_where_nearly_all_of_the_first_batch_are_clamped(most):
    """The hardest were taken for the easiest: the criterion tells them apart, but nothing of it reaches the loss."""
    module = Module(lambda h, b: each_cross_entropy(h, b).clamp(max=most).mean())
    selection = SampleSelection("infobatch")
    fit(module, DataLoader(Items(), BATCH, shuffle=True), selection, max_epochs=3)
    expected = each_cross_entropy(module.heads, Items().data).clamp(max=most)
    assert (selection.statistics.loss - expected).abs().max() <= 1e-5
