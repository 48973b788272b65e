"""Lightning's learning-rate finder and batch-size scaler leave a stream as if they had not run."""

from itertools import product

import lightning
import pytest
import torch
from helpers import Points, fit, trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from streamed import BATCH, EPOCHS, SAMPLES, Draws, LogitsNet, assert_same_weights
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.methods import LB, PLB

FIND = {"min_lr": 1e-4, "max_lr": 1e-2, "num_training_steps": 12, "early_stop_threshold": None}


class SelfLoading(LogitsNet):
    """Brings no validation: Lightning's finder does nothing after the first epoch where there is one."""

    batch_size = BATCH

    def train_dataloader(self):
        return DataLoader(Points(SAMPLES), batch_size=self.batch_size, shuffle=True)


def run(method, *callbacks, net=None, **settings):
    selection, net = SampleSelection(method), net or SelfLoading()
    draws = Draws(selection)
    made = fit(net, None, selection, draws, *callbacks, **{"max_epochs": EPOCHS, **settings})
    return made, selection, draws, net


class FindLater(LearningRateFinder):
    """Looks for a rate before some epochs."""

    def __init__(self, epoch, **settings):
        super().__init__(**settings)
        self.epoch = epoch

    def on_fit_start(self, *args):
        return

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            self.lr_find(trainer, pl_module)


# its loop goes on with the finder's iterator when it looks for a rate within epoch 0: an error, and no wrong batch in silence
OLD = lightning.__version__.startswith("2.5.")
METHODS = [PLB(), PLB(epoch_length=5), PLB(epoch_length=13), LB(pretrain_epochs=1, epoch_length=20)]


@pytest.mark.parametrize(
    ("method", "when"),
    [
        *((METHODS[0], "tuner"), (METHODS[0], 0)),
        *(
            pytest.param(method, when, marks=() if number in (2, 7) else pytest.mark.slow)
            for number, (method, when) in enumerate(product(METHODS, ("callback", 2)))
        ),
    ],
)
def test_a_rate_finder_leaves_no_trace(tmp_path, method, when):
    epochs = 6  # enough for the finder's steps, which Lightning counts from the epoch it is called in
    _, _, plain, twin = run(method, max_epochs=epochs)
    if when == "tuner":
        selection, net = SampleSelection(method), SelfLoading()
        draws = Draws(selection)
        made = trainer(selection, draws, max_epochs=epochs, default_root_dir=tmp_path)
        Tuner(made).lr_find(net, min_lr=1e-4, max_lr=1e-2, num_training=12, update_attr=False, early_stop_threshold=None)
        torch.manual_seed(0)
        made.fit(net)
    else:
        settings = {"attr_name": "rate", "update_attr": False, **FIND}
        finder = LearningRateFinder(**settings) if when == "callback" else FindLater(when, **settings)
        if when == 0 and OLD:
            with pytest.raises(IndexError, match=r"batch 0 is not known: a stream knows the batch that is trained"):
                run(method, finder, max_epochs=epochs, default_root_dir=tmp_path)
            return
        made, selection, draws, net = run(method, finder, max_epochs=epochs, default_root_dir=tmp_path)
        assert len(finder.optimal_lr.results["lr"]) == 12
    assert draws.batches == plain.batches
    assert_same_weights(twin, net)
    assert selection.totals.samples_trained == sum(len(batch) for e in plain.batches.values() for batch in e.values())
    for epoch, table in plain.tables.items():
        assert torch.equal(draws.tables[epoch], table)


def test_a_rate_finder_before_longer_epochs_leaves_a_users_schedule_its_pace(tmp_path):
    """StepLR is not made from the run's length: it makes one step for each batch."""

    def schedule(optimizer, module):
        return {"scheduler": StepLR(optimizer, 10, 0.5), "interval": "step"}

    made, _, _, _ = run(PLB(epoch_length=13), net=SelfLoading(schedule=schedule))
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == 13 * EPOCHS
    finder = LearningRateFinder(attr_name="rate", update_attr=False, **FIND)
    made, _, _, _ = run(PLB(epoch_length=13), finder, net=SelfLoading(schedule=schedule), default_root_dir=tmp_path)
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == 13 * EPOCHS


@pytest.mark.slow_cases("power")
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_batch_size_finder_streams_with_the_size_it_found(mode, tmp_path):
    class Validated(SelfLoading):
        def val_dataloader(self):
            return DataLoader(Points(16), batch_size=self.batch_size)

    finder = BatchSizeFinder(mode=mode, steps_per_trial=1, init_val=2, max_trials=3)
    _, selection, draws, net = run(PLB(), finder, net=Validated(), default_root_dir=tmp_path)
    size = net.batch_size
    assert size > 2
    assert [len(batches) for batches in draws.batches.values()] == [-(-SAMPLES // size)] * EPOCHS
    assert {len(batch) for batches in draws.batches.values() for batch in batches.values()} == {size}
    assert selection.totals.samples_refreshed == SAMPLES
