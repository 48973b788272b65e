"""A scorer leaves the training of the module alone, and what cannot work with one is refused."""

import random
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, FEATURES, Net
from lightning.pytorch.callbacks import Callback
from proxies import BATCH, EPOCHS, STEPS, Proxy, proxy_fit
from torch.optim.lr_scheduler import (
    ReduceLROnPlateau,
)

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError, OutputsError

# --- the module is trained as it would be without a scorer


def test_random_numbers_of_the_scorer_are_none_of_the_training():
    class Drawing(Proxy):
        def training_step(self, batch, batch_idx):
            random.random()
            np.random.rand()
            torch.rand(3)
            return super().training_step(batch, batch_idx)

    found = []
    for scorer in (Proxy(), Drawing()):
        _, _, _, net = proxy_fit(scorer, module=Net(dropout=0.5))
        found.append((net.state_dict(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()))
    for value, other in zip(*(weights.values() for weights, *_ in found), strict=True):
        assert torch.equal(value, other)
    assert torch.equal(found[0][3], found[1][3])


def test_dropout_of_the_scorer_differs_from_batch_to_batch_and_is_the_same_in_a_second_run():
    kept = []

    class Watched(Proxy):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.training and torch.is_grad_enabled() and loss.requires_grad:
                kept.append(F.dropout(torch.ones(64), 0.5).tolist())
            return loss

    _, _, small, _ = proxy_fit(Watched(dropout=0.5))
    first, number = list(kept), len(small.trained)
    _, _, again, _ = proxy_fit(Watched(dropout=0.5), seed=9)
    assert len({tuple(mask) for mask in first[-number:]}) == number
    assert kept[len(first) :] == first and again.trained == small.trained


def test_the_optimizer_of_the_module_has_the_modules_parameters_alone():
    made, _, small, net = proxy_fit()
    held = {id(parameter) for group in made.optimizers[0].param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in net.parameters()}
    assert len(made.optimizers) == 1 and len(made.lr_scheduler_configs) == 0
    assert made.global_step == STEPS * EPOCHS and small._trainer is None


@pytest.mark.parametrize(
    "precision, dtype", [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_a_scorer_has_the_precision_of_the_trainer_and_trains_in_full_where_it_is_mixed(precision, dtype):
    seen = set()

    class Watched(Proxy):
        def training_step(self, batch, batch_idx):
            logits = self.network(batch[0])
            seen.add((torch.is_grad_enabled() and logits.requires_grad and self.training, logits.dtype))
            return F.cross_entropy(logits, batch[1])

    before = Proxy().state_dict()
    _, _, small, _ = proxy_fit(Watched(), precision=precision)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert (True, dtype) in seen and (False, torch.bfloat16 if precision == "bf16-mixed" else dtype) in seen
    assert not torch.equal(small.network[0].weight.float(), before["network.0.weight"])


def test_an_optimizer_that_repeats_the_step_trains_the_scorer_once_for_it():
    class Repeating(Net):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=3)

    _, _, small, _ = proxy_fit(module=Repeating(dropout=0.0))
    assert len(small.trained) == 11


def test_a_step_with_a_scorer_waits_for_nothing_that_a_step_without_does_not():
    """On a GPU ``.item()`` and its like wait; here they are counted, by the operation that all of them end in."""

    class Quiet(Proxy):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0]), batch[1])

    counted = {}
    for name, every in (("every batch", 1), ("none", 1000)):
        waits = Waits()
        proxy_fit(Quiet(), waits, every=every)
        counted[name] = waits.counted[1:]
    assert counted["every batch"] == counted["none"]


class Waits(Callback):
    """How often an epoch read a number from a tensor."""

    def __init__(self):
        self.counted, self._now = [], 0

    def on_train_start(self, trainer, pl_module):
        item, tolist, truth = torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__
        self._patched = (item, tolist, truth)

        def counting(function):
            def call(*args):
                self._now += 1
                return function(*args)

            return call

        torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__ = map(counting, self._patched)

    def on_train_epoch_end(self, trainer, pl_module):
        self.counted.append(self._now)
        self._now = 0

    def on_train_end(self, trainer, pl_module):
        torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__ = self._patched


# --- what is refused, and what is not


def test_a_scorer_without_an_optimizer_scores_and_is_never_trained():
    class Frozen(Proxy):
        def configure_optimizers(self):
            return None

    before = Frozen().state_dict()
    for every in (None, 2):
        if every is None:
            _, selection, small, _ = proxy_fit(Frozen(), every=every)
        else:
            with pytest.warns(UserWarning, match="train_scorer_every=2 changes nothing: scorer=Frozen has no optimizer"):
                _, selection, small, _ = proxy_fit(Frozen(), every=every)
        assert small.trained == [] and selection.totals.samples_rejected > 0
        assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_a_step_that_returns_nothing_does_not_train_the_scorer():
    class Picky(Proxy):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if torch.is_grad_enabled() and loss.requires_grad and len(batch[0]) == BATCH else loss

    _, _, small, _ = proxy_fit(Picky(), every=1)
    assert len(small.rates) == STEPS * EPOCHS and len(small.trained) > 8


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"train_scorer_every": 4}, "train_scorer_every=4 is not allowed without a scorer, .* add scorer=..., or leave"),
        ({"train_scorer_every": 0, "scorer": Proxy()}, "train_scorer_every=0 is not allowed"),
        ({"keep": 0.5}, "keep=0.5 is not allowed; keep must be None with score='loss'"),
        ({"keep": 0.0, "score": "topk"}, "keep=0.0 is not allowed"),
    ],
)
def test_a_setting_that_cannot_act_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        SampleSelection("selective_backprop", **settings)


def test_a_scorer_that_optimizes_by_itself_is_refused():
    scorer = Proxy()
    scorer.automatic_optimization = False
    with pytest.raises(ValueError, match="scorer=Proxy has automatic_optimization=False, which is not allowed"):
        SampleSelection("selective_backprop", scorer=scorer)


class Stepless(pl.LightningModule):
    """Forward and an optimizer, as a network for inference has them."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.network(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_scorer_without_a_step_is_refused_at_the_start_by_name():
    with pytest.raises(ValueError, match=r"^scorer=Stepless has no training_step.*write one, training_step"):
        SampleSelection("selective_backprop", scorer=Stepless(), train_scorer_every=4)


class BySampleOutputs(Stepless):
    def sample_outputs(self, batch):
        return {"sample_loss": F.cross_entropy(self(batch[0]), batch[1], reduction="none")}


class Untrained(BySampleOutputs):
    def configure_optimizers(self):
        return None


def test_a_scorer_may_score_by_sample_outputs_but_needs_a_step_to_be_trained():
    with pytest.raises(ConflictError, match=r"^scorer=BySampleOutputs has an optimizer, and no training_step to be trained by"):
        proxy_fit(BySampleOutputs(), every=None)
    _, selection, _, _ = proxy_fit(Untrained(), every=None)
    assert selection.totals.samples_rejected > 0


class WholeBatch(Proxy):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1]).sqrt()


class Broken(Proxy):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("broken here")


def test_an_error_of_the_scorers_step_says_whose_it_is():
    with pytest.raises(
        OutputsError, match=r"^scorer=WholeBatch: of its own training_step, not of the module's: .*cannot be split"
    ):
        proxy_fit(WholeBatch(), max_epochs=2)
    with pytest.raises(RuntimeError, match="broken here") as raised:
        proxy_fit(Broken(), max_epochs=2)
    if sys.version_info >= (3, 11):
        assert "this was the step of scorer=Broken" in " ".join(raised.value.__notes__)


def test_a_schedule_that_goes_by_a_metric_is_refused():
    def plateau(optimizer):
        return {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"}

    with pytest.raises(ConflictError, match="scorer=Proxy: its ReduceLROnPlateau has nothing to go by"):
        proxy_fit(Proxy(plateau))


def test_a_scorer_that_shares_parameters_with_the_module_is_refused():
    class Both(Net):
        def __init__(self, small):
            super().__init__(dropout=0.0)
            self.small = small

    scorer = Proxy()
    with pytest.raises(ConflictError, match="scorer=Proxy shares parameters with the module that is trained"):
        proxy_fit(scorer, module=Both(scorer))
