"""Steps that draw random numbers: that values depend on other samples is found out by a run that draws the same ones."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import fit
from losses import BATCH, OUTPUTS, Heads, NoScoring, observed
from test_reported_losses import Items, Module, Steps
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.outputs import SampleOutputs

NOISY = "skipped: two equal passes differ: the step draws random numbers"


def noisy(x):
    return x + 0.3 * torch.randn_like(x)


def views(heads, batch):
    """Two random views of each sample, to be told from those of all others."""
    one, other = (F.normalize(heads.mean(noisy(batch["x"])), dim=1) for _ in range(2))
    return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


def views_by_hand(heads, batch):
    one, other = (F.normalize(heads.mean(noisy(batch["x"])), dim=1) for _ in range(2))
    return -(one @ other.T / 0.1).log_softmax(1).diagonal().mean()


def mixup(heads, batch):
    """With soft targets, so that there is one criterion call."""
    order, target = torch.randperm(len(batch["x"])), F.one_hot(batch["y"], 10).float()
    mixed = 0.7 * batch["x"] + 0.3 * batch["x"][order]
    return F.cross_entropy(heads.classes(mixed), 0.7 * target + 0.3 * target[order])


def cutmix(heads, batch):
    x, order = batch["x"].clone(), torch.randperm(len(batch["x"]))
    x[:, :6] = batch["x"][order, :6]
    return F.cross_entropy(heads.classes(x), batch["y"])


def shuffled(heads, batch):
    order = torch.randperm(len(batch["x"]))
    return F.cross_entropy(heads.classes(noisy(batch["x"][order])), batch["y"][order])


@pytest.mark.parametrize("method", ["kakurenbo", "infobatch"])
@pytest.mark.parametrize("loss", [views, views_by_hand, mixup, cutmix, shuffled])
def test_a_random_step_whose_values_are_not_the_samples_own_is_refused_before_it_trains(loss, method):
    selection, module = SampleSelection(method), Module(loss)
    steps = Steps(selection)
    with pytest.raises(OutputsError, match=r"depends on which others are in its batch|reads confidence, correct"):
        fit(module, DataLoader(Items(), BATCH, shuffle=True), selection, steps, max_epochs=2)
    assert not steps.made


def augmented(heads, batch):
    torch.rand(len(batch["x"]))  # so that a sample's numbers depend on how many there are
    return F.cross_entropy(heads.classes(noisy(batch["x"])), batch["y"])


def denoised(heads, batch):
    """As diffusion models: a time and noise for each sample, a weight of each time."""
    time = torch.rand(len(batch["x"]), 1)
    error = heads.mean((1 - time) * batch["x"] + time * torch.randn_like(batch["x"])) - batch["target"].nan_to_num()
    return (error.square().mean(1) / (0.1 + time[:, 0])).mean()


def one_of_all(heads, batch):
    """One random number, which all samples of a batch have."""
    scale = float(torch.rand(len(batch["x"]))[-1])
    return F.cross_entropy((1 + 3 * scale) * heads.classes(batch["x"]), batch["y"])


def masked(heads, batch):
    """As masked autoencoders: each sample hides features of its own."""
    kept = torch.rand(len(batch["x"]), 16).argsort(1) < 8
    return F.mse_loss(heads.mean(batch["x"] * kept), heads.mean(batch["x"]).detach())


def sampled(heads, batch):
    """As variational networks."""
    mean, log_variance = heads.mean(batch["x"]), heads.spread(batch["x"])
    drawn = mean + (0.5 * log_variance).exp() * torch.randn(len(mean), OUTPUTS)
    return (drawn - batch["target"].nan_to_num()).square().mean()


def dropped(heads, batch):
    return F.cross_entropy(heads.classes(F.dropout(batch["x"], 0.5)), batch["y"])


OWN = [augmented, denoised, one_of_all, masked, sampled, dropped]


@pytest.mark.parametrize("loss", OWN)
def test_random_numbers_of_each_sample_are_no_reason_to_refuse(loss):
    selection, module = SampleSelection("infobatch"), Module(loss)
    steps = Steps(selection)
    fit(module, DataLoader(Items(), BATCH, shuffle=True), selection, steps, max_epochs=2)
    assert steps.made and selection.statistics.measured.all()
    assert selection.session.outputs.report.attribution in (NOISY, "verified")


def test_a_value_made_of_the_batch_falls_back_on_what_it_was_made_of():
    def step(heads, batch):
        torch.rand(len(batch["x"]))
        loss = F.cross_entropy(heads.classes(noisy(batch["x"])), batch["y"], reduction="none")
        return (loss * batch["weight"] / batch["weight"].mean()).mean()

    source, _ = observed(step, Heads(), [Heads().batch(0)])
    assert source.report.calls == ("F.cross_entropy",) and source.report.attribution == NOISY


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(0)], ids=["as many as it needs", "of its own"])
def test_where_the_same_numbers_cannot_be_drawn_nothing_is_known(generator):
    """A sample's rounds of drawing decide which numbers come after it; or a generator goes on by itself."""
    heads = Heads()

    def step(batch):
        x = batch["x"]
        if generator is None:
            torch.rand(int(x[len(x) // 2 :].abs().sum() * 1e3) % 97)
        noise = torch.randn(x.shape, generator=generator)
        return F.cross_entropy(heads.classes(x + 0.5 * noise), batch["y"])

    source, batch = SampleOutputs(("loss",)), heads.batch(0)
    source.observe(partial(step, batch), batch, BATCH, NoScoring)
    assert source.report.attribution == NOISY
