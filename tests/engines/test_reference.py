"""RHO-Loss by a trained model, which gives the irreducible loss of each sample when it comes."""

import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuts import SaveAt
from driven import Trained
from flows import flowing
from held_out import held_out, losses_of, rho
from helpers import CLASSES, FEATURES, Net, Points, fit, loader
from lightning.pytorch.callbacks import Callback
from proxies import Proxy
from torch import nn

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError, MismatchError, OutputsError

SAMPLES, EPOCHS = 61, 3


def trained(method, train=None, *callbacks, net=None, scorer=None, **settings):
    selection, seen = SampleSelection(method, seed=3, scorer=scorer), Trained()
    net = Net() if net is None else net
    fit(
        net,
        loader(SAMPLES) if train is None else train,
        *callbacks,
        selection,
        seen,
        **{"max_epochs": EPOCHS, "seed": 0, **settings},
    )
    return selection, seen, net


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# --- what is chosen


def numpy_losses(state, x, y):
    """The cross-entropy of each sample in eval mode, by hand."""
    w = {name: value.double().numpy() for name, value in state.items()}
    losses = []
    for row, label in zip(x.double().numpy(), y.tolist(), strict=True):
        hidden = w["network.0.weight"] @ row + w["network.0.bias"]
        spread = np.sqrt(w["network.1.running_var"] + 1e-5)
        hidden = (hidden - w["network.1.running_mean"]) / spread * w["network.1.weight"] + w["network.1.bias"]
        logits = w["network.4.weight"] @ np.maximum(hidden, 0) + w["network.4.bias"]
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
    return losses


class ByHand(Callback):
    """What each batch of a scored epoch has to train, before the selection chooses; stands before it."""

    def __init__(self, irreducible):
        self.irreducible, self.expected = irreducible, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        x, y, index = batch
        if trainer.current_epoch:
            now, held = numpy_losses(pl_module.state_dict(), x, y), numpy_losses(self.irreducible, x, y)
            order = sorted(range(len(index)), key=lambda row: held[row] - now[row])
            chosen = [int(index[row]) for row in order[: max(2, len(index) // 2)]]
            self.expected.setdefault(trainer.current_epoch, []).append(sorted(chosen))


def test_each_step_trains_the_samples_whose_loss_is_furthest_above_the_models():
    by_hand = ByHand(held_out().state_dict())
    _, seen, _ = trained(rho(), None, by_hand)
    for epoch in range(1, EPOCHS):
        assert [sorted(batch[2].tolist()) for batch in seen.batches[epoch]] == by_hand.expected[epoch]


@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_a_model_chooses_what_a_table_of_its_losses_chooses_to_the_bit(warmup_epochs, tmp_path):
    torch.save({"irreducible": losses_of(held_out(), Points(SAMPLES))}, tmp_path / "table.pt")
    by_table, by_model = (trained(rho(given, warmup_epochs=warmup_epochs)) for given in (str(tmp_path / "table.pt"), held_out()))
    assert same_weights(by_table[2], by_model[2])
    assert [by_table[1].indices(epoch) for epoch in range(EPOCHS)] == [by_model[1].indices(epoch) for epoch in range(EPOCHS)]
    for name in ("samples_trained", "samples_scored", "samples_rejected"):
        assert getattr(by_table[0].totals, name) == getattr(by_model[0].totals, name) > 0


def test_a_scorer_may_stand_for_the_module_beside_it():
    """A high loss by the scorer alone is trained, unless the model's is as high."""

    class Even(Proxy):
        def sample_outputs(self, batch):
            return {"sample_loss": (batch[2] % 2).float()}

        def configure_optimizers(self):
            return None

    class Third(Net):
        def sample_outputs(self, batch):
            return {"sample_loss": 2.0 * (batch[2] % 3 == 0)}

    _, seen, _ = trained(rho(Third(), fraction=0.2), loader(SAMPLES, batch_size=30, shuffle=False), scorer=Even())
    chosen = {index for epoch in range(1, EPOCHS) for batch in seen.batches[epoch] for index in batch[2].tolist()}
    assert chosen and all(index % 2 and index % 3 for index in chosen)


def test_losses_that_are_nan_are_never_trained_and_counted():
    class Gaps(Net):
        def sample_outputs(self, batch):
            return {"sample_loss": torch.where(batch[2] < 10, float("nan"), 0.0)}

    class Counted(Callback):
        unknown = ()

        def on_train_epoch_end(self, trainer, pl_module):
            self.unknown += (int(trainer.callback_metrics["selection/unknown"]),)

    counted = Counted()
    selection, seen = SampleSelection(rho(Gaps())), Trained()
    fit(Net(), loader(SAMPLES), selection, counted, seen, max_epochs=3)
    assert counted.unknown == (0, 10, 10)
    assert min(index for epoch in (1, 2) for index in seen.indices(epoch)) >= 10


# --- the model stays as it is


def watched():
    """A model, and how each of its steps was run: the mode, and the dtype of the weights."""
    ran = []

    class Watched(Net):
        def training_step(self, batch, batch_idx):
            ran.append((self.training, self.network[0].weight.dtype))
            self.log("held_out", 1.0)
            return super().training_step(batch, batch_idx)

    return held_out(Watched), ran


def test_it_scores_in_eval_mode_and_is_afterwards_what_it_was():
    model, ran = watched()
    before, flags = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    trained(rho(model))
    assert ran and not any(training for training, _ in ran)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == flags and all(flags)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_it_draws_no_random_number_of_the_training():
    class Drawing(Net):
        def training_step(self, batch, batch_idx):
            torch.rand(3)
            return super().training_step(batch, batch_idx)

    assert same_weights(trained(rho(held_out(Drawing)))[2], trained(rho(held_out()))[2])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_it_has_the_precision_of_the_trainer(precision, dtype):
    model, ran = watched()
    selection, _, _ = trained(rho(model), precision=precision, max_epochs=2)
    assert {kind for _, kind in ran} == {dtype}
    assert selection.totals.samples_rejected > 10


def test_neither_optimizer_nor_checkpoint_holds_it(tmp_path):
    model, path = held_out(), tmp_path / "kept.ckpt"
    net = Net()
    selection, _, _ = trained(rho(model), None, SaveAt(path, "on_train_epoch_end", 1), net=net)
    assert not {id(each) for each in model.parameters()} & {
        id(each) for group in net.trainer.optimizers[0].param_groups for each in group["params"]
    }
    saved = torch.load(path, weights_only=True)
    held = saved["callbacks"]["SampleSelection"]
    assert held["settings"]["irreducible"] == f"Net with the hash {selection.method.irreducible.digest}"

    def tensors(state):
        parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
        return [state] if isinstance(state, torch.Tensor) else [each for part in parts for each in tensors(part)]

    weights = list(model.parameters())
    assert not any(torch.equal(each, weight) for each in tensors(saved) for weight in weights if each.shape == weight.shape)


# --- cut and resumed


@pytest.mark.parametrize("place", [("on_train_batch_end", 1, 3), ("on_train_epoch_end", 1, 0)], ids=["within", "ended"])
def test_a_run_that_is_cut_goes_on_as_if_it_had_not_been(place, tmp_path):
    path = tmp_path / "cut.ckpt"
    uncut = trained(rho(), None, SaveAt(path, *place))
    resumed = trained(rho(), ckpt_path=path, seed=9)
    assert same_weights(resumed[2], uncut[2])
    assert resumed[1].indices(EPOCHS - 1) == uncut[1].indices(EPOCHS - 1)


def test_another_model_is_refused_when_resuming(tmp_path):
    path = tmp_path / "cut.ckpt"
    trained(rho(), None, SaveAt(path, "on_train_epoch_end", 1))
    other = held_out()
    with torch.no_grad():
        other.network[0].weight[0, 0] += 1e-6
    with pytest.raises(MismatchError, match=r"irreducible='Net with the hash \w+', the checkpoint has 'Net with the hash \w+'"):
        trained(rho(other), ckpt_path=path)
    with pytest.raises(MismatchError, match=r"irreducible='irreducible.pt', the checkpoint has 'Net with the hash \w+'"):
        torch.save({"irreducible": torch.zeros(SAMPLES)}, tmp_path / "irreducible.pt")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            trained(rho("irreducible.pt"), ckpt_path=path)


# --- a model that is none is refused when the selection is made


class Silent(pl.LightningModule):
    """A network without a step."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(FEATURES, CLASSES)


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


def with_nan():
    net = Net()
    with torch.no_grad():
        net.network[4].bias[1] = float("nan")
    return net


def lazy():
    net = Net()
    net.network[0] = nn.LazyLinear(8)
    return net


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Net, r"Net is a class, give an object such as Net.load_from_checkpoint"),
        (lambda: nn.Linear(FEATURES, CLASSES), r"Linear has neither training_step nor sample_outputs\(batch\)"),
        (Silent, r"Silent has neither training_step nor sample_outputs\(batch\)"),
        (Manual, r"Manual has automatic_optimization=False, .* give it sample_outputs\(batch\)"),
        (with_nan, r"network.4.bias of Net holds NaN"),
        (lambda: Net().to("meta"), r"network.0.weight of Net has no values yet"),
        (lazy, r"network.0.weight of Net has no values yet"),
        (lambda: torch.zeros(3), r"irreducible must be the path of a file, or a LightningModule that was trained on other data"),
    ],
    ids=["class", "network", "no step", "manual", "nan", "meta", "lazy", "tensor"],
)
def test_what_cannot_give_losses_is_refused_when_the_selection_is_made(make, match):
    with pytest.raises(ValueError, match=f"^rho_loss: irreducible=.*{match}"):
        SampleSelection("rho_loss", irreducible=make())


def test_a_buffer_may_be_infinite_as_that_of_a_causal_mask_is():
    net = Net()
    net.register_buffer("mask", torch.full((2, 2), -float("inf")).triu(1))
    assert not rho(net).needs_index


# --- and one that fails, on the first batch, before a step is made and though a warm-up comes first


class Scalar(Net):
    def sample_outputs(self, batch):
        return {"sample_loss": F.cross_entropy(self.network(batch[0]), batch[1])}


class Shorter(Net):
    def sample_outputs(self, batch):
        return {"sample_loss": F.cross_entropy(self.network(batch[0]), batch[1], reduction="none")[1:]}


class OverTheBatch(Net):
    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).mean(0).square().sum()


class AllNaN(Net):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]) * float("nan"), batch[1])


class Failing(Net):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("kind", "error", "match"),
    [
        (Scalar, OutputsError, r"irreducible=Scalar: .* sample_loss has shape \[\], but the batch trains 8 samples"),
        (Shorter, OutputsError, r"irreducible=Shorter: .* sample_loss has shape \[7\], but the batch trains 8 samples"),
        (OverTheBatch, OutputsError, r"irreducible=OverTheBatch: of its own training_step, not of the module's"),
        (AllNaN, OutputsError, r"irreducible=AllNaN: its loss of every sample of the first batch is NaN or infinite"),
        (Failing, RuntimeError, r"mat1 and mat2"),
    ],
)
def test_a_model_that_gives_no_loss_of_each_sample_is_refused_before_the_first_step(kind, error, match):
    net = Net()
    with pytest.raises(error, match=match) as caught:
        trained(rho(kind(), warmup_epochs=2), net=net)
    assert net.trainer.global_step == 0
    if kind is Failing and hasattr(caught.value, "__notes__"):  # since Python 3.11
        assert any("the step of irreducible=Failing, which scores beside the module" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("where", ["the module", "an attribute"])
def test_a_model_that_would_be_trained_is_refused(where):
    net = Net()
    if where == "an attribute":
        net.held_out = held_out()
    with pytest.raises(ConflictError, match="irreducible=Net shares parameters with the module that is trained"):
        trained(rho(net if where == "the module" else net.held_out), net=net)
    assert net.trainer.global_step == 0


def test_a_stream_names_the_setting_that_does_without_an_index(tmp_path):
    torch.save({"irreducible": torch.zeros(64)}, tmp_path / "table.pt")
    with pytest.raises(ConflictError, match="katharopoulos, rho_loss with irreducible=a trained LightningModule, sb_fixed"):
        trained(rho(str(tmp_path / "table.pt")), flowing())
