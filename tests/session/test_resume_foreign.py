"""Checkpoints of trainings without the selection, resumed with it: at an epoch's end they go on exactly, within one they are refused."""

import pytest
import torch
from cuts import SaveAt
from helpers import Net, Points, Spy, fit
from method_tester import short_run
from torch.utils.data import DataLoader

from kakurenbo_lightning import MismatchError, SampleSelection

EPOCHS, STEPS = 4, 8
# where the checkpoint of epoch 1 was saved -> the epochs left are 2 and 3
ENDS = {"last batch": ("on_train_batch_end", -1), "validation": ("on_validation_end", 0), "epoch": ("on_train_epoch_end", 0)}
# batch size x accumulated batches, of a training and of the one that resumes it
MORE_LAYOUTS = ["16x1 8x1", "8x2 8x1", "8x1 8x3", "8x2 16x1"]


class OneCycle(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        total = int(self.trainer.estimated_stepping_batches)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}

    def validation_step(self, batch, batch_idx):
        pass


def items(batch_size=64 // STEPS):
    return DataLoader(Points(64), batch_size)


def train(*callbacks, batch_size=64 // STEPS, **settings):
    module = OneCycle(dropout=0.0)
    return fit(module, items(batch_size), *callbacks, val=items(), max_epochs=EPOCHS, **settings), module


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder with checkpoints of one training, and the weights that it ended with."""
    folder = tmp_path_factory.mktemp("plain")
    savers = [SaveAt(folder / f"{name}.ckpt", hook, 1, batch) for name, (hook, batch) in ENDS.items()]
    savers.append(SaveAt(folder / "middle.ckpt", "on_train_batch_end", 1, 2))
    return folder, train(*savers)[1].state_dict()


@pytest.mark.parametrize("end", ENDS)
def test_at_an_epochs_end_training_goes_on_exactly(plain, end):
    """``baseline`` hides nothing, and the loader shuffles nothing: its weights are those of the training without the selection."""
    folder, weights = plain
    selection = SampleSelection("baseline")
    trainer, module = train(selection, ckpt_path=folder / f"{end}.ckpt")
    assert trainer.global_step == EPOCHS * STEPS and selection.totals.samples_trained == 2 * 64
    assert all(torch.equal(module.state_dict()[name], value) for name, value in weights.items())


@pytest.mark.parametrize("method", ["kakurenbo", "selective_backprop", "plb"])
@pytest.mark.parametrize("end", ENDS)
def test_no_epoch_is_trained_twice_and_the_schedule_ends_at_its_end(plain, end, method):
    selection = SampleSelection(short_run(method, 64))
    _, module = train(selection, ckpt_path=plain[0] / f"{end}.ckpt")
    assert module.schedule.last_epoch == EPOCHS * STEPS
    assert 0 < selection.totals.samples_trained <= 2 * 64


@pytest.mark.parametrize("method", ["baseline", "kakurenbo", "selective_backprop", "plb"])
def test_within_an_epoch_it_is_refused_or_the_epoch_begins_again(plain, method):
    checkpoint = plain[0] / "middle.ckpt"
    with pytest.raises(MismatchError, match=r"saved after 3 batches of epoch 1 and holds no selection.*on_mismatch='reset'"):
        train(SampleSelection(short_run(method, 64)), ckpt_path=checkpoint)
    selection = SampleSelection(short_run(method, 64), on_mismatch="reset")
    _, module = train(selection, ckpt_path=checkpoint)
    assert module.schedule.last_epoch == EPOCHS * STEPS, "what was left of the epoch's way is spread over all of it"
    assert selection.statistics is not None and selection.statistics.epoch_seen.max() == 3
    assert 0 < selection.totals.samples_trained <= 3 * 64


@pytest.mark.slow_cases("baseline", *MORE_LAYOUTS)
@pytest.mark.parametrize("method", ["baseline", "kakurenbo"])
@pytest.mark.parametrize("before", [None, "random"])
@pytest.mark.parametrize("moment", ["middle", "epoch"])
@pytest.mark.parametrize("layouts", ["8x1 16x1", "16x1 8x2", *MORE_LAYOUTS])
def test_a_schedule_of_other_batches_and_accumulation_ends_at_its_end(tmp_path, layouts, moment, before, method):
    """Forgotten is what was selected, not how far the schedule is: of a training without a selection, and of one with another."""
    first, then = ([int(number) for number in layout.split("x")] for layout in layouts.split())
    hook, batch = ("on_train_batch_end", 1) if moment == "middle" else ("on_train_epoch_end", 0)
    callbacks = [] if before is None else [SampleSelection(before, max_fraction=0.25)]
    save, spies = SaveAt(tmp_path / "saved.ckpt", hook, 1, batch), (Spy(), Spy())
    _, built = train(*callbacks, save, spies[0], batch_size=first[0], accumulate_grad_batches=first[1])
    callbacks = [SampleSelection(method, on_mismatch="reset"), spies[1]]
    _, module = train(*callbacks, batch_size=then[0], accumulate_grad_batches=then[1], ckpt_path=save.path)
    assert module.schedule.last_epoch == built.schedule.last_epoch == built.schedule.total_steps
    assert spies[1].base_rates[EPOCHS - 1][-1] == pytest.approx(0.1 / 25 / 1e4), "the last step has the schedule's last rate"


def test_a_checkpoint_with_a_selection_trains_every_sample_without_it(tmp_path):
    """As the README says: Lightning warns of the callback that is missing."""
    path = tmp_path / "with.ckpt"
    train(SampleSelection("random", max_fraction=0.5), SaveAt(path, "on_train_epoch_end", 1))
    with pytest.warns(UserWarning, match="Please add the following callbacks.*SampleSelection"):
        trainer, _ = train(ckpt_path=path)
    assert trainer.current_epoch == EPOCHS and trainer.num_training_batches == STEPS
