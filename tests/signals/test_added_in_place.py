"""``loss += penalty`` changes what the criterion gave; and a part that is little of the loss does not stand for it."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import fit
from losses import BATCH, Heads, observed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import OutputsError

SAMPLES = 48


class LogCosh(nn.Module):
    """Seen as a module only."""

    def forward(self, logits, target):
        return torch.einsum("ij->", torch.log(torch.cosh(logits - F.one_hot(target, 3)))) / len(logits)


CRITERIA = {
    "functional": F.cross_entropy,
    "functional, changed twice": lambda logits, y: F.cross_entropy(logits, y).mul_(2),
    "reduction": lambda logits, y: F.cross_entropy(logits, y, reduction="none").square().mean(),
    "module": LogCosh(),
}
PENALTIES = {
    "weights": lambda net, x: 0.1 * net.network.weight.square().sum(),
    "a router": lambda net, x: 0.001 * net.gate(x).softmax(1)[:, 0].sum(),
    "a number": lambda net, x: 0.5,
}


class Net(pl.LightningModule):
    def __init__(self, criterion, penalty, in_place):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network, self.gate = nn.Linear(4, 3), nn.Linear(4, 2)
        self.criterion, self.penalty, self.in_place = criterion, penalty, in_place

    def training_step(self, batch, batch_idx):
        loss, other = self.criterion(self.network(batch[0]), batch[1]), self.penalty(self, batch[0])
        if self.in_place:
            loss += other
        else:
            loss = loss + other
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def trained(criterion, penalty, in_place, method="plb", **settings):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(SAMPLES, 4, generator=generator), torch.arange(SAMPLES) % 3)
    selection = SampleSelection(method, seed=0, **settings)
    fit(Net(criterion, penalty, in_place), DataLoader(data, 8), selection, max_epochs=2)
    return selection


@pytest.mark.filterwarnings("ignore:.*is a part of the loss")
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("name", CRITERIA)
def test_a_penalty_is_added_in_place_as_it_is_added_otherwise(name, penalty):
    made, expected = (trained(CRITERIA[name], PENALTIES[penalty], in_place) for in_place in (True, False))
    assert expected.statistics.loss.isfinite().all()
    assert torch.allclose(made.statistics.loss, expected.statistics.loss, rtol=1e-5)
    reports = [selection.session.outputs.report for selection in (made, expected)]
    assert reports[0].share == pytest.approx(reports[1].share) and reports[0].complete == reports[1].complete


@pytest.mark.parametrize("method", ["kakurenbo", "selective_backprop"])
def test_the_criterion_still_says_how_sure_a_sample_is(method):
    settings = {"tau": 0.0} if method == "kakurenbo" else {}
    made, expected = (trained(F.cross_entropy, PENALTIES["a router"], in_place, method, **settings) for in_place in (True, False))
    assert torch.allclose(made.statistics.loss, expected.statistics.loss, rtol=1e-5)


def large_rest(heads, batch):
    logits = heads.classes(batch["x"])
    return 0.01 * F.cross_entropy(logits, batch["y"]) + (logits - heads.teacher(batch["x"])).norm()


def test_what_is_little_of_the_loss_does_not_stand_for_it():
    heads = Heads()
    with pytest.raises(OutputsError, match=r"F.cross_entropy is only \d+\.\d% of the loss of the first batch") as error:
        observed(large_rest, heads, [heads.batch(0)])
    for works in ("sample_loss", "sample_outputs=", "unweighted_rest=True", "random"):
        assert works in str(error.value)


def test_unless_it_is_said_that_the_rest_is_no_samples():
    heads = Heads()
    with pytest.warns(UserWarning, match="is a part of the loss"):
        _, made = observed(large_rest, heads, [heads.batch(0), heads.batch(BATCH)], unweighted_rest=True)
    batch = heads.batch(0)
    assert torch.allclose(made[0][1]["loss"], 0.01 * F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none"))


def test_a_large_number_that_nothing_depends_on_is_no_rest():
    heads = Heads()
    source, _ = observed(lambda h, b: F.cross_entropy(h.classes(b["x"]), b["y"]) + 1000, heads, [heads.batch(0)])
    assert source.report.complete
