"""Methods of every family on foreign losses, in a Trainer: they hide, draw and choose by the loss of each sample."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import fit
from timm import loss as timm_loss
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import OutputsError

SAMPLES, CLASSES, TOKENS = 48, 4, 6
METHODS = ["kakurenbo", "infobatch", "selective_backprop", "plb"]


class Items(Dataset):
    """Dicts of features, a class, tokens, and a weight."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(SAMPLES) % CLASSES
        self.x = 2 * torch.eye(8)[self.y] + 0.5 * torch.randn(SAMPLES, 8, generator=generator)
        self.weight = 0.5 + torch.rand(SAMPLES, generator=generator)
        self.tokens = torch.randint(1, 20, (SAMPLES, TOKENS), generator=generator)

    def __len__(self):
        return SAMPLES

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.y[i], "weight": self.weight[i], "tokens": self.tokens[i]}


class Module(pl.LightningModule):
    """A linear network, and a loss that is no call of ``F.cross_entropy`` with a mean; its rate is 0."""

    def __init__(self, loss, network=None):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Linear(8, CLASSES) if network is None else network()
        self.loss = loss

    def training_step(self, batch, batch_idx):
        return self.loss(self.network, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def weighted(network, batch):
    return (F.cross_entropy(network(batch["x"]), batch["y"], reduction="none") * batch["weight"]).mean()


def focal(network, batch):
    logits = network(batch["x"])
    p = logits.softmax(1).gather(1, batch["y"][:, None])[:, 0]
    return ((1 - p) ** 2 * F.cross_entropy(logits, batch["y"], reduction="none")).mean()


def of_timm(criterion, target=lambda y: y):
    """A loss module of timm, made once; ``target`` makes what it is called with of the classes."""
    return lambda network, batch: criterion(network(batch["x"]), target(batch["y"]))


def soft(y):
    return 0.9 * F.one_hot(y, CLASSES) + 0.1 / CLASSES


def several(y):
    return (F.one_hot(y, CLASSES) + F.one_hot((y + 1) % CLASSES, CLASSES)).float()


TIMM = {
    "LabelSmoothing": of_timm(timm_loss.LabelSmoothingCrossEntropy()),
    "SoftTarget": of_timm(timm_loss.SoftTargetCrossEntropy(), soft),
    "BinaryCrossEntropy": of_timm(timm_loss.BinaryCrossEntropy()),
    "AsymmetricSingle": of_timm(timm_loss.AsymmetricLossSingleLabel()),
    "AsymmetricMulti": of_timm(timm_loss.AsymmetricLossMultiLabel(), several),
}


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=TOKENS, n_embd=8, n_layer=1, n_head=2, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def language(network, batch):
    return network(input_ids=batch["tokens"], labels=batch["tokens"]).loss


CASES = {"weighted": (weighted, None), "focal": (focal, None), "GPT-2": (language, gpt2)} | {
    k: (v, None) for k, v in TIMM.items()
}
NEVER_RIGHT = ("GPT-2", "AsymmetricMulti")  # no token, and no set of classes, is predicted at a learning rate of 0


@pytest.mark.slow_cases("SoftTarget", "BinaryCrossEntropy", "AsymmetricSingle", "AsymmetricMulti")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_the_statistics_are_the_losses_of_each_sample_alone(name, method):
    loss, network = CASES[name]
    module, data = Module(loss, network), Items()
    selection = SampleSelection(method, **({"tau": 0.0, "max_fraction": 0.5} if method == "kakurenbo" else {}))
    fit(module, DataLoader(data, 8, shuffle=True), selection, max_epochs=3)
    module.eval()
    alone = torch.stack([loss(module.network, {k: v[None] for k, v in data[i].items()}) for i in range(SAMPLES)])
    assert torch.allclose(selection.statistics.loss, alone, atol=1e-4)
    assert selection.session.outputs.report.attribution == "verified"
    if method == "kakurenbo" and name not in NEVER_RIGHT:
        assert selection.totals.samples_hidden > 0


@pytest.mark.parametrize("method", ["random", "random_cycle", "baseline"])
def test_controls_run_on_losses_that_have_no_values(method):
    def dice(network, batch):
        p, target = network(batch["x"]).sigmoid(), F.one_hot(batch["y"], CLASSES).float()
        return 1 - 2 * (p * target).sum() / (p.sum() + target.sum())

    def tokens(network, batch):
        return F.cross_entropy(network(batch["x"]).repeat(3, 1), batch["y"].repeat(3)) * 0.5

    for loss in (dice, tokens):
        selection = SampleSelection(method)
        fit(Module(loss), DataLoader(Items(), 8, shuffle=True), selection, max_epochs=2)
        assert not selection.statistics.measured.any()
    with pytest.raises(OutputsError, match="cannot be split into one value for each sample"):
        fit(Module(dice), DataLoader(Items(), 8, shuffle=True), SampleSelection("infobatch"), max_epochs=2)


def test_a_loss_that_is_only_logged_is_not_taken_for_the_loss():
    class Logging(Module):
        def training_step(self, batch, batch_idx):
            prediction = self.network(batch["x"])
            target = F.one_hot(batch["y"], CLASSES).float()
            self.log("mae", F.l1_loss(prediction, target))
            self.log("size", prediction.mean(), reduce_fx=torch.mean)
            return F.mse_loss(prediction, target)

    module, data = Logging(None), Items()
    selection = SampleSelection("infobatch")
    trainer = fit(module, DataLoader(data, 8, shuffle=True), selection, max_epochs=3)
    each = F.mse_loss(module.network(data.x), F.one_hot(data.y, CLASSES).float(), reduction="none").mean(1)
    assert torch.allclose(selection.statistics.loss, each, atol=1e-5)
    assert {"mae", "size"} <= set(trainer.callback_metrics)
