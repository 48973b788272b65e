"""Make formula-driven images for pre-training without natural ones: `kakurenbo-fractal --kind KIND --categories K --instances M
--size S`.

Kinds: fractaldb (iterated function systems in the plane; Kataoka et al., ACCV 2020), exfractaldb (views of such systems in space)
and rcdb (radial contours; both Kataoka et al., CVPR 2022). Every image depends on the seed and its category only, so that a
larger set holds the smaller one.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_recipes import contours, exfractal, fractal


@dataclass(frozen=True)
class Kind:
    """A way to make images.

    Attributes:
        images: yields the images of a category, uint8 [size, size], from the seed, the category's number, the number of images and
            their size.
        category: makes the description of a category from the seed and the category's number.
        instances: largest number of images of a category.
        size: pixels of a side of the published images.
    """

    images: Callable[[int, int, int, int], Iterator[np.ndarray]]
    category: Callable[[int, int], object]
    instances: int
    size: int


KINDS = {
    "fractaldb": Kind(fractal.images, fractal.category, fractal.INSTANCES, fractal.SIZE),
    "exfractaldb": Kind(exfractal.images, exfractal.category, exfractal.INSTANCES, exfractal.SIZE),
    "rcdb": Kind(contours.images, contours.category, contours.INSTANCES, contours.SIZE),
}


def write_folder(kind: str, folder: Path, size: int, instances: int, seed: int, number: int) -> int:
    """Write the images of a category as PNG files, `folder/00012/0345.png`; return how many."""
    target = folder / f"{number:05d}"
    target.mkdir(parents=True, exist_ok=True)
    for instance, image in enumerate(KINDS[kind].images(seed, number, instances, size)):
        Image.fromarray(np.ascontiguousarray(image)).save(target / f"{instance:04d}.png", compress_level=1)
    return instances


def write_rows(kind: str, path: Path, size: int, instances: int, seed: int, number: int) -> int:
    """Write the images of a category into their rows of the array at `path`; return how many."""
    array = np.load(path, mmap_mode="r+")
    for row, image in enumerate(KINDS[kind].images(seed, number, instances, size), start=number * instances):
        array[row] = image
    array.flush()
    return instances


def contact_sheet(
    kind: str, seed: int, categories: int, instances: int, size: int, rows: int = 8, columns: int = 12
) -> Image.Image:
    """Return one picture with a row for each of some categories, spread over all of them."""
    gap, shown = 2, np.unique(np.linspace(0, categories - 1, rows).round().astype(int))
    sheet = np.full((len(shown) * (size + gap) - gap, min(columns, instances) * (size + gap) - gap), 128, dtype=np.uint8)
    for row, number in enumerate(shown):
        for column, image in enumerate(KINDS[kind].images(seed, int(number), min(columns, instances), size)):
            sheet[row * (size + gap) :, column * (size + gap) :][:size, :size] = image
    return Image.fromarray(sheet)


def parser() -> argparse.ArgumentParser:
    """Build the command line's parser; every option's default is in its help."""
    options = argparse.ArgumentParser(
        prog="kakurenbo-fractal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--kind", choices=list(KINDS), default="fractaldb", help="kind of images, for example rcdb (default: fractaldb)"
    )
    options.add_argument("--categories", type=int, default=100, help="classes (default: 100; of FractalDB-1k and the like: 1000)")
    options.add_argument("--instances", type=int, default=100, help="images of each category (default: 100)")
    options.add_argument("--size", type=int, help="pixels of a side, for example 32 (default: as published)")
    options.add_argument("--format", choices=["folder", "array"], default="folder", help="folder: PNG files for torchvision's "
                         "ImageFolder; array: images.npy (uint8 [N, S, S]) and labels.npy (int64 [N])")  # fmt: skip
    options.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    options.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="processes that work side by side (default: one per core)"
    )
    options.add_argument("-o", "--output", type=Path, help="folder to write (default: data/fractal, or data/KIND)")
    return options


def checked(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; exit when a setting is not possible."""
    options = parser()
    settings = options.parse_args(arguments)
    kind = KINDS[settings.kind]
    settings.size = kind.size if settings.size is None else settings.size
    settings.output = settings.output or Path("data") / ("fractal" if settings.kind == "fractaldb" else settings.kind)
    allowed = {
        "categories": (1, 10**6),
        "instances": (1, kind.instances),
        "size": (8, 4096),
        "processes": (1, 1024),
        "seed": (0, 2**31),
    }
    for name, (least, most) in allowed.items():
        if not least <= (value := getattr(settings, name)) <= most:
            options.error(f"--{name} {value} is not possible: it must be from {least} to {most}")
    if settings.output.exists() and any(settings.output.iterdir()):
        options.error(f"--output {settings.output} exists and is not empty: choose another folder, or delete this one")
    return settings


def main(arguments: list[str] | None = None) -> None:
    """Write the images, a contact sheet for inspection, and the settings they were made from."""
    settings = checked(arguments)
    folder, each = settings.output, (settings.size, settings.instances, settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    total = settings.categories * settings.instances
    if settings.format == "array":
        shape = (total, settings.size, settings.size)
        unfinished = folder / "images.unfinished.npy"  # gets its name when it is whole
        np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape).flush()
        np.save(folder / "labels.npy", np.repeat(np.arange(settings.categories), settings.instances))
        work = partial(write_rows, settings.kind, unfinished, *each)
    else:
        work = partial(write_folder, settings.kind, folder / "train", *each)
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
    contact_sheet(settings.kind, settings.seed, settings.categories, settings.instances, shown).save(folder / "contact_sheet.png")
    made = {name: getattr(settings, name) for name in ("kind", "categories", "instances", "size", "seed", "format")}
    (folder / "fractal.json").write_text(json.dumps(made, indent=2) + "\n")
    print(f"{total:,} images of {settings.categories:,} categories in {folder}; look at {folder / 'contact_sheet.png'}")


if __name__ == "__main__":
    main()
