"""A `RunRecorder` in trainings that stop, on disks that are full, with Trainers of every kind, and on resuming."""

import os
import signal
import subprocess

import numpy as np
import pytest
import torch
from cuts import SaveAt
from disks import small_disk_at
from helpers import GROWING, Net, hide_then_grow, loader, trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from recorded import EPOCHS, FILES, SAMPLES, Files, LoggingNet, Witness, points, record, run_json
from tuning import FIND, FindLater, SelfLoadingNet

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import RunRecorder
from recipes.benchmarks.forked import run_ranks

# --- bad moments


class At(Callback):
    """Calls `function` in a batch, when what was to be written before is written."""

    def __init__(self, epoch, batch, function):
        self.at, self.function = (epoch, batch), function

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            next(callback for callback in trainer.callbacks if isinstance(callback, RunRecorder)).flush()
            self.function()


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "seen"), [(RuntimeError("as planned"), RuntimeError), (KeyboardInterrupt("enough"), SystemExit)]
)
def test_a_run_that_stops_says_why_and_its_files_are_whole(tmp_path, error, seen):
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(seen):
            record(tmp_path, "kakurenbo", At(3, 2, lambda: fail(error)))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on
    files = Files(tmp_path)
    assert (files.run["status"], files.run["epochs"]) == ("stopped", 3)
    assert files.run["error"] == f"{type(error).__name__}: {error}"
    assert files.run["ended"] is not None
    assert files.epochs["epoch"].tolist() == files.epochs["train/late"].tolist() == [0, 1, 2]
    for name in ("samples_trained", "samples_hidden", "samples_refreshed", "train_seconds"):  # of the epochs that are whole
        assert files.run["totals"][name] == pytest.approx(files.epochs[name].sum()), name
    assert files.run["seconds"] == pytest.approx(files.epochs["elapsed_seconds"].iloc[-1])
    assert files.samples.schema.metadata[b"epochs"] == b"2"
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_the_same_trainer_goes_on_after_an_exception(tmp_path):
    class Once(LoggingNet):
        failed = False

        def training_step(self, batch, batch_idx):
            if self.trainer.current_epoch == 2 and batch_idx == 2 and torch.is_grad_enabled() and not self.failed:
                self.failed = True
                raise RuntimeError("as planned")
            return super().training_step(batch, batch_idx)

    witness, module = Witness(), Once()
    selection = SampleSelection("random", max_fraction=0.3, seed=1)
    made = trainer(selection, RunRecorder(selection, tmp_path), witness, max_epochs=4)
    data = points()
    with pytest.raises(RuntimeError, match="as planned"):
        made.fit(module, data)
    assert run_json(tmp_path)["status"] == "stopped"
    made.fit(module, data)
    files = Files(tmp_path)
    assert files.run["status"] == "finished" and files.run["error"] is None
    assert files.counts().items() >= {name: witness.samples[name] for name in ("times_trained", "times_hidden")}.items()
    assert files.epochs["epoch"].tolist() == [0, 1, 2, 3]


def test_a_file_in_the_folders_place_is_a_warning_and_training_ends(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.warns(UserWarning, match=r"RunRecorder: .*taken.* is not written .*training goes on") as warned:
        _, made = record(tmp_path / "taken")
    assert sum("is not written" in str(each.message) for each in warned) == 1, "and not for every file of every epoch"
    assert made.state.finished and made.current_epoch == EPOCHS
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 100 kB."""
    with small_disk_at(tmp_path / "disk", kilobytes=100) as folder:
        yield folder


def fill(folder):
    with open(folder / "filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            return


def test_a_full_disk_is_a_warning_and_what_was_there_stays_whole(small_disk):
    with pytest.warns(UserWarning, match=r"is not written \(.*No space left") as warned:
        record(small_disk / "run", "kakurenbo", At(2, 2, lambda: fill(small_disk)))
    assert sum("is not written" in str(each.message) for each in warned) == 1
    files = Files(small_disk / "run")
    assert files.run["status"] == "running" and files.epochs["epoch"].tolist() == [0, 1]
    assert {path.name for path in (small_disk / "run").iterdir()} == FILES


def test_files_are_written_again_when_the_disk_has_room(small_disk):
    witness = Witness()
    with pytest.warns(UserWarning, match="is not written"):
        record(
            small_disk / "run", "kakurenbo", witness,
            At(1, 2, lambda: fill(small_disk)), At(4, 1, lambda: (small_disk / "filler").unlink()),
        )  # fmt: skip
    Files(small_disk / "run").assert_seen_by(witness)


def test_a_disk_that_cannot_be_written_is_a_warning(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.warns(UserWarning, match="Read-only file system"):
        _, made = record(small_disk / "run")
    assert made.state.finished and not list(small_disk.iterdir())


def killed_while_writing(folder, number):
    """Ends itself when file `number` of a run is whole and has not got its name."""
    replace, left = os.replace, [number]

    def die(*paths):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    os.replace = die  # of this process, which ends soon
    record(folder)


@pytest.mark.parametrize("number", [7, 8, 9])
def test_killed_while_a_file_is_written_the_files_are_whole(tmp_path, number):
    folder = tmp_path / "run"
    assert run_ranks(killed_while_writing, (folder, number), log=tmp_path / "log") == [-signal.SIGKILL]
    files = Files(folder)
    assert files.run["status"] == "running" and 2 <= len(files.epochs) <= 3
    late = files.epochs["train/late"].tolist()
    assert late[:-1] == list(range(len(late) - 1)) and np.isnan(late[-1]), "not known yet, and not the epoch's before"
    partial = [path for path in folder.iterdir() if path.name not in FILES]
    assert [path.name.startswith(".") and path.suffix == ".partial" for path in partial] == [True]
    record(folder)
    assert {path.name for path in folder.iterdir()} == FILES, "the next run takes the half-written file's place"


# --- odd Trainers


@pytest.mark.parametrize(
    "settings",
    [
        {"fast_dev_run": True},
        {"barebones": True},
        {"max_steps": 13, "max_epochs": -1},
        {"limit_train_batches": 3},
        {"limit_train_batches": 0.5},
        {"val_check_interval": 0.25},
        {"limit_val_batches": 0},
        {"num_sanity_val_steps": 2},
        {"accumulate_grad_batches": 3},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Trainer.limit_train_batches")
def test_odd_trainers_leave_files_that_are_right(tmp_path, settings):
    witness = Witness()
    module = Net() if settings.get("barebones") else LoggingNet()
    if settings.get("barebones"):
        module.validation_step = lambda batch, batch_idx: None
        record(tmp_path, "kakurenbo", module=module, **settings)
        files = Files(tmp_path)
        assert (files.frame["times_trained"] + files.frame["times_hidden"]).tolist() == [EPOCHS] * SAMPLES
        return
    record(tmp_path, "kakurenbo", witness, module=module, **settings)
    files = Files(tmp_path)
    files.assert_seen_by(witness)
    assert files.run["max_epochs"] == {True: 1, False: EPOCHS}["fast_dev_run" in settings] or "max_steps" in settings
    validates = settings.get("limit_val_batches") != 0
    assert ("val/loss" in files.epochs) == validates
    assert files.run["metric"] == ("val/accuracy" if validates else None)
    if settings == {"max_steps": 13, "max_epochs": -1}:
        assert files.run["max_epochs"] is None


def test_a_second_fit_of_the_same_trainer_goes_on(tmp_path):
    witness = Witness()
    selection = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0)
    made = trainer(selection, RunRecorder(selection, tmp_path), witness, max_epochs=2)
    module, data = LoggingNet(), points()
    made.validate(module, loader(24, shuffle=False), verbose=False)
    assert not list(tmp_path.iterdir())
    made.fit(module, data, loader(24, shuffle=False))
    first = Files(tmp_path)
    made.validate(module, loader(24, shuffle=False), verbose=False)
    made.fit_loop.max_epochs = EPOCHS
    made.fit(module, data, loader(24, shuffle=False))
    files = Files(tmp_path)
    files.assert_seen_by(witness)
    assert (first.run["epochs"], files.run["epochs"]) == (2, EPOCHS)
    assert files.epochs["samples_hidden"].sum() == selection.totals.samples_hidden > 0
    made.fit(module, data)  # was complete
    assert Files(tmp_path).frame.equals(files.frame)


def test_another_trainer_starts_a_new_record(tmp_path):
    selection = SampleSelection("random", max_fraction=0.3)
    written = RunRecorder(selection, tmp_path)
    for count in (SAMPLES, 40):
        trainer(selection, written, max_epochs=2).fit(LoggingNet(), loader(count))
    files = Files(tmp_path)
    assert (files.frame["times_trained"] + files.frame["times_hidden"]).tolist() == [2] * 40
    assert len(files.epochs) == 2 and files.epochs["samples_trained"].sum() == selection.totals.samples_trained


@pytest.mark.parametrize("how", ["callback", "callback first", "within", "tuner"])
def test_a_rate_finder_counts_nothing(tmp_path, how):
    selection, module = hide_then_grow(), SelfLoadingNet(dropout=0.0)
    written = RunRecorder(selection, tmp_path)
    finders = {
        "callback": [selection, written, LearningRateFinder(attr_name="rate", **FIND)],
        "callback first": [LearningRateFinder(attr_name="rate", **FIND), selection, written],
        "within": [selection, written, FindLater(attr_name="rate", update_attr=False, **FIND)],
        "tuner": [selection, written],
    }
    made = trainer(*finders[how], max_epochs=len(GROWING), default_root_dir=tmp_path / "root")
    if how == "tuner":
        Tuner(made).lr_find(module, min_lr=1e-4, max_lr=1e-2, num_training=12, update_attr=False)
    made.fit(module)
    files = Files(tmp_path)
    assert (files.frame["times_trained"] + files.frame["times_hidden"]).tolist() == [len(GROWING)] * 64
    assert files.epochs["samples_hidden"].tolist() == [0, 32, 32, 16, 0]
    assert files.epochs["samples_trained"].sum() == selection.totals.samples_trained == 64 * 5 - 80


def test_a_run_that_stops_early_is_finished(tmp_path):
    witness = Witness()
    record(tmp_path, "kakurenbo", witness, EarlyStopping("val/loss", mode="max", patience=0, check_on_train_epoch_end=True))
    files = Files(tmp_path)
    assert files.run["status"] == "finished" and files.run["epochs"] < EPOCHS == files.run["max_epochs"]
    files.assert_seen_by(witness)


class WrappedNet(LoggingNet):
    selection = None

    def train_dataloader(self):
        return self.selection.wrap(points())


def wrapped(folder, *callbacks, **settings):
    selection, module = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0, seed=1), WrappedNet()
    module.selection = selection
    made = trainer(selection, RunRecorder(selection, folder), *callbacks, max_epochs=EPOCHS)
    made.fit(module, **settings)
    return Files(folder)


@pytest.mark.parametrize(("hook", "batch"), [("on_train_batch_end", 2), ("on_train_epoch_end", 0)])
def test_a_wrapped_loader_is_counted_too_and_resumed(tmp_path, hook, batch):
    witness = Witness()
    files = wrapped(tmp_path / "whole", witness, SaveAt(tmp_path / "cut.ckpt", hook, 2, batch))
    files.assert_seen_by(witness)
    again = wrapped(tmp_path / "again", ckpt_path=tmp_path / "cut.ckpt")
    assert again.frame.equals(files.frame)
    for name in ("epoch", "samples_trained", "samples_hidden", "samples_refreshed"):
        assert again.epochs[name].tolist() == files.epochs[name].tolist(), name


# --- resuming otherwise


def saved(folder, *callbacks, epoch=2, batch=2, method="kakurenbo", with_recorder=True):
    save = SaveAt(folder / "cut.ckpt", "on_train_batch_end", epoch, batch)
    if with_recorder:
        record(folder / "before", method, save)
    else:
        selection = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.5, seed=1)
        trainer(selection, save, max_epochs=EPOCHS).fit(LoggingNet(), points())
    return folder / "cut.ckpt"


def test_a_checkpoint_without_a_recorder_is_counted_from_there_on(tmp_path):
    path, witness = saved(tmp_path, with_recorder=False), Witness()
    record(tmp_path / "run", "kakurenbo", witness, fit={"ckpt_path": path})
    files = Files(tmp_path / "run")
    assert files.counts()["times_trained"] == witness.samples["times_trained"]
    assert files.epochs["epoch"].tolist() == [2, 3, 4]
    assert files.epochs["samples_trained"].tolist()[1:] == [len(witness.trained[epoch]) for epoch in (3, 4)]
    assert (files.epochs["samples_refreshed"] <= SAMPLES).all() and (files.epochs["samples_trained"] <= SAMPLES).all()


@pytest.mark.parametrize("other", ["data", "method"])
def test_a_selection_that_starts_over_is_counted_from_there(tmp_path, other):
    path, witness = saved(tmp_path), Witness()
    method = "random" if other == "method" else "kakurenbo"
    selection = SampleSelection(method, on_mismatch="reset", seed=1)
    made = trainer(selection, RunRecorder(selection, tmp_path / "run"), witness, max_epochs=EPOCHS)
    data = points(SAMPLES if other == "method" else 50)
    with pytest.warns(UserWarning, match="nothing is hidden at first"):
        made.fit(LoggingNet(), data, ckpt_path=path)
    files = Files(tmp_path / "run")
    counts = files.epochs[[name for name in files.epochs if name.startswith("samples_")]]
    assert (counts >= 0).all().all()
    assert files.frame["times_trained"].sum() == files.epochs["samples_trained"].sum() == selection.totals.samples_trained
