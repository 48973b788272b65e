"""``SampleSelection.wrap``: the way through Lightning's public API only."""

import csv
from pathlib import Path

import lightning
import pytest
import torch
from cuts import SaveAt
from helpers import GROWING, Net, Spy, SureNet, assert_trained_as_planned, dealt_steps, fit, hide_then_grow, loader
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, SubsetRandomSampler, WeightedRandomSampler

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError, MismatchError
from kakurenbo_lightning.trainer import adapter as trainer_adapter

EPOCHS = len(GROWING)


class WrapsItsLoader:
    """Makes a module of ``helpers`` wrap its own train loader."""

    def __init__(self, selection, count=64, **settings):
        super().__init__(dropout=0.0)
        self.selection, self.count, self.settings = selection, count, settings

    def train_dataloader(self):
        return self.selection.wrap(loader(self.count, **self.settings))

    def val_dataloader(self):
        return loader(16, shuffle=False)


class Wrapping(WrapsItsLoader, SureNet):
    pass


class WrappingScalar(WrapsItsLoader, Net):
    pass


class Gradients(Callback):
    """What has been accumulated when a batch's backward pass is over, by epoch and batch."""

    def __init__(self):
        self.by_batch = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._batch = trainer.current_epoch, batch_idx

    def on_after_backward(self, trainer, pl_module):
        self.by_batch[self._batch] = [parameter.grad.clone() for parameter in pl_module.parameters()]


def hidden_by_epoch(logger):
    """``selection/hidden_fraction`` as a CSVLogger wrote it."""
    if not Path(logger.experiment.metrics_file_path).exists():
        return {}
    with open(logger.experiment.metrics_file_path) as file:
        rows = [row for row in csv.DictReader(file) if row.get("selection/hidden_fraction")]
    return {int(row["epoch"]): float(row["selection/hidden_fraction"]) for row in rows}


@pytest.fixture(params=["known internals", "unknown internals"])
def lightning_version(request, monkeypatch):
    """Lightning as it is, and one that lacks an attribute the loader swap needs."""
    if request.param == "unknown internals":
        lack_an_attribute(monkeypatch)


def lack_an_attribute(monkeypatch):
    monkeypatch.setattr(trainer_adapter, "_PRIVATE", (*trainer_adapter._PRIVATE, "fit_loop._moved_elsewhere"))


def wrapped_fit(selection=None, count=64, module=Wrapping, loader_settings=None, **settings):
    selection = selection or hide_then_grow()
    spy = Spy(selection)
    net = module(selection, count, **(loader_settings or {}))
    made = fit(net, None, selection, spy, **{"max_epochs": EPOCHS, **settings})
    return spy, selection, made


@pytest.mark.usefixtures("lightning_version")
class TestWrap:
    @pytest.mark.slow_cases("64")
    @pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.quick("unknown internals"))])
    @pytest.mark.parametrize("count", [64, 61])
    def test_each_epoch_trains_and_validates_as_planned(self, count, workers):
        spy, selection, _ = wrapped_fit(count=count, loader_settings={"num_workers": workers})
        kept = [count - len(hidden) for hidden in spy.hidden.values()]
        assert spy.steps == [dealt_steps(n, 8) for n in kept]
        assert kept[:4] == [count, count - count // 2, count - count // 2, count - count // 4]
        assert_trained_as_planned(spy, count)
        assert [spy.validations[epoch] for epoch in range(EPOCHS)] == [[n] for n in spy.steps]
        assert torch.equal(selection.statistics.confidence, (torch.arange(count) + 1) / 4096), "each row is of its sample"
        assert selection.statistics.epoch_seen.tolist() == [EPOCHS - 1] * count

    def test_a_step_that_returns_a_scalar_hides_too(self):
        spy, _, _ = wrapped_fit(module=WrappingScalar)
        assert_trained_as_planned(spy)

    def test_a_method_that_hides_from_the_first_epoch_on_works(self):
        spy, _, _ = wrapped_fit(SampleSelection("random", max_fraction=0.25))
        assert spy.steps == [6] * EPOCHS
        assert [len(hidden) for hidden in spy.hidden.values()] == [16] * EPOCHS
        assert_trained_as_planned(spy)

    def test_validation_by_batches_max_steps_and_an_integer_limit_work(self):
        spy, _, _ = wrapped_fit(val_check_interval=3)
        assert [spy.validations[epoch] for epoch in range(EPOCHS)] == [[3, 6], [3], [3], [3, 6], [3, 6]]
        _, _, made = wrapped_fit(max_steps=13, max_epochs=-1)
        assert made.global_step == 13
        with pytest.warns(UserWarning, match="limit_train_batches=3"):
            spy, _, _ = wrapped_fit(limit_train_batches=3)
        assert spy.steps == [3] * EPOCHS

    def test_accumulation_steps_at_the_end_of_each_epoch(self):
        spy, _, _ = wrapped_fit(accumulate_grad_batches=3)
        assert [len(spy.rates[epoch]) for epoch in range(EPOCHS)] == [3, 2, 2, 2, 3]

    def test_a_second_fit_continues(self):
        once, _, _ = wrapped_fit()
        selection = hide_then_grow()
        twice, module = Spy(selection), Wrapping(selection)
        made = fit(module, None, selection, twice, max_epochs=2)
        made.fit_loop.max_epochs = EPOCHS
        made.fit(module)
        assert twice.steps == once.steps
        assert_trained_as_planned(twice)

    @pytest.mark.slow_cases("known internals")
    @pytest.mark.parametrize("at", ["train epoch end", "validation end"])
    def test_resuming_after_an_epoch_trains_what_the_whole_run_trained(self, tmp_path, at):
        selection = hide_then_grow()
        whole, module = Spy(selection), Wrapping(selection)
        keep = ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=at == "train epoch end", filename="{epoch}")
        fit(module, None, selection, keep, whole, max_epochs=EPOCHS, enable_checkpointing=True)
        spy, _, _ = wrapped_fit(ckpt_path=tmp_path / "epoch=1.ckpt", seed=17)
        assert dict(spy.batches) == {epoch: whole.batches[epoch] for epoch in range(2, EPOCHS)}
        assert {epoch: spy.validations[epoch] for epoch in spy.batches} == {
            epoch: whole.validations[epoch] for epoch in spy.batches
        }

    @pytest.mark.slow_cases("known internals")
    @pytest.mark.parametrize(
        "hook, epoch, batch",
        [
            ("on_train_batch_end", 2, 1),
            ("on_validation_end", 2, 0),
            ("on_train_epoch_end", 2, 0),
            ("on_validation_end", EPOCHS - 1, 0),
            ("on_train_epoch_end", EPOCHS - 1, 0),
            ("on_train_end", EPOCHS, 0),
        ],
    )
    def test_a_resumed_run_counts_and_logs_what_the_whole_run_did(self, tmp_path, hook, epoch, batch):
        loggers = [CSVLogger(tmp_path, name) for name in ("whole", "resumed")]
        _, whole, made = self.run(SaveAt(tmp_path / "saved.ckpt", hook, epoch, batch), logger=loggers[0])
        _, resumed, remade = self.run(ckpt_path=tmp_path / "saved.ckpt", logger=loggers[1], seed=17)
        for name in ("samples_trained", "samples_hidden", "samples_refreshed"):
            assert getattr(resumed.totals, name) == getattr(whole.totals, name)
        for name, column in whole.statistics.state_dict().items():
            assert torch.equal(column, resumed.statistics.state_dict()[name])
        for name, value in made.lightning_module.state_dict().items():
            assert torch.equal(value, remade.lightning_module.state_dict()[name])
        logged, relogged = (hidden_by_epoch(logger) for logger in loggers)
        assert set(range(epoch + 1, EPOCHS)) <= set(relogged) <= set(range(EPOCHS))
        assert relogged == {e: logged[e] for e in relogged}

    def test_a_checkpoint_between_last_batch_and_validation_is_refused(self, tmp_path):
        self.run(SaveAt(tmp_path / "saved.ckpt", "on_train_batch_end", 2, 3))
        with pytest.raises(ConflictError, match=r"last batch of epoch 2 and its validation, where selection.wrap"):
            self.run(ckpt_path=tmp_path / "saved.ckpt")

    @pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "plain Lightning"])
    def test_a_validation_pending_within_an_epoch_is_left_out(self, tmp_path, wrapped):
        run = self.run if wrapped else self.run_plain
        whole, *_ = run(SaveAt(tmp_path / "saved.ckpt", "on_train_batch_end", 2, 1), val_check_interval=2)
        resumed, *_ = run(ckpt_path=tmp_path / "saved.ckpt", val_check_interval=2)
        assert whole.validations[2] == list(range(2, len(whole.batches[2]) + 1, 2)), "one of them after the batch that was saved"
        assert resumed.validations[2] == [n - 2 for n in whole.validations[2][1:]]
        assert resumed.batches[2] == whole.batches[2][2:] or not wrapped, "plain Lightning shuffles with other random numbers"

    def test_accumulated_gradients_are_left_out(self, tmp_path):
        before, after = Gradients(), Gradients()
        self.run(before, SaveAt(tmp_path / "saved.ckpt", "on_train_batch_end", 2, 2), accumulate_grad_batches=2)
        self.run(after, ckpt_path=tmp_path / "saved.ckpt", accumulate_grad_batches=2)
        of_both = zip(after.by_batch[2, 3], before.by_batch[2, 3], before.by_batch[2, 2], strict=True)
        for resumed, whole, missing in of_both:
            torch.testing.assert_close(resumed, whole - missing)
        assert any(missing.abs().max() > 1e-3 for missing in before.by_batch[2, 2])

    @staticmethod
    def run(*callbacks, **settings):
        selection = hide_then_grow()
        spy = Spy(selection)
        made = fit(Wrapping(selection), None, selection, *callbacks, spy, max_epochs=EPOCHS, **settings)
        return spy, selection, made

    @staticmethod
    def run_plain(*callbacks, **settings):
        spy, val = Spy(), loader(16, shuffle=False)
        made = fit(SureNet(dropout=0.0), loader(), *callbacks, spy, val=val, max_epochs=EPOCHS, **settings)
        return spy, None, made


@pytest.mark.parametrize("on_mismatch", ["error", "reset"])
@pytest.mark.parametrize("before", [None, "random"])
def test_an_epoch_of_which_no_selection_is_known_is_refused(tmp_path, before, on_mismatch):
    """Nobody knows which samples are left, and Lightning goes on in the middle of the wrapped loader's first pass."""
    callbacks = [] if before is None else [SampleSelection(before)]
    fit(SureNet(), loader(), *callbacks, SaveAt(tmp_path / "saved.ckpt", "on_train_batch_end", 2, 1))
    with pytest.raises(MismatchError) as caught:
        wrapped_fit(hide_then_grow(on_mismatch=on_mismatch), ckpt_path=tmp_path / "saved.ckpt")
    refused = "the checkpoint was saved after 2 batches of epoch 2 and holds no selection"
    assert (refused if on_mismatch == "reset" or before is None else "method='kakurenbo'") in str(caught.value)


@pytest.mark.parametrize("before", [None, "random"])
def test_after_an_epoch_of_which_no_selection_is_known_it_goes_on(tmp_path, before):
    callbacks = [] if before is None else [SampleSelection(before)]
    fit(SureNet(), loader(), *callbacks, SaveAt(tmp_path / "saved.ckpt", "on_train_epoch_end", 2))
    spy, _, _ = wrapped_fit(hide_then_grow(on_mismatch="reset"), ckpt_path=tmp_path / "saved.ckpt")
    assert spy.steps == [8, 8] and sorted(spy.batches) == [3, 4]


def test_the_batches_and_rates_are_those_of_the_loader_swap():
    wrapped, _, _ = wrapped_fit()
    selection = hide_then_grow()
    swapped = Spy(selection)
    fit(SureNet(dropout=0.0), loader(), selection, swapped, max_epochs=EPOCHS)
    assert wrapped.batches == swapped.batches
    assert wrapped.rates == swapped.rates


def test_without_wrap_a_lightning_that_lacks_an_attribute_is_named(monkeypatch):
    lack_an_attribute(monkeypatch)
    with pytest.raises(ConflictError) as caught:
        fit(SureNet(), loader(), hide_then_grow(), max_epochs=EPOCHS)
    for part in (f"Lightning {lightning.__version__}", "trainer.fit_loop._moved_elsewhere", "selection.wrap(DataLoader"):
        assert part in str(caught.value)


@pytest.mark.parametrize("method", ["forget", "el2n", "selective_backprop", "plb"])
def test_methods_that_skip_steps_or_start_again_need_the_loader_swap(method):
    selection = SampleSelection(method)
    refused = rf"selection.wrap\(...\) cannot skip steps, draw while training or start again, which {method} needs"
    with pytest.raises(ConflictError, match=refused):
        fit(Wrapping(selection), None, selection)


def test_what_wrap_refuses_is_what_the_swap_refuses():
    class Weighted(Wrapping):
        def train_dataloader(self):
            return self.selection.wrap(DataLoader(loader().dataset, 8, sampler=WeightedRandomSampler([1.0] * 64, 64)))

    with pytest.raises(ConflictError, match="sampler=WeightedRandomSampler"):
        wrapped_fit(module=Weighted)


def test_a_wrapped_loader_in_a_list_is_refused():
    class Listing(Wrapping):
        def train_dataloader(self):
            return [super().train_dataloader()]

    with pytest.raises(ConflictError, match=r"train_dataloader=list: selection.wrap\(...\) needs to be returned by itself"):
        wrapped_fit(module=Listing)


def test_wrap_keeps_to_the_samples_of_a_subset():
    class Part(Wrapping):
        def train_dataloader(self):
            return self.selection.wrap(DataLoader(loader().dataset, 8, sampler=SubsetRandomSampler(range(1, 64, 2))))

    spy, _, _ = wrapped_fit(module=Part)
    assert any(spy.hidden.values())
    for epoch, hidden in spy.hidden.items():
        assert sorted(spy.trained(epoch) + hidden) == list(range(1, 64, 2))
