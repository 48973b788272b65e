"""Runs that are compared by the time they take on a shared machine: CIFAR-10 (or digits) with the CIFAR ResNet-8, one CPU core.

Seconds are those of `fit`, without validation. Other load on the machine changes wall time, and also how much
is done in a CPU second. So a step of a reference network is timed every few steps, and what a run costs is its CPU
seconds in units of that step. On a GPU, which must be idle otherwise, a run costs its seconds; it trains with bfloat16 there.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from kakurenbo_recipes.data import Digits, ImageData
from kakurenbo_recipes.models import CifarResNet, ImageClassifier
from kakurenbo_recipes.parquet_data import CIFAR10
from torch import nn
from tqdm import tqdm

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.core.random import isolated_rng
from kakurenbo_lightning.methods.base import Method
from recipes.benchmarks import report
from recipes.benchmarks.report import Row
from recipes.benchmarks.training import prepare, trainer

STEPS_BETWEEN = 16  # training steps between two reference steps
BELOW = (  # what is said below a table of such runs
    "Mean +- standard deviation over the seeds; differences (in points) and ratios are to the baseline of the same seed. Time "
    f"ratios are of CPU seconds of fit in units of a reference step that is timed every {STEPS_BETWEEN} steps."
)
CLOCKS = {"wall_s": time.perf_counter, "cpu_s": time.process_time}
SGD = partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4)
OfASeed = Callable[[argparse.Namespace, int], list[Row]]
SETTINGS = ("samples", "batch_size", "learning_rate", "epochs", "seeds")


def now() -> dict[str, float]:
    """Read wall time and CPU time, in seconds by clock."""
    return {name: clock() for name, clock in CLOCKS.items()}


class Reference(L.Callback):
    """Shows how fast the machine is during a run: it trains a reference network for one step every `STEPS_BETWEEN` steps.

    Args:
        samples: samples of a reference step, float [B, 3, H, W] or int64 [B, L]; labels are drawn.
        network: makes the reference network. It should resemble the network of the run, so that the cost of measuring stays in
            proportion.

    Attributes:
        seconds: seconds of all reference steps, by clock.
        steps: number of reference steps.
    """

    def __init__(self, samples: torch.Tensor, network: Callable[[], nn.Module] = CifarResNet) -> None:
        self.seconds = dict.fromkeys(CLOCKS, 0.0)
        self.steps = 0
        self._network = network().to(memory_format=torch.channels_last)
        self._batch = samples, torch.randint(10, (len(samples),))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Train and time a step."""
        if batch_idx % STEPS_BETWEEN:
            return
        samples, labels = self._batch
        started = now()
        F.cross_entropy(self._network(samples), labels).backward()
        self._network.zero_grad()
        self.steps += 1
        for name, time_ in now().items():
            self.seconds[name] += time_ - started[name]


class Curve(L.Callback):
    """Records the test error and the time so far at each validation within `fit`, and how long validating took.

    Args:
        reference: its steps are not counted as time of the run.

    Attributes:
        points: one per validation.
        seconds: seconds of all validations, by clock.
    """

    def __init__(self, reference: Reference) -> None:
        self.points: list[Row] = []
        self.seconds = dict.fromkeys(CLOCKS, 0.0)
        self._reference = reference

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks of the run."""
        self._started = now()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clocks, because validation does not count as training."""
        self._stopped = now()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the test error, and start the clocks again."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        aside = {name: self.seconds[name] + self._reference.seconds[name] for name in CLOCKS}
        past = {name: self._stopped[name] - self._started[name] - aside[name] for name in CLOCKS}
        error = 1 - trainer.callback_metrics["val/accuracy"].item()
        self.points.append({"epoch": trainer.current_epoch + 1, **past, "error": error})
        for name, time_ in now().items():
            self.seconds[name] += time_ - self._stopped[name]


class Fits:
    """Trains runs on the same data with the same settings.

    Args:
        settings: the command line.
        each_epoch: validate after each epoch and keep the curve of the test error, instead of once after the last.
        data: makes the images; by default CIFAR-10, or digits where the command line names no folder.
        network: makes what is trained.
        optimizer: makes it, from parameters and `lr`.
        options: further arguments of the data module.
    """

    def __init__(
        self,
        settings: argparse.Namespace,
        each_epoch: bool = False,
        data: Callable[..., ImageData] | None = None,
        network: Callable[[], nn.Module] = CifarResNet,
        optimizer: Callable[..., torch.optim.Optimizer] = SGD,
        **options: Any,
    ) -> None:
        self._settings, self._each_epoch, self._network = settings, each_epoch, network
        self._optimizer = partial(optimizer, lr=settings.learning_rate)
        if data is None:
            data = Digits if settings.data_root is None else partial(CIFAR10, str(settings.data_root))
        self.data = data(subset=settings.samples, batch_size=settings.batch_size, **options)
        self.data.prepare_data()
        self.data.setup("fit")
        few = copy.copy(self)  # a short run first, so that no measured run pays for imports and first calls
        few.data = copy.copy(self.data)
        few.data.train_images = few.data.test_images = self.data.train_images.part(torch.arange(2 * settings.batch_size))
        few.run("warm-up", 0, "baseline", epochs=1)

    @property
    def flipped(self) -> torch.Tensor:
        """Which training labels were replaced by wrong ones (`label_noise`); bool [N]."""
        return self.data.train_images.labels != self.data.clean_labels

    def model(self, seed: int, classifier: type[ImageClassifier] = ImageClassifier) -> ImageClassifier:
        """Return the model of a run with this seed, and seed the random numbers."""
        L.seed_everything(seed, verbose=False)
        return classifier(self._network().to(memory_format=torch.channels_last), self._optimizer, num_classes=10)

    def _samples(self) -> torch.Tensor:
        """Return what the reference network trains on: the text itself, or random images of the same size."""
        few = self.data.train_images.part(torch.arange(min(self._settings.batch_size, len(self.data.train_images)))).images
        return torch.randn(few.shape) if few.dtype == torch.uint8 else few

    def run(
        self,
        name: str,
        seed: int,
        method: str | Method,
        epochs: int | None = None,
        callbacks: Sequence = (),
        scorer: Callable[[], nn.Module] | None = None,
        classifier: type[ImageClassifier] = ImageClassifier,
        **options: Any,
    ) -> Row:
        """Train and validate one run, with `callbacks` after the selection, and return its row of the table.

        Args:
            name: name of the run.
            seed: seed of the weights and the order of samples.
            method: name of the method, or a method object.
            epochs: number of epochs; None for that of the command line.
            callbacks: further callbacks of the Trainer.
            scorer: makes the network of the method's scorer, which has an optimizer and a schedule like the model's.
            classifier: class of the LightningModule that is trained.
            options: settings of the method.
        """
        settings, reference = self._settings, Reference(self._samples(), self._network)
        epochs, curve = epochs or settings.epochs, Curve(reference)
        model = self.model(seed, classifier)
        with isolated_rng():
            proxy = None if scorer is None else ImageClassifier(scorer(), self._optimizer, num_classes=10)
        selection = SampleSelection(method, scorer=proxy, **options)
        within: Row = {"num_sanity_val_steps": 0} if self._each_epoch else {"check_val_every_n_epoch": epochs + 1}
        on_gpu = settings.device == "cuda"
        within |= {"precision": "bf16-mixed"} if on_gpu else {}
        beside = [curve] if on_gpu else [reference, curve]
        training = trainer(settings.device, [selection, *beside, *callbacks], epochs, **within)
        started = now()
        training.fit(model, datamodule=self.data)
        ended = now()
        seconds = {clock: ended[clock] - started[clock] - reference.seconds[clock] - curve.seconds[clock] for clock in CLOCKS}
        if not self._each_epoch:
            training.validate(model, datamodule=self.data, verbose=False)
        clock, step = ("wall_s", 1.0) if on_gpu else ("cpu_s", reference.seconds["cpu_s"] / reference.steps)
        totals, accuracy = asdict(selection.totals), training.callback_metrics["val/accuracy"].item()
        tqdm.write(f"seed {seed}, {name}: {accuracy:.1%} after {epochs} epochs, {seconds[clock]:.1f} {clock}")
        return {
            **{"run": name, "seed": seed, "epochs": epochs, **seconds, "cost": seconds[clock] / step, "accuracy": accuracy},
            **{count: totals[count] for count in totals if count.startswith("samples_")},
            "hidden_share": totals["samples_hidden"] / (totals["samples_trained"] + totals["samples_hidden"]),
            "curve": [point | {"cost": point[clock] / step} for point in curve.points],
        }


def parser(
    name: str, description: str, digits: bool = False, needs_files: bool = True, devices: Sequence[str] = ("cpu",)
) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark of runs; equal time means CPU seconds here, on a GPU seconds.

    Args:
        name: name of the benchmark.
        description: for `--help`.
        digits: without files the data is digits.
        needs_files: whether `--data-root` must be given where there are no digits.
        devices: devices that may be used for training.
    """
    options = report.parser(name, description, devices=devices, clocks=["cpu"], threads=1)
    without = "; without it: scikit-learn's digits at 32 x 32 pixels" if digits else ""
    options.add_argument("--data-root", type=Path, required=needs_files and not digits, help=f"folder of CIFAR-10{without}")
    options.add_argument("--samples", type=report.count, default=12_500, help="training images")
    options.add_argument("--batch-size", type=report.count, default=128, help="samples of a step")
    options.add_argument("--learning-rate", type=float, default=0.1, help="at the start of the cosine schedule")
    options.add_argument("--epochs", type=report.count, default=12, help="of a run that is not of equal time")
    options.add_argument("--seeds", type=report.count, default=3, help="how many, from --seed on")
    options.add_argument("--processes", type=report.count, default=1, help="that train seeds at one time")
    return options


def measured(settings: argparse.Namespace, of_a_seed: OfASeed, keys: Sequence[str], **more: Any) -> tuple[list[Row], list[Row]]:
    """Train the runs of all seeds, write the results after each seed, and return the rows and their summary.

    Args:
        settings: the command line.
        of_a_seed: a function of the settings and a seed that a new process can import; returns the rows of its runs.
        keys: figures of the rows to summarise.
        more: further entries for the JSON file.
    """
    rows, started = [], time.perf_counter()
    seeds = range(settings.seed, settings.seed + settings.seeds)
    several = settings.processes > 1
    pool = ProcessPoolExecutor(settings.processes, mp_context=get_context("spawn")) if several else nullcontext()
    with pool:
        for found in (pool.map if several else map)(partial(_prepared, of_a_seed, settings), seeds):
            rows += found
            described = {"network": "CIFAR ResNet-8", **{name: getattr(settings, name) for name in SETTINGS}}
            result = report.write(
                settings, **described | more, wall_s=time.perf_counter() - started, summary=summarise(rows, *keys)
            )
    return rows, result["summary"]


def _prepared(of_a_seed: OfASeed, settings: argparse.Namespace, seed: int) -> list[Row]:
    prepare()
    torch.set_num_threads(settings.threads)
    return of_a_seed(settings, seed)


def compared(row: Row, baseline: Row) -> Row:
    """Return a row with accuracy and cost relative to the baseline of its seed."""
    return row | {"difference": row["accuracy"] - baseline["accuracy"], "time_ratio": row["cost"] / baseline["cost"]}


def shorter(epochs: int, row: Row, baseline: Row) -> int:
    """Return the number of whole baseline epochs that cost as much as a run, at least one."""
    return max(1, round(epochs * row["cost"] / baseline["cost"]))


def summarise(rows: Iterable[Row], *keys: str) -> list[Row]:
    """Return mean and standard deviation over the seeds of each run, for figures that all its rows have."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    return [
        {"run": name, "seeds": len(mine), "epochs": sorted({row["epochs"] for row in mine})}
        | {key: None if None in (values := [row[key] for row in mine]) else spread(values) for key in keys}
        for name, mine in runs.items()
    ]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation; the latter is None for a single value."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


def written(value: dict[str, float | None] | None, form: str, scale: float = 1) -> str:
    """Format mean and deviation as 1.2 +- 0.3; a dash for None."""
    if value is None:
        return "-"
    middle, deviation = value["mean"] * scale, value["std"]
    return format(middle, form) + ("" if deviation is None else f" +- {format(deviation * scale, form.lstrip('+'))}")


def cell(key: str, form: str, scale: float = 1) -> Callable[[Row], str]:
    """Return a function that formats a figure of `summarise` for the table."""
    return lambda row: written(row[key], form, scale)


def title(settings: argparse.Namespace) -> str:
    """Return the heading of the table."""
    data = "digits" if settings.data_root is None else "CIFAR-10"
    return f"CIFAR ResNet-8, {settings.samples:,} images of {data}, {settings.epochs} epochs, {settings.seeds} seeds"
