"""What hiding saves: the time of an epoch that hides a fixed share f, against the ideal (1 - f) * full + f * forward.

One Trainer trains epochs whose share changes from one to the next, so that other load on the machine meets all of them
alike. An epoch lasts from its first step to the next epoch's: training, all hooks, the refresh pass over the hidden
samples, planning and sharding. In each round the same loader's samples are also passed forward once, in eval mode and
without gradients: that is `forward`.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import lightning as L
import torch
import torch.nn.functional as F
from kakurenbo_recipes.models import CifarResNet
from torch.utils.data import DataLoader
from tqdm import tqdm

from kakurenbo_lightning import Choice, Epoch, HideMethod, SampleSelection, SampleStatistics
from kakurenbo_lightning.core.progress import bar_settings
from recipes.benchmarks import report
from recipes.benchmarks.report import Row, in_units
from recipes.benchmarks.training import Classifier, described, image_options, images, prepare, trainer


@dataclass(frozen=True)
class ForcedHiding(HideMethod):
    """Hides a given share of random samples in each epoch, and refreshes them afterwards.

    Args:
        shares: share to hide in each epoch; later epochs hide nothing.
    """

    shares: tuple[float, ...]

    name: ClassVar[str] = "forced"
    summary: ClassVar[str] = "hides a given share of random samples"
    refresh_mode: ClassVar[str | None] = "eval"

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Hide `round(share * N)` samples."""
        share = self.shares[epoch.index] if epoch.index < len(self.shares) else 0.0
        order = torch.randperm(len(statistics), generator=epoch.generator())
        hidden = torch.zeros(len(statistics), dtype=torch.bool)
        hidden[order[: round(share * len(statistics))]] = True
        return Choice(hidden)


class EpochTimer(L.Callback):
    """Times each epoch from its start to the next, and one forward pass before each round.

    Attributes:
        seconds: seconds of each finished epoch.
        forward: seconds of each forward pass.
    """

    def __init__(self, loader: DataLoader, round_length: int, clock: Callable[[], float], bar: tqdm) -> None:
        self.seconds: list[float] = []
        self.forward: list[float] = []
        self._loader = loader
        self._round_length = round_length
        self._clock = clock
        self._bar = bar
        self._started: float | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the time of the last epoch and start that of the next."""
        if self._started is not None:
            self.seconds.append(self._clock() - self._started)
            self._bar.update()
        if trainer.current_epoch % self._round_length == 0:
            started = self._clock()
            self._pass_forward(trainer, pl_module)
            self.forward.append(self._clock() - started)
        self._started = self._clock()

    def _pass_forward(self, trainer: L.Trainer, model: Classifier) -> None:
        model.eval()
        with torch.no_grad():
            for batch in self._loader:
                pixels, labels = trainer.strategy.batch_to_device(batch)
                F.cross_entropy(model.network(pixels), labels)
        model.train()


def schedule(shares: list[float], rounds: int) -> list[float]:
    """Return the share of each epoch. Every round contains each share once, in an order that changes between rounds."""
    return [shares[(place + turn) % len(shares)] for turn in range(rounds) for place in range(len(shares))]


def summarise(shares: list[float], epochs: list[tuple[float, float]], forward: list[float]) -> list[Row]:
    """Compare the epochs of each share with the ideal.

    The achieved saving, (full - epoch) / (full - ideal), is the median over rounds. Each round is compared within itself, so
    that load of the machine that lasts longer than a round cancels out.

    Args:
        shares: all shares, 0 included.
        epochs: share and seconds of each epoch, in complete rounds.
        forward: seconds of the forward pass of each round.
    """
    rounds = [dict(epochs[first : first + len(shares)]) for first in range(0, len(epochs), len(shares))]
    full = median(seconds[0.0] for seconds in rounds)
    rows = []
    for share in shares:
        ideal = (1 - share) * full + share * median(forward)
        row = {
            "share": share,
            "seconds": median(seconds[share] for seconds in rounds),
            "ideal_s": ideal,
            "ideal_saving": 1 - ideal / full,
            "saving": median(1 - seconds[share] / seconds[0.0] for seconds in rounds),
        }
        if share:
            achieved = [
                (seconds[0.0] - seconds[share]) / (share * (seconds[0.0] - passed))
                for seconds, passed in zip(rounds, forward, strict=True)
            ]
            row["achieved"] = median(achieved)
            row["achieved_by_round"] = [round(value, 4) for value in achieved]
        rows.append(row)
    return rows


def measure(settings: argparse.Namespace) -> Row:
    """Train a warm-up round and `settings.rounds` measured ones, and return what `summarise` makes of them."""
    torch.manual_seed(settings.seed)
    shares = sorted({0.0, *settings.shares})
    data = images(settings)
    order = schedule(shares, settings.rounds + 1)
    with tqdm(**bar_settings(total=len(order), desc="saving", unit="epoch")) as bar:
        clock = report.clock(settings.device, settings.clock)
        timer = EpochTimer(data.train_dataloader(), len(shares), clock, bar)
        selection = SampleSelection(ForcedHiding(tuple(order)), seed=settings.seed)
        model = Classifier(CifarResNet(settings.depth, settings.width))
        trainer(settings.device, [selection, timer], max_epochs=len(order) + 1).fit(model, datamodule=data)
    epochs = list(zip(order, timer.seconds, strict=True))[len(shares) :]
    forward = timer.forward[1 : settings.rounds + 1]
    rows = summarise(shares, epochs, forward)
    return {"full_s": rows[0]["seconds"], "forward_s": median(forward), "shares": rows}


def main(arguments: list[str] | None = None) -> Row:
    """Measure the chosen hidden shares, print a table and write the JSON file."""
    options = report.parser("saving", __doc__)
    image_options(options, samples=2560, depth=8)
    options.add_argument("--shares", type=report.share, nargs="+", default=[0.0, 0.1, 0.3, 0.5], help="shares to hide")
    options.add_argument("--rounds", type=report.count, default=20, help="epochs of each share")
    settings = report.parse(options, arguments)
    prepare()
    result = described(settings) | measure(settings)
    report.print_table(
        f"{result['network']}, {settings.samples:,} samples of {result['data']}: an epoch that hides a share",
        result["shares"],
        {
            "hidden": lambda row: f"{row['share']:.0%}",
            "epoch": lambda row: in_units(row["seconds"]),
            "ideal": lambda row: in_units(row["ideal_s"]),
            "saving": lambda row: f"{row['saving']:.1%}",
            "ideal saving": lambda row: f"{row['ideal_saving']:.1%}",
            "achieved": lambda row: f"{row['achieved']:.1%}" if row["share"] else "-",
        },
        f"Medians of {settings.rounds} rounds; savings are compared within each round. "
        f"A forward pass over all samples: {in_units(result['forward_s'])}.",
    )
    return report.write(settings, **result)


if __name__ == "__main__":
    main()
