"""What the first batch could not show is verified on a later one: it had one sample, or losses that are all the same."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import fit
from losses import BATCH, LOSSES, NoScoring, cross_entropy, each_cross_entropy, gradient, observed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.outputs import SampleOutputs

# --- one sample


@pytest.mark.parametrize("name", LOSSES)
def test_the_first_batch_may_have_one_sample(name, heads):
    loss = LOSSES[name]
    batches = [heads.batch(0, 1), heads.batch(1, BATCH), heads.batch(40, 9)]
    weights = [torch.linspace(0.5, 2, len(batch["x"])) for batch in batches]
    source, made = observed(loss.step, heads, batches, weights, weighs=True)
    assert source.report.attribution == "verified"
    for batch, given, (outputs, values) in zip(batches, weights, made, strict=True):
        assert torch.allclose(values["loss"], loss.of_each(heads, batch), atol=1e-4)
        expected = gradient(loss.with_weights(heads, batch, given), heads)
        assert (gradient(outputs, heads) - expected).norm() <= 1e-4 * expected.norm()


def test_what_is_wrong_is_said_on_the_first_batch_of_more_samples(heads):
    def shuffling(heads, batch):
        order = torch.randperm(len(batch["x"]), generator=torch.Generator().manual_seed(3))
        return cross_entropy(heads, {name: values[order] for name, values in batch.items()})

    def flooded(heads, batch):
        return (cross_entropy(heads, batch) - 0.1).abs() + 0.1

    one, many = heads.batch(0, 1), heads.batch(1, BATCH)
    for step, said in ((shuffling, "puts the samples into another order"), (flooded, "as in flooding")):
        source = SampleOutputs(("loss",))
        for _ in range(3):
            source.observe(partial(step, heads, one), one, 1, NoScoring)
        with pytest.raises(OutputsError, match=said):
            source.observe(partial(step, heads, many), many, BATCH, NoScoring)


def test_a_scoring_pass_that_begins_with_one_sample_is_right(heads):
    step = LOSSES["smp focal"].step
    source = SampleOutputs(("loss",))
    for batch in (heads.batch(0, 1), heads.batch(1), heads.batch(40, 9)):
        with torch.no_grad():
            values = source.score(partial(step, heads, batch), batch, len(batch["x"]))
        assert torch.allclose(values["loss"], LOSSES["smp focal"].of_each(heads, batch), atol=1e-5)


# --- losses that are all the same


def alike_until(number, heads):
    """A step of which the losses are all the same before it has trained ``number`` batches; it counts its runs."""

    def step(batch):
        step.runs += 1
        shown = 0.0 if step.number < number else 1.0
        logits = shown * heads.classes(batch["x"])
        order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(3)) if step.shuffles else slice(None)
        return F.cross_entropy(logits[order], batch["y"][order])

    step.runs, step.number, step.shuffles = 0, 0, False
    return step


@pytest.mark.parametrize(("number", "at"), [(1, 1), (3, 4), (5, 8)])
def test_a_step_that_shuffles_is_noticed_once_its_losses_differ(number, at, heads):
    step, source, batch = alike_until(number, heads), SampleOutputs(("loss",)), heads.batch(0)
    step.shuffles = True
    for step.number in range(at):
        source.observe(partial(step, batch), batch, BATCH, NoScoring)
        assert source.report.attribution.startswith("skipped: all losses of the first batch")
    step.number = at
    with pytest.raises(OutputsError, match="puts the samples into another order"):
        source.observe(partial(step, batch), batch, BATCH, NoScoring)


def test_it_is_tried_at_batches_whose_distance_doubles_until_it_is_known(heads):
    step, source, batch, runs = alike_until(5, heads), SampleOutputs(("loss",)), heads.batch(0), []
    for step.number in range(20):
        before = step.runs
        _, values = source.observe(partial(step, batch), batch, BATCH, NoScoring)
        runs.append(step.runs - before)
        if step.number >= 5:
            assert torch.allclose(values["loss"], each_cross_entropy(heads, batch), atol=1e-6)
    assert [number for number, count in enumerate(runs) if count > 1] == [0, 1, 2, 4, 8]
    assert source.report.attribution == "verified"


def test_a_batch_that_is_skipped_leaves_what_is_known(heads):
    step, source, batch = alike_until(3, heads), SampleOutputs(("loss",)), heads.batch(0)
    for step.number in range(6):
        skips = step.number in (2, 4)
        outputs, values = source.observe((lambda: None) if skips else partial(step, batch), batch, BATCH, NoScoring)
        assert (values is None) == skips == (outputs is None)


def test_a_warning_is_given_once(heads, recwarn):
    def step(batch):
        return F.cross_entropy(0.0 * heads.classes(batch["x"]), batch["y"]) + 0.1 * heads.classes.weight.norm()

    source, batch = SampleOutputs(("loss",)), heads.batch(0)
    for _ in range(5):
        source.observe(partial(step, batch), batch, BATCH, NoScoring)
    assert len([one for one in recwarn if "is a part of the loss" in str(one.message)]) == 1


class Shuffling(pl.LightningModule):
    """Its last layer begins at zero, as of many networks, and its step shuffles the batch."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(4, 3)
        nn.init.zeros_(self.network.weight)
        nn.init.zeros_(self.network.bias)

    def training_step(self, batch):
        x, y = batch
        order = torch.arange(len(y)).flip(0)
        return F.cross_entropy(self.network(x[order]), y[order])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("method", ["kakurenbo", "plb"])
def test_a_module_that_begins_at_zero_and_shuffles_is_refused_in_training(method):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(48, 4, generator=generator), torch.randint(3, (48,), generator=generator))
    with pytest.raises(OutputsError, match="puts the samples into another order"):
        fit(Shuffling(), DataLoader(data, 8, shuffle=True), SampleSelection(method), max_epochs=2)
    fit(Shuffling(), DataLoader(data, 8), SampleSelection(method, check_attribution=False), max_epochs=1)
