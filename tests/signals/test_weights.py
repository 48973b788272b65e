"""Loss weights: each sample counts as often as its method says, in value and gradient, however the step makes its loss."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, Points, Spy, SureNet, fit, loader
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError, OutputsError
from kakurenbo_lightning.signals.outputs import SampleOutputs

WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 4.0, 1.0])
CLASSES = torch.tensor([0, 2, 1, 1, 0])
SCALE = torch.tensor([0.2, 1.0, 3.0])


def scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def weighted(step):
    """The loss of a step in which sample i counts ``WEIGHTS[i]`` times."""
    source = SampleOutputs(("loss",))
    loss, _ = source.observe(step, None, 5, contextlib.nullcontext, WEIGHTS.double())
    return loss


def by_hand(per_sample):
    return (per_sample * WEIGHTS).mean()


# criterion, its inputs, and the weighted loss written out
CASES = {
    "cross_entropy": (F.cross_entropy, (5, 3), CLASSES, {}, lambda z, y: by_hand(F.cross_entropy(z, y, reduction="none"))),
    "label smoothing": (
        F.cross_entropy,
        (5, 3),
        CLASSES,
        {"label_smoothing": 0.1},
        lambda z, y: by_hand(F.cross_entropy(z, y, reduction="none", label_smoothing=0.1)),
    ),
    "sum": (
        F.cross_entropy,
        (5, 3),
        CLASSES,
        {"reduction": "sum"},
        lambda z, y: 5 * by_hand(F.cross_entropy(z, y, reduction="none")),
    ),
    "class weights": (
        F.cross_entropy,
        (5, 3),
        CLASSES,
        {"weight": SCALE.double()},
        lambda z, y: (F.cross_entropy(z, y, SCALE.double(), reduction="none") * WEIGHTS).sum() / SCALE[y].double().sum(),
    ),
    "positions": (
        F.cross_entropy,
        (5, 3, 4),
        torch.arange(20).view(5, 4) % 3,
        {},
        lambda z, y: by_hand(F.cross_entropy(z, y, reduction="none").mean(1)),
    ),
    "nll": (F.nll_loss, (5, 3), CLASSES, {}, lambda z, y: by_hand(F.nll_loss(z, y, reduction="none"))),
    "mse": (
        F.mse_loss,
        (5, 2),
        torch.arange(10.0, dtype=torch.float64).view(5, 2),
        {},
        lambda z, y: by_hand(F.mse_loss(z, y, reduction="none").mean(1)),
    ),
    "bce": (
        F.binary_cross_entropy_with_logits,
        (5,),
        torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64),
        {},
        lambda z, y: by_hand(F.binary_cross_entropy_with_logits(z, y, reduction="none")),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("by_keyword", [False, True])
def test_value_and_gradient_are_those_of_the_loss_written_out(name, by_keyword):
    criterion, shape, target, options, written_out = CASES[name]
    seen, expected = scores(*shape), scores(*shape)
    inputs = ((), {"input": seen, "target": target}) if by_keyword else ((seen, target), {})
    loss = weighted(lambda: criterion(*inputs[0], **inputs[1], **options))
    wanted = written_out(expected, target)
    assert torch.allclose(loss, wanted, rtol=1e-12)
    loss.backward()
    wanted.backward()
    assert torch.allclose(seen.grad, expected.grad, rtol=1e-12, atol=1e-15)


def test_any_function_of_a_loss_per_sample_is_weighted():
    """As in a focal loss: the step goes on with the values themselves."""
    seen, expected = scores(5, 3), scores(5, 3)

    def focal(z):
        loss = F.cross_entropy(z, CLASSES, reduction="none")
        return (1 - (-loss).exp()).square() * loss

    loss, wanted = weighted(lambda: focal(seen).mean()), by_hand(focal(expected))
    assert torch.allclose(loss, wanted, rtol=1e-12)
    loss.backward()
    wanted.backward()
    assert torch.allclose(seen.grad, expected.grad, rtol=1e-12)


def test_predictions_in_the_place_of_the_target_are_weighted_too():
    target = torch.arange(10.0, dtype=torch.float64).view(5, 2)
    seen, expected = scores(5, 2), scores(5, 2)
    weighted(lambda: F.mse_loss(target, seen)).backward()
    by_hand(F.mse_loss(expected, target, reduction="none").mean(1)).backward()
    assert torch.allclose(seen.grad, expected.grad, rtol=1e-12)


def test_ignored_positions_weigh_nothing():
    target = CLASSES.clone()
    target[1] = -100
    seen, expected = scores(5, 3), scores(5, 3)
    weighted(lambda: F.cross_entropy(seen, target)).backward()
    ((F.cross_entropy(expected, target, reduction="none") * WEIGHTS).sum() / 4).backward()
    assert torch.allclose(seen.grad, expected.grad)


def test_a_loss_of_zero_stays_finite():
    seen, target = torch.tensor([[200.0, 0.0]] * 5, requires_grad=True), torch.zeros(5, dtype=torch.long)
    loss = weighted(lambda: F.cross_entropy(seen, target))
    loss.backward()
    assert loss.item() == 0 and seen.grad.isfinite().all()


# ---- in a Trainer


class Returning(Net):
    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.network(batch[0]), batch[1], reduction="none")
        return {"loss": loss.mean(), "sample_loss": loss, "logits": self.network(batch[0]).detach(), "target": batch[1]}


class Module(Net):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        return self.criterion(self.network(batch[0]), batch[1])


class Imported(Net):
    """Calls a criterion by a name that replacing ``F.cross_entropy`` does not reach."""

    _criterion = staticmethod(F.cross_entropy)

    def training_step(self, batch, batch_idx):
        return {"loss": self._criterion(self.network(batch[0]), batch[1]), "other": 1}


class Weights(Callback):
    """The batches of each epoch, and their weights by the plan."""

    def __init__(self, selection):
        self.selection, self.steps = selection, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        weights = self.selection.plan.weights
        rows = batch[2]
        self.steps.append((batch[0], batch[1], torch.ones(len(rows)) if weights is None else weights[rows]))


def written_out(steps):
    """The same training in plain PyTorch."""
    net = Net(dropout=0.0)
    optimizer = net.configure_optimizers()
    for x, y, weights in steps:
        optimizer.zero_grad()
        (weights * F.cross_entropy(net.network(x), y, reduction="none")).mean().backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("module", [Net, Module, Imported, Returning])
def test_infobatch_trains_as_a_loop_with_the_weighted_mean_does(module):
    selection = SampleSelection("infobatch", end_fraction=0.2)
    weights = Weights(selection)
    net = module(dropout=0.0)
    if module is Returning:  # its second forward would move BatchNorm twice
        net.network[1] = nn.Identity()
    fit(net, loader(61), selection, weights, max_epochs=5)
    assert {float(w) for _, _, step in weights.steps for w in step} == {1.0, 2.0}
    if module is not Returning:
        for name, value in written_out(weights.steps).network.state_dict().items():
            assert torch.allclose(value, net.network.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize("made", [torch.mean, torch.sum, lambda loss: 0.1 * loss.mean() + 7.0], ids=["mean", "sum", "more terms"])
def test_a_returned_loss_counts_each_sample_as_often_as_its_weight(made):
    """However it was made from the ``sample_loss``."""

    class Terms(Returning):
        def training_step(self, batch, batch_idx):
            outputs = super().training_step(batch, batch_idx)
            return {**outputs, "loss": made(outputs["sample_loss"])}

    selection = SampleSelection("infobatch", end_fraction=0.0)
    net, twin = Terms(dropout=0.0, rate=0.01), Terms(dropout=0.0, rate=0.01)
    net.network[1] = twin.network[1] = nn.Identity()  # its second forward would move BatchNorm twice
    seen = Weights(selection)
    fit(net, loader(64), selection, seen, max_epochs=3)
    assert seen.steps[-1][2].max() == 2
    optimizer = twin.configure_optimizers()
    for x, y, weights in seen.steps:
        optimizer.zero_grad()
        made(weights * F.cross_entropy(twin.network(x), y, reduction="none")).backward()
        optimizer.step()
    for name, value in twin.state_dict().items():
        assert torch.allclose(value, net.state_dict()[name], atol=1e-5), name


def test_weights_in_a_run_resumed_in_mid_epoch_are_applied_once(tmp_path):
    """The first step that is seen has weights, so which way they go must be known before."""
    for module in (Net, SureNet):  # whose criterion of reduction "none" could be captured too
        folder = tmp_path / module.__name__
        keep = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        whole, resumed = module(), module()
        made = fit(whole, loader(61), SampleSelection("infobatch"), keep, max_epochs=3, enable_checkpointing=True)
        assert made.global_step > 14
        fit(resumed, loader(61), SampleSelection("infobatch"), max_epochs=3, ckpt_path=folder / "step=13.ckpt")
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_random_hiding_unbiased_weighs_every_kept_sample_alike():
    selection = SampleSelection("random", max_fraction=0.25, unbiased=True)
    seen = Weights(selection)
    fit(Net(), loader(64), selection, seen, Spy(selection), max_epochs=2)
    assert torch.cat([weights for _, _, weights in seen.steps]).tolist() == pytest.approx([4 / 3] * 96)


# ---- what cannot be weighed is refused


def test_weights_need_the_graph_of_a_returned_loss():
    class Detached(Returning):
        def training_step(self, batch, batch_idx):
            outputs = super().training_step(batch, batch_idx)
            return {**outputs, "sample_loss": outputs["sample_loss"].detach()}

    with pytest.raises(OutputsError, match="'sample_loss', the latter with its graph"):
        fit(Detached(), loader(64), SampleSelection("infobatch"), max_epochs=4)


def test_a_loss_that_is_not_made_from_the_returned_values_is_refused():
    class Apart(Returning):
        def training_step(self, batch, batch_idx):
            outputs = super().training_step(batch, batch_idx)
            return {**outputs, "loss": -self.network(batch[0]).log_softmax(1)[:, 0].mean()}

    with pytest.raises(OutputsError, match="the weights never reached the gradient"):
        fit(Apart(dropout=0.0), loader(64), SampleSelection("infobatch"), max_epochs=4)


def test_weights_cannot_go_through_a_function_of_the_batch():
    class WithFunction(Net):
        def training_step(self, batch, batch_idx):
            return -(self.network(batch[0]).log_softmax(1)[torch.arange(len(batch[1])), batch[1]]).mean()

        def sample_outputs(self, batch):
            logits = self.network(batch[0])
            return {"sample_loss": F.cross_entropy(logits, batch[1], reduction="none"), "logits": logits, "target": batch[1]}

    with pytest.raises(OutputsError, match=r"loss weights: they cannot enter .* \(unbiased=False\)"):
        fit(WithFunction(), loader(64), SampleSelection("infobatch"), max_epochs=4)


def test_weights_are_refused_under_manual_optimization():
    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ConflictError, match=r"automatic_optimization=False: the loss weights of infobatch"):
        fit(Manual(), loader(64), SampleSelection("infobatch"))


def test_accumulated_batches_keep_their_weights():
    selection = SampleSelection("infobatch", end_fraction=0.0)
    seen = Weights(selection)
    net = Net(dropout=0.0)
    train = DataLoader(Points(64), 8, shuffle=True)
    fit(net, train, selection, seen, max_epochs=3, accumulate_grad_batches=2)
    twin = Net(dropout=0.0)
    optimizer, begin = twin.configure_optimizers(), 0
    for end in epoch_ends(seen.steps, selection):
        for first in range(begin, end, 2):
            together = seen.steps[first : min(first + 2, end)]
            losses = [w * F.cross_entropy(twin.network(x), y, reduction="none") for x, y, w in together]
            torch.cat(losses).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        begin = end
    for name, value in twin.state_dict().items():
        assert torch.allclose(value, net.state_dict()[name], atol=1e-6), name


def epoch_ends(steps, selection):
    """Numbers of steps behind each epoch's last, from where a sample comes again."""
    ends, seen = [], set()
    for number, (x, _, _) in enumerate(steps):
        rows = {tuple(row.tolist()) for row in x}
        if rows & seen:
            ends.append(number)
            seen = set()
        seen |= rows
    return [*ends, len(steps)]
