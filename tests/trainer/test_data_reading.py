"""The user's data set is read where plain Lightning reads it, and as it is then."""

import h5py
import pytest
import torch
from file_data import HDF5, InWorkers, RawFile, points
from helpers import GROWING, Net, Points, SureNet, fit, hide_then_grow, loader, watched_fit
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, get_worker_info

from kakurenbo_lightning import SampleSelection


class Reading(SureNet):
    """Keeps what it trains, by index, and which samples came through a file that their own process had opened."""

    def __init__(self):
        super().__init__()
        self.x, self.own = {}, []

    def training_step(self, batch, batch_idx):
        if torch.is_grad_enabled():
            self.x.update(zip(batch[2].tolist(), batch[0], strict=True))
            self.own += batch[3].tolist() if len(batch) > 3 else []
        return super().training_step(batch, batch_idx)


@pytest.fixture
def written(tmp_path):
    """``written(count)`` makes a file of ``float32[count, 6]``; its path, and what it holds."""

    def write(count):
        x = points(count)
        (tmp_path / "x.bin").write_bytes(x.tobytes())
        return tmp_path / "x.bin", torch.from_numpy(x)

    return write


@pytest.mark.parametrize(
    "callbacks", [[], [lambda: SampleSelection("baseline")], [hide_then_grow]], ids=["plain", "baseline", "hide"]
)
def test_workers_read_through_a_file_of_their_own(written, callbacks):
    path, x = written(64)
    data, module = RawFile(path, 64), Reading()
    fit(module, DataLoader(data, 8, shuffle=True, num_workers=2), *(make() for make in callbacks), max_epochs=2)
    assert all(module.own)
    assert len(module.own) >= 64
    assert data.file is None, "opened in the main process"
    assert all(torch.equal(module.x[index], x[index]) for index in range(64))


def test_many_workers_read_an_unbuffered_file_right(written):
    path, x = written(3000)
    module = Reading()
    train = DataLoader(RawFile(path, 3000), 50, shuffle=True, num_workers=4)
    fit(module, train, SampleSelection("infobatch"), max_epochs=1)
    assert sum(torch.equal(module.x[index], x[index]) for index in range(3000)) == 3000


def test_spawned_workers_get_a_data_set_that_nobody_has_opened(tmp_path):
    x = points(24)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = x
    data, module = HDF5(tmp_path / "x.h5", 24), Reading()
    train = DataLoader(data, 8, shuffle=True, num_workers=1, multiprocessing_context="spawn")
    fit(module, train, SampleSelection("baseline"), max_epochs=1)
    assert data.file is None
    assert all(torch.equal(module.x[index], torch.from_numpy(x[index])) for index in range(24))


def test_a_data_set_that_only_workers_can_read_is_trained_refreshed_and_resumed(tmp_path):
    def train():
        return DataLoader(InWorkers(Points(64)), 8, shuffle=True, num_workers=2)

    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    spy, _, _ = watched_fit(SureNet(), train(), None, keep, enable_checkpointing=True)
    assert spy.steps == GROWING
    again, _, _ = watched_fit(SureNet(), train(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert dict(again.batches) == {epoch: spy.batches[epoch] for epoch in (2, 3, 4)}


def test_what_breaks_a_worker_is_raised_as_it_is():
    def fail(number):
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        fit(Net(), loader(num_workers=1, worker_init_fn=fail), SampleSelection("baseline"))


@pytest.mark.parametrize(("saved", "resumed"), [(0, 2), pytest.param(2, 0, marks=pytest.mark.slow)])
def test_a_checkpoint_resumes_with_other_workers(tmp_path, saved, resumed):
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    spy, _, _ = watched_fit(SureNet(), loader(num_workers=saved), None, keep, enable_checkpointing=True)
    again, _, _ = watched_fit(SureNet(), loader(num_workers=resumed), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert dict(again.batches) == {epoch: spy.batches[epoch] for epoch in (2, 3, 4)}


# --- a data set that changes between epochs


class Levels(Points):
    """Items tell the level that their data set had where they were made."""

    level = 0

    def __getitem__(self, index):
        return (*super().__getitem__(index), self.level)


class Curriculum(SureNet):
    """Raises the level of the data set at an epoch's end, or at its beginning; keeps the levels that each epoch trained and scored."""

    def __init__(self, data, hook):
        super().__init__()
        self.data, self.trained, self.scored = data, {}, []
        if hook == "end":
            self.on_train_epoch_end = self.rise
        else:
            self.on_train_epoch_start = self.rise

    def rise(self):
        self.data.level += 1

    def training_step(self, batch, batch_idx):
        if torch.is_grad_enabled():
            self.trained.setdefault(self.trainer.current_epoch, set()).update(batch[3].tolist())
        else:
            self.scored.append(set(batch[3].tolist()))
        return super().training_step(batch, batch_idx)


def levels(callbacks, hook, **settings):
    data = Levels(64)
    module = Curriculum(data, hook)
    fit(module, DataLoader(data, 8, shuffle=True, **settings), *callbacks, max_epochs=3)
    return module


@pytest.mark.parametrize(
    ("settings", "hook", "expected"),
    [
        ({}, "end", [{0}, {1}, {2}]),
        ({"num_workers": 2}, "end", [{0}, {1}, {2}]),
        ({"num_workers": 2}, "start", [{0}, {2}, {3}]),  # the workers of epoch 0 start before it begins
        ({"num_workers": 2, "persistent_workers": True}, "end", [{0}, {0}, {0}]),
    ],
    ids=["no workers", "workers", "workers, at the start", "workers that persist"],
)
@pytest.mark.slow_cases("baseline")
@pytest.mark.parametrize(
    "callbacks", [[], [lambda: SampleSelection("baseline")], [hide_then_grow]], ids=["plain", "baseline", "hide"]
)
def test_epochs_see_the_changes_of_the_data_set_that_plain_lightning_sees(settings, hook, expected, callbacks):
    module = levels([make() for make in callbacks], hook, **settings)
    assert list(module.trained.values()) == expected
    if settings == {"num_workers": 2} and hook == "end" and callbacks == [hide_then_grow]:
        assert module.scored == [{2}] * 4, "before epoch 2, when the level has risen twice"


def test_workers_start_once_for_the_first_epoch(tmp_path):
    def note(number):
        (tmp_path / f"{get_worker_info().seed}").touch()

    fit(Net(), loader(num_workers=2, worker_init_fn=note), SampleSelection("baseline"), max_epochs=1)
    assert len(list(tmp_path.iterdir())) == 2 + 1, "the epoch's, and the one that reads for the fingerprint"


# --- random numbers of workers


class Drawing(Points):
    """Noise is drawn where the item is made."""

    def __getitem__(self, index):
        x, y, _ = super().__getitem__(index)
        return x + 0.1 * torch.randn(len(x)), y, index


class Drawn(SureNet):
    """Keeps what each epoch drew."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.drawn = {}

    def training_step(self, batch, batch_idx):
        if torch.is_grad_enabled():
            self.drawn.setdefault(self.trainer.current_epoch, []).append(batch[0])
        return super().training_step(batch, batch_idx)


def drawing(selection, *callbacks, **settings):
    module = Drawn()
    train = DataLoader(Drawing(64), 8, shuffle=True, num_workers=2)
    fit(module, train, selection, *callbacks, max_epochs=4, **settings)
    return module


def test_random_numbers_of_workers_are_those_of_a_resumed_session(tmp_path):
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True)
    whole = drawing(hide_then_grow(), keep, enable_checkpointing=True)
    resumed = drawing(hide_then_grow(), ckpt_path=tmp_path / "epoch=1.ckpt", seed=17)
    torch.testing.assert_close(resumed.drawn, {epoch: whole.drawn[epoch] for epoch in (2, 3)}, rtol=0, atol=0)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_scoring_pass_moves_no_random_number_of_workers():
    """``random`` hides the same with and without one."""
    runs = [drawing(SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0, start_epoch=start)) for start in (1, 2)]
    assert len(runs[0].drawn[1]) < len(runs[1].drawn[1]) == 8
    torch.testing.assert_close(runs[0].drawn[0], runs[1].drawn[0], rtol=0, atol=0)
