"""What writing results costs: a training with `RunRecorder` against the same one without, and what it does at large N.

Three fits with KAKURENBO take turns of five epochs, of which one writes samples.parquet: without a recorder, with, and once more without
(`control`). With `--clock cpu` the work of the recorder's own thread counts in full, though training does not wait for it. What happens at
large N is timed by itself, on columns of that length.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from kakurenbo_lightning import EpochPlan, SampleSelection, SampleStatistics
from recipes import run_files
from recipes.bench import report
from recipes.bench.training import Classifier, RandomImages, prepare, trainer
from recipes.bench.turns import TakeEpochs, take_turns
from recipes.models import CifarResNet
from recipes.recorder import RunRecorder
from recipes.sample_counts import SampleCounts

ARMS = ("plain", "recorded", "control")
EVERY = 5  # epochs: samples.parquet is written once per turn
HIDDEN = 0.3


def measure(settings: argparse.Namespace, bar: tqdm, folder: Path) -> dict[str, Any]:
    """Return how much longer epochs take with a recorder: medians over turns, each compared with the one without just before."""
    timers, fits = {}, []
    for arm in ARMS:
        timer = timers[arm] = TakeEpochs(EVERY, report.clock(settings.device, settings.clock), bar.update)
        selection = SampleSelection("kakurenbo", seed=0)
        watching = [selection]
        if arm == "recorded":
            watching.append(RunRecorder(selection, folder / "run", every_n_epochs=EVERY))
        training = trainer(settings.device, [*watching, timer], (settings.turns + 1) * EVERY)
        data = RandomImages(settings.samples, settings.seed, batch_size=128)
        torch.manual_seed(settings.seed)
        fits.append((timer, partial(training.fit, Classifier(CifarResNet()), datamodule=data)))
    take_turns(fits)
    seconds = {arm: timer.seconds[1:] for arm, timer in timers.items()}  # in the first turn things are set up
    against = {arm: [a / b for a, b in zip(seconds[arm], seconds["plain"], strict=True)] for arm in ("recorded", "control")}
    return {
        "epoch_s": median(seconds["plain"]),
        "ratio": report.median_of(against["recorded"]),
        "control": report.median_of(against["control"]),
        "bytes": sum(path.stat().st_size for path in (folder / "run").iterdir()),
        "epochs": len(pq.read_table(folder / "run" / run_files.EPOCHS)),
    }


def at(count: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Return the seconds of an epoch's work on `count` samples: on the training thread each epoch and when samples are written, and on
    the recorder's own thread."""
    torch.manual_seed(0)
    statistics = SampleStatistics(count)
    loss = torch.rand(count).mul(12).sub(10).exp()
    statistics.record(torch.arange(count), {"loss": loss, "confidence": torch.exp(-loss), "correct": loss < 1}, 0)
    counts = SampleCounts(count, torch.device("cpu"))
    plans = [EpochPlan.hide(torch.rand(count) < HIDDEN) for _ in range(2)]

    def copies() -> dict[str, Any]:
        columns = {"loss": statistics.loss, "confidence": statistics.confidence, "correct": statistics.correct}
        columns |= {"target": counts.hidden, "epoch_seen": statistics.epoch_seen, "times_trained": counts.trained(0)}
        columns |= {"times_hidden": counts.hidden, "last_change": counts.changed}
        return {name: column.to("cpu", copy=True).numpy() for name, column in columns.items()}

    def epoch(number: int) -> None:
        counts.hide(plans[number % 2].hidden, number)
        run_files.histogram(statistics.loss)

    def timed(work: Callable[[int], Any]) -> float:
        found = []
        for number in range(repeats):
            started = time.perf_counter()
            work(number)
            found.append(time.perf_counter() - started)
        return median(found)

    columns = copies()
    return {
        "samples": count,
        "epoch_s": timed(epoch),
        "copy_s": timed(lambda number: copies()),
        "write_s": timed(lambda number: run_files.write_samples(folder, columns, number)),
        "bytes_per_sample": (folder / run_files.SAMPLES).stat().st_size / count,
    }


def show(result: dict[str, Any]) -> None:
    """Print both tables."""
    run = result["run"]
    written = {name: "{median:.4f} ({low:.4f} to {high:.4f})".format(**run[name]) for name in ("ratio", "control")}
    report.print_table(
        "An epoch with a RunRecorder against one without",
        ["epoch", "ratio", "control ratio", "files"],
        [[report.in_units(run["epoch_s"]), written["ratio"], written["control"], f"{run['bytes']:,} bytes"]],
        "Medians with 95 % intervals. control: two measurements without a recorder.",
    )
    report.print_table(
        "What it does at large N",
        ["samples", "each epoch", f"each {EVERY}th epoch more", "own thread", "bytes per sample"],
        [
            [f"{row['samples']:,}", *(report.in_units(row[key]) for key in ("epoch_s", "copy_s", "write_s")),
             f"{row['bytes_per_sample']:.1f}"] for row in result["large"]
        ],
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure both."""
    options = report.parser("recording", __doc__)
    options.add_argument("--samples", type=report.count, default=6_400, help="images of an epoch")
    options.add_argument("--turns", type=report.count, default=8, help="of five epochs, of each fit")
    options.add_argument("--sizes", nargs="+", type=report.count, default=[1_280_000], help="numbers of samples")
    options.add_argument("--repeats", type=report.count, default=7, help="of the work at large N")
    settings = options.parse_args(arguments)
    prepare(settings)
    result = {"benchmark": "recording", "machine": report.machine(settings.device), "clock": settings.clock}
    with (
        tempfile.TemporaryDirectory() as name,
        tqdm(total=len(ARMS) * (settings.turns + 1), desc="recording", unit="turn") as bar,
    ):
        result["run"] = measure(settings, bar, Path(name))
        result["large"] = [at(count, settings.repeats, Path(name) / str(count)) for count in settings.sizes]
    show(result)
    report.write(settings.json, result)
    return result


if __name__ == "__main__":
    main()
