"""Does it pay? Every method beside two controls: random hiding of the same share, and a baseline of the same time, fully decayed.

On CIFAR-10, on fractals, or on text (`--task`). Each training leaves a JSON file in `--folder`: kill the command and give it again to
go on, give it several times at once to use more cores (`--processes` does); no training is done twice. What a run costs is explained
in `recipes.benchmarks.fits`. A method survives when it is better than both controls by more than the 95 % interval of the paired
differences over the seeds.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from kakurenbo_recipes.models import CifarResNet
from torch import nn

from kakurenbo_lightning.arena.plot import draw
from kakurenbo_lightning.arena.runs import Comparison, Entry, Folder, Row, Training
from kakurenbo_lightning.arena.verdict import Standing, standings, table
from kakurenbo_lightning.cli.text_table import terminal_width
from recipes.benchmarks import report
from recipes.benchmarks.fits import SETTINGS, Fits, parser
from recipes.benchmarks.tasks import TASKS
from recipes.benchmarks.training import prepare

SETS: dict[str, tuple[str, ...]] = {  # every method but those of kakurenbo_recipes.arena_sweep.NEED_MORE; random is a control
    "first": ("kakurenbo", "infobatch", "selective_backprop"),
    "wide": (
        *(f"kakurenbo:max_fraction={f},every_n_epochs={n}" for f in (0.3, 0.5, 0.7) for n in (1, 3)),
        *(
            "kakurenbo:max_fraction=0.5,fractions=[1.0],milestones=[]",
            "infobatch",
            "seta",
            "orderdp",
            "ies",
            "rcap",
            "random_cycle",
        ),
        *(
            "forget_online",
            "forget:static_epochs=4",
            "el2n:score_epochs=[2,4]",
            "selective_backprop",
            "selective_backprop:beta=2",
            "stale_sb",
        ),
        *("sb_fixed", "katharopoulos", "iswr", "owc", "lb", "nlb", "plb", "peb"),
    ),
}


ALIKE = ("task", "samples", "batch_size", "learning_rate", "epochs", "network")  # settings that all trainings of a folder share


class QuickNet(nn.Sequential):
    """A narrow network whose first convolution halves the resolution, for many runs on few cores.

    Args:
        width: channels of the first stage; the next two have 2 and 4 times as many.
    """

    def __init__(self, width: int = 32) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        for before, after in ((width, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "quick": QuickNet,
    "narrow": partial(QuickNet, 16),
    "resnet8": CifarResNet,
    "resnet20": partial(CifarResNet, 20),
    "resnet20x4": partial(CifarResNet, 20, 64),  # costs about as much as a ResNet-18 on such images
}


def entry(text: str) -> Entry:
    """Read a method with settings, as kakurenbo:max_fraction=0.5,tau=0.5; values are YAML."""
    try:
        return Entry.of(text)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def options() -> argparse.ArgumentParser:
    """Build the command line's parser, with one option for each property of a comparison."""
    found = parser("arena", __doc__, needs_files=False, devices=("cpu", "cuda"))
    found.set_defaults(samples=50_000, epochs=15)
    found.add_argument("--task", choices=list(TASKS), default="cifar10", help="what is trained on; cifar10 needs --data-root")
    found.add_argument("--set", choices=list(SETS), default="first", help="which methods; --methods names others")
    found.add_argument("--methods", type=entry, nargs="+", help="for example kakurenbo:max_fraction=0.5,tau=0.5 infobatch")
    found.add_argument("--network", choices=list(NETWORKS), default="quick", help="what is trained on images")
    found.add_argument("--folder", type=Path, default=Path("outputs/arena"), help="keeps a file for each training")
    found.add_argument("--minutes", type=float, default=float("inf"), help="no training begins after so many")
    found.add_argument("--table", action="store_true", help="train nothing, print what there is")
    found.add_argument("--rows", type=Path, help="result (--json) of an earlier arena, whose trainings are taken over")
    plot = "picture of accuracy against time to write: .png (NAME-dark.png beside it is for dark pages), .svg or .pdf"
    found.add_argument("--plot", type=Path, help=plot)
    return found


def comparison_of(settings: argparse.Namespace) -> Comparison:
    """Return the comparison that the command line describes."""
    entries = settings.methods or [entry(text) for text in SETS[settings.set]]
    return Comparison(entries, range(settings.seed, settings.seed + settings.seeds), settings.epochs)


def folder_of(settings: argparse.Namespace) -> Folder:
    """Return the folder of results. Other methods and seeds may be added to it, but not trainings with other settings."""
    return Folder(settings.folder, {name: getattr(settings, name) for name in ALIKE})


def train(settings: argparse.Namespace, until: float) -> None:
    """Train what is missing in this process, until nothing is missing or time is up."""
    prepare()
    torch.set_num_threads(settings.threads)
    task = TASKS[settings.task]
    fits = Fits(settings, data=task.data(settings), network=task.network or NETWORKS[settings.network], optimizer=task.optimizer)

    def run(training: Training) -> Row:
        row = fits.run(training.name, training.seed, training.entry.method, training.epochs, **training.entry.settings)
        return {"score": row["accuracy"], **{name: value for name, value in row.items() if name != "curve"}}

    folder_of(settings).train(comparison_of(settings), run, until)


def main(arguments: list[str] | None = None) -> list[Standing]:
    """Train what is missing, and print the table of all results."""
    words = options()
    words.set_defaults(**TASKS[words.parse_known_args(arguments)[0].task].defaults)
    settings = report.parse(words, arguments)
    if TASKS[settings.task].network:
        settings.network = "its own"
    if not settings.table:
        TASKS[settings.task].data(settings)  # generates data that are made once, or ends with an error
    comparison = comparison_of(settings)
    try:
        folder = folder_of(settings)
        if settings.rows:
            earlier = json.loads(settings.rows.read_text())
            folder.take(earlier["rows"], {name: earlier[name] for name in ALIKE})
    except ValueError as error:  # the folder holds trainings with other settings
        words.error(str(error))
    until = time.monotonic() + 60 * settings.minutes
    if not settings.table and settings.processes == 1:
        train(settings, until)
    elif not settings.table:
        with ProcessPoolExecutor(settings.processes, mp_context=get_context("spawn")) as pool:
            for done in [pool.submit(train, settings, until) for _ in range(settings.processes)]:
                done.result()
    rows = folder.rows()
    found = standings(comparison, rows)
    missing = len(list(comparison.missing(rows)))
    print(f"\n{title_of(settings)}")
    print("\n".join(table(found, terminal_width(140))))
    if missing:
        print(f"{missing} trainings or more are missing: run the command again to continue")
    if settings.plot:
        said = draw(comparison, rows, settings.plot, score="test accuracy", title=conditions_of(settings))
        print(f"picture: {settings.plot}. {said}")
    common: dict[str, Any] = {name: getattr(settings, name) for name in SETTINGS}
    report.write(
        settings,
        task=settings.task,
        network=settings.network,
        **common,
        rows=list(rows.values()),
        standings=[as_row(one) for one in found],
    )
    return found


def title_of(settings: argparse.Namespace) -> str:
    """Return the heading of the table."""
    size = f"{settings.samples:,} training samples, {settings.epochs} epochs, {settings.seeds} seeds"
    return f"Task {settings.task}, network {settings.network}, {size}"


def conditions_of(settings: argparse.Namespace) -> str:
    """Return what is below the heading of the picture."""
    task = TASKS[settings.task]
    with torch.device("meta"):  # parameters are counted, not made
        network = (task.network or NETWORKS[settings.network])()
    size = sum(parameter.numel() for parameter in network.parameters())
    digits = 10 ** (len(str(size)) - 2)
    about = f"a network of {round(size / digits) * digits:,} parameters, {settings.epochs} epochs"
    return f"{settings.samples:,} training samples of {task.title}, {about}"


def number(value: float) -> float | None:
    """Return a figure as a JSON value; None if it is not finite."""
    return value if math.isfinite(value) else None


def as_row(one: Standing) -> Row:
    """Return the row of a standing for the JSON file."""
    spreads = {name: getattr(one, name) for name in ("score", "gain", "over_random", "over_time", "time", "trained")}
    shown = {
        name: {"mean": number(each.mean), "std": number(each.std), "interval": list(map(number, each.interval))}
        for name, each in spreads.items()
    }
    return {"name": one.name, "survives": one.survives, "seeds": len(one.score.values), **shown}


if __name__ == "__main__":
    main()
