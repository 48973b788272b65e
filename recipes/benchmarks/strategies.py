"""What watching costs under FSDP2 (`ModelParallelStrategy`), beside what it costs under DDP, on two processes.

Six fits take turns of a few steps in each process: under either strategy one without a callback, one whose samples are recorded
(none are hidden), and once more one without (`control`). A turn's ratio under FSDP2 is compared with that of the same turn under DDP.
"""

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean, median

import lightning as L
import torch
from kakurenbo_recipes.models import CifarResNet
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks import report
from recipes.benchmarks.forked import printed, run_ranks
from recipes.benchmarks.report import Row
from recipes.benchmarks.training import Classifier, RandomImages, prepare
from recipes.benchmarks.turns import TakeTurns, take_turns

RANKS = 2
STRATEGIES = {"ddp": DDPStrategy, "fsdp2": partial(ModelParallelStrategy, RANKS, 1)}
ARMS = ("plain", "watched", "control")
WARM_UP = 2  # turns that are not counted, because in the first one the callback verifies where values come from
TARGET = 1.02  # largest ratio under FSDP2, over that under DDP
LIMIT_SECONDS = 3600


class Sharded(Classifier):
    """A `Classifier` of which FSDP2 shards each part by itself; DDP leaves it whole."""

    def configure_model(self) -> None:
        """Shard it over the mesh, where there is one."""
        if self.device_mesh is None:
            return
        for part in (*self.network.children(), self.network):
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


def run_rank(folder: Path, settings: argparse.Namespace) -> None:
    """Train all fits in turns, as one rank, and write the seconds of a step by turn."""
    torch.set_num_threads(1)
    prepare()
    epoch = (settings.turns + WARM_UP) * settings.steps  # no turn contains an epoch's end
    data, timers, fits = RandomImages(settings.batch_size * epoch * RANKS, settings.seed), {}, []
    data.setup("fit")
    for strategy, made in STRATEGIES.items():
        for arm in ARMS:
            torch.manual_seed(settings.seed)
            timer = timers[f"{strategy} {arm}"] = TakeTurns(settings.steps, report.clock("cpu", settings.clock))
            watching = [SampleSelection("kakurenbo", seed=0, max_fraction=0.0)] if arm == "watched" else []
            training = L.Trainer(
                accelerator="cpu",
                devices=RANKS,
                strategy=made(),
                callbacks=[*watching, timer],
                max_epochs=1,
                enable_model_summary=False,
                **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
            )
            own = RandomImages(0, batch_size=settings.batch_size)
            own.train_images, own.test_images = data.train_images, data.test_images
            fits.append((timer, partial(training.fit, Sharded(CifarResNet()), datamodule=own)))
    take_turns(fits)
    seconds = {name: timer.seconds[WARM_UP:] for name, timer in timers.items()}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(seconds))


def measured(settings: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of a step by turn, the mean of the ranks, of each fit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codes = run_ranks(run_rank, (folder, settings), RANKS, log=folder / "rank", seconds=LIMIT_SECONDS)
        if any(codes):
            raise RuntimeError(f"exit codes {codes}\n{printed(folder / 'rank', RANKS)}")
        ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    return {name: [mean(turn) for turn in zip(*(rank[name] for rank in ranks), strict=True)] for name in ranks[0]}


def ratios(seconds: dict[str, list[float]], strategy: str, arm: str) -> list[float]:
    """Return how many times a step without a callback one of `arm` takes, by turn."""
    return [mine / plain for mine, plain in zip(seconds[f"{strategy} {arm}"], seconds[f"{strategy} plain"], strict=True)]


def main(arguments: list[str] | None = None) -> Row:
    """Measure, print a table and write the JSON file."""
    options = report.parser("strategies", __doc__ or "", devices=("cpu",))
    options.add_argument("--steps", type=report.count, default=5, help="steps of a turn")
    options.add_argument("--turns", type=report.count, default=60, help="turns of each fit")
    options.add_argument("--batch-size", type=report.count, default=32, help="samples of a step on each rank")
    settings = report.parse(options, arguments)
    seconds = measured(settings)
    rows = [
        {
            "strategy": strategy,
            "plain_ms": 1e3 * median(seconds[f"{strategy} plain"]),
            "ratio": report.median_of(ratios(seconds, strategy, "watched")),
            "control_ratio": report.median_of(ratios(seconds, strategy, "control")),
        }
        for strategy in STRATEGIES
    ]
    by_turn = zip(ratios(seconds, "fsdp2", "watched"), ratios(seconds, "ddp", "watched"), strict=True)
    against = report.median_of([fsdp2 / ddp for fsdp2, ddp in by_turn])
    report.print_table(
        f"A step that is watched against one without a callback: ResNet-8, batch {settings.batch_size}, {RANKS} processes",
        rows,
        {
            "strategy": lambda row: row["strategy"],
            "plain": lambda row: f"{row['plain_ms']:.2f} ms",
            "ratio": lambda row: report.interval(row["ratio"], ".4f"),
            "control ratio": lambda row: report.interval(row["control_ratio"], ".4f"),
        },
        f"The ratio under FSDP2 over that under DDP: {report.interval(against, '.4f')}, at most {TARGET} is wanted: "
        f"{report.verdict(against['median'] <= TARGET)}. Medians of turns with 95 % intervals. control: two measurements without a "
        "callback.",
    )
    return report.write(
        settings,
        network="CIFAR ResNet-8",
        **{name: getattr(settings, name) for name in ("batch_size", "steps", "turns")},
        ranks=RANKS,
        strategies=rows,
        fsdp2_against_ddp=against,
    )


if __name__ == "__main__":
    main()
