"""Checkpoints of trainings without the selection, resumed with it: at an epoch's end they go on exactly, within one they are refused."""

import pytest
import torch
from cuts import SaveAt
from helpers import Net, Points, fit
from method_tester import short_run
from torch.utils.data import DataLoader

from kakurenbo_lightning import MismatchError, SampleSelection

EPOCHS, STEPS = 4, 8
# where the checkpoint of epoch 1 was saved -> the epochs left are 2 and 3
ENDS = {"last batch": ("on_train_batch_end", -1), "validation": ("on_validation_end", 0), "epoch": ("on_train_epoch_end", 0)}


class OneCycle(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        total = int(self.trainer.estimated_stepping_batches)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}

    def validation_step(self, batch, batch_idx):
        pass


def items():
    return DataLoader(Points(64), 64 // STEPS)


def train(*callbacks, **settings):
    module = OneCycle(dropout=0.0)
    return fit(module, items(), *callbacks, val=items(), max_epochs=EPOCHS, **settings), module


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder with checkpoints of one training, and the weights that it ended with."""
    folder = tmp_path_factory.mktemp("plain")
    savers = [SaveAt(folder / f"{name}.ckpt", hook, 1, batch) for name, (hook, batch) in ENDS.items()]
    savers.append(SaveAt(folder / "middle.ckpt", "on_train_batch_end", 1, 2))
    fit(Net(), items(), SaveAt(folder / "constant.ckpt", "on_train_batch_end", 1, 2), max_epochs=EPOCHS)
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
    fit(Net(), items(), selection, max_epochs=EPOCHS, ckpt_path=plain[0] / "constant.ckpt")
    assert selection.statistics is not None and selection.statistics.epoch_seen.max() == 3
    assert 0 < selection.totals.samples_trained <= 3 * 64


def test_a_checkpoint_with_a_selection_trains_every_sample_without_it(tmp_path):
    """As the README says: Lightning warns of the callback that is missing."""
    path = tmp_path / "with.ckpt"
    train(SampleSelection("random", max_fraction=0.5), SaveAt(path, "on_train_epoch_end", 1))
    with pytest.warns(UserWarning, match="Please add the following callbacks.*SampleSelection"):
        trainer, _ = train(ckpt_path=path)
    assert trainer.current_epoch == EPOCHS and trainer.num_training_batches == STEPS
