"""Make formula-driven fractal images: `kakurenbo-fractal --categories K --instances M --size S`.

Hirokatsu Kataoka et al.: "Pre-training without Natural Images", ACCV 2020 (FractalDB). A category is an iterated function
system: 2 to 7 affine maps whose six parameters are uniform in [-1, 1], each applied with a probability in proportion to
its |ad - bc|. It is kept when its points fill at least a fifth of the pixels of a canvas. Its images differ in the
parameters (25 variations), in the patch that is drawn at every point (random 3 x 3 dots) and in how they are flipped
(4 ways): 25 x 10 x 4 = 1,000.

Every image depends on the seed and its category only, so that a larger set holds the smaller one.
"""

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from kakurenbo_lightning.core.progress import bar_settings

MAPS = (2, 7)  # fewest and most maps of a system
CANVAS, PAD, POINTS, FILLING = 512, 6, 100_000, 0.2  # of the test that a category must pass
SIZE = 362  # pixels of the published images, which have POINTS points
WEIGHTS = (0.2, 0.6, 1.4, 1.8)  # of one parameter in a variation
VARIATIONS = np.array([[1.0] * 6] + [[w if i == p else 1.0 for i in range(6)] for p in range(6) for w in WEIGHTS])  # [25, 6]
PATTERNS, FLIPS, GREY = 10, 4, 127
ROUGH = 5_000, 48  # points and pixels of a quick look: what fills a fifth of the canvas fills more than that of a coarse one
INSTANCES = len(VARIATIONS) * PATTERNS * FLIPS
BURN_IN, STEPS = 20, 50  # of a chain, before and after its points count
FAR = 1e6  # a system whose points go further is not bounded
CANDIDATES = 32  # systems that are tried at a time


@dataclass(frozen=True)
class System:
    """An iterated function system of m maps (x, y) -> (a x + b y + e, c x + d y + f).

    Attributes:
        maps: float64 [m, 6], the parameters a, b, c, d, e, f of each map.
    """

    maps: np.ndarray

    def cumulative(self) -> np.ndarray:
        """Return the sums of the maps' probabilities, float64 [m]."""
        a, b, c, d = self.maps[:, :4].T
        weight = np.abs(a * d - b * c)
        return np.cumsum(weight) / weight.sum()


def random_system(random: np.random.Generator) -> System:
    """Draw a system."""
    return System(random.uniform(-1.0, 1.0, (random.integers(MAPS[0], MAPS[1] + 1), 6)))


def chaos(systems: np.ndarray, cumulative: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Return points of the attractors of several systems, all by chains that run side by side.

    Args:
        systems: float64 [S, m, 6].
        cumulative: float64 [S, m], sums of the maps' probabilities.
        count: points of each, at least.
        random: of the choice of maps.

    Returns:
        float64 [S, points, 2]; not finite, or far away, where a system is not bounded.
    """
    number, maps = cumulative.shape
    chains = -(-count // STEPS)
    x, y = np.zeros((2, number, chains))
    flat, first = systems.reshape(-1, 6).T.copy(), (np.arange(number) * maps)[:, None]
    points = np.empty((STEPS, 2, number, chains))
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(BURN_IN + STEPS):
            drawn = random.random((number, chains))
            chosen = first + sum((drawn >= bound[:, None]).astype(np.int64) for bound in cumulative.T[:-1])
            a, b, c, d, e, f = (parameter[chosen] for parameter in flat)
            x, y = a * x + b * y + e, c * x + d * y + f
            if step >= BURN_IN:
                points[step - BURN_IN] = x, y
    return points.transpose(2, 0, 3, 1).reshape(number, -1, 2)


def bounded(points: np.ndarray) -> np.ndarray:
    """Tell of each system whether its points (float64 [S, n, 2]) are all near; bool [S]."""
    with np.errstate(invalid="ignore"):
        return np.all(np.abs(points) < FAR, axis=(1, 2))


def pixels(points: np.ndarray, size: int, pad: int = PAD) -> np.ndarray:
    """Scale points (float64 [n, 2], finite) to the canvas and mark their pixels; bool [size, size]."""
    low, span = points.min(0), np.ptp(points, axis=0)
    place = ((points - low) / np.where(span > 0, span, 1.0) * (size - 2 * pad - 1) + pad).astype(np.int64)
    marked = np.zeros(size * size, dtype=bool)
    marked[place[:, 1] * size + place[:, 0]] = True
    return marked.reshape(size, size)


def filling(systems: list[System], count: int, size: int, random: np.random.Generator) -> Iterator[tuple[System, float]]:
    """Yield each of some systems with as many maps, and the share of the canvas that `count` points fill; 0 when not bounded."""
    if not systems:
        return
    points = chaos(np.stack([s.maps for s in systems]), np.stack([s.cumulative() for s in systems]), count, random)
    for system, near, found in zip(systems, bounded(points), points, strict=True):
        yield system, float(pixels(found, size).mean()) if near else 0.0


def category(seed: int, number: int) -> System:
    """Return the system of category `number`: the first drawn one that fills enough of the canvas."""
    random = np.random.default_rng([seed, number])
    while True:
        systems = [random_system(random) for _ in range(CANDIDATES)]
        for count in sorted({len(system.maps) for system in systems}):  # those of as many maps run together
            alike = [system for system in systems if len(system.maps) == count]
            likely = [system for system, filled in filling(alike, *ROUGH, random) if filled >= FILLING]
            for system, filled in filling(likely, POINTS, CANVAS, random):
                if filled >= FILLING:
                    return system


def varied(system: System, count: int, random: np.random.Generator) -> np.ndarray:
    """Return points of the 25 variations of a system, float64 [25, n, 2].

    A variation that is not bounded is brought half-way back to the system until it is.
    """
    weights = VARIATIONS.copy()
    cumulative = np.repeat(system.cumulative()[None], len(weights), 0)
    points = chaos(system.maps * weights[:, None], cumulative, count, random)
    while not (near := bounded(points)).all():
        weights[~near] = (1 + weights[~near]) / 2
        points[~near] = chaos(system.maps * weights[~near, None], cumulative[~near], count, random)
    return points


def patterns(random: np.random.Generator) -> np.ndarray:
    """Return `PATTERNS` different patches of random 3 x 3 dots, bool [P, 3, 3], none of them empty."""
    codes = random.choice(np.arange(1, 1 << 9), PATTERNS, replace=False)
    return (codes[:, None] >> np.arange(9) & 1).astype(bool).reshape(PATTERNS, 3, 3)


def stamped(marked: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """Draw a patch (bool [3, 3]) at every marked pixel (bool [H, W]) but those at the border; uint8 [H, W]."""
    image = np.zeros(marked.shape, dtype=bool)
    inner = marked[1:-1, 1:-1]
    height, width = inner.shape
    for down, right in np.argwhere(patch):
        image[down : down + height, right : right + width] |= inner
    return image.view(np.uint8) * np.uint8(GREY)


def images(seed: int, number: int, instances: int, size: int) -> Iterator[np.ndarray]:
    """Yield the images of a category, uint8 [size, size], in an order that makes the first ones differ in every way.

    Args:
        seed: of the set.
        number: of the category.
        instances: how many, at most `INSTANCES`.
        size: pixels of a side; the number of points is in proportion to the area, `POINTS` at 362.
    """
    random = np.random.default_rng([seed, number, 1])
    count = max(1, round(POINTS * (size / SIZE) ** 2))
    points, patches = varied(category(seed, number), count, random), patterns(random)
    pad = max(1, round(PAD * size / SIZE))
    canvases = [pixels(found, size, pad) for found in points]
    for place in random.permutation(INSTANCES)[:instances]:
        variation, rest = divmod(int(place), PATTERNS * FLIPS)
        pattern, flip = divmod(rest, FLIPS)
        image = stamped(canvases[variation], patches[pattern])
        yield image[:: -1 if flip & 1 else 1, :: -1 if flip & 2 else 1]


def write_folder(folder: Path, size: int, instances: int, seed: int, number: int) -> int:
    """Write the images of a category as PNG files, `folder/00012/0345.png`; return how many."""
    target = folder / f"{number:05d}"
    target.mkdir(parents=True, exist_ok=True)
    for instance, image in enumerate(images(seed, number, instances, size)):
        Image.fromarray(np.ascontiguousarray(image)).save(target / f"{instance:04d}.png", compress_level=1)
    return instances


def write_rows(path: Path, size: int, instances: int, seed: int, number: int) -> int:
    """Write the images of a category into their rows of the array at `path`; return how many."""
    array = np.load(path, mmap_mode="r+")
    for row, image in enumerate(images(seed, number, instances, size), start=number * instances):
        array[row] = image
    array.flush()
    return instances


def contact_sheet(seed: int, categories: int, instances: int, size: int, rows: int = 8, columns: int = 12) -> Image.Image:
    """Return one picture with a row for each of some categories, spread over all of them."""
    gap, shown = 2, np.unique(np.linspace(0, categories - 1, rows).round().astype(int))
    sheet = np.full((len(shown) * (size + gap) - gap, min(columns, instances) * (size + gap) - gap), 255, dtype=np.uint8)
    for row, number in enumerate(shown):
        for column, image in enumerate(images(seed, int(number), min(columns, instances), size)):
            sheet[row * (size + gap) :, column * (size + gap) :][:size, :size] = image
    return Image.fromarray(sheet)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(
        prog="kakurenbo-fractal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--categories", type=int, default=100, help="classes (default: 100; FractalDB-1k: 1000)")
    options.add_argument("--instances", type=int, default=100, help=f"images of each, at most {INSTANCES} (default: 100)")
    options.add_argument("--size", type=int, default=SIZE, help=f"pixels of a side (default: {SIZE}, as published)")
    options.add_argument("--format", choices=["folder", "array"], default="folder", help="folder: PNG files for torchvision's "
                         "ImageFolder; array: images.npy (uint8 [N, S, S]) and labels.npy (int64 [N])")  # fmt: skip
    options.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    options.add_argument("--processes", type=int, default=os.cpu_count(), help="that work side by side (default: one per core)")
    options.add_argument(
        "-o", "--output", type=Path, default=Path("data/fractal"), help="folder to write (default: data/fractal)"
    )
    return options


def checked(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; exit when a setting is not possible."""
    options = parser()
    settings = options.parse_args(arguments)
    allowed = {
        "categories": (1, 10**6),
        "instances": (1, INSTANCES),
        "size": (8, 4096),
        "processes": (1, 1024),
        "seed": (0, 2**31),
    }
    for name, (least, most) in allowed.items():
        if not least <= (value := getattr(settings, name)) <= most:
            options.error(f"--{name} {value} is not possible: it must be from {least} to {most}")
    if settings.output.exists() and any(settings.output.iterdir()):
        options.error(f"--output {settings.output} is there and not empty: choose another folder, or delete this one")
    return settings


def main(arguments: list[str] | None = None) -> None:
    """Write the set, a contact sheet to look at, and what it was made from."""
    settings = checked(arguments)
    folder, each = settings.output, (settings.size, settings.instances, settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    total = settings.categories * settings.instances
    if settings.format == "array":
        shape = (total, settings.size, settings.size)
        unfinished = folder / "images.unfinished.npy"  # gets its name when it is whole
        np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape).flush()
        np.save(folder / "labels.npy", np.repeat(np.arange(settings.categories), settings.instances))
        work = partial(write_rows, unfinished, *each)
    else:
        work = partial(write_folder, folder / "train", *each)
    with tqdm(**bar_settings(total=total, unit="image", desc="fractals")) as bar:
        if settings.processes == 1:
            for number in range(settings.categories):
                bar.update(work(number))
        else:
            with ProcessPoolExecutor(settings.processes) as pool:
                for done in pool.map(work, range(settings.categories)):
                    bar.update(done)
    if settings.format == "array":
        unfinished.rename(folder / "images.npy")
    shown = min(settings.size, 128)
    contact_sheet(settings.seed, settings.categories, settings.instances, shown).save(folder / "contact_sheet.png")
    made = {name: getattr(settings, name) for name in ("categories", "instances", "size", "seed", "format")}
    (folder / "fractal.json").write_text(json.dumps(made, indent=2) + "\n")
    print(f"{total:,} images of {settings.categories:,} categories in {folder}; look at {folder / 'contact_sheet.png'}")


if __name__ == "__main__":
    main()
