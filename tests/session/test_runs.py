"""Runs that continue, begin anew or resume from a checkpoint."""

import pytest
import torch
from helpers import GROWING, Net, Points, Spy, SureNet, assert_trained_as_planned, fit, hide_then_grow, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection

EPOCHS = len(GROWING)


class HandWrittenNet(SureNet):
    """Returns per-sample values and calls no criterion that torch knows."""

    def training_step(self, batch, batch_idx):
        loss = -self.network(batch[0]).log_softmax(1).gather(1, batch[1][:, None]).squeeze(1)
        return {"loss": loss.mean(), "sample_loss": loss, "confidence": (-loss).exp(), "correct": loss < 1e9}


def still(module=SureNet):
    """A module whose training draws no random numbers, so that a resumed run can equal an uninterrupted one."""
    return module(dropout=0.0)


# --- fit again


@pytest.mark.parametrize("module", [Net, SureNet, HandWrittenNet])
def test_a_second_fit_with_more_epochs_continues(module):
    once, twice = Spy(hide_then_grow()), Spy(hide_then_grow())
    whole = module(dropout=0.0, momentum=0.0)  # Lightning makes a new optimizer for each fit
    fit(whole, loader(), once.selection, once, max_epochs=EPOCHS)
    parts = module(dropout=0.0, momentum=0.0)
    made = fit(parts, loader(), twice.selection, twice, max_epochs=2)
    made.fit_loop.max_epochs = EPOCHS
    made.fit(parts, loader())
    assert twice.batches == once.batches
    assert twice.hidden == once.hidden
    assert any(once.hidden.values())
    assert counts(twice) == counts(once)


def test_a_fit_that_was_complete_does_nothing_more():
    selection = hide_then_grow()
    spy = Spy(selection)
    module = SureNet()
    made = fit(module, loader(), selection, spy, max_epochs=2)
    made.fit(module, loader())
    assert spy.steps == GROWING[:2]


def test_a_callback_in_a_new_trainer_begins_anew():
    selection = hide_then_grow()
    first, second = Spy(selection), Spy(selection)
    fit(still(), loader(), selection, first, max_epochs=EPOCHS)
    fit(still(), loader(57), selection, second, max_epochs=EPOCHS)  # also with other data
    assert second.hidden[0] == []
    assert sorted(second.hidden) == list(range(EPOCHS))
    assert second.trained(0) == list(range(57))
    assert selection.totals.samples_hidden == sum(map(len, second.hidden.values()))


def test_validate_test_and_predict_between_fits_change_nothing():
    selection = hide_then_grow()
    spy = Spy(selection)
    module = still()
    module.predict_step = lambda batch, batch_idx: module.network(batch[0])
    made = fit(module, loader(), selection, spy, max_epochs=2)
    plan = selection.plan
    made.validate(module, loader(), verbose=False)
    made.predict(module, loader())
    assert selection.plan is plan
    made.fit_loop.max_epochs = EPOCHS
    made.fit(module, loader())
    assert spy.steps == GROWING


class Failing(SureNet):
    """Fails once, in the second batch of epoch 2."""

    failed = False

    def training_step(self, batch, batch_idx):
        if self.trainer.current_epoch == 2 and batch_idx == 1 and torch.is_grad_enabled() and not self.failed:
            self.failed = True
            raise RuntimeError("as planned")
        return super().training_step(batch, batch_idx)


def test_a_fit_after_an_exception_trains_the_interrupted_epoch_again():
    selection = hide_then_grow()
    spy, module = Spy(selection), still(Failing)
    made = trainer(selection, spy, max_epochs=EPOCHS)
    with pytest.raises(RuntimeError, match="as planned"):
        made.fit(module, loader())
    assert spy.steps == [8, 4, 2]
    spy.batches.clear()
    made.fit(module, loader())
    assert spy.steps == GROWING[2:]
    for epoch in range(2, EPOCHS):
        assert spy.trained(epoch) == sorted(set(range(64)) - set(spy.hidden[epoch]))


@pytest.mark.parametrize("limit", [2, 1])
def test_reloading_the_data_keeps_the_epochs_right(limit):
    class Reloading(SureNet):
        loaded = 0

        def train_dataloader(self):
            self.loaded += 1
            return loader()

    selection, module = hide_then_grow(), Reloading()
    spy = Spy(selection)
    with pytest.warns(UserWarning, match="reload_dataloaders_every_n_epochs"):
        fit(module, None, selection, spy, max_epochs=EPOCHS, reload_dataloaders_every_n_epochs=limit)
    assert module.loaded == -(-EPOCHS // limit)
    assert spy.steps == list(spy.lengths.values()) == GROWING
    assert_trained_as_planned(spy)


# --- checkpoints


def saved_run(folder, module=SureNet, keep=None, **settings):
    """Train to the end and keep a checkpoint of every epoch; returns the spy, the module and the paths by epoch."""
    selection, trained = hide_then_grow(), still(module)
    spy = Spy(selection)
    keep = keep or ModelCheckpoint(folder, save_top_k=-1, save_on_train_epoch_end=True, filename="{epoch}")
    settings = {"max_epochs": EPOCHS, "val": loader(16, shuffle=False), "enable_checkpointing": True, **settings}
    fit(trained, loader(), selection, keep, spy, **settings)
    return spy, trained, {int(path.stem.split("=")[1].split("-")[0]): path for path in folder.glob("*.ckpt")}


def resumed_run(path, module=SureNet, **settings):
    """Train a new module to the end from a checkpoint, under another global seed."""
    selection, trained = hide_then_grow(), still(module)
    spy = Spy(selection)
    settings = {"max_epochs": EPOCHS, "val": loader(16, shuffle=False), **settings}
    fit(trained, loader(), selection, spy, ckpt_path=path, seed=17, **settings)
    return spy, trained


def assert_continued(spy, whole, module, expected, epochs):
    assert dict(spy.batches) == {epoch: whole.batches[epoch] for epoch in epochs}
    assert {epoch: spy.hidden[epoch] for epoch in epochs} == {epoch: whole.hidden[epoch] for epoch in epochs}
    assert {epoch: spy.validations[epoch] for epoch in epochs} == {epoch: whole.validations[epoch] for epoch in epochs}
    assert {epoch: spy.rates[epoch] for epoch in epochs} == {epoch: whole.rates[epoch] for epoch in epochs}
    for name, value in expected.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    assert counts(spy) == counts(whole)


def counts(spy):
    totals = spy.selection.totals
    return totals.samples_trained, totals.samples_hidden, totals.samples_refreshed


def test_the_state_of_the_callback_is_plain_and_complete(tmp_path):
    whole, _, paths = saved_run(tmp_path)
    checkpoint = torch.load(paths[2], weights_only=True)
    (state,) = [state for key, state in checkpoint["callbacks"].items() if key.startswith("SampleSelection")]
    assert state["method"] == "kakurenbo"
    assert state["settings"]["max_fraction"] == 0.5
    assert state["epoch"] == 2
    assert state["plan"]["hidden"].tolist() == whole.hidden[2]
    assert state["statistics"]["loss"].shape == (64,)
    assert state["statistics"]["loss"].untyped_storage().nbytes() == 64 * 4  # not a view of something larger


@pytest.mark.slow_cases("0", "2")  # 1 is the first epoch after one that hides, 3 the last
@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
@pytest.mark.parametrize("at", ["train epoch end", "validation end"])
def test_resuming_after_an_epoch_trains_what_the_whole_run_trained(tmp_path, epoch, at):
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=at == "train epoch end", filename="{epoch}")
    whole, expected, paths = saved_run(tmp_path, keep=keep)
    spy, module = resumed_run(paths[epoch])
    assert_continued(spy, whole, module, expected, range(epoch + 1, EPOCHS))


@pytest.mark.parametrize("module", [Net, HandWrittenNet])
def test_resuming_refreshes_the_hidden_before_the_first_training_batch(tmp_path, module):
    whole, expected, paths = saved_run(tmp_path, module)
    assert whole.hidden[2]
    spy, trained = resumed_run(paths[2], module)
    assert_continued(spy, whole, trained, expected, range(3, EPOCHS))


@pytest.mark.parametrize("at", ["train epoch end", "validation end"])
@pytest.mark.parametrize("max_epochs", [-1, EPOCHS])
def test_resuming_under_max_steps_trains_what_the_whole_run_trained(tmp_path, at, max_epochs):
    steps = {"max_epochs": max_epochs, "max_steps": 28}
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=at == "train epoch end", filename="{epoch}")
    whole, expected, paths = saved_run(tmp_path, keep=keep, **steps)
    spy, module = resumed_run(paths[1], **steps)
    assert_continued(spy, whole, module, expected, range(2, EPOCHS))


@pytest.mark.parametrize("step", [3, 10, 17])
def test_resuming_within_an_epoch_trains_the_rest_of_it(tmp_path, step):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, expected, paths = saved_run(tmp_path, keep=keep)
    spy, module = resumed_run(paths[step])
    epoch = next(epoch for epoch in range(EPOCHS) if sum(GROWING[: epoch + 1]) > step)
    done = step - sum(GROWING[:epoch])
    assert spy.batches[epoch] == whole.batches[epoch][done:]
    assert [spy.batches[later] for later in range(epoch + 1, EPOCHS)] == [
        whole.batches[later] for later in range(epoch + 1, EPOCHS)
    ]
    assert counts(spy) == counts(whole)
    for name, value in expected.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_resuming_after_an_exception_trains_the_rest(tmp_path):
    whole = Spy(hide_then_grow())
    fit(still(), loader(), whole.selection, whole, max_epochs=EPOCHS)
    with pytest.raises(RuntimeError, match="as planned"):
        fit(
            still(Failing),
            loader(),
            OnExceptionCheckpoint(tmp_path),
            hide_then_grow(),
            max_epochs=EPOCHS,
            enable_checkpointing=True,
        )
    (path,) = tmp_path.glob("*.ckpt")
    spy, _ = resumed_run(path, val=None)
    assert spy.batches[2] == whole.batches[2][1:]
    assert [spy.batches[epoch] for epoch in (3, 4)] == [whole.batches[epoch] for epoch in (3, 4)]


def test_resuming_at_the_last_batch_of_a_shortened_epoch_begins_the_next_one(tmp_path):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, _, paths = saved_run(tmp_path, keep=keep, val=None)
    spy, _ = resumed_run(paths[sum(GROWING[:2])], val=None)
    assert [spy.batches[epoch] for epoch in range(2, EPOCHS)] == [whole.batches[epoch] for epoch in range(2, EPOCHS)]
    assert not spy.batches.get(1)
    assert counts(spy) == counts(whole)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    _, _, paths = saved_run(tmp_path)
    with pytest.raises(ValueError, match=r"data set has 61 samples, the checkpoint's had 64"):
        fit(still(), loader(61), hide_then_grow(), ckpt_path=paths[1], max_epochs=EPOCHS)


def test_a_checkpoint_without_the_callback_starts_to_observe_where_it_resumes(tmp_path):
    keep = ModelCheckpoint(tmp_path, save_last=True)
    fit(still(), loader(), keep, max_epochs=2, enable_checkpointing=True)
    selection = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0)
    spy = Spy(selection)
    fit(still(), DataLoader(Points(64), 8, shuffle=True), selection, spy, ckpt_path=tmp_path / "last.ckpt", max_epochs=EPOCHS)
    assert spy.hidden[2] == []
    assert spy.trained(2) == list(range(64))
    assert spy.hidden[3]
