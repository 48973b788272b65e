"""What cannot work is refused before anything is trained, by a message that names the setting, its value and the fix."""

import contextlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, Points, Spy, SureNet, fit, hide_then_grow, loader
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError, OutputsError
from kakurenbo_lightning.trainer.loader_compatibility import warn_of_loader


@contextlib.contextmanager
def refused(error, *parts):
    """The block raises ``error``, and its message has all ``parts``."""
    with pytest.raises(error) as caught:
        yield
    for part in parts:
        assert part in str(caught.value)


class Untrained(Net):
    """Fails the test when it is trained at all."""

    def training_step(self, batch, batch_idx):
        pytest.fail("trained before the refusal")


# --- loaders


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Points(64))


def weighted():
    return WeightedRandomSampler([1.0] * 64, 64)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        pytest.param(
            lambda: DataLoader(Stream(), batch_size=8), ["Stream is iterable data", "map-style", "sb_fixed"], id="iterable"
        ),
        pytest.param(lambda: DataLoader(Points(64), batch_size=None), ["batch_size=None", "set batch_size"], id="no batch size"),
        pytest.param(
            lambda: DataLoader(Points(64), 8, num_workers=1, in_order=False),
            ["in_order=False", "use in_order=True"],
            id="out of order",
        ),
        pytest.param(
            lambda: DataLoader(Points(64), 8, sampler=weighted()),
            ["sampler=WeightedRandomSampler", "shuffle=True"],
            id="weighted",
        ),
        pytest.param(
            lambda: DataLoader(Points(64), batch_sampler=BatchSampler(weighted(), 8, False)),
            ["sampler=WeightedRandomSampler", "shuffle=True"],
            id="weighted in a plain batch sampler",
        ),
        pytest.param(
            lambda: DataLoader(Points(64), 8, sampler=RandomSampler(Points(64), replacement=True)),
            ["sampler=RandomSampler"],
            id="with replacement",
        ),
        pytest.param(
            lambda: DataLoader(Points(64), 8, sampler=RandomSampler(Points(64), num_samples=10)),
            ["sampler=RandomSampler"],
            id="part of the samples",
        ),
        pytest.param(lambda: [loader(), loader()], ["train_dataloader=list", "one", "ConcatDataset"], id="list"),
        pytest.param(lambda: {"a": loader(), "b": loader()}, ["train_dataloader=dict", "ConcatDataset"], id="dict"),
        pytest.param(lambda: CombinedLoader([loader(), loader()]), ["train_dataloader=list", "ConcatDataset"], id="combined"),
        pytest.param(lambda: [torch.zeros(8, 6)], ["train_dataloader=list", "DataLoader"], id="list of batches"),
    ],
)
def test_a_loader_of_this_kind_is_refused(make, parts):
    with refused(ConflictError, *parts):
        fit(Untrained(), make(), hide_then_grow())


def test_a_data_set_that_grows_in_place_is_refused_before_the_next_epoch():
    class Growing(Points):
        grown = 0

        def __len__(self):
            return 64 + self.grown

    data = Growing(80)

    class Grower(SureNet):
        def on_train_epoch_end(self):
            data.grown = 9

    selection = hide_then_grow()
    spy = Spy(selection)
    with refused(ConflictError, "73 samples now", "64 before", "must keep its length"):
        fit(Grower(), DataLoader(data, 8, shuffle=True), selection, spy)
    assert spy.steps == [8]


@pytest.mark.filterwarnings("ignore:.*reload_dataloaders_every_n_epochs")
def test_a_data_set_of_another_length_at_reload_is_refused():
    class Reloading(SureNet):
        def train_dataloader(self):
            return loader(64 + self.current_epoch)

    with refused(ConflictError, "65 samples now", "64 before", "must keep its length"):
        fit(Reloading(), None, hide_then_grow(), reload_dataloaders_every_n_epochs=1)


def test_a_second_fit_with_other_data_is_refused():
    module = SureNet()
    made = fit(module, loader(), hide_then_grow(), max_epochs=1)
    made.fit_loop.max_epochs = 2
    with refused(ConflictError, "61 samples now", "64 before", "new Trainer"):
        made.fit(module, loader(61))


@pytest.mark.parametrize(
    ("ranks", "settings", "warns"),
    [
        (2, {"num_workers": 2, "multiprocessing_context": "fork"}, True),
        (2, {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True}, False),
        (2, {"num_workers": 2, "multiprocessing_context": "forkserver"}, False),
        (2, {}, False),
        (1, {"num_workers": 2, "multiprocessing_context": "fork"}, False),
    ],
)
def test_workers_that_several_ranks_fork_again_and_again_are_warned_of(recwarn, ranks, settings, warns):
    warn_of_loader(loader(**settings), ranks)
    said = [str(warning.message) for warning in recwarn]
    assert [("forks its workers again" in text, "persistent_workers=True" in text) for text in said] == [(True, True)] * warns


def test_wrapping_before_the_fit_is_refused():
    with refused(ConflictError, "before Trainer.fit", "train_dataloader"):
        SampleSelection("baseline").wrap(loader())


# --- Trainer and module


@pytest.mark.parametrize("batches", [0.5, 3])
def test_overfit_batches_is_refused(batches):
    with refused(ConflictError, f"overfit_batches={batches}", "limit_train_batches"):
        fit(Untrained(), loader(), hide_then_grow(), overfit_batches=batches)


def test_a_strategy_is_refused_before_training():
    strategy = type("XLAStrategy", (SingleDeviceStrategy,), {})(device="cpu")
    with refused(ConflictError, "strategy=XLAStrategy", "strategy='ddp'"):
        fit(Untrained(), loader(), hide_then_grow(), strategy=strategy)


def test_a_step_that_takes_the_iterator_is_refused():
    class Iterating(Net):
        def training_step(self, dataloader_iter):
            pytest.fail("trained before the refusal")

    with refused(ConflictError, "training_step(dataloader_iter)", "training_step(batch, batch_idx)"):
        fit(Iterating(), loader(), hide_then_grow())


def test_milestones_as_shares_of_a_run_without_end_are_refused():
    selection = SampleSelection("kakurenbo", milestones=(0.3, 0.6, 0.8))
    with refused(ValueError, "milestones=(0.3, 0.6, 0.8)", "max_epochs", "milestones in epochs"):
        fit(Untrained(), loader(), selection, max_epochs=-1)


def test_milestones_in_epochs_work_in_a_run_without_end():
    class Stopping(SureNet):
        def on_train_epoch_end(self):
            self.trainer.should_stop = self.current_epoch == 2

    selection = hide_then_grow()
    spy = Spy(selection)
    fit(Stopping(), loader(), selection, spy, max_epochs=-1)
    assert spy.steps == [8, 4, 4]


# --- per-sample values


class Returning(Net):
    """Returns what ``change(values, batch)`` makes of right values."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def training_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        loss = F.cross_entropy(logits, batch[1], reduction="none")
        return {"loss": loss.mean(), **self.change({"sample_loss": loss, "logits": logits, "target": batch[1]})}


def only(*names):
    return lambda values: {name: values[name] for name in names}


def changed(name, change):
    return lambda values: {**values, name: change(values[name])}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        pytest.param(changed("sample_loss", lambda v: v[:-1]), ["loss has shape [7]", "8 samples", "[8]"], id="too short"),
        pytest.param(changed("sample_loss", lambda v: v[:, None]), ["loss has shape [8, 1]", "[8]"], id="a column"),
        pytest.param(changed("sample_loss", lambda v: v.mean()), ["loss has shape []", "[8]"], id="a scalar"),
        pytest.param(changed("logits", lambda v: v[:4]), ["[4, 3]", "8 samples"], id="fewer logits"),
        pytest.param(changed("sample_loss", lambda v: v.tolist()), ["sample_loss", "list", "tensor"], id="a list"),
        pytest.param(changed("sample_loss", lambda v: v.detach().to("meta")), ["meta", "cpu", "device"], id="other device"),
        pytest.param(
            lambda values: {name: value.detach().to("meta") for name, value in values.items()},
            ["meta", "cpu", "device"],
            id="all on another device",
        ),
        pytest.param(only("sample_loss"), ["reads confidence, correct", "logits", "target"], id="loss alone"),
        pytest.param(
            lambda values: {"sample_loss": values["sample_loss"], "confidence": values["sample_loss"]},
            ["reads correct", "correct (bool)"],
            id="without correct",
        ),
    ],
)
def test_returned_values_that_do_not_fit_are_refused_on_the_first_batch(change, parts):
    selection = hide_then_grow()
    spy = Spy(selection)
    with refused(OutputsError, "per-sample values", *parts):
        fit(Returning(change), loader(), selection, spy)
    assert spy.steps == [1]


def without_criterion(logits, target):
    return -logits.log_softmax(1).gather(1, target[:, None]).mean()


def mixup(logits, target):
    return 0.7 * F.cross_entropy(logits, target) + 0.3 * F.cross_entropy(logits, target.flip(0))


def half_the_batch(logits, target):
    return F.cross_entropy(logits[:4], target[:4])


def regression(logits, target):
    return F.mse_loss(logits, F.one_hot(target, 3).float())


class Criterion(Net):
    """Computes its loss with a function of logits and target."""

    def __init__(self, criterion):
        super().__init__()
        self.criterion = criterion

    def training_step(self, batch, batch_idx):
        return self.criterion(self.network(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("criterion", "parts"),
    [
        (without_criterion, ["reads confidence, correct", "mean of [8, 1]", "only loss", "sample_loss", "logits", "target"]),
        (mixup, ["2 criterion calls (F.cross_entropy, F.cross_entropy)", "exactly one", "sample_loss"]),
        (half_the_batch, ["4 rows", "8 samples"]),
        (regression, ["reads confidence, correct", "F.mse_loss", "only loss"]),
    ],
)
def test_a_criterion_that_says_too_little_is_refused_on_the_first_batch(criterion, parts):
    selection = hide_then_grow()
    spy = Spy(selection)
    with refused(OutputsError, "per-sample values", *parts):
        fit(Criterion(criterion), loader(), selection, spy)
    assert spy.steps == [1]


@pytest.mark.parametrize("method", ["baseline", "random"])
@pytest.mark.parametrize("criterion", [without_criterion, mixup, regression])
def test_a_method_that_needs_no_values_takes_any_step(method, criterion):
    selection = SampleSelection(method)
    spy = Spy(selection)
    fit(Criterion(criterion), loader(), selection, spy)
    assert spy.steps == [8 if method == "baseline" else 6] * 4


@pytest.mark.parametrize("method", ["baseline", "random"])
def test_a_method_that_needs_no_values_takes_a_step_that_changes_its_mind(method):
    class Sometimes(Net):
        def training_step(self, batch, batch_idx):
            return (mixup if batch_idx % 2 else F.cross_entropy)(self.network(batch[0]), batch[1])

    selection = SampleSelection(method)
    spy = Spy(selection)
    fit(Sometimes(), loader(), selection, spy)
    assert spy.steps == [8 if method == "baseline" else 6] * 4


# --- losses that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_samples_without_a_finite_loss_are_never_hidden_and_counted_with_one_warning(value):
    class Broken(SureNet):
        def training_step(self, batch, batch_idx):
            outputs = super().training_step(batch, batch_idx)
            broken = torch.isin(batch[2], torch.tensor([5, 40]))
            return {**outputs, "sample_loss": outputs["sample_loss"].masked_fill(broken, value)}

    selection = SampleSelection("kakurenbo", max_fraction=0.99, tau=0.0, fractions=(1.0,), milestones=())
    spy, counted = Spy(selection), []

    class Counter(Spy):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch:
                counted.append(float(trainer.callback_metrics["selection/nonfinite"]))

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made = fit(Broken(), loader(), selection, spy, Counter())
    assert [spy.trained(epoch) for epoch in range(1, 4)] == [sorted({5, 40, *spy.trained(epoch)}) for epoch in range(1, 4)]
    assert all(len(spy.hidden[epoch]) == 62 for epoch in range(1, 4))
    assert [*counted, float(made.callback_metrics["selection/nonfinite"])] == [0, 2, 2, 2]
    assert len([w for w in seen if "2 of 64 samples have a NaN or infinite loss" in str(w.message)]) == 1
