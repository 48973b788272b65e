"""Is it the method, or only training less? InfoBatch and KAKURENBO against controls of equal data and of equal time.

For each seed, on CIFAR-10 with the CIFAR ResNet-8: the baseline, each method, hiding the same share at random, and a
baseline of fewer epochs that takes as long as the method did, its learning rate fully decayed. The runs of a seed begin
with the same weights and are compared with its baseline.

Seconds are those of `fit`, without validation. Other load on the machine changes wall time, and also how much
is done in a CPU second. So a step of a reference network is timed every few steps, and equal time means equal CPU
seconds in units of that step.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from tqdm import tqdm

from kakurenbo_lightning import SampleSelection
from recipes.bench import report
from recipes.bench.training import prepare, trainer
from recipes.data import CIFAR10, ImageData, InMemoryImages
from recipes.models import CifarResNet, ImageClassifier

METHODS = {"infobatch": {"prune_ratio": 0.5}, "kakurenbo": {"max_fraction": 0.3, "tau": 0.7}}
RUNS = 1 + 3 * len(METHODS)  # of a seed
STEPS_BETWEEN = 16  # reference steps
CLOCKS = {"wall_s": time.perf_counter, "cpu_s": time.process_time}
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


class Fits:
    """Trains runs on the same data with the same settings.

    Args:
        data: already set up.
        settings: the command line.
        bar: shows the progress.
    """

    def __init__(self, data: ImageData, settings: argparse.Namespace, bar: tqdm) -> None:
        self._data = data
        self._settings = settings
        self._bar = bar

    def warm_up(self) -> None:
        """Train a few batches, so that the first run does not pay for imports and the first look at a network."""
        data = CIFAR10(str(self._settings.data_root), batch_size=self._settings.batch_size)
        images = self._data.train_images
        data.train_images = InMemoryImages(*(part[: 2 * data.batch_size] for part in (images.images, images.labels)))
        data.test_images = data.train_images
        Fits(data, self._settings, self._bar).run("warm-up", 0, 1, "baseline")

    def run(self, name: str, seed: int, epochs: int, method: str, **options: Any) -> Row:
        """Train, then validate, and return what is written down of a run."""
        settings, reference = self._settings, Reference(self._settings.batch_size)
        L.seed_everything(seed, verbose=False)
        optimizer = partial(torch.optim.SGD, lr=settings.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        model = ImageClassifier(CifarResNet().to(memory_format=torch.channels_last), optimizer, num_classes=10)
        selection = SampleSelection(method, **options)
        callbacks = [selection, EpochCounter(self._bar, name), reference]
        training = trainer("cpu", callbacks, epochs, check_val_every_n_epoch=epochs + 1)  # none within fit
        started = {name: clock() for name, clock in CLOCKS.items()}
        training.fit(model, datamodule=self._data)
        seconds = {name: clock() - started[name] - reference.seconds[name] for name, clock in CLOCKS.items()}
        training.validate(model, datamodule=self._data, verbose=False)
        totals = asdict(selection.totals)
        trained, hidden = totals["samples_trained"], totals["samples_hidden"]
        return {
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
            "reference_step_s": reference.seconds["cpu_s"] / reference.steps,
            "cost": seconds["cpu_s"] * reference.steps / reference.seconds["cpu_s"],
            "accuracy": training.callback_metrics["val/accuracy"].item(),
        }


def runs_of_a_seed(run: Callable[..., Row], seed: int, epochs: int) -> Iterator[Row]:
    """Yield `RUNS` rows: the baseline, and of each method its run and its two controls.

    Args:
        run: `Fits.run`.
        seed: of all of them.
        epochs: of all but those of equal time.
    """
    baseline = run("baseline", seed, epochs, "baseline")
    yield baseline
    for method, options in METHODS.items():
        row = run(method, seed, epochs, method, **options)
        yield row
        yield run(f"random, data of {method}", seed, epochs, "random", max_fraction=round(row["hidden_share"], 3))
        shorter = max(1, round(epochs * row["cost"] / baseline["cost"]))
        yield run(f"baseline, time of {method}", seed, shorter, "baseline")


def spread(values: list[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation; there is none of one value."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


def summarise(rows: list[Row]) -> list[Row]:
    """Return mean and deviation over the seeds of each run, and against the baseline of the same seed."""
    baselines = {row["seed"]: row for row in rows if row["run"] == "baseline"}
    summary = []
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        figures = {key: spread([row[key] for row in mine]) for key in ("accuracy", "samples_trained", "hidden_share", "cpu_s")}
        figures["difference"] = spread([row["accuracy"] - baselines[row["seed"]]["accuracy"] for row in mine])
        figures["time_ratio"] = spread([row["cost"] / baselines[row["seed"]]["cost"] for row in mine])
        summary.append({"run": name, "seeds": len(mine), "epochs": [row["epochs"] for row in mine], **figures})
    return summary


def written(value: dict[str, float | None], form: str, scale: float = 1) -> str:
    """Write mean and deviation."""
    return " +- ".join(format(part * scale, form) for part in value.values() if part is not None)


def show(summary: list[Row], settings: argparse.Namespace) -> None:
    """Print one row per run."""
    report.print_table(
        f"CIFAR ResNet-8, {settings.samples:,} images of CIFAR-10, {settings.epochs} epochs, seeds: {settings.seeds}",
        ["run", "epochs", "test accuracy, %", "to baseline", "samples trained", "CPU seconds", "time ratio"],
        [
            [
                row["run"],
                ", ".join(str(epochs) for epochs in dict.fromkeys(row["epochs"])),
                written(row["accuracy"], ".2f", 100),
                written(row["difference"], "+.2f", 100).replace("+- +", "+- "),
                written(row["samples_trained"], ",.0f"),
                written(row["cpu_s"], ".1f"),
                written(row["time_ratio"], ".3f"),
            ]
            for row in summary
        ],
        "Mean +- standard deviation over the seeds; differences (in points) and ratios are to the baseline of the same seed. "
        "The machine is shared: time ratios, and equal time (in whole epochs), are of CPU seconds of fit in units of a "
        f"reference step that is timed every {STEPS_BETWEEN} steps.",
    )


def save(path: Path, result: dict[str, Any]) -> None:
    """Write what there is so far; a kill leaves the last whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(part, path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train every run of every seed, one after another."""
    options = report.parser("controls", __doc__)
    options.add_argument("--data-root", type=Path, required=True, help="folder of CIFAR-10")
    options.add_argument("--samples", type=report.count, default=12_500, help="training images")
    options.add_argument("--batch-size", type=report.count, default=128, help="samples of a step")
    options.add_argument("--learning-rate", type=float, default=0.1, help="at the start of the cosine schedule")
    options.add_argument("--epochs", type=report.count, default=12, help="of a run that is not of equal time")
    options.add_argument("--seeds", type=report.count, default=3, help="how many, from --seed on")
    options.set_defaults(threads=1, clock="cpu")
    settings = options.parse_args(arguments)
    if settings.clock != "cpu" or settings.device != "cpu":
        options.error("--clock wall and --device cuda are not allowed: equal time means CPU seconds here")
    prepare(settings)
    result = {
        "benchmark": "controls",
        "machine": report.machine(settings.device),
        "clock": settings.clock,
        "network": "CIFAR ResNet-8",
        "methods": METHODS,
        **{name: getattr(settings, name) for name in ("samples", "batch_size", "learning_rate", "epochs", "seeds")},
    }
    data = CIFAR10(str(settings.data_root), subset=settings.samples, batch_size=settings.batch_size)
    data.prepare_data()
    data.setup("fit")
    rows, started = [], time.perf_counter()
    with tqdm(total=RUNS * settings.seeds, desc="controls", unit="run") as bar:
        fits = Fits(data, settings, bar)
        fits.warm_up()
        for seed in range(settings.seed, settings.seed + settings.seeds):
            for row in runs_of_a_seed(fits.run, seed, settings.epochs):
                rows.append(row)
                bar.update()
                result |= {"wall_s": time.perf_counter() - started, "summary": summarise(rows), "runs": rows}
                save(settings.json, result)
    show(result["summary"], settings)
    report.write(settings.json, result)
    return result


if __name__ == "__main__":
    main()
