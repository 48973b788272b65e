"""Loggers that can show histograms and images get them; the others, and whoever did not ask, get none."""

import csv

import pytest
from helpers import loader, trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from recorded import EPOCHS, Files, ImageNet, Images, LoggingNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import RunRecorder

NAMES = {"selection/loss", "selection/confidence", "selection/times_trained", "selection/times_hidden"}
GRIDS = {"selection/most_hidden", "selection/least_hidden"}


def train(folder, logger, images=True, to_loggers=True):
    """Train on images or points, and return the files of the recorder."""
    selection = SampleSelection("random", max_fraction=0.5, seed=1)
    written = RunRecorder(selection, folder / "run", every_n_epochs=2, to_loggers=to_loggers)
    made = trainer(selection, written, max_epochs=EPOCHS, logger=logger, log_every_n_steps=1)
    if images:
        made.fit(ImageNet(), Images().loader())
    else:
        made.fit(LoggingNet(), loader())
    return Files(folder / "run")


def events(folder):
    """The content of the event files of a folder."""
    read = EventAccumulator(str(folder), size_guidance={"histograms": 0, "images": 0})
    read.Reload()
    return read


def test_tensorboard_holds_the_histograms_and_the_images(tmp_path):
    files = train(tmp_path, TensorBoardLogger(tmp_path, name="board"))
    read = events(tmp_path / "board" / "version_0")
    assert set(read.Tags()["histograms"]) == NAMES and set(read.Tags()["images"]) == GRIDS
    for name in NAMES:
        seen = read.Histograms(name)
        assert [event.step for event in seen] == [2, 4, EPOCHS]
        column = files.frame[name.removeprefix("selection/")].dropna()
        last = seen[-1].histogram_value
        assert (last.num, last.min, last.max) == (len(column), column.min(), column.max())
        assert last.sum == pytest.approx(column.sum())
    for name in GRIDS:
        (image,) = read.Images(name)
        assert image.step == EPOCHS and min(image.width, image.height) >= 10
        assert image.encoded_image_string.startswith(b"\x89PNG")


def test_without_images_there_are_histograms_only(tmp_path):
    train(tmp_path, TensorBoardLogger(tmp_path, name="board"), images=False)
    tags = events(tmp_path / "board" / "version_0").Tags()
    assert set(tags["histograms"]) == NAMES and tags["images"] == []


def test_loggers_get_nothing_unless_asked_for(tmp_path):
    train(tmp_path, TensorBoardLogger(tmp_path, name="board"), to_loggers=False)
    tags = events(tmp_path / "board" / "version_0").Tags()
    assert tags["histograms"] == tags["images"] == [] and "selection/hidden_fraction" in tags["scalars"]


def test_other_loggers_stay_as_they_are(tmp_path):
    names = []
    for to_loggers in (True, False):
        train(tmp_path / str(to_loggers), CSVLogger(tmp_path / str(to_loggers), name="csv"), to_loggers=to_loggers)
        with open(tmp_path / str(to_loggers) / "csv" / "version_0" / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        names.append((list(rows[0]), len(rows)))
    assert names[0] == names[1]
    assert not NAMES & set(names[0][0])


def test_several_loggers_at_once(tmp_path):
    boards = [TensorBoardLogger(tmp_path, name=name) for name in ("one", "two")]
    train(tmp_path, [boards[0], CSVLogger(tmp_path, name="csv"), boards[1]])
    for name in ("one", "two"):
        assert set(events(tmp_path / name / "version_0").Tags()["images"]) == GRIDS


def test_a_logger_that_fails_at_every_epoch_is_one_warning_and_training_ends(tmp_path, monkeypatch):
    asked = []

    def fail(self, name, values, epochs):
        asked.append(epochs)
        raise OSError(f"no network in epoch {epochs}")

    monkeypatch.setattr(SummaryWriter, "add_histogram", fail)
    with pytest.warns(
        UserWarning, match=r"RunRecorder: a logger did not take .*\(no network in epoch 2\), training goes on"
    ) as warned:
        files = train(tmp_path, TensorBoardLogger(tmp_path, name="board"))
    assert asked == [2, 4, EPOCHS] and files.run["status"] == "finished"
    assert sum("did not take" in str(each.message) for each in warned) == 1


@pytest.mark.slow
def test_weights_and_biases_gets_them_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="tests", save_dir=tmp_path, offline=True)
    try:
        train(tmp_path, logger)
        summary = {name: logger.experiment.summary.get(name) for name in NAMES | GRIDS}
    finally:
        wandb.finish()
    for name in NAMES:
        assert summary[name]["_type"] == "histogram" and sum(summary[name]["values"]) == 60
    for name in GRIDS:
        assert summary[name]["count"] == 24 and summary[name]["captions"][0].startswith("sample ")
    assert {path.name.split("_")[0] for path in tmp_path.rglob("*.png")} == {"most", "least"}
