"""Cheaper looking: inference mode, lower precision, lower resolution, and a small network in the module's place."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from driven import EPOCHS, Trained, sb_fit
from helpers import CLASSES, FEATURES, Net, fit, loader
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.engines.scoring import scaled_images
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.backprop.selective_backprop import SelectiveBackprop


def test_inference_mode_chooses_and_trains_the_same():
    _, usual, _, plain = sb_fit(SelectiveBackprop())
    _, selection, _, inferred = sb_fit(SelectiveBackprop(inference_mode=True))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, inferred.state_dict()[name]), name
    assert torch.equal(usual.statistics.loss, selection.statistics.loss)


def test_looking_in_bfloat16_is_near_and_trains_in_float32():
    seen = []

    class Watched(Net):
        def training_step(self, batch, batch_idx):
            logits = self.network(batch[0])
            seen.append((self.training, logits.dtype))
            return F.cross_entropy(logits, batch[1])

    sb_fit(SelectiveBackprop(autocast="bf16"), Watched(dropout=0.0))
    assert set(seen) == {(True, torch.float32), (False, torch.bfloat16)}


def test_looking_through_a_compiled_network_chooses_and_trains_the_same():
    modes = []

    def backend(graph, inputs):
        modes.append(graph)
        return graph.forward

    class Part(nn.Module):
        """Of the user's own: torch 2.6 compiles nothing of a network that is all torch's own classes."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) * 1.0

    def net():
        made = Net(dropout=0.0)
        made.network = Part(made.network)
        return made

    _, usual, _, plain = sb_fit(SelectiveBackprop(), net())
    compiler = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function: compiler(function, backend=backend))
        _, selection, _, compiled = sb_fit(SelectiveBackprop(compile=True), net())
    assert modes, "nothing was compiled"
    assert compiled.network._compiled_call_impl is None
    for name, value in plain.state_dict().items():
        assert torch.equal(value, compiled.state_dict()[name]), name
    assert torch.equal(usual.statistics.loss, selection.statistics.loss)


def test_a_module_without_parts_cannot_be_compiled():
    class Bare(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(CLASSES, FEATURES))

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(batch[0] @ self.weight.T, batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ConflictError, match="compile=True: Bare has no submodule with parameters"):
        sb_fit(SelectiveBackprop(compile=True), Bare())


class Images(pl.LightningModule):
    """Classifies images of any size; writes down the sizes it sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
        self.seen = set()

    def training_step(self, batch, batch_idx):
        self.seen.add((self.training, tuple(batch[0].shape[2:])))
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_images_are_looked_at_in_a_lower_resolution_and_trained_in_full():
    generator = torch.Generator().manual_seed(0)
    images, classes = torch.randn(40, 3, 16, 16, generator=generator), torch.arange(40) % 3
    module = Images()
    fit(
        module,
        DataLoader(TensorDataset(images, classes), 8),
        SampleSelection(SelectiveBackprop(scale=0.5), check_attribution=False),
        max_epochs=3,
    )
    assert module.seen == {(True, (16, 16)), (False, (8, 8))}


def test_a_lower_resolution_keeps_the_mean_and_everything_else():
    flat = torch.full((2, 3, 8, 8), 0.7)
    small = scaled_images({"image": flat, "label": torch.tensor([1, 2]), "name": ["a", "b"]}, 0.5)
    assert torch.allclose(small["image"], torch.full((2, 3, 4, 4), 0.7))
    assert small["label"].tolist() == [1, 2] and small["name"] == ["a", "b"]


def test_a_batch_without_images_has_no_resolution():
    with pytest.raises(ConflictError, match=r"scale=0.5: the batch .* holds no float images"):
        sb_fit(SelectiveBackprop(scale=0.5))


# ---- a small network in the module's place


class Small(pl.LightningModule):
    """A linear classifier. It counts what it is asked."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.network = nn.Linear(FEATURES, CLASSES)
        self.trained, self.looked = [], []

    def training_step(self, batch, batch_idx):
        (self.trained if self.training else self.looked).append(batch)
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def scored_fit(*callbacks, **settings):
    small, net = Small(), Net(dropout=0.0)
    selection, trained = SampleSelection("selective_backprop", scorer=small, check_attribution=False), Trained()
    fit(net, loader(61), selection, trained, *callbacks, **{"max_epochs": EPOCHS, **settings})
    return selection, small, net, trained


def test_the_scorer_looks_and_trains_on_what_is_trained():
    selection, small, _, trained = scored_fit()
    assert not trained.looked  # the module itself never looks
    assert sum(len(batch[2]) for batch in small.looked) == 61 * (EPOCHS - 1)
    batches = [batch for epoch in sorted(trained.batches) for batch in trained.batches[epoch]]
    assert [batch[2].tolist() for batch in small.trained] == [batch[2].tolist() for batch in batches]
    twin = Small()
    optimizer = twin.configure_optimizers()
    for x, y, _ in batches:
        optimizer.zero_grad()
        F.cross_entropy(twin.network(x), y).backward()
        optimizer.step()
    for name, value in twin.state_dict().items():
        assert torch.equal(value, small.state_dict()[name]), name
    assert selection.totals.samples_rejected > 0


def test_a_run_with_a_scorer_resumes_exactly(tmp_path):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    _, small, net, _ = scored_fit(keep, enable_checkpointing=True)
    for step in (5, 10):
        _, resmall, renet, _ = scored_fit(ckpt_path=tmp_path / f"step={step}.ckpt", seed=9)
        for one, other in ((small, resmall), (net, renet)):
            for name, value in one.state_dict().items():
                assert torch.equal(value, other.state_dict()[name]), name


def test_what_is_no_scorer_is_refused():
    with pytest.raises(ValueError, match="scorer=Small is not allowed with method kakurenbo"):
        SampleSelection("kakurenbo", scorer=Small())
    with pytest.raises(ValueError, match="scorer=Linear is not allowed"):
        SampleSelection("selective_backprop", scorer=nn.Linear(1, 1))

    class Two(Small):
        def configure_optimizers(self):
            return [super().configure_optimizers(), super().configure_optimizers()]

    with pytest.raises(
        ConflictError, match="scorer=Two: configure_optimizers returned 2 optimizers; it must return one, or None"
    ):
        fit(Net(), loader(61), SampleSelection("selective_backprop", scorer=Two()), max_epochs=2)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"leftover": "drop"}, "leftover='drop' is not allowed; leftover must be 'train' or 'carry'"),
        ({"autocast": "int8"}, "autocast='int8'"),
        ({"scale": 0}, r"scale=0 is not allowed; scale must be a number in \(0, 1\]"),
        ({"inference_mode": 1}, "inference_mode=1"),
        ({"compile": "yes"}, "compile='yes'"),
        ({"beta": -1}, "beta=-1"),
        ({"floor": 2}, "floor=2"),
        ({"history": 0}, "history=0"),
        ({"score": "low"}, "score='low' is not allowed; score must be 'loss' or 'random' or 'topk' or 'l2'"),
    ],
)
def test_a_bad_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SampleSelection("selective_backprop", **settings)
