"""Losses over a whole batch are refused in a Trainer, by a text that says why and what works; verification leaves no trace."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import fit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import OutputsError

SAMPLES, BATCH, CLASSES = 48, 8, 4


def items():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(SAMPLES) % CLASSES
    return TensorDataset(2 * torch.eye(8)[y] + 0.5 * torch.randn(SAMPLES, 8, generator=generator), y)


class Module(pl.LightningModule):
    """A network with everything that a forward pass may move: running statistics, a counter, random numbers."""

    def __init__(self, loss, noise=0.01):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(30 * noise), nn.Linear(16, CLASSES)
            )
        self.register_buffer("queue", torch.zeros(3))
        self.loss, self.noise = loss, noise
        self.losses, self.by_class, self.steps = [], {}, 0

    def training_step(self, batch, batch_idx):
        self.queue += batch[0].mean()
        noise = torch.randn_like(batch[0])
        loss = self.loss(self.network(batch[0] + self.noise * noise), batch[1])
        self.losses.append(loss.item())
        self.by_class[f"{batch_idx} of {len(self.losses)}"] = loss.item()
        self.steps, self.network[0].seen = self.steps + 1, self.steps
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def overlap(logits, y):
    p, target = logits.softmax(1), F.one_hot(y, CLASSES).float()
    return (p * target).sum(), p.sum(), target.sum()


def dice(logits, y):
    both, p, target = overlap(logits, y)
    return 1 - 2 * both / (p + target)


def jaccard(logits, y):
    both, p, target = overlap(logits, y)
    return 1 - both / (p + target - both)


def ntxent(logits, y):
    """Two views of each sample, each to be told from all others."""
    z = F.normalize(torch.cat([logits, logits.roll(1, 1)]), dim=1)
    similar = (z @ z.T / 0.5).fill_diagonal_(-1e9)
    return F.cross_entropy(similar, torch.arange(len(z)).roll(len(y)))


def hardest_triplets(logits, y):
    """For each sample the farthest of its class and the nearest of another."""
    distance, same = torch.cdist(logits, logits), y[:, None] == y
    positive = distance.masked_fill(~same, 0).amax(1)
    negative = distance.masked_fill(same, 1e9).amin(1)
    return F.margin_ranking_loss(negative, positive, torch.ones_like(positive), margin=0.3)


def mined_pairs(logits, y):
    """As many rows as there are pairs that violate the margin."""
    distance = torch.cdist(logits, logits)[(y[:, None] != y).triu(1)]
    return F.relu(100 - distance[: len(distance) // BATCH * BATCH - 1]).mean()


def detection(logits, y):
    """Anchors that were sampled over all images of the batch."""
    anchors = torch.cat([logits, logits * 0.5, logits * 2])
    chosen = torch.randperm(len(anchors))[: BATCH + 3]
    return F.cross_entropy(anchors[chosen], y.repeat(3)[chosen])


@pytest.mark.parametrize("method", ["kakurenbo", "infobatch", "selective_backprop", "plb"])
@pytest.mark.parametrize("loss", [dice, jaccard, ntxent, hardest_triplets, mined_pairs, detection])
def test_a_loss_over_the_batch_is_refused_and_told_what_works(loss, method):
    settings = {"tau": 0.0} if method == "kakurenbo" else {}
    with pytest.raises(OutputsError) as error:
        fit(Module(loss), DataLoader(items(), BATCH, shuffle=True), SampleSelection(method, **settings), max_epochs=2)
    message = str(error.value)
    assert "cannot be split into one value" in message or "depends on which others are in its batch" in message
    for works in ("random", "sample_loss", "sample_outputs=", "tokens:", "a regression"):
        assert works in message


@pytest.mark.parametrize("loss", [dice, jaccard, ntxent, hardest_triplets, mined_pairs, detection])
@pytest.mark.parametrize("method", ["random", "random_cycle", "baseline"])
def test_methods_that_read_nothing_train_it(loss, method):
    trainer = fit(Module(loss), DataLoader(items(), BATCH, shuffle=True), SampleSelection(method), max_epochs=2)
    assert trainer.global_step > 0


def trained(*callbacks, noise=0.01):
    module = Module(F.cross_entropy, noise)
    torch.manual_seed(1)
    trainer = fit(module, DataLoader(items(), BATCH), *callbacks, max_epochs=3)
    kept = {"losses": torch.tensor(module.losses), "by_class": torch.tensor(list(module.by_class.values()))}
    counted = {"steps": torch.tensor([module.steps, module.network[0].seen + 1])}
    logged = {"logged": trainer.callback_metrics["train_loss"]}
    return {**module.state_dict(), **kept, **counted, **logged, "stream": torch.get_rng_state()}


SETTINGS = {"baseline": {}, "kakurenbo": {"start_epoch": 5}, "infobatch": {"start_epoch": 1}, "plb": {"start_pass": False}}
LATER = {"baseline": {}, "kakurenbo": {"start_epoch": 5}, "infobatch": {"start_epoch": 5}}  # than the last epoch


@pytest.mark.parametrize("method", SETTINGS)
def test_verification_leaves_parameters_buffers_and_random_numbers_as_without_it(method):
    checked, unchecked = (SampleSelection(method, seed=0, check_attribution=check, **SETTINGS[method]) for check in (True, False))
    made = trained(checked)
    for name, value in trained(unchecked).items():
        assert torch.equal(made[name], value), name
    if method != "baseline":
        assert checked.session.outputs.report.attribution == "verified"
        assert unchecked.session.outputs.report.attribution == "off"


@pytest.mark.parametrize("method", LATER)
def test_a_training_in_which_nothing_is_hidden_is_that_of_plain_lightning(method):
    made, plain = trained(SampleSelection(method, **LATER[method]), noise=0.0), trained(noise=0.0)
    del made["stream"], plain["stream"]  # the loader's seed for workers comes from a stream of the selection
    for name, value in plain.items():
        assert torch.equal(made[name], value), name


class Hooking(Module):
    """Installs a hook when it is first needed, as models of transformers do that return what is inside."""

    def __init__(self, loss):
        super().__init__(loss)
        self.has_hook, self.seen, self.numbers = False, [], []

    def training_step(self, batch, batch_idx):
        if not self.has_hook:
            self.network[0].register_forward_hook(lambda module, args, output: self.seen.append(1))
            self.has_hook = True
        self.seen.clear()
        loss = super().training_step(batch, batch_idx)
        self.numbers.append(len(self.seen))
        return loss


@pytest.mark.parametrize("method", ["infobatch", "plb"])
def test_a_hook_that_the_module_installs_when_first_needed_is_installed_once(method):
    module = Hooking(F.cross_entropy)
    fit(module, DataLoader(items(), BATCH), SampleSelection(method), max_epochs=3)
    assert set(module.numbers) == {1} and len(module.network[0]._forward_hooks) == 1


def flooded(logits, y):
    return (F.cross_entropy(logits, y) - 0.5).abs() + 0.5


def hardest(logits, y):
    return F.cross_entropy(logits, y, reduction="none").topk(BATCH // 2).values.mean()


@pytest.mark.parametrize(
    ("loss", "method", "said"),
    [(flooded, "kakurenbo", "as in flooding"), (hardest, "infobatch", "loss weights: how much a sample counts")],
)
def test_what_the_batch_decides_is_refused_before_training(loss, method, said):
    module = Module(loss)
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(OutputsError, match=said):
        fit(module, DataLoader(items(), BATCH, shuffle=True), SampleSelection(method), max_epochs=2)
    assert all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))


def test_a_method_without_weights_trains_the_hardest_of_each_batch(recwarn):
    trainer = fit(Module(hardest), DataLoader(items(), BATCH, shuffle=True), SampleSelection("kakurenbo", tau=0.0), max_epochs=3)
    assert trainer.global_step > 0
    assert len([one for one in recwarn if "depends on which others are in its batch" in str(one.message)]) == 1
