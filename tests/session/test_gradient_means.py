"""The gradient of each optimizer step, with accumulation: the mean over all the step's samples, however many its batches have."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FEATURES, Net, Points, fit, loader
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError

SAMPLES, BATCH = 61, 8


class Stepping(Net):
    """Compares the gradient of each step with that of all its samples at the weights of the step, in double precision.

    Attributes:
        differences: of each step, the largest of ``|gradient - mean|`` relative to the largest of ``|mean|``.
        sizes: of each step, the lengths of its batches.
    """

    def __init__(self):
        super().__init__(dropout=0.0)
        self.network = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        self.differences, self.sizes, self._batches = [], [], []

    @property
    def selection(self):
        return next(each for each in self.trainer.callbacks if isinstance(each, SampleSelection))

    def losses(self, indices):
        x, y = Points(SAMPLES).x.double(), Points(SAMPLES).y
        return F.cross_entropy(self.network(x[indices]), y[indices], reduction="none")

    def training_step(self, batch, batch_idx):
        if self.trainer.training:
            self._batches.append(batch[2])
        return F.cross_entropy(self.network(batch[0].double()), batch[1])

    def on_before_optimizer_step(self, optimizer):
        weights = getattr(self.selection.plan, "weights", None)
        indices = torch.cat(self._batches)
        losses = self.losses(indices) if weights is None else self.losses(indices) * weights[indices]
        wanted = torch.autograd.grad(losses.mean(), list(self.parameters()))
        found = [parameter.grad for parameter in self.parameters()]
        largest = max(float(each.abs().max()) for each in wanted)
        pairs = zip(found, wanted, strict=True)
        self.differences.append(max(float((mine - each).abs().max()) for mine, each in pairs) / largest)
        self.sizes.append([len(batch) for batch in self._batches])
        self._batches = []


def stepped(selection, *callbacks, module=None, **settings):
    """A module that was trained three epochs, attribution untested so that it counts its own steps alone."""
    module = Stepping() if module is None else module
    fit(module, loader(SAMPLES, BATCH), selection, *callbacks, **{"max_epochs": 3, **settings})
    return module


def selection_of(method, **settings):
    chosen = {"infobatch": {"end_fraction": 0.0}, "kakurenbo": {"max_fraction": 0.3, "tau": 0.0, "refresh_mode": "eval"}}
    of_method = {"random": {"max_fraction": 0.45}, **chosen}.get(method, {})  # 8, 8, 8, 5 and 5 samples
    return SampleSelection(method, check_attribution=False, **of_method, **settings)


@pytest.mark.parametrize("accumulate", [2, 3, 4])
@pytest.mark.parametrize("method", ["random", "infobatch", "kakurenbo"])
def test_a_steps_gradient_is_the_mean_over_all_its_samples(method, accumulate):
    module = stepped(selection_of(method), accumulate_grad_batches=accumulate)
    assert max(module.differences) < 1e-12
    uneven = any(len(set(sizes)) > 1 for sizes in module.sizes)
    incomplete = any(len(sizes) < accumulate for sizes in module.sizes)
    assert uneven or incomplete


@pytest.mark.parametrize(
    ("method", "settings"),
    [("random", {"mean_over_samples": False}), ("baseline", {}), ("plb", {"epoch_length": 8})],
    ids=["switched off", "baseline", "stream"],
)
def test_without_it_a_step_is_divided_as_lightning_does(method, settings):
    module = stepped(selection_of(method, **settings), accumulate_grad_batches=3)
    incomplete = [number for number, sizes in enumerate(module.sizes) if len(sizes) == 2]
    assert incomplete and all(module.differences[number] == pytest.approx(1 / 3, abs=0.15) for number in incomplete)


@pytest.mark.parametrize("method", ["baseline", "plb", "iswr"])
def test_any_method_has_it_when_asked(method):
    module = stepped(selection_of(method, mean_over_samples=True), accumulate_grad_batches=3)
    assert max(module.differences) < 1e-12
    assert any(len(sizes) == 2 for sizes in module.sizes)


@pytest.mark.parametrize("limit", [4, 0.7])
def test_the_last_step_of_an_epoch_that_is_cut_off_is_a_mean_too(limit):
    module = stepped(selection_of("infobatch"), accumulate_grad_batches=3, limit_train_batches=limit)
    assert max(module.differences) < 1e-12
    assert any(len(sizes) < 3 for sizes in module.sizes)


def test_accumulation_that_changes_from_epoch_to_epoch():
    module = stepped(selection_of("random"), GradientAccumulationScheduler({0: 1, 1: 3, 2: 2}))
    assert max(module.differences) < 1e-12
    assert {len(sizes) for sizes in module.sizes} == {1, 2, 3}


def test_a_wrapped_loader_whose_length_is_hidden():
    class Wrapping(Stepping):
        def train_dataloader(self):
            return self.selection.wrap(loader(SAMPLES, BATCH))

    module = Wrapping()
    fit(module, None, selection_of("infobatch"), max_epochs=3, accumulate_grad_batches=3)
    assert max(module.differences) < 1e-12
    assert any(len(sizes) < 3 for sizes in module.sizes)


# --- manual optimization


class Manual(Stepping):
    """Accumulates two batches by itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss * self.selection.loss_scale(accumulate=2) / 2)
        if batch_idx % 2 or batch_idx + 1 == self.trainer.num_training_batches:
            self.on_before_optimizer_step(None)
            self.optimizers().optimizer.step()
            self.optimizers().zero_grad()


def test_under_manual_optimization_the_scale_is_there_to_be_used():
    module = stepped(selection_of("random"), module=Manual())
    assert max(module.differences) < 1e-12
    assert any(len(sizes) == 1 for sizes in module.sizes) and any(len(set(sizes)) > 1 for sizes in module.sizes)


def test_no_batch_of_a_validation_is_scaled():
    class Elsewhere(Manual):
        def training_step(self, batch, batch_idx):
            if self.trainer.training:
                return super().training_step(batch, batch_idx)
            scales.append(self.selection.loss_scale(accumulate=2))
            return Stepping.training_step(self, batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.training_step(batch, batch_idx)

    scales, module = [], Elsewhere()
    train, val = loader(SAMPLES, BATCH), loader(24, BATCH)
    fit(module, train, selection_of("random"), val=val, num_sanity_val_steps=1, val_check_interval=2, max_epochs=3)
    assert len(scales) == 1 + 3 * 2 * 3 and set(scales) == {1.0}
    assert max(module.differences) < 1e-12


@pytest.mark.parametrize("accumulate", [0, 2.0, True, "2"])
def test_the_number_of_accumulated_batches_is_checked(accumulate):
    class Wrong(Manual):
        def training_step(self, batch, batch_idx):
            self.selection.loss_scale(accumulate)

    with pytest.raises(ValueError, match=r"accumulate=.* must be an integer >= 1"):
        stepped(selection_of("random"), module=Wrong())


def test_it_is_refused_by_name_where_the_module_divides_its_loss_itself():
    with pytest.raises(ConflictError, match=r"mean_over_samples=True.*automatic_optimization=False.*loss_scale\(accumulate="):
        stepped(SampleSelection("random", mean_over_samples=True), module=Manual())


def test_the_scale_is_of_a_training():
    with pytest.raises(ConflictError, match=r"before Trainer\.fit"):
        SampleSelection("random").loss_scale()
