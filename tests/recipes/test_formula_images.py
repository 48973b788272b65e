"""Views of fractals in space and radial contours: the papers' rules, and the command that writes sets of them."""

import json
import math
from itertools import islice

import numpy as np
import pytest
import torch
from kakurenbo_recipes import contours, exfractal, formula_images
from kakurenbo_recipes.array_data import ArrayImages
from kakurenbo_recipes.contours import Contours, paths, perlin
from kakurenbo_recipes.exfractal import View, scaled, wide
from kakurenbo_recipes.formula_images import KINDS
from kakurenbo_recipes.fractal import System, chaos, random_system, varied
from PIL import Image
from recipe_runs import composed

from recipes.benchmarks import fractal as bench

every_kind = pytest.mark.parametrize("kind", KINDS)


# --- the command


@every_kind
def test_a_set_is_made_and_read(kind, tmp_path):
    options = f"--kind {kind} --categories 2 --instances 5 --size 24 --format array --processes 1"
    formula_images.main([*options.split(), "-o", str(tmp_path)])
    assert json.loads((tmp_path / "fractal.json").read_text())["kind"] == kind
    array = np.load(tmp_path / "images.npy")
    assert array.shape == (10, 24, 24) and np.array_equal(array[5:], np.stack(list(KINDS[kind].images(0, 1, 5, 24))))
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.size == (5 * 26 - 2, 2 * 26 - 2)
    data = ArrayImages(str(tmp_path), test_share=0.2, batch_size=4)
    data.setup("fit")
    batch, labels = next(iter(data.train_dataloader()))
    assert batch.shape == (4, 3, 24, 24) and torch.isfinite(batch).all() and set(labels.tolist()) <= {0, 1}


@every_kind
def test_images_depend_on_the_seed_and_the_category_alone(kind):
    made = KINDS[kind].images
    few, many = list(made(3, 2, 4, 32)), list(islice(made(3, 2, 9, 32), 9))
    assert all(np.array_equal(one, other) for one, other in zip(few, many, strict=False)) and len(many) == 9
    assert all(image.shape == (32, 32) and image.dtype == np.uint8 for image in many)
    assert len({image.tobytes() for image in many}) == 9
    assert not np.array_equal(next(made(3, 3, 1, 32)), few[0]) and not np.array_equal(next(made(4, 2, 1, 32)), few[0])


@pytest.mark.parametrize("kind", ["exfractaldb", "rcdb"])
def test_each_kind_has_a_data_group(kind):
    data = composed(f"data={kind}").data
    assert data.root == f"data/{kind}" and data._target_ == composed("data=fractal").data._target_


@pytest.mark.parametrize("kind", ["exfractaldb", "rcdb"])
def test_the_benchmark_measures_a_kind(kind, tmp_path):
    options = ["--kind", kind, "--sizes", "16", "--instances", "3", "--categories", "1", "--rounds", "2", "--clock", "cpu"]
    result = bench.main([*options, "--json", str(tmp_path / "found.json")])
    assert result["kind"] == kind and result["cases"][0]["met"] is None
    assert result["cases"][0]["images_per_s"]["array"]["median"] > 0


# --- views of systems in space


def test_a_map_in_space_is_applied_as_its_matrix_and_in_proportion_to_its_determinant():
    random = np.random.default_rng(0)
    system = random_system(random, 12)
    assert system.maps.shape[1] == 12 and 2 <= len(system.maps) <= 7 and np.abs(system.maps).max() <= 1
    weight = np.abs(np.linalg.det(system.maps[:, :9].reshape(-1, 3, 3)))
    assert np.allclose(system.cumulative(), np.cumsum(weight) / weight.sum())
    alone = System(0.3 * random.uniform(-1, 1, (1, 12)))
    fixed = chaos(alone.maps[None], alone.cumulative()[None], 50, random)[
        0, -1
    ]  # one contracting map: all points end where it stays
    matrix, added = alone.maps[0, :9].reshape(3, 3), alone.maps[0, 9:]
    assert np.allclose(fixed, np.linalg.solve(np.eye(3) - matrix, added), atol=1e-6)


def test_there_are_145_variations_of_one_parameter_at_a_time():
    assert exfractal.VARIATIONS.shape == (145, 12) and (exfractal.VARIATIONS[0] == 1).all()
    changed = sorted((*np.flatnonzero(row != 1), *row[row != 1]) for row in exfractal.VARIATIONS[1:])
    assert changed == sorted((p, tenths / 10) for p in range(12) for tenths in (4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16))


@pytest.mark.parametrize("number", [0, 5])
def test_a_category_is_spread_along_every_axis(number):
    system = exfractal.category(2, number)
    points = chaos(system.maps[None], system.cumulative()[None], 20_000, np.random.default_rng(1))
    assert scaled(points)[0].var(0).min() > 0.045  # of other points than those it was chosen by


def test_systems_that_are_flat_or_fly_apart_are_refused():
    random = np.random.default_rng(0)
    ball = random.uniform(-1, 1, (1, 500, 3))
    flat, far = ball * [1, 1, 0.1], ball * 1e9
    assert wide(np.concatenate([ball, flat, far, np.full_like(ball, np.nan)])).tolist() == [True, False, False, False]


def test_points_are_scaled_alike_along_all_axes_around_their_mean():
    points = np.random.default_rng(0).uniform([-3, 1, 0], [5, 2, 1], (2, 400, 3))
    found = scaled(points)
    assert np.allclose(found.mean(1), 0)
    span = points.max((1, 2)) - points.min((1, 2))
    assert np.allclose(np.ptp(found, axis=1), 2 * np.ptp(points, axis=1) / span[:, None])


def test_a_camera_at_a_distance_of_four_sees_45_degrees():
    straight, edge = View(np.eye(3)), 4 * math.tan(math.radians(22.5))
    points = np.array([[0, 0, 0], [0.99 * edge, 0, 0], [0, 0.99 * edge, 0], [1.01 * edge, 0, 0], [0, 0, -3.5]])
    assert np.argwhere(straight.image(points, 100)).tolist() == [[0, 50], [50, 50], [50, 99]]
    nearer = straight.image(np.array([[0.5 * edge, 0, -2.0]]), 100)  # at half the distance twice as far out
    assert np.argwhere(straight.image(np.array([[0.99 * edge, 0, 0]]), 100)).tolist() == [[50, 99]] and not nearer[:, :99].any()
    assert set(np.unique(straight.image(points, 100))) == {0, 255}


def test_viewpoints_are_rotations_uniform_over_all():
    random = np.random.default_rng(0)
    rotations = np.stack([View.random(random).rotation for _ in range(2000)])
    assert np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3)) and np.allclose(np.linalg.det(rotations), 1)
    assert np.abs(rotations.mean(0)).max() < 0.05 and np.allclose((rotations**2).mean(0), 1 / 3, atol=0.03)


def test_variations_that_fly_apart_are_brought_back():
    explosive = System(np.array([[0.9, 0, 0, 0, 0.9, 0, 0, 0, 0.9, x, 0.1, 0] for x in (0.3, -0.3)], dtype=float))
    points = varied(explosive, 100, np.random.default_rng(0), exfractal.VARIATIONS)
    assert points.shape[0] == 145 and points.shape[2] == 3 and np.abs(points).max() < 1e6


# --- contours


def test_the_parameters_of_contours_are_in_the_papers_ranges():
    found = [contours.category(0, number) for number in range(600)]
    vertices, lines = (np.array([getattr(one, name) for one in found]) for name in ("vertices", "lines"))
    assert vertices.min() == 3 and 190 < vertices.max() <= 200 and lines.min() < 6 and 195 < lines.max() <= 200
    kept = np.random.default_rng(1).exponential(100, 100_000)
    assert abs(vertices.mean() - np.floor(kept[(kept >= 3) & (kept < 201)]).mean()) < 7
    assert all(0 <= one.noise <= 4 and 0 <= one.width <= 0.1 for one in found)
    assert abs(np.mean([one.noise for one in found]) - 2) < 0.2 and abs(np.mean([one.width for one in found]) - 0.05) < 0.005


def test_noise_is_that_of_its_definition():
    """Gradients of 1 to 8, or half of the time -1, at either end of an interval, faded into each other."""
    found = perlin((200_000,), np.random.default_rng(0))
    gradients = np.concatenate([np.arange(1.0, 9.0), -np.ones(8)])
    place = np.linspace(0, 1, 400, endpoint=False) + 1 / 800
    fade = 6 * place**5 - 15 * place**4 + 10 * place**3
    left, right = gradients[:, None, None], gradients[None, :, None]
    every = 0.4 * ((1 - fade) * left * place + fade * right * (place - 1))
    assert abs(found.mean() - every.mean()) < 0.01 and abs(found.std() - every.std()) < 0.01
    assert found.max() <= every.max() + 1e-3 and found.min() >= every.min() - 1e-3


def test_contours_without_noise_are_polygons_a_line_width_apart():
    polygon = paths(Contours(vertices=6, lines=4, noise=0.0, width=0.5), 10.0, np.array([1.0, 2.0]), np.random.default_rng(0))
    assert polygon.shape == (4, 7, 2) and np.array_equal(polygon[:, 0], polygon[:, 6])
    assert np.allclose(polygon[:, 0], [[10.5, 0], [11, 0], [11.5, 0], [12, 0]])
    angle = math.pi / 3
    assert np.allclose(polygon[0, 1], [math.cos(angle) * 10.5, math.sin(angle) * 20.5])


def test_noise_moves_each_contour_on_from_the_one_before():
    made_of = Contours(vertices=50, lines=40, noise=2.0, width=0.1)
    found = paths(made_of, 50.0, np.ones(2), np.random.default_rng(0))
    noise = perlin((40, 50, 2), np.random.default_rng(0)) * 4 - 2
    reach = 50.0 + np.cumsum(0.1 - noise, axis=0)
    angle = 2 * math.pi * np.arange(50) / 50
    assert np.allclose(found[:, :50, 0], np.cos(angle) * reach[:, :, 0])
    assert np.allclose(found[:, :50, 1], np.sin(angle) * reach[:, :, 1])


def test_contours_are_grey_on_white_and_small_images_show_the_same_as_large_ones():
    large, small = next(contours.images(0, 2, 1, 512)), next(contours.images(0, 2, 1, 128))
    assert large[0, 0] == 255 or large.max() == 255
    averaged = large.reshape(128, 4, 128, 4).mean((1, 3))
    assert np.abs(averaged - small).max() <= 1
    assert next(contours.images(0, 2, 1, 1024)).shape == (1024, 1024)
