"""What watching costs: the time of a training step with the `baseline` method against the same step without a callback.

Blocks of steps with and without the callback take turns in one process, so that other load on the machine meets both
alike. A third kind of block, again without the callback, shows how far two equal measurements differ.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import lightning as L
import torch
from torch import nn
from tqdm import tqdm

from kakurenbo_lightning import SampleSelection
from recipes.bench import report
from recipes.bench.training import Classifier, RandomImages, prepare, trainer
from recipes.models import CifarResNet

ARMS = ("plain", "baseline", "control")
SKIP = 3  # steps of each block that are not counted: the first one decides where values come from


def tiny() -> nn.Module:
    """Return one linear layer: next to nothing but overhead."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


@dataclass(frozen=True)
class Case:
    """One network to measure with.

    Attributes:
        name: for the table.
        network: makes it.
        batch_size: samples of a step.
        by_name: whether the step calls its criterion as `F.cross_entropy`, see `Classifier`.
        speed: steps of a block, relative to the others.
    """

    name: str
    network: Callable[[], nn.Module]
    batch_size: int
    by_name: bool
    speed: int


CASES = {
    "linear": Case("one linear layer", tiny, 128, True, 10),
    "resnet8": Case("ResNet-8", CifarResNet, 128, True, 1),
    "resnet50": Case("ResNet-50 layers, batch 8", lambda: CifarResNet(50, 16), 8, True, 1),
    "resnet50-mode": Case("the same, function mode", lambda: CifarResNet(50, 16), 8, False, 1),
}


class StepTimer(L.Callback):
    """Reads the clock at the start of each step.

    Stands behind the callback that is measured, so a step lasts from here to here: the training step, all hooks, and
    fetching the next batch.
    """

    def __init__(self, device: str, kind: str) -> None:
        self._device = device
        self._now = report.clock("cpu", kind)
        self._wait = report.clock(device, kind)
        self._starts: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the clock; the device is waited for once only."""
        self._starts.append(self._wait() if batch_idx == SKIP else self._now())

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Read it once more after the last step."""
        if args[0].is_last_batch:
            self._starts.append(self._wait())

    def seconds(self) -> float:
        """Return the time of a step: the median, or on a GPU, which works while the clock is read, the mean."""
        starts = self._starts[SKIP:]
        if self._device == "cuda":
            return (starts[-1] - starts[0]) / (len(starts) - 1)
        return median(later - earlier for earlier, later in pairwise(starts))


def block(arm: str, model: L.LightningModule, data: L.LightningDataModule, settings: argparse.Namespace) -> float:
    """Return the seconds of a step, from one epoch of a Trainer of its own."""
    timer = StepTimer(settings.device, settings.clock)
    watching = [SampleSelection("baseline", seed=0)] if arm == "baseline" else []
    trainer(settings.device, [*watching, timer]).fit(model, datamodule=data)
    return timer.seconds()


def measure(case: Case, settings: argparse.Namespace, bar: tqdm) -> dict[str, Any]:
    """Return medians over `settings.rounds` rounds of one block of each arm, compared within each round."""
    torch.manual_seed(settings.seed)
    steps = settings.steps * case.speed
    model = Classifier(case.network(), case.by_name)
    data = RandomImages(case.batch_size * (steps + SKIP), settings.seed, batch_size=case.batch_size)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    block("plain", model, data, settings)  # warm-up
    for number in range(settings.rounds):
        turn = number % len(ARMS)
        for arm in ARMS[turn:] + ARMS[:turn]:
            seconds[arm].append(block(arm, model, data, settings))
            bar.update()

    def ratio(arm: str) -> float:
        return median(mine / plain for mine, plain in zip(seconds[arm], seconds["plain"], strict=True))

    def extra(arm: str) -> float:
        return 1e6 * median(mine - plain for mine, plain in zip(seconds[arm], seconds["plain"], strict=True))

    return {
        "network": case.name,
        "batch_size": case.batch_size,
        "steps_per_block": steps,
        "rounds": settings.rounds,
        "plain_ms": 1e3 * median(seconds["plain"]),
        "baseline_ms": 1e3 * median(seconds["baseline"]),
        "ratio": ratio("baseline"),
        "extra_us_per_step": extra("baseline"),
        "control_ratio": ratio("control"),
        "control_extra_us": extra("control"),
        "blocks_ms": {arm: [round(1e3 * value, 4) for value in values] for arm, values in seconds.items()},
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print one row per network."""
    report.print_table(
        "A step with the baseline method against one without a callback",
        ["network", "plain", "baseline", "ratio", "extra per step", "control ratio"],
        [
            [
                row["network"],
                f"{row['plain_ms']:.2f} ms",
                f"{row['baseline_ms']:.2f} ms",
                f"{row['ratio']:.4f}",
                f"{row['extra_us_per_step']:.0f} us",
                f"{row['control_ratio']:.4f}",
            ]
            for row in rows
        ],
        "Medians of rounds, compared within each round. control: two measurements without a callback.",
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure the chosen networks."""
    options = report.parser("overhead", __doc__)
    options.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="networks to measure with")
    options.add_argument("--steps", type=report.count, default=30, help="steps of a block (ten times as many for linear)")
    options.add_argument("--rounds", type=report.count, default=15, help="blocks of each kind")
    settings = options.parse_args(arguments)
    prepare(settings)
    machine = report.machine(settings.device)
    with tqdm(total=len(settings.cases) * settings.rounds * len(ARMS), desc="overhead", unit="block") as bar:
        rows = [measure(CASES[name], settings, bar) for name in settings.cases]
    show(rows)
    result = {"benchmark": "overhead", "machine": machine, "clock": settings.clock, "networks": rows}
    report.write(settings.json, result)
    return result


if __name__ == "__main__":
    main()
