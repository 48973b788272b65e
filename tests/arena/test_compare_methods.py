"""`compare` through the real Trainer."""

import math
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from helpers import Points, loader
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection, compare

OPTIONS = {"accelerator": "cpu", "devices": 1}
METHODS = [("kakurenbo", {"max_fraction": 0.5, "tau": 0.0}), "infobatch"]


class Net(pl.LightningModule):
    """As a user has it: made with weights of the seed, its learning rate ends with the training."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.layer(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def loaders():
    return loader(48), DataLoader(Points(24, seed=1), batch_size=8)


def test_every_method_has_its_two_controls(tmp_path):
    settings = {"monitor": "val_loss", "mode": "min", "seeds": 2, "max_epochs": 4, **OPTIONS}
    outcome = compare(Net, loaders, METHODS, folder=tmp_path, **settings)
    assert [one.name for one in outcome.standings] == ["baseline", "kakurenbo max_fraction=0.5 tau=0.0", "infobatch"]
    for one in outcome.standings[1:]:
        assert [len(each.values) for each in (one.gain, one.over_random, one.over_time)] == [2, 2, 2]
    assert outcome.standings[1].trained.mean < 0.9
    assert str(outcome).split()[0] == "method"
    assert "infobatch" in str(outcome)
    again = compare(pytest.fail, pytest.fail, METHODS, folder=tmp_path, **settings)  # everything is there
    assert again.rows == outcome.rows


def test_the_same_seed_gives_the_same_scores():
    def scores():
        outcome = compare(Net, loaders, METHODS[:1], monitor="val_loss", mode="min", seeds=[3], max_epochs=2, **OPTIONS)
        return {name: row["score"] for name, row in outcome.rows.items() if "epochs=2" in name}

    assert scores() == scores()


def test_a_metric_that_is_not_logged_is_named():
    with pytest.raises(ValueError, match=r"monitor='val_iou' was not logged; logged were \['val_acc', 'val_loss'\]"):
        compare(Net, loaders, [], monitor="val_iou", seeds=1, max_epochs=1, **OPTIONS)


def test_settings_are_checked_first():
    with pytest.raises(ValueError, match="mode='best' is not allowed; mode must be 'max' or 'min'"):
        compare(pytest.fail, pytest.fail, [], monitor="val_acc", mode="best", max_epochs=1)
    with pytest.raises(ValueError, match=r"infobatch: prune_ratio=2 is not allowed"):
        compare(pytest.fail, pytest.fail, [("infobatch", {"prune_ratio": 2})], monitor="val_acc", max_epochs=1)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader(16)


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        (Net(), Data, r"make_model is an object of Net; it must be a function that makes a module .*: pass Net, not Net\(\)"),
        (Net, Data(), r"make_data is an object of Data; it must be a function that makes a Light.*: pass Data, not Data\(\)"),
        (Net, loaders(), r"make_data is an object of tuple; .*: pass lambda: \(train_loader, val_loader\)"),
        (Net, dict, "make_data made an object of dict; it must make .* return train_loader, val_loader"),
    ],
)
def test_what_is_made_already_is_refused(model, data, said):
    with pytest.raises(ValueError, match=f"^compare: {said}"):
        compare(model, data, [], monitor="val_loss", mode="min", seeds=1, max_epochs=1, **OPTIONS)


class Remembers(pl.Callback):
    """Counts the fits that it was in."""

    def __init__(self, patience=3):
        self.patience, self.fits, self.seen = patience, 0, []

    def on_fit_start(self, trainer, pl_module):
        self.fits += 1
        pl_module.fits = self.fits


class CountedNet(Net):
    """Logs the fits that its callback was in."""

    def validation_step(self, batch, batch_idx):
        self.log("fits", float(getattr(self, "fits", 0)))


class OtherNet(pytorch_lightning.LightningModule):
    """Of Lightning's other name, with a validation loader of its own."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    training_step, validation_step = Net.training_step, Net.validation_step
    configure_optimizers = Net.configure_optimizers

    def val_dataloader(self):
        return loaders()[1]


def test_a_module_of_the_other_name_and_one_loader_are_compared():
    outcome = compare(OtherNet, lambda: loaders()[0], [], monitor="val_acc", seeds=1, max_epochs=1, **OPTIONS)
    (row,) = outcome.rows.values()
    assert 0 < row["score"] <= 1 and f"{100 * row['score']:.2f}" in str(outcome)
    diverged = replace(outcome, rows={**outcome.rows, "diverged": {**row, "seed": 1, "score": math.nan}})
    assert f"{100 * row['score']:.2f}" in str(diverged), "the others are shares still"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"max_steps": 10}, "compare: max_steps=10 is not allowed; trainings end, and are scored, after max_epochs whole epochs"),
        ({"check_val_every_n_epoch": 2}, "compare: check_val_every_n_epoch=2 is not allowed"),
        (
            {"callbacks": SampleSelection("random")},
            "compare: callbacks has a SampleSelection, but each training gets its own",
        ),
        ({"methods": "random"}, r"compare: methods='random' is not allowed; methods must be a list: \['random'\]"),
        ({"methods": [("kakurenbo", 0.5)]}, r"compare: methods has \('kakurenbo', 0\.5\), which is not allowed"),
        ({"seeds": 0}, r"seeds=\[\] is not allowed"),
    ],
)
def test_what_means_nothing_in_a_comparison_is_refused_first(words, said):
    with pytest.raises(ValueError, match=said):
        compare(pytest.fail, pytest.fail, **{"methods": [], "monitor": "val_acc", "max_epochs": 1, **words})


@pytest.mark.parametrize("made", [list, lambda one: one[0]], ids=["a list", "one"])
def test_callbacks_begin_again_in_each_training_and_the_folder_knows_them_again(tmp_path, made):
    settings = {"monitor": "fits", "seeds": 1, "max_epochs": 1, "folder": tmp_path, **OPTIONS}
    outcome = compare(CountedNet, loaders, ["infobatch"], callbacks=made([Remembers()]), **settings)
    assert {row["score"] for row in outcome.rows.values()} == {1.0}
    again = compare(pytest.fail, pytest.fail, ["infobatch"], callbacks=made([Remembers()]), **settings)
    assert again.rows == outcome.rows
    with pytest.raises(ValueError, match="patience=4"):
        compare(pytest.fail, pytest.fail, ["infobatch"], callbacks=made([Remembers(4)]), **settings)


def test_a_setting_that_no_file_can_be_named_by_is_a_sentence():
    with pytest.raises(ValueError, match=r"weighted: its settings name the files .*array.tolist"):
        compare(pytest.fail, pytest.fail, [("weighted", {"weights": torch.ones(48)})], monitor="val_loss", seeds=1, max_epochs=1)
