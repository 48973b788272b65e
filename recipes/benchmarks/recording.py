"""What writing results costs: the processor seconds of a `RunRecorder` within a training, and what it does at large N.

A training with KAKURENBO on random images, samples.parquet written every five epochs: the seconds of all hooks of the recorder and of
its own thread, from the first to the last, are compared with those of the whole fit. What happens at large N is timed by itself, on
columns of that length.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import torch
from kakurenbo_recipes.models import CifarResNet

from kakurenbo_lightning import EpochPlan, SampleSelection, SampleStatistics
from kakurenbo_lightning.record import RunRecorder
from kakurenbo_lightning.record.epoch_rows import histogram
from kakurenbo_lightning.record.files import write_samples
from kakurenbo_lightning.record.sample_counts import SampleCounts
from kakurenbo_lightning.record.schema import EPOCHS, JUDGED, SAMPLES
from recipes.benchmarks import report
from recipes.benchmarks.report import Row, in_units
from recipes.benchmarks.training import Classifier, RandomImages, prepare, trainer

EVERY = 5  # samples.parquet is written every so many epochs
HIDDEN = 0.3
HOOKS = [name for name in vars(RunRecorder) if name.startswith("on_") or name in ("setup", "teardown")]


class TimedRecorder(RunRecorder):
    """A recorder that sums the CPU seconds of its hooks on the training thread, and of its own thread."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seconds = {"hooks": 0.0, "thread": 0.0}
        for name in HOOKS:
            setattr(self, name, self._timed(getattr(self, name), "hooks"))
        submit = self._writer.submit
        self._writer.submit = lambda write, *rest: submit(self._timed(write, "thread"), *rest)

    def _timed(self, function: Callable[..., Any], where: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[where] += time.thread_time() - started

        return timed


def measure(settings: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the CPU seconds of a fit, and of the recorder within it."""
    selection = SampleSelection("kakurenbo", seed=0)
    recorder = TimedRecorder(selection, folder / "run", every_n_epochs=EVERY)
    training = trainer(settings.device, [selection, recorder], settings.epochs)
    data = RandomImages(settings.samples, settings.seed, batch_size=128)
    torch.manual_seed(settings.seed)
    started = time.process_time()
    training.fit(Classifier(CifarResNet()), datamodule=data)
    total = time.process_time() - started
    return {
        "epochs": len(pq.read_table(folder / "run" / EPOCHS)),
        "fit_cpu_s": total,
        **{f"{name}_cpu_s": seconds for name, seconds in recorder.seconds.items()},
        "share": sum(recorder.seconds.values()) / total,
        "bytes": sum(path.stat().st_size for path in (folder / "run").iterdir()),
    }


def at(count: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Return the seconds of an epoch's work for `count` samples: on the training thread in each epoch and when samples are written,
    and on the recorder's own thread.
    """
    torch.manual_seed(0)
    statistics = SampleStatistics(count)
    loss = torch.rand(count).mul(12).sub(10).exp()
    statistics.record(torch.arange(count), {"loss": loss, "confidence": torch.exp(-loss), "correct": loss < 1}, 0)
    counts = SampleCounts(count, torch.device("cpu"))
    plans = [EpochPlan.hide(torch.rand(count) < HIDDEN) for _ in range(2)]

    def copies() -> dict[str, Any]:
        columns = {
            "loss": statistics.loss,
            "confidence": statistics.confidence,
            "correct": statistics.correct,
            JUDGED: statistics.judged,
        }
        columns |= {"target": counts.hidden, "epoch_seen": statistics.epoch_seen, "times_trained": counts.trained(0)}
        columns |= {"times_hidden": counts.hidden, "last_change": counts.changed, **counts.figures.columns()}
        return {name: column.to("cpu", copy=True).numpy() for name, column in columns.items()}

    def epoch(number: int) -> None:
        counts.hide(plans[number % 2].hidden, number)
        histogram(statistics.loss)
        counts.figures.add(statistics, number)

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
        "write_s": timed(lambda number: write_samples(folder, columns, number)),
        "bytes_per_sample": (folder / SAMPLES).stat().st_size / count,
    }


def main(arguments: list[str] | None = None) -> Row:
    """Measure training with and without a recorder, and print the difference."""
    options = report.parser("recording", __doc__)
    options.add_argument("--samples", type=report.count, default=6_400, help="images of an epoch")
    options.add_argument("--epochs", type=report.count, default=10, help="of the training")
    options.add_argument("--sizes", nargs="+", type=report.count, default=[1_280_000], help="numbers of samples")
    options.add_argument("--repeats", type=report.count, default=7, help="of the work at large N")
    settings = report.parse(options, arguments)
    prepare()
    with tempfile.TemporaryDirectory() as name:
        run = measure(settings, Path(name))
        large = [at(count, settings.repeats, Path(name) / str(count)) for count in settings.sizes]
    report.print_table(
        f"A RunRecorder in a training of {run['epochs']} epochs, seconds of the processor",
        [run],
        {
            "whole fit": lambda row: in_units(row["fit_cpu_s"]),
            "its hooks": lambda row: in_units(row["hooks_cpu_s"]),
            "its thread": lambda row: in_units(row["thread_cpu_s"]),
            "share": lambda row: f"{row['share']:.2%}",
            "files": lambda row: f"{row['bytes']:,} bytes",
        },
    )
    report.print_table(
        "What it does at large N",
        large,
        {
            "samples": lambda row: f"{row['samples']:,}",
            "each epoch": lambda row: in_units(row["epoch_s"]),
            f"each {EVERY}th epoch more": lambda row: in_units(row["copy_s"]),
            "own thread": lambda row: in_units(row["write_s"]),
            "bytes per sample": lambda row: f"{row['bytes_per_sample']:.1f}",
        },
    )
    return report.write(settings, samples=settings.samples, run=run, large=large)


if __name__ == "__main__":
    main()
