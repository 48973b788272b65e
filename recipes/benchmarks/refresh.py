"""Cheaper refreshes: what does KAKURENBO lose, and save, if it scores its hidden samples more seldom, or more cheaply?

For each seed, on digits or CIFAR-10: the baseline, and KAKURENBO with F = 0.5 throughout, whose hidden samples are scored all of them
before each epoch; all before every third epoch, with a choice that lasts as long; a third of them, in turn, before each epoch; and all
before each epoch, but only the middle of each image (9/16 of its pixels). The runs of a seed begin with the same weights and are
compared with its baseline. What seconds and costs are: `recipes.benchmarks.fits`.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kakurenbo_recipes.models import ImageClassifier
from torch import Tensor

from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.kakurenbo import Kakurenbo
from recipes.benchmarks import report
from recipes.benchmarks.arena import NETWORKS
from recipes.benchmarks.fits import BELOW, Fits, Row, cell, compared, measured, parser

HALF: dict[str, Any] = {"max_fraction": 0.5, "fractions": (1.0,), "milestones": ()}
TURNS = 3
KEYS = ("accuracy", "difference", "samples_trained", "samples_refreshed", "cpu_s", "time_ratio")


@dataclass(frozen=True)
class InTurn(Kakurenbo):
    """KAKURENBO that scores a third of its hidden samples before each epoch; the others keep what was last measured."""

    def rows_to_score(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None) -> Tensor | IndexSet:
        """Return those of the hidden samples whose turn it is, int64 [n], ascending."""
        rows = super().rows_to_score(statistics, epoch, previous)
        return rows[rows % TURNS == epoch.index % TURNS] if isinstance(rows, Tensor) else rows


class MiddleScored(ImageClassifier):
    """A classifier that sees only the middle of each image in scoring passes, which run its training step in eval mode."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch of images [B, 3, H, W] and labels [B]."""
        images, labels = batch
        if not self.training:
            cut = images.shape[-1] // 8
            images = images[..., cut:-cut, cut:-cut]
        return super().training_step((images, labels), batch_idx)


RUNS: dict[str, tuple[Callable[..., Kakurenbo], int, type[ImageClassifier]]] = {
    "all, each epoch": (Kakurenbo, 1, ImageClassifier),
    "all, every third epoch": (Kakurenbo, TURNS, ImageClassifier),
    "a third in turn, each epoch": (InTurn, 1, ImageClassifier),
    "the middle of all, each epoch": (Kakurenbo, 1, MiddleScored),
}


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return the rows of the baseline and of the four kinds of refresh."""
    fits = Fits(settings, network=NETWORKS[settings.network])
    baseline = fits.run("baseline", seed, "baseline")
    rows = [baseline]
    for name, (method, every, classifier) in RUNS.items():
        rows.append(fits.run(name, seed, method(**HALF, every_n_epochs=every), classifier=classifier))
    return [compared(row, baseline) for row in rows]


def main(arguments: list[str] | None = None) -> list[Row]:
    """Train every run of every seed."""
    options = parser("refresh", __doc__, digits=True)
    options.set_defaults(samples=1437, learning_rate=0.05)
    options.add_argument("--network", choices=list(NETWORKS), default="narrow", help="what is trained")
    settings = report.parse(options, arguments)
    rows, summary = measured(settings, of_a_seed, KEYS, network=settings.network)
    columns = {
        "scored": lambda row: row["run"],
        "test accuracy, %": cell("accuracy", ".2f", 100),
        "to baseline": cell("difference", "+.2f", 100),
        "samples trained": cell("samples_trained", ",.0f"),
        "samples scored": cell("samples_refreshed", ",.0f"),
        "CPU seconds": cell("cpu_s", ".1f"),
        "time ratio": cell("time_ratio", ".3f"),
    }
    data = "digits" if settings.data_root is None else "CIFAR-10"
    report.print_table(
        f"Network {settings.network}, {settings.samples:,} images of {data}, {settings.epochs} epochs, {settings.seeds} seeds",
        summary,
        columns,
        BELOW,
    )
    return rows


if __name__ == "__main__":
    main()
