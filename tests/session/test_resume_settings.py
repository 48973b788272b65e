"""Trainer settings that change what a step, an epoch or a validation is: a resumed run is the uninterrupted one all the same."""

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from kakurenbo_lightning import get_method
from recipes.benchmarks.fault_run import differences, position, train

METHOD = "kakurenbo"
SETTINGS = {
    "accumulate": {"accumulate_grad_batches": 2},
    "validation twice an epoch": {"val_check_interval": 0.5},
    "validation every 2 batches": {"val_check_interval": 2},
    "validation every 5 batches of the run": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "validation every 2 epochs": {"check_val_every_n_epoch": 2},
    "a share of the batches": {"limit_train_batches": 0.5},
    "so many batches": {"limit_train_batches": 4},
    "max_steps": {"max_steps": 25},
    "max_steps alone": {"max_steps": 25, "epochs": -1},
    "no validation": {"limit_val_batches": 0},
    "bf16": {"precision": "bf16-mixed"},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*limit_train_batches")


def not_exact(folder, settings, stride, method=METHOD):
    """Run with a checkpoint after every step, resume from every ``stride``-th, and return what differed by position."""
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False)
    whole = train(folder, method, callbacks=(saving,), **settings)
    files = sorted(folder.glob("*.ckpt"), key=lambda file: int(file.stem))
    assert len(files) >= 15
    found = {}
    for file in files[2::stride]:
        names = differences(whole, train(folder, method, seed=9, resume=file, **settings))
        if names:
            where = position(file)
            found[where["epoch"], where["step"]] = names
    return found


@pytest.mark.quick("accumulate", "validation every 5 batches of the run", "max_steps alone", "bf16")
@pytest.mark.parametrize("name", SETTINGS)
def test_cut_and_resumed_equals_uncut(tmp_path, name):
    assert not_exact(tmp_path, SETTINGS[name], stride=7) == {}


def test_batch_norm_counts_what_a_scoring_pass_runs_and_not_what_verifies_it(tmp_path):
    """A run resumed at an epoch's end verifies its first batch within a scoring pass, in train mode here."""
    method = get_method("kakurenbo", max_fraction=0.5, tau=0.0, refresh_mode="train")
    assert not_exact(tmp_path, {"epochs": 3}, stride=1, method=method) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_cut_at_any_step_and_resumed_equals_uncut(tmp_path, name):
    assert not_exact(tmp_path, SETTINGS[name], stride=1) == {}
