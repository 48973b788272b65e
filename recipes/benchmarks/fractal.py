"""How many images per second `kakurenbo-fractal` makes and writes on one core, the search for the categories included.

It runs what the command runs for a category with `--processes 1`, as an array and as a folder of PNG files. The cases of a round take
turns with the same categories; each round has categories of its own, because some are found sooner than others.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from kakurenbo_recipes import formula_images
from kakurenbo_recipes.formula_images import KINDS
from tqdm import tqdm

from kakurenbo_lightning.core.progress import bar_settings
from recipes.benchmarks import report
from recipes.benchmarks.report import Row, interval, seconds_of, verdict

SIZES, INSTANCES = (32, 224), (100, 1000)
TARGETS = {32: 300.0, 224: 60.0}  # images per second, of FractalDB
WRITTEN = ("array", "folder")


def seconds(action: Callable[[int], Any], categories: int, clock: Callable[[], float]) -> float:
    """Return the seconds that an action takes for some categories."""
    return seconds_of(clock, lambda: [action(number) for number in range(categories)])[0]


def speeds(size: int, instances: int, seed: int, settings: argparse.Namespace, clock: Callable[[], float]) -> dict[str, float]:
    """Return the images per second of the categories of a seed, by how they are written."""
    total, each = settings.categories * instances, (size, instances, seed)
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        path = Path(folder) / "images.npy"
        np.lib.format.open_memmap(path, "w+", np.uint8, (total, size, size)).flush()
        work = {
            "array": partial(formula_images.write_rows, settings.kind, path, *each),
            "folder": partial(formula_images.write_folder, settings.kind, Path(folder) / "train", *each),
        }
        return {name: total / seconds(work[name], settings.categories, clock) for name in WRITTEN}


def measure(settings: argparse.Namespace) -> tuple[list[float], dict[tuple[int, int], list[dict[str, float]]]]:
    """Return, of each round, the seconds that a category is searched for, and of each case the images per second."""
    clock = report.clock("cpu", settings.clock)
    cases = [(size, instances) for size in settings.sizes for instances in settings.instances]
    searched, found = [], {case: [] for case in cases}
    with tqdm(**bar_settings(total=settings.rounds * len(cases), desc="fractals", unit="case")) as bar:
        for seed in range(settings.seed, settings.seed + settings.rounds):
            searched.append(
                seconds(partial(KINDS[settings.kind].category, seed), settings.categories, clock) / settings.categories
            )
            for case in cases:
                found[case].append(speeds(*case, seed, settings, clock))
                bar.update()
    return searched, found


def summary(kind: str, size: int, instances: int, rounds: list[dict[str, float]]) -> Row:
    """Return the medians of a case, and whether they reach the target."""
    medians = {name: report.median_of([one[name] for one in rounds]) for name in WRITTEN}
    target = TARGETS.get(size) if kind == "fractaldb" else None
    met = None if target is None else all(one["median"] >= target for one in medians.values())
    return {"size": size, "instances": instances, "images_per_s": medians, "target_per_s": target, "met": met}


def main(arguments: list[str] | None = None) -> Row:
    """Measure sizes and numbers of images per category."""
    options = report.parser("fractal", __doc__, devices=["cpu"], threads=1)
    options.add_argument("--kind", choices=list(KINDS), default="fractaldb", help="of images")
    options.add_argument("--sizes", nargs="+", type=report.count, default=list(SIZES), help="pixels of a side")
    options.add_argument("--instances", nargs="+", type=report.count, default=list(INSTANCES), help="images per category")
    options.add_argument("--categories", type=report.count, default=2, help="of a round")
    options.add_argument("--rounds", type=report.count, default=15, help="of all cases")
    options.add_argument("--folder", type=Path, help="where images are written and deleted; by default where temporary files are")
    settings = report.parse(options, arguments)
    most = KINDS[settings.kind].instances
    if max(settings.instances) > most:
        options.error(f"--instances {max(settings.instances)} is not possible: at most {most}")
    searched, found = measure(settings)
    cases, search = [summary(settings.kind, *case, rounds) for case, rounds in found.items()], report.median_of(searched)
    report.print_table(
        f"Images of {settings.kind} per second on one core",
        cases,
        {
            "pixels": lambda row: str(row["size"]),
            "images per category": lambda row: str(row["instances"]),
            "array": lambda row: interval(row["images_per_s"]["array"], ",.0f"),
            "PNG files": lambda row: interval(row["images_per_s"]["folder"], ",.0f"),
            "target": lambda row: "-" if row["met"] is None else f"{row['target_per_s']:.0f} {verdict(row['met'])}",
        },
        f"Medians of {settings.rounds} rounds of {settings.categories} categories, with their interval of 95 %. To find a category takes "
        f"{interval(search, '.4f')} s of it. Load when it began: {settings.machine['load_before']}.",
    )
    return report.write(
        settings, kind=settings.kind, rounds=settings.rounds, categories=settings.categories, search_s=search, cases=cases
    )


if __name__ == "__main__":
    main()
