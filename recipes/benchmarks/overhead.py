"""What watching costs: the time of a training step whose samples are recorded, none hidden, against one without a callback.

Three fits take turns of a few steps in one process, so that other load on the machine meets them alike: one without a
callback, one with, and once more one without (`control`), which shows how far two equal measurements differ.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from kakurenbo_recipes.models import CifarResNet
from torch import nn
from tqdm import tqdm

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.core.progress import bar_settings
from recipes.benchmarks import report
from recipes.benchmarks.report import Row
from recipes.benchmarks.training import Classifier, RandomImages, prepare, trainer
from recipes.benchmarks.turns import TakeTurns, take_turns

METHODS = {
    "kakurenbo": {"max_fraction": 0.0},
    "baseline": {},
    "plb": {},
    "peb": {},
}  # the first one reads everything and hides nothing
ARMS = ("plain", "baseline", "control")
WARM_UP = 2  # turns that are not counted, because in the first one the callback verifies where values come from
EPOCH = 200  # steps per epoch, so many that few turns contain an epoch's end


def tiny() -> nn.Module:
    """Return one linear layer, so that nearly all of a step is overhead."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


@dataclass(frozen=True)
class Case:
    """One network to measure with.

    Attributes:
        name: name in the table.
        network: makes the network.
        batch_size: samples of a step.
        by_name: whether the step calls its criterion as `F.cross_entropy`, see `Classifier`.
        speed: number of turns, relative to the other cases.
    """

    name: str
    network: Callable[[], nn.Module]
    batch_size: int
    by_name: bool = True
    speed: int = 1


CASES = {
    "linear": Case("one linear layer, batch 128", tiny, 128, speed=10),
    "resnet8": Case("ResNet-8, batch 128", CifarResNet, 128),
    "resnet50": Case("50 layers, batch 8", partial(CifarResNet, 50), 8),
    "resnet50-mode": Case("50 layers, function mode", partial(CifarResNet, 50), 8, by_name=False),
}


def measure(case: Case, settings: argparse.Namespace, bar: tqdm) -> Row:
    """Return medians over turns. Each turn with the callback is compared with the turn without just before."""
    torch.manual_seed(settings.seed)
    turns = settings.turns * case.speed
    data = RandomImages(case.batch_size * EPOCH, settings.seed, batch_size=case.batch_size)
    timers, fits = {}, []
    for arm in ARMS:
        clock = report.clock(settings.device, settings.clock)
        timer = timers[arm] = TakeTurns(settings.steps, clock, bar.update)
        watching = [SampleSelection(settings.method, seed=0, **METHODS[settings.method])] if arm == "baseline" else []
        training = trainer(settings.device, [*watching, timer], -1, max_steps=(turns + WARM_UP) * settings.steps)
        model = Classifier(case.network(), case.by_name)
        own = RandomImages(0, batch_size=case.batch_size)
        data.setup("fit")
        own.train_images, own.test_images = data.train_images, data.test_images
        fits.append((timer, partial(training.fit, model, datamodule=own)))
    take_turns(fits)
    seconds = {arm: timer.seconds[WARM_UP:] for arm, timer in timers.items()}
    ratios = {arm: [mine / plain for mine, plain in zip(seconds[arm], seconds["plain"], strict=True)] for arm in ARMS}
    extra = {arm: [mine - plain for mine, plain in zip(seconds[arm], seconds["plain"], strict=True)] for arm in ARMS}
    return {
        "network": case.name,
        "batch_size": case.batch_size,
        "steps_per_turn": settings.steps,
        "turns": turns,
        "plain_ms": 1e3 * median(seconds["plain"]),
        "baseline_ms": 1e3 * median(seconds["baseline"]),
        "ratio": median(ratios["baseline"]),
        "extra_us_per_step": 1e6 * median(extra["baseline"]),
        "control_ratio": median(ratios["control"]),
        "control_extra_us": 1e6 * median(extra["control"]),
    }


def main(arguments: list[str] | None = None) -> Row:
    """Measure the chosen networks, print a table and write the JSON file."""
    options = report.parser("overhead", __doc__)
    options.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="networks to measure with")
    options.add_argument(
        "--method", default="kakurenbo", choices=list(METHODS), help="kakurenbo hides nothing here; baseline needs no values"
    )
    options.add_argument("--steps", type=report.count, default=10, help="steps of a turn")
    options.add_argument("--turns", type=report.count, default=40, help="turns of each fit (ten times as many for linear)")
    settings = report.parse(options, arguments)
    prepare()
    cases = [CASES[name] for name in settings.cases]
    turns = sum(settings.turns * case.speed + WARM_UP for case in cases)
    with tqdm(**bar_settings(total=len(ARMS) * turns, desc="overhead", unit="turn")) as bar:
        rows = [measure(case, settings, bar) for case in cases]
    report.print_table(
        f"A step with the method {settings.method} against one without a callback",
        rows,
        {
            "network": lambda row: row["network"],
            "plain": lambda row: f"{row['plain_ms']:.2f} ms",
            settings.method: lambda row: f"{row['baseline_ms']:.2f} ms",
            "ratio": lambda row: f"{row['ratio']:.4f}",
            "extra per step": lambda row: f"{row['extra_us_per_step']:.0f} us",
            "control ratio": lambda row: f"{row['control_ratio']:.4f}",
            "control extra": lambda row: f"{row['control_extra_us']:.0f} us",
        },
        "Medians of turns, compared turn by turn. control: two measurements without a callback.",
    )
    return report.write(settings, method=settings.method, networks=rows)


if __name__ == "__main__":
    main()
