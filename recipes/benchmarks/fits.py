"""Runs that are compared by the time they take on a shared machine: CIFAR-10 with the CIFAR ResNet-8, one CPU core.

Seconds are those of `fit`, without validation. Other load on the machine changes wall time, and also how much
is done in a CPU second. So a step of a reference network is timed every few steps, and what a run costs is its CPU
seconds in units of that step.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from kakurenbo_recipes.data import ImageData, InMemoryImages
from kakurenbo_recipes.models import CifarResNet, ImageClassifier
from kakurenbo_recipes.parquet_data import CIFAR10
from tqdm import tqdm

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks import report
from recipes.benchmarks.training import trainer

STEPS_BETWEEN = 16  # reference steps
CLOCKS = {"wall_s": time.perf_counter, "cpu_s": time.process_time}
LOOKED = ("samples_scored", "samples_rejected", "score_seconds", "forward_seconds", "backward_seconds", "data_seconds")
SETTINGS = ("samples", "batch_size", "learning_rate", "epochs", "seeds")
Row = dict[str, Any]


class EpochCounter(L.Callback):
    """Shows in a progress bar which epoch of a run is over."""

    def __init__(self, bar: tqdm, name: str) -> None:
        self._bar = bar
        self._name = name

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show it."""
        self._bar.set_postfix_str(f"{self._name}, epoch {trainer.current_epoch + 1} of {trainer.max_epochs}")


class Reference(L.Callback):
    """Tells how fast the machine is while a run goes on: trains a step of a network of its own every `STEPS_BETWEEN` steps.

    Args:
        batch_size: samples of its step.

    Attributes:
        seconds: of all its steps, by clock.
        steps: how many.
    """

    def __init__(self, batch_size: int) -> None:
        self.seconds = dict.fromkeys(CLOCKS, 0.0)
        self.steps = 0
        self._network = CifarResNet().to(memory_format=torch.channels_last)
        self._batch = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Train and time a step."""
        if batch_idx % STEPS_BETWEEN:
            return
        images, labels = self._batch
        started = {name: clock() for name, clock in CLOCKS.items()}
        F.cross_entropy(self._network(images), labels).backward()
        self._network.zero_grad()
        self.steps += 1
        for name, clock in CLOCKS.items():
            self.seconds[name] += clock() - started[name]


class Curve(L.Callback):
    """Writes down the test error and the time so far at each validation within `fit`, and how long that took.

    Args:
        reference: its steps are not time of the run.

    Attributes:
        points: one per validation.
        seconds: of all validations, by clock.
    """

    def __init__(self, reference: Reference) -> None:
        self.points: list[Row] = []
        self.seconds = dict.fromkeys(CLOCKS, 0.0)
        self._reference = reference

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The clocks run from here."""
        self._started = {name: clock() for name, clock in CLOCKS.items()}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clocks."""
        self._stopped = {name: clock() for name, clock in CLOCKS.items()}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write down the error, and let the clocks go on."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        aside = {name: self.seconds[name] + self._reference.seconds[name] for name in CLOCKS}
        past = {name: self._stopped[name] - self._started[name] - aside[name] for name in CLOCKS}
        error = 1 - trainer.callback_metrics["val/accuracy"].item()
        self.points.append({"epoch": trainer.current_epoch + 1, **past, "error": error})
        for name, clock in CLOCKS.items():
            self.seconds[name] += clock() - self._stopped[name]


class Fits:
    """Trains runs on the same data with the same settings.

    Args:
        data: already set up.
        settings: the command line.
        bar: shows the progress.
        each_epoch: validate after each epoch and keep the curve of the test error, instead of once after the last.
    """

    def __init__(self, data: ImageData, settings: argparse.Namespace, bar: tqdm, each_epoch: bool = False) -> None:
        self._data = data
        self._settings = settings
        self._bar = bar
        self._each_epoch = each_epoch

    def warm_up(self) -> None:
        """Train a few batches, so that the first run does not pay for imports and the first look at a network."""
        data = CIFAR10(str(self._settings.data_root), batch_size=self._settings.batch_size)
        images = self._data.train_images
        data.train_images = InMemoryImages(*(part[: 2 * data.batch_size] for part in (images.images, images.labels)))
        data.test_images = data.train_images
        Fits(data, self._settings, self._bar).run("warm-up", 0, 1, "baseline")

    def run(self, name: str, seed: int, epochs: int, method: str, callbacks: Sequence[L.Callback] = (), **options: Any) -> Row:
        """Train, with `callbacks` after the selection, validate, and return what is written down of a run."""
        settings, reference = self._settings, Reference(self._settings.batch_size)
        curve = Curve(reference)
        L.seed_everything(seed, verbose=False)
        optimizer = partial(torch.optim.SGD, lr=settings.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        model = ImageClassifier(CifarResNet().to(memory_format=torch.channels_last), optimizer, num_classes=10)
        selection = SampleSelection(method, **options)
        watching = [selection, EpochCounter(self._bar, name), reference, curve, *callbacks]
        within = {"num_sanity_val_steps": 0} if self._each_epoch else {"check_val_every_n_epoch": epochs + 1}
        training = trainer("cpu", watching, epochs, **within)
        started = {name: clock() for name, clock in CLOCKS.items()}
        training.fit(model, datamodule=self._data)
        seconds = {
            name: clock() - started[name] - reference.seconds[name] - curve.seconds[name] for name, clock in CLOCKS.items()
        }
        if not self._each_epoch:
            training.validate(model, datamodule=self._data, verbose=False)
        step = reference.seconds["cpu_s"] / reference.steps
        totals = asdict(selection.totals)
        trained, hidden = totals["samples_trained"], totals["samples_hidden"]
        row = {
            "run": name,
            "seed": seed,
            "method": method,
            "settings": options,
            "epochs": epochs,
            "samples_trained": trained,
            "samples_hidden": hidden,
            "samples_refreshed": totals["samples_refreshed"],
            "hidden_share": hidden / (trained + hidden),
            **seconds,
            "reference_step_s": step,
            "cost": seconds["cpu_s"] / step,
            "accuracy": training.callback_metrics["val/accuracy"].item(),
        }
        if self._each_epoch:
            row |= {name: totals[name] for name in LOOKED}
            row["curve"] = [point | {"cost": point["cpu_s"] / step} for point in curve.points]
        return row


def parser(name: str, description: str, data_required: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark of runs."""
    options = report.parser(name, description)
    options.add_argument("--data-root", type=Path, required=data_required, help="folder of CIFAR-10")
    options.add_argument("--samples", type=report.count, default=12_500, help="training images")
    options.add_argument("--batch-size", type=report.count, default=128, help="samples of a step")
    options.add_argument("--learning-rate", type=float, default=0.1, help="at the start of the cosine schedule")
    options.add_argument("--epochs", type=report.count, default=12, help="of a run that is not of equal time")
    options.add_argument("--seeds", type=report.count, default=3, help="how many, from --seed on")
    options.set_defaults(threads=1, clock="cpu")
    return options


def parse(options: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; exit when it asks for what equal time does not mean."""
    settings = options.parse_args(arguments)
    if settings.clock != "cpu" or settings.device != "cpu":
        options.error("--clock wall and --device cuda are not allowed: equal time means CPU seconds here")
    return settings


def described(name: str, settings: argparse.Namespace) -> Row:
    """Return what begins the JSON file."""
    return {
        "benchmark": name,
        "machine": report.machine(settings.device),
        "clock": settings.clock,
        "network": "CIFAR ResNet-8",
        **{name: getattr(settings, name) for name in SETTINGS},
    }


def training_data(settings: argparse.Namespace, **options: Any) -> ImageData:
    """Return the images, decoded; `options` are of the data."""
    data = CIFAR10(str(settings.data_root), subset=settings.samples, batch_size=settings.batch_size, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def shorter(epochs: int, row: Row, baseline: Row) -> int:
    """Return how many whole epochs of the baseline cost as much as a run did, at least one."""
    return max(1, round(epochs * row["cost"] / baseline["cost"]))


def spread(values: list[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation; there is none of one value."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


def written(value: dict[str, float | None], form: str, scale: float = 1) -> str:
    """Write mean and deviation."""
    return " +- ".join(format(part * scale, form) for part in value.values() if part is not None)


def save(path: Path, result: dict[str, Any]) -> None:
    """Write what there is so far; a kill leaves the last whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(part, path)
