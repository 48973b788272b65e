"""DeepCAM: synthetic files and what they hold, the reader of real and synthetic ones."""

import os
import re

import h5py
import numpy as np
import pytest
import torch
from climate_files import SIZE, data_of
from kakurenbo_recipes.climate import climate
from kakurenbo_recipes.climate_data import ClimateFiles, GeneratedDeepCam
from kakurenbo_recipes.deepcam import Synthetic, main, write_file
from recipe_runs import set_up

MADE = Synthetic(files=52, validation=5, test=2, **SIZE)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A synthetic set, written once."""
    folder = tmp_path_factory.mktemp("made") / "deepcam"
    MADE.write(folder)
    return folder


def contents(path):
    with h5py.File(path, "r") as file:
        return file["climate/data"][...], file["climate/labels_0"][...]


# ---- synthetic files


def test_synthetic_files_have_the_schema_of_the_real_ones(root):
    assert [len(list((root / part).iterdir())) for part in ("train", "validation", "test")] == [52, 5, 2]
    counts = np.zeros(3)
    for path in sorted((root / "train").iterdir()):
        assert re.fullmatch(r"data-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\.h5", path.name)
        data, labels = contents(path)
        assert data.shape == (32, 48, 16) and data.dtype == np.float32 and np.isfinite(data).all()
        assert labels.shape == (32, 48) and np.issubdtype(labels.dtype, np.integer)
        counts += np.bincount(labels.ravel(), minlength=3)
    assert counts[0] > counts[2] > counts[1] > 0


def test_events_are_as_rare_as_in_the_real_data():
    counts = sum(np.bincount(climate(768, 1152, np.random.default_rng(seed))[1].ravel(), minlength=3) for seed in range(3))
    background, cyclone, river = counts / counts.sum()
    assert 0.97 < background < 0.995 and 0.0002 < cyclone < 0.002 and 0.005 < river < 0.03


def test_statistics_are_those_of_the_training_files(root):
    data = np.stack([contents(path)[0] for path in sorted((root / "train").iterdir())]).reshape(-1, 16).astype(np.float64)
    with h5py.File(root / "stats.h5", "r") as file:
        found = {name: file["climate"][name][...] for name in file["climate"]}
    expected = {"mean": data.mean(0), "sqmean": (data**2).mean(0), "minval": data.min(0), "maxval": data.max(0)}
    assert found.pop("count") == 52 and found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32 and np.allclose(found[name], values, rtol=1e-5, atol=0), name


def test_a_larger_set_holds_the_smaller_one_and_another_seed_is_another_set(root, tmp_path):
    Synthetic(files=2, validation=1, **SIZE).write(tmp_path / "few")
    Synthetic(files=2, validation=1, seed=1, **SIZE).write(tmp_path / "other")
    for path in sorted((tmp_path / "few" / "train").iterdir()):
        same, other = contents(root / "train" / path.name), contents(tmp_path / "other" / "train" / path.name)
        assert all(np.array_equal(a, b) for a, b in zip(contents(path), same, strict=True))
        assert not np.array_equal(same[0], other[0])
    name = sorted(os.listdir(root / "validation"))[0]
    assert not np.array_equal(contents(root / "train" / name)[0], contents(root / "validation" / name)[0])


def test_cyclones_and_rivers_can_be_told_by_their_channels(root):
    """The nearest class mean finds most pixels of an event: water for rivers, pressure for cyclones."""
    images, labels = zip(*(contents(path) for path in sorted((root / "train").iterdir())), strict=True)
    pixels, classes = np.stack(images).reshape(-1, 16), np.stack(labels).ravel()
    pixels = (pixels - pixels.mean(0)) / pixels.std(0)
    means = np.stack([pixels[classes == kind].mean(0) for kind in range(3)])
    nearest = np.square(pixels[:, None] - means).sum(2).argmin(1)
    recall = [(nearest[classes == kind] == kind).mean() for kind in range(3)]
    assert min(recall) > 0.7, recall


def test_the_command_line_writes_a_set_that_can_be_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)  # a log has no bar
    folder = tmp_path / "new" / "set"
    main(["--files", "3", "--validation", "1", "--height", "32", "--width", "40", "--seed", "7", "-o", str(folder)])
    printed = capsys.readouterr()
    assert f"4 files in {folder}; train on them: kakurenbo-train experiment=deepcam data.root={folder}" in printed.out
    assert "climate files: 100%" in printed.err
    assert Synthetic.read(folder) == Synthetic(files=3, validation=1, height=32, width=40, seed=7)
    data = set_up(data_of(folder))
    assert next(iter(data.train_dataloader()))[0].shape == (3, 16, 32, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--files", "1"], "--files 1 is not possible: it must be from 2 to"),
        (["--height", "8"], "--height 8 is not possible: it must be from 32 to 4096"),
        (["-o", "."], "--output . exists and is not empty: choose another folder, or delete this one"),
    ],
)
def test_the_command_line_names_a_wrong_setting(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


# ---- the reader


def test_an_image_is_scaled_by_the_statistics_and_its_labels_are_kept(root):
    data = set_up(data_of(root))
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (3, 16, 32, 48) and images.dtype == torch.float32
    assert labels.shape == (3, 32, 48) and labels.dtype == torch.int64
    with h5py.File(root / "stats.h5", "r") as file:
        low, high = file["climate/minval"][...], file["climate/maxval"][...]
    for number, path in enumerate(sorted((root / "validation").iterdir())[:3]):
        pixels, classes = contents(path)
        expected = (pixels.astype(np.float64) - low) / (high.astype(np.float64) - low)
        assert np.allclose(images[number].permute(1, 2, 0), expected, atol=1e-5)
        assert np.array_equal(labels[number], classes)
    train = torch.cat([batch[0] for batch in data.train_dataloader()])
    assert len(train) == 52 and torch.allclose(train.amin((0, 2, 3)), torch.zeros(16), atol=1e-5)
    assert torch.allclose(train.amax((0, 2, 3)), torch.ones(16), atol=1e-5)


def files_of(loader):
    return [path.name for path in loader.dataset.files]


def test_training_files_can_be_held_out_to_validate_on(root):
    whole, data, same, other = set_up(data_of(root), *(data_of(root, held_out=0.25, held_out_seed=seed) for seed in (0, 0, 1)))
    train, val = files_of(data.train_dataloader()), files_of(data.val_dataloader())
    assert len(train) == 39 and len(val) == 13
    assert sorted([*train, *val]) == files_of(whole.train_dataloader())
    assert data.val_dataloader().dataset.files[0].parent.name == "train"
    assert val == files_of(same.val_dataloader()) != files_of(other.val_dataloader())
    alone = data_of(root, held_out=0.25)
    alone.setup("validate")
    assert files_of(alone.val_dataloader()) == val
    alone.setup("test")
    assert files_of(alone.test_dataloader()) == sorted(path.name for path in (root / "test").iterdir())


def test_a_set_without_validation_files_is_enough_where_some_are_held_out(tmp_path):
    Synthetic(files=3, validation=1, **SIZE).write(tmp_path / "set")
    (tmp_path / "set" / "validation").rename(tmp_path / "validation")
    data = set_up(data_of(tmp_path / "set", held_out=0.1))
    assert len(data.train_dataloader().dataset) == 2 and len(data.val_dataloader().dataset) == 1
    with pytest.raises(ValueError, match=r"data\.held_out=0\.9 is not possible: it must be a share that leaves a file to train"):
        set_up(data_of(tmp_path / "set", held_out=0.9))


def test_workers_read_the_same_at_any_stage(root):
    here, there = set_up(data_of(root), data_of(root, num_workers=2))
    for one, other in zip(here.val_dataloader(), there.val_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for stage in ("validate", "test", "predict"):
        here.setup(stage)


def test_some_channels_can_be_read(root):
    everything, some = data_of(root), data_of(root, channels=[7, 0])
    for data in (everything, some):
        data.setup("test")
    whole, part = next(iter(everything.test_dataloader()))[0], next(iter(some.test_dataloader()))[0]
    assert part.shape == (2, 2, 32, 48) and torch.equal(part, whole[:, [7, 0]])


def test_a_file_of_the_real_size_is_read(tmp_path):
    data = np.arange(768 * 1152 * 16, dtype=np.float32).reshape(768, 1152, 16)
    write_file(tmp_path / "data-2106-01-01-00-00-0.h5", data, np.full((768, 1152), 2, dtype=np.float32))
    low, high = np.zeros(16, dtype=np.float32), np.full(16, data.max())
    high[3] = 0.0  # never changes
    image, labels = ClimateFiles([tmp_path / "data-2106-01-01-00-00-0.h5"], low, high)[0]
    assert image.shape == (16, 768, 1152) and labels.dtype == torch.int64 and (labels == 2).all()
    assert (image[3] == 0).all() and torch.allclose(image[5], torch.from_numpy(data[..., 5]) / data.max())


@pytest.mark.parametrize("gone", ["stats.h5", "train", "validation", "range"])
def test_what_is_missing_is_named_with_where_to_get_it(tmp_path, gone):
    Synthetic(files=2, validation=1, **SIZE).write(tmp_path / "set")
    if gone == "range":
        with h5py.File(tmp_path / "set" / "stats.h5", "a") as file:
            del file["climate/minval"]
    else:
        (tmp_path / "set" / gone).rename(tmp_path / gone)
    named = {"stats.h5": r"no stats\.h5", "range": r"a stats\.h5 without climate/minval and climate/maxval"}
    ways = r"Globus, https://app\.globus\.org/\S+, .* python -m kakurenbo_recipes\.deepcam -o"
    missing = named.get(gone, rf"no files {gone}/data-\*\.h5")
    with pytest.raises(FileNotFoundError, match=rf"data\.root='.*set' holds {missing}: it must hold .*{ways}"):
        set_up(data_of(tmp_path / "set"))


def test_a_file_of_another_set_is_named(tmp_path):
    path = tmp_path / "data-2106-01-01-00-00-0.h5"
    low, high = np.zeros(16, dtype=np.float32), np.ones(16, dtype=np.float32)
    write_file(path, np.zeros((4, 6, 8), dtype=np.float32), np.zeros((4, 6), dtype=np.uint8))
    message = r"data-2106.*holds .*\(4, 6, 8\).*, but climate/data \[H, W, 16\] and climate/labels_0 \[H, W\] are needed"
    with pytest.raises(ValueError, match=message):
        ClimateFiles([path], low, high)[0]
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(ValueError, match="holds nothing, but climate/data"):
        ClimateFiles([path], low, high)[0]


@pytest.mark.parametrize("channels", [[0, 16], []])
def test_channels_that_are_not_there_are_named(root, channels):
    with pytest.raises(ValueError, match=r"data\.channels=\[.*\] is not possible: it must be null or a list of ints below 16"):
        set_up(data_of(root, channels=channels))


def test_generated_files_are_written_once_and_never_mixed(tmp_path):
    settings = {"files": 3, "validation": 1, **SIZE}
    leftover = tmp_path / "made.unfinished" / "train"
    leftover.mkdir(parents=True)
    (leftover / "data-half.h5").write_bytes(b"")
    for _ in range(2):
        data = GeneratedDeepCam(str(tmp_path / "made"), **settings)
        data.prepare_data()
        data.setup("fit")
        assert len(data.train_dataloader().dataset) == 3 and len(data.val_dataloader().dataset) == 1
        (tmp_path / "made" / "written once").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"] and (tmp_path / "made" / "written once").exists()
    with pytest.raises(ValueError, match=r"data\.root='.*made' is not possible: it must be new, or synthetic files of"):
        GeneratedDeepCam(str(tmp_path / "made"), **{**settings, "files": 4}).prepare_data()
