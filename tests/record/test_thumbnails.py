"""Thumbnails of images of every kind, and of data sets that cannot be read."""

import numpy as np
import pytest
import torch
from helpers import Points, trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from recorded import FILES, SAMPLES, Files, ImageNet, Images, record, run_json
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import RunRecorder
from kakurenbo_lightning.record.thumbnails import thumbnails_of

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


def train(folder, data, epochs, recorder=True):
    """Train on images with half of them hidden at random."""
    selection = SampleSelection("random", max_fraction=0.5, seed=1)
    torch.manual_seed(0)
    written = [RunRecorder(selection, folder)] if recorder else []
    trainer(selection, *written, max_epochs=epochs).fit(ImageNet(), data.loader())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error:.*NumPy")
def test_images_leave_thumbnails_of_the_most_and_the_least_hidden(tmp_path, kind):
    make, size = KINDS[kind]
    train(tmp_path, Images(make), epochs=3)
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
    for recorder in (True, False):
        train(tmp_path, Images(), epochs=2, recorder=recorder)
        streams.append(torch.get_rng_state())
    assert (tmp_path / "thumbnails.npz").exists() and torch.equal(*streams)


class Closing(Points, Callback):
    """Points that cannot be read once training has ended."""

    closed = False

    def __getitem__(self, index):
        if self.closed:
            raise ValueError("not in this process")
        return super().__getitem__(index)

    def on_train_end(self, trainer, pl_module):
        self.closed = True


def test_a_data_set_that_cannot_be_read_at_the_end_costs_the_thumbnails_only(tmp_path):
    data = Closing(SAMPLES)
    with pytest.warns(UserWarning, match=r"no thumbnails, the data set could not be read here \(not in this process\)"):
        record(tmp_path, "kakurenbo", data, data=DataLoader(data, 8, shuffle=True))
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert run_json(tmp_path)["status"] == "finished"


def test_of_samples_that_were_hidden_equally_often_the_highest_loss_is_hidden_least():
    columns = {
        "loss": np.array([3.0, 1.0, 2.0, 0.1]),
        "times_hidden": np.array([0, 0, 0, 4]),
        "times_trained": np.array([3, 5, 4, 1]),
    }
    found = thumbnails_of(Images(count=4), columns)
    assert found.most_hidden == [3] and found.least_hidden[:3] == [0, 2, 1]
