"""A loss over the batch that equals the mean of its rows by coincidence, as an untrained network makes it, is found out."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import fit
from losses import Heads, observed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.criterion_module import ModuleCall

SAMPLES, CLASSES, PIXELS = 24, 3, 1024


class Jaccard(nn.Module):
    """Over the batch, or of each sample."""

    def __init__(self, over_batch):
        super().__init__()
        self.over = (0, 2) if over_batch else (2,)

    def forward(self, logits, target):
        p, t = logits.softmax(1), F.one_hot(target, CLASSES).movedim(2, 1)
        both = torch.einsum("ncp,ncp->ncp", p, t.to(p)).sum(self.over)
        together = 1 - both / (p.sum(self.over) + t.sum(self.over) - both)
        return torch.einsum("...->", together) / together.numel()


class Untrained(pl.LightningModule):
    """Predicts nearly the same everywhere."""

    def __init__(self, loss, dtype=torch.float32):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Conv1d(3, CLASSES, 3, padding=1)
        with torch.no_grad():
            self.network.weight.mul_(0.05)
        self.loss, self.as_dtype = loss, dtype

    def training_step(self, batch, batch_idx):
        return self.loss(self.network(batch[0]).to(self.as_dtype), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 3, PIXELS, generator=generator)
    return TensorDataset(x, torch.randint(CLASSES, (SAMPLES, PIXELS), generator=generator))


def one_by_one(module, images):
    return torch.stack([module.loss(module.network(images[i : i + 1][0]), images[i : i + 1][1]) for i in range(len(images))])


@pytest.mark.parametrize("method", ["kakurenbo", "infobatch", "selective_backprop", "plb"])
def test_a_loss_over_the_batch_is_not_taken_for_a_mean_because_the_numbers_agree(method, images):
    module = Untrained(Jaccard(over_batch=True))
    with torch.no_grad():
        whole, rows = module.training_step(images[:8], 0), one_by_one(module, images)[:8]
    assert torch.isclose(whole, rows.mean(), rtol=1e-4)  # the coincidence
    settings = {"tau": 0.0} if method == "kakurenbo" else {}
    with pytest.raises(OutputsError, match=r"Jaccard .* by coincidence only: their gradients differ by \d") as error:
        fit(module, DataLoader(images, 8), SampleSelection(method, **settings), max_epochs=2)
    for works in ("random", "sample_loss", "sample_outputs="):
        assert works in str(error.value)


@pytest.mark.parametrize("method", ["infobatch", "plb"])
def test_the_same_loss_of_each_sample_is_recorded(method, images):
    module, selection = Untrained(Jaccard(over_batch=False)), SampleSelection(method)
    fit(module, DataLoader(images, 8), selection, max_epochs=2)
    with torch.no_grad():
        assert torch.allclose(selection.statistics.loss, one_by_one(module, images), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("over_batch", [True, False])
def test_gradients_are_compared_in_full_precision(over_batch, dtype, images):
    module = Untrained(Jaccard(over_batch), dtype)
    logits, target = module.network(images[:8][0]).to(dtype), images[:8][1]
    call = ModuleCall(module.loss, (logits, target), {}, 8)
    reason = call.verify(module.loss(logits, target), 3e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4)
    assert (reason is not None and "by coincidence" in reason) if over_batch else reason is None


def test_a_loss_module_without_learned_predictions_and_one_that_changes_them_in_place_are_verified():
    class InPlace(nn.Module):
        def forward(self, prediction, target):
            prediction -= target
            return torch.einsum("ij->", prediction.square()) / prediction.numel()

    given = [torch.randn(8, 3, requires_grad=True) * 2, torch.randn(8, 3)]
    result = InPlace()(given[0].clone(), given[1])
    assert ModuleCall(InPlace(), (*given,), {}, 8)._verify_gradient(range(8)) is None
    assert ModuleCall(InPlace(), (given[0].detach(), given[1]), {}, 8)._verify_gradient(range(8)) is None
    assert result.isfinite()


def test_as_many_rows_for_half_of_the_samples_are_no_samples():
    """A value for each class, of which there are as many as samples, and all are nearly alike."""
    heads = Heads()
    batch = heads.batch(0, 10)

    def by_class(heads, batch):
        p = (1e-3 * heads.classes(batch["x"])).softmax(1)
        return (1 - torch.einsum("nc->c", p) / len(p)).mean()

    with pytest.raises(OutputsError, match="depends on which others are in its batch"):
        observed(by_class, heads, [batch])
