"""Checkpoints that cannot be written, are damaged, or whose writing is killed: a clear error, and the one before stays whole."""

import contextlib
import inspect
import io
import json
import pickle
import random
import zipfile

import pytest
import torch
from disks import small_disk_at
from fault_fits import disk_that_fills, told
from helpers import Net, fit, loader
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from kakurenbo_lightning import AtomicCheckpointIO, DamagedCheckpointError, SampleSelection
from recipes.benchmarks.fault_record import Kill
from recipes.benchmarks.fault_run import differences, equal, position, train
from recipes.benchmarks.faults import Training, newest
from recipes.benchmarks.forked import printed, run_ranks

METHOD = "kakurenbo"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted and nobody saved."""
    return train(tmp_path_factory.mktemp("whole"), METHOD)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a checkpoint."""
    folder = tmp_path_factory.mktemp("saved")
    train(folder, METHOD, epochs=2, every=7)
    return (folder / "last.ckpt").read_bytes()


def test_a_checkpoint_is_written_with_its_folder_and_read_again(tmp_path):
    path = tmp_path / "deep" / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.arange(3)}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["a"].tolist() == [0, 1, 2]
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"a": lambda: 1}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


class Own(AtomicCheckpointIO):
    """A user's plug-in."""


@pytest.mark.parametrize(("plugins", "used"), [([], AtomicCheckpointIO), ([Own()], Own)])
def test_the_callback_puts_it_in_place_of_the_default_alone(plugins, used):
    made = fit(Net(), loader(), SampleSelection("baseline"), max_epochs=1, plugins=plugins)
    assert type(made.strategy.checkpoint_io) is used


# --- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    with small_disk_at(tmp_path / "disk", kilobytes=200) as folder:
        yield folder


def assert_full_disk(folder, end, words, whole):
    assert (end["type"], words in end["text"]) == ("OSError", True)
    assert "checkpoint not written" in end["text"] and str(folder) in end["text"]
    assert [path.suffix for path in folder.iterdir()] == [".ckpt"] * len(list(folder.iterdir())), "nothing half-written is left"
    last = newest(folder)
    where = position(last)
    assert (where["epoch"], where["step"]) == (1, 3)
    assert differences(whole, train(folder.parent, METHOD, seed=9, resume=last)) == []


def test_a_full_disk_is_an_error_that_names_the_file_and_the_last_checkpoint_is_whole(tmp_path, small_disk, whole):
    end = ended(tmp_path, disk_that_fills, small_disk, METHOD, "fill")
    (small_disk / "filler").unlink()
    assert_full_disk(small_disk, end, "No space left on device", whole)


def test_a_file_size_limit_is_an_error_that_names_the_file_and_the_last_checkpoint_is_whole(tmp_path, whole):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert_full_disk(folder, ended(tmp_path, disk_that_fills, folder, METHOD, "limit"), "File too large", whole)


def ended(folder, function, *args):
    """How ``function(*args)`` ended in a new process."""
    file = folder / "end"
    assert run_ranks(told, (file, function, *args), log=folder / "log") == [1], printed(folder / "log", 1)
    return json.loads((folder / "end.0.json").read_text())


# --- damage


@pytest.mark.parametrize("damage", ["nothing left", "half", "one byte short", "one bit"])
def test_fit_refuses_a_damaged_checkpoint(tmp_path, saved, damage):
    path = tmp_path / "damaged.ckpt"
    content = bytearray(saved)
    if damage == "one bit":
        losses = torch.load(io.BytesIO(saved), weights_only=True)["callbacks"]["SampleSelection"]["statistics"]["loss"]
        content[saved.index(losses.numpy().tobytes()) + 41] ^= 8
    path.write_bytes(content[: {"nothing left": 0, "half": len(saved) // 2, "one byte short": -1}.get(damage, len(saved))])
    with pytest.raises(DamagedCheckpointError, match=rf"checkpoint {path} is .*; resume from an earlier checkpoint"):
        train(tmp_path, METHOD, resume=str(path))


def test_fit_refuses_a_folder_and_bytes_before_the_file_by_name(tmp_path, saved):
    (tmp_path / "prefixed.ckpt").write_bytes(b"hello" + saved)
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "prefixed.ckpt", "has 5 bytes before its beginning")):
        with pytest.raises(DamagedCheckpointError, match=f"checkpoint {path} {words}"):
            train(tmp_path, METHOD, resume=str(path))


def test_a_checkpoint_of_the_old_format_is_read_and_refused_only_when_it_is_cut(tmp_path, saved):
    path, files = tmp_path / "old.ckpt", AtomicCheckpointIO()
    content = torch.load(io.BytesIO(saved), weights_only=True)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert equal(files.load_checkpoint(path), content)
    whole = path.read_bytes()
    for kept in [15, *range(100, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:kept])
        with pytest.raises(DamagedCheckpointError, match=f"{path} is damaged .*; resume from an earlier checkpoint"):
            files.load_checkpoint(path)


@pytest.mark.skipif(
    "weights_only" not in inspect.signature(TorchCheckpointIO.load_checkpoint).parameters, reason="of Lightning 2.6"
)
@pytest.mark.parametrize("zipped", [True, False])
def test_an_object_that_weights_only_refuses_is_not_called_damage(tmp_path, zipped):
    torch.save({"folder": tmp_path}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError, match=r"(?s)Weights only load failed.*Path"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=True)


def test_a_changed_bit_anywhere_is_noticed_or_harmless(tmp_path, saved):
    """Harmless: in padding between records, or in a date."""
    path, files, draws = tmp_path / "damaged.ckpt", AtomicCheckpointIO(), random.Random(0)
    path.write_bytes(saved)
    expected, damaged = files.load_checkpoint(path), 0
    places = draws.sample(range(len(saved)), 100) + draws.sample(range(len(saved) - 3000, len(saved)), 100)  # the directory
    for place in places:
        content = bytearray(saved)
        content[place] ^= 1 << draws.randrange(8)
        path.write_bytes(content)
        with contextlib.suppress(DamagedCheckpointError):
            assert equal(files.load_checkpoint(path), expected), f"byte {place} changed silently"
            damaged -= 1
        damaged += 1
    assert damaged > 120


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 97, "encrypted"])
def test_a_directory_that_calls_a_record_something_else_is_damaged(tmp_path, saved, method):
    path, files, places = tmp_path / "damaged.ckpt", AtomicCheckpointIO(), []
    while (place := saved.find(b"PK\x01\x02", places[-1] + 1 if places else 0)) >= 0:
        places.append(place)
    assert len(places) > 20
    for place in places:
        content = bytearray(saved)
        at, value = (8, content[place + 8] | 1) if method == "encrypted" else (10, method)
        content[place + at] = value
        path.write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match="damaged"):
            files.load_checkpoint(path)


# --- killed while it is written


@pytest.mark.parametrize("moment", ["half-written", "before renaming", "after renaming"])
def test_killed_while_a_checkpoint_is_written_the_newest_file_is_whole(tmp_path, whole, moment):
    training = Training(tmp_path, METHOD, 1, every=2)
    training.die(Kill(moment, 16, 1))
    last = newest(tmp_path)  # raises when any file is not whole
    assert [path.name for path in tmp_path.glob(".*")] == ([] if moment == "after renaming" else [".last.ckpt.partial"])
    (resumed,) = training.finish("resumed", resume=last, seed=9)
    assert differences(whole, resumed) == []
    assert list(tmp_path.glob(".*")) == [], "the next checkpoint of that name takes the half-written one's place"


def test_a_half_written_file_is_removed_when_a_checkpoint_of_another_name_is_saved(tmp_path):
    Training(tmp_path, METHOD, 1, every=2).die(Kill("half-written", 16, 1))
    assert [path.name for path in tmp_path.glob(".*")] == [".last.ckpt.partial"]
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "next.ckpt")
    assert list(tmp_path.glob(".*")) == []


def test_last_is_found_beside_a_half_written_file(tmp_path, whole):
    """``ckpt_path="last"``."""
    Training(tmp_path, METHOD, 1, every=2).die(Kill("half-written", 16, 1))
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_last=True)
    resumed = train(tmp_path, METHOD, seed=9, resume="last", callbacks=(saving,))
    assert resumed["weights"].keys() == whole["weights"].keys()
    assert all(equal(resumed["weights"][name], value) for name, value in whole["weights"].items())
