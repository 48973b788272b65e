"""Fractal images: iterated function systems, their variations, and the command that writes a set."""

import functools
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from bench_helpers import written
from helpers import trainer
from kakurenbo_recipes import formula_images, fractal
from kakurenbo_recipes.array_data import ArrayImages
from kakurenbo_recipes.fractal import System, chaos, images, patterns, pixels, random_system, stamped, varied
from kakurenbo_recipes.models import CifarResNet, ImageClassifier
from kakurenbo_recipes.torchvision_data import FolderImages
from PIL import Image
from torchvision.datasets import ImageFolder

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks import fractal as bench
from recipes.benchmarks import report

SIERPINSKI = System(np.array([[0.5, 0, 0, 0.5, x, y] for x, y in ((0, 0), (0.5, 0), (0.25, 0.5))], dtype=float))


@pytest.fixture(scope="module", autouse=True)
def each_category_is_searched_once():
    """However many tests draw its images: the search takes longer than they do. The benchmark's own is not changed by it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fractal, "category", functools.cache(fractal.category))
        yield


def run(system, count, seed=0):
    return chaos(system.maps[None], system.cumulative()[None], count, np.random.default_rng(seed))[0]


def make(options, folder):
    """Run the command."""
    formula_images.main([*options.split(), "-o", str(folder)])


def test_points_lie_on_the_attractor():
    points = run(SIERPINSKI, 20_000)
    assert points.shape == (20_000, 2)
    holes = (np.abs(points - [0.5, 0.25]) < 0.05).all(1)  # the middle of the triangle is empty
    assert not holes.any()
    assert points.min() >= 0 and points.max() <= 1
    corners = [(points[:, 1] > 0.5).mean(), ((points[:, 1] < 0.5) & (points[:, 0] < 0.5)).mean()]
    assert np.allclose(corners, 1 / 3, atol=0.02), "each map is applied as often, by its determinant"


def test_a_map_is_applied_in_proportion_to_its_determinant():
    system = System(np.array([[0.6, 0, 0, 0.5, 0, 0], [0.1, 0, 0, 0.1, 0.9, 0.9], [0.2, 0.3, 0.2, 0.3, 0, 0]], dtype=float))
    assert np.allclose(system.cumulative(), [0.3 / 0.31, 1, 1])
    points = run(system, 100_000)
    second = (points[:, 0] >= 0.85).mean()
    assert abs(second - 0.01 / 0.31) < 0.005


def test_a_system_has_2_to_7_maps_with_parameters_in_minus_1_to_1():
    random = np.random.default_rng(0)
    systems = [random_system(random) for _ in range(300)]
    assert {len(system.maps) for system in systems} == set(range(2, 8))
    parameters = np.concatenate([system.maps.ravel() for system in systems])
    assert parameters.min() >= -1 and parameters.max() <= 1
    assert abs(parameters.mean()) < 0.05 and abs(parameters.std() - 1 / 3**0.5) < 0.02


def test_pixels_cover_the_canvas_but_its_margin():
    points = np.array([[-1.0, 0.0], [1.0, 4.0], [0.0, 2.0]])
    marked = pixels(points, 20, pad=3)
    assert sorted(map(tuple, np.argwhere(marked))) == [(3, 3), (9, 9), (16, 16)]


def test_a_patch_is_drawn_at_every_point():
    random = np.random.default_rng(0)
    marked, patch = random.random((12, 14)) < 0.1, random.random((3, 3)) < 0.5
    marked[[0, -1]] = marked[:, [0, -1]] = False
    expected = np.zeros((12, 14), dtype=np.uint8)
    for y, x in np.argwhere(marked):
        for down in range(3):
            for right in range(3):
                if patch[down, right]:
                    expected[y + down - 1, x + right - 1] = 127
    assert np.array_equal(stamped(marked, patch), expected)


def test_there_are_25_variations_of_one_parameter_at_a_time():
    assert fractal.VARIATIONS.shape == (25, 6)
    assert (fractal.VARIATIONS[0] == 1).all()
    changed = [tuple(np.flatnonzero(row != 1)) + tuple(row[row != 1]) for row in fractal.VARIATIONS[1:]]
    assert sorted(changed) == sorted((p, w) for p in range(6) for w in (0.2, 0.6, 1.4, 1.8))
    assert fractal.INSTANCES == 1000


def test_a_variation_that_flies_apart_is_brought_back():
    explosive = System(np.array([[0.9, 0, 0, 0.9, 0.3, 0], [0.9, 0, 0, 0.9, -0.3, 0.3]], dtype=float))
    points = varied(explosive, 500, np.random.default_rng(0))
    assert points.shape[0] == 25
    assert np.isfinite(points).all() and np.abs(points).max() < fractal.FAR


def test_patches_are_ten_different_ones_and_none_is_empty():
    found = patterns(np.random.default_rng(3))
    assert found.shape == (10, 3, 3) and found.any(axis=(1, 2)).all() and len({patch.tobytes() for patch in found}) == 10


@pytest.mark.parametrize("number", [0, 7])
def test_a_category_fills_a_fifth_of_the_canvas(number):
    system = fractal.category(5, number)
    assert pixels(run(system, fractal.POINTS), fractal.CANVAS).mean() > 0.18


def test_a_larger_set_holds_the_smaller_one():
    small, large = list(images(1, 4, 5, 32)), list(images(1, 4, 9, 32))
    assert all(np.array_equal(one, other) for one, other in zip(small, large, strict=False))
    assert len({image.tobytes() for image in large}) == 9
    assert not np.array_equal(next(images(1, 5, 1, 32)), small[0])
    assert not np.array_equal(next(images(2, 4, 1, 32)), small[0])


def test_a_category_has_four_flips_of_every_image():
    every = {image.tobytes() for image in images(0, 2, fractal.INSTANCES, 16)}
    some = next(images(0, 2, 1, 16))
    for flipped in (some[::-1], some[:, ::-1], some[::-1, ::-1]):
        assert flipped.tobytes() in every


def test_the_command_writes_a_folder_that_torchvision_reads(tmp_path, capsys):
    make("--categories 3 --instances 4 --size 24 --processes 1", tmp_path / "set")
    data = ImageFolder(tmp_path / "set" / "train")
    assert len(data) == 12 and len(data.classes) == 3
    image, label = data[5]
    assert image.size == (24, 24) and label == 1
    expected = list(images(0, 1, 4, 24))[1]
    assert np.array_equal(np.asarray(image.convert("L")), expected)
    assert json.loads((tmp_path / "set" / "fractal.json").read_text())["categories"] == 3
    assert Image.open(tmp_path / "set" / "contact_sheet.png").size[0] > 24 * 4
    assert "12 images of 3 categories" in capsys.readouterr().out


def test_the_command_writes_the_same_into_an_array_with_two_processes(tmp_path):
    make("--categories 3 --instances 4 --size 24 --format array --processes 2", tmp_path)
    array, labels = np.load(tmp_path / "images.npy", mmap_mode="r"), np.load(tmp_path / "labels.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contact_sheet.png", "fractal.json", "images.npy", "labels.npy"]
    assert array.shape == (12, 24, 24) and array.dtype == np.uint8
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for number in range(3):
        assert np.array_equal(array[4 * number : 4 * number + 4], np.stack(list(images(0, number, 4, 24))))


def test_an_array_gets_its_name_when_it_is_whole(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(formula_images.KINDS, "fractaldb", replace(formula_images.KINDS["fractaldb"], images=killed))
    with pytest.raises(KeyboardInterrupt):
        make("--categories 2 --size 8 --format array --processes 1", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no images\.npy"):
        ArrayImages(str(tmp_path)).setup("fit")


def test_both_formats_are_trained_on(tmp_path):
    for form in ("array", "folder"):
        make(f"--categories 3 --instances 8 --size 24 --processes 1 --format {form}", tmp_path / form)
    array = ArrayImages(str(tmp_path / "array"), batch_size=7)
    folder = FolderImages(str(tmp_path / "folder"), val=None, held_out=0.25, size=24, batch_size=7, num_workers=0)
    for data, held in ((array, 1), (folder, 2)):
        data.setup("fit")
        images, _ = next(iter(data.train_dataloader()))
        assert images.shape == (7, 3, 24, 24) and data.num_classes == 3
        assert torch.cat([labels for _, labels in data.val_dataloader()]).bincount().tolist() == [held] * 3


def test_a_network_is_trained_on_an_array_with_workers(tmp_path):
    make("--categories 3 --instances 8 --size 16 --format array --processes 1", tmp_path)
    data = ArrayImages(str(tmp_path), test_share=0.25, batch_size=6, num_workers=1, crop_padding=1)
    selection = SampleSelection("random", max_fraction=0.4, balance="class")
    made = trainer(selection, max_epochs=2)
    model = ImageClassifier(CifarResNet(num_classes=3, width=4), lambda parameters: torch.optim.SGD(parameters, lr=0.1), 3)
    made.fit(model, datamodule=data)
    assert made.callback_metrics["val/accuracy"].isfinite()
    assert selection.totals.samples_hidden == 2 * 3 * 2, "two of the six of each category in each epoch"


# ---- the benchmark


def test_the_benchmark_counts_the_images_of_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "clock", lambda *_: iter(range(1000)).__next__)  # whatever is timed takes a second
    options = ["--sizes", "16", "224", "--instances", "3", "--categories", "2", "--rounds", "1"]
    result = bench.main([*options, "--json", str(tmp_path / "found.json")])
    assert result["search_s"]["median"] == 0.5
    for row in result["cases"]:
        assert [row["images_per_s"][name]["median"] for name in ("array", "folder")] == [6, 6]
    assert [row["met"] for row in result["cases"]] == [None, False]


def test_the_benchmark_end_to_end(tmp_path, capsys):
    path = tmp_path / "fractal.json"
    options = ["--sizes", "16", "32", "--instances", "3", "--categories", "1", "--rounds", "2", "--clock", "cpu"]
    result = bench.main([*options, "--folder", str(tmp_path), "--json", str(path)])
    assert json.loads(json.dumps(result)) == written(path)
    assert [(row["size"], row["instances"], row["target_per_s"]) for row in result["cases"]] == [(16, 3, None), (32, 3, 300.0)]
    for row in result["cases"]:
        assert all(0 < one["low"] <= one["median"] <= one["high"] for one in row["images_per_s"].values())
    assert "on one core" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["fractal.json"]


# ---- settings


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (formula_images.main, "--instances 1001", "--instances 1001 is not possible: it must be from 1 to 1000"),
        (
            formula_images.main,
            "--kind exfractaldb --instances 1741",
            "--instances 1741 is not possible: it must be from 1 to 1740",
        ),
        (formula_images.main, "--kind circles", "invalid choice: 'circles'"),
        (formula_images.main, "--categories 0", "--categories 0"),
        (formula_images.main, "--size 4", "--size 4"),
        (formula_images.main, "-o .", "exists and is not empty"),
        (bench.main, "--device cuda", "invalid choice: 'cuda'"),
        (bench.main, "--instances 1001", "--instances 1001 is not possible: at most 1000"),
    ],
)
def test_a_wrong_setting_is_named(capsys, main, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments.split())
    assert message in capsys.readouterr().err
