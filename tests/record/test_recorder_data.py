"""A `RunRecorder` with odd data, images of every kind, and wrong settings."""

import json
import re
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import Net, Points, SureNet, hide_then_grow, loader, trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from test_recorder import EPOCHS, SAMPLES, Files, LoggingNet, record
from test_recorder_moments import FILES, run_json
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import files as run_files
from kakurenbo_lightning.record.recorder import RunRecorder

# --- odd data


class Failing(Points):
    fails = False

    def __getitem__(self, index):
        if self.fails:
            raise ValueError("not in this process")
        return super().__getitem__(index)


def test_a_data_set_that_cannot_be_read_at_the_end_costs_the_thumbnails_only(tmp_path):
    data = Failing(SAMPLES)

    class Close(Callback):
        def on_train_end(self, trainer, pl_module):
            data.fails = True

    with pytest.warns(UserWarning, match=r"no thumbnails, the data set could not be read here \(not in this process\)"):
        record(tmp_path, "kakurenbo", Close(), data=DataLoader(data, 8, shuffle=True))
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert run_json(tmp_path)["status"] == "finished"


class Images(Dataset):
    """Images of a kind, bright where `y` is 1; an item is `(image, y, index)`."""

    classes = ("dark", "bright")

    def __init__(self, make, count=60):
        self.make, self.targets = make, [index % 2 for index in range(count)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        torch.rand(1)
        return self.make(index, 40 + 120 * self.targets[index]), self.targets[index], index


class ImageNet(LoggingNet):
    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 2)


def collated(items):
    """Batches of the mean brightness, of whatever items."""
    images, y, index = zip(*items, strict=True)
    means = [[float(np.asarray(image, dtype=np.float64).mean()) / 255] for image in images]
    return torch.tensor(means), torch.tensor(y), torch.tensor(index)


KINDS = {
    "uint8 CHW": (lambda index, level: torch.full((3, 10, 12), level, dtype=torch.uint8), (10, 12)),
    "float grey": (lambda index, level: torch.linspace(0, level, 120).reshape(1, 10, 12), (10, 12)),
    "float HW": (lambda index, level: torch.linspace(-1, level, 120).reshape(10, 12).numpy(), (10, 12)),
    "HWC": (lambda index, level: np.full((10, 12, 3), level, dtype=np.uint8), (10, 12)),
    "PIL": (lambda index, level: Image.new("L", (12, 10), level), (10, 12)),
    "large": (lambda index, level: torch.full((3, 128, 96), float(level)), (64, 48)),
    "different sizes": (lambda index, level: Image.new("RGB", (8 + index % 5, 20 - index % 3), (level,) * 3), (20, 12)),
    "NaN": (lambda index, level: torch.full((1, 8, 8), torch.nan if index % 3 else level), (8, 8)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error:.*NumPy")
def test_images_leave_thumbnails_of_the_most_and_the_least_hidden(tmp_path, kind):
    make, size = KINDS[kind]
    data = DataLoader(Images(make), 10, shuffle=True, collate_fn=collated)
    selection = SampleSelection("random", max_fraction=0.5, seed=1)
    made = trainer(selection, RunRecorder(selection, tmp_path), max_epochs=3)
    made.fit(ImageNet(), data)
    files, shown = Files(tmp_path), np.load(tmp_path / "thumbnails.npz", allow_pickle=False)
    assert files.run["class_names"] == ["dark", "bright"] and files.frame["target"].tolist() == [0, 1] * 30
    assert shown["images"].shape == (len(shown["indices"]), *size, 3) and shown["images"].dtype == np.uint8
    frame = files.frame.fillna({"loss": np.inf})
    order = frame.sort_values(["times_hidden", "times_trained", "loss"], ascending=[False, True, True], kind="stable")
    assert shown["most_hidden"].tolist() == order["index"].tolist()[:24]
    assert shown["least_hidden"].tolist() == order["index"].tolist()[::-1][:24]
    assert set(shown["indices"]) == {*shown["most_hidden"], *shown["least_hidden"]}
    if kind in ("uint8 CHW", "HWC", "PIL"):
        for index, image in zip(shown["indices"], shown["images"], strict=True):
            assert (image == 40 + 120 * (index % 2)).all()
    if kind == "different sizes":
        assert all(image.max() == 40 + 120 * (index % 2) for index, image in zip(shown["indices"], shown["images"], strict=True))


def test_reading_thumbnails_moves_no_random_stream(tmp_path):
    streams = []
    for images in (True, False):
        data = Images(KINDS["HWC"][0])
        selection = SampleSelection("random", max_fraction=0.5, seed=1)
        written = [RunRecorder(selection, tmp_path)] if images else []
        torch.manual_seed(0)
        trainer(selection, *written, max_epochs=2).fit(ImageNet(), DataLoader(data, 10, shuffle=True, collate_fn=collated))
        streams.append(torch.get_rng_state())
    assert (tmp_path / "thumbnails.npz").exists() and torch.equal(*streams)


def test_losses_that_are_not_finite_are_written_and_json_stays_json(tmp_path):
    class Bad(SureNet):
        def training_step(self, batch, batch_idx):
            told = super().training_step(batch, batch_idx)
            bad = torch.where(batch[2] == 7, torch.nan, told["sample_loss"])
            return {**told, "sample_loss": torch.where(batch[2] == 9, torch.inf, bad)}

        def validation_step(self, batch, batch_idx):
            self.log("val_acc", float("nan"))

    selection = hide_then_grow()
    with pytest.warns(UserWarning, match="2 of 64 samples"):
        trainer(selection, RunRecorder(selection, tmp_path), max_epochs=3).fit(Bad(), loader(), loader(16))
    files = Files(tmp_path)
    assert run_json(tmp_path)["metric"] == "val_acc" and run_json(tmp_path)["score"] is None
    assert np.isnan(files.frame["loss"][7]) and np.isinf(files.frame["loss"][9])
    assert [sum(row) for row in files.epochs["loss_histogram"]] == [0, 62, 62]
    assert files.epochs["nonfinite"].tolist() == [0, 2, 2]


def test_a_logged_metric_never_takes_the_place_of_a_column(tmp_path):
    class Named(LoggingNet):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            for name in ("epoch", "threshold", "lr", "samples_trained", "index"):
                self.log(name, -7.0)

    record(tmp_path, "kakurenbo", module=Named())
    rows = Files(tmp_path).epochs
    assert rows["epoch"].tolist() == list(range(EPOCHS)) and (rows["samples_trained"] > 0).all() and (rows["lr"] > 0).all()
    assert rows["index"].tolist() == [-7.0] * EPOCHS


# --- wrong settings


def test_settings_that_are_not_possible_are_named():
    selection = SampleSelection("kakurenbo")
    for settings, message in [
        ({"every_n_epochs": 0}, "every_n_epochs=0 is not possible: it must be an int >= 1"),
        ({"every_n_epochs": True}, "every_n_epochs=True is not possible"),
        ({"to_loggers": "yes"}, "to_loggers='yes' is not possible: it must be true or false"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            RunRecorder(selection, "nowhere", **settings)
    with pytest.raises(ValueError, match="selection='kakurenbo' is not possible: it must be a SampleSelection"):
        RunRecorder("kakurenbo", "nowhere")


@pytest.mark.parametrize("order", ["other way round", "none", "another"])
def test_the_recorder_comes_after_its_selection(tmp_path, order):
    selection = SampleSelection("kakurenbo")
    written = RunRecorder(selection, tmp_path / "run")
    callbacks = {
        "other way round": [written, selection],
        "none": [written],
        "another": [SampleSelection("kakurenbo"), written],
    }[order]
    with pytest.raises(ValueError, match=r"callbacks=\[.*'RunRecorder'.*Write callbacks=\[selection, RunRecorder\(selection, "):
        trainer(*callbacks).fit(Net(), loader())
    assert not (tmp_path / "run").exists()


def test_samples_are_written_every_few_epochs(tmp_path):
    seen = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            path = tmp_path / "samples.parquet"
            seen.append(pq.read_schema(path).metadata[b"epochs"].decode() if path.exists() else None)

    record(tmp_path, "kakurenbo", Look(), recorder={"every_n_epochs": 2})
    assert seen[:2] == [None, None] and set(seen[2:4]) <= {None, "2"} and seen[4] in (None, "2", "4")
    assert Files(tmp_path).samples.schema.metadata[b"epochs"] == b"5"


def test_secrets_are_not_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "orig_argv", ["/bin/kakurenbo-train", "storage=mysql://me:word@host/db", "logger.api_key=abc", "seed=1"]
    )
    assert run_files.command() == "kakurenbo-train storage=mysql://HIDDEN@host/db logger.api_key=HIDDEN seed=1"
    config = {"logger": {"api_key": "abc", "name": "key"}, "list": ["http://a:b@c"], "tokens": 3, "none": None}
    assert run_files.without_secrets(config) == {
        "logger": {"api_key": "HIDDEN", "name": "key"}, "list": ["http://HIDDEN@c"], "tokens": 3, "none": None,
    }  # fmt: skip


def test_a_metric_that_validation_does_not_log_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"RunRecorder\(metric='val_accc'\): validation does not log it.* it logs .*val"):
        record(tmp_path, recorder={"metric": "val_accc"}, max_epochs=2)


def test_of_hidden_samples_the_least_hidden_of_highest_loss_come_first():
    columns = {
        "loss": np.array([3.0, 1.0, 2.0, 0.1]),
        "times_hidden": np.array([0, 0, 0, 4]),
        "times_trained": np.array([3, 5, 4, 1]),
    }
    _, most, least = run_files.thumbnails(ImageItems(4), columns)
    assert most[0] == 3 and least[:3] == [0, 2, 1]


class ImageItems:
    """Items that are black images."""

    def __init__(self, count):
        self.count = count

    def __getitem__(self, index):
        return torch.zeros(3, 8, 8, dtype=torch.uint8), 0


def test_a_resumed_run_knows_its_beginning_and_all_its_seconds(tmp_path):
    _, made, _ = record(tmp_path / "first", max_epochs=2)
    made.save_checkpoint(tmp_path / "run.ckpt")
    first = json.loads((tmp_path / "first" / "run.json").read_text())
    record(tmp_path / "again", max_epochs=3, fit={"ckpt_path": tmp_path / "run.ckpt"})
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert again["started"] == first["started"] and again["fit_seconds"] > first["fit_seconds"] > 0
    assert again["fingerprint"] == first["fingerprint"] is not None
