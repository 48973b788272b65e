"""Where the saving of KAKURENBO ends: epoch by epoch, how many samples it may hide, hides, moves back, and scores.

The defaults and the preset `fast`, on digits or CIFAR-10. In an epoch a method may hide a share F of the samples. Of these candidates,
those that are not sure are moved back into training, and what was hidden is scored to know it again.
"""

import argparse
from statistics import mean
from typing import Any

import lightning as L

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.methods.hide.kakurenbo import Kakurenbo
from recipes.benchmarks import report
from recipes.benchmarks.arena import NETWORKS
from recipes.benchmarks.fits import Fits, Row, measured, parser

RUNS: dict[str, dict[str, Any]] = {"defaults": {}, "fast": dict(Kakurenbo.presets["fast"])}
SHARES = ("candidates", "hidden", "moved_back", "scored")


class Shares(L.Callback):
    """Keeps what became of the samples in each epoch.

    Attributes:
        epochs: by epoch, each of `SHARES` as a share of all samples.
    """

    def __init__(self) -> None:
        self.epochs: list[Row] = []
        self._scored = 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the plan of the epoch, and what was scored before it."""
        selection = next(callback for callback in trainer.callbacks if isinstance(callback, SampleSelection))
        assert selection.plan is not None and selection.statistics is not None
        scored, metrics = selection.totals.samples_refreshed, selection.plan.metrics
        counts = {name: metrics.get(name, 0.0) for name in ("candidates", "moved_back")}
        counts |= {"hidden": selection.plan.hidden_count, "scored": scored - self._scored}
        self._scored = scored
        self.epochs.append({name: counts[name] / len(selection.statistics) for name in SHARES})


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return one row for each epoch of either run."""
    fits = Fits(settings, network=NETWORKS[settings.network])
    rows: list[Row] = []
    for name, chosen in RUNS.items():
        shares = Shares()
        fits.run(name, seed, "kakurenbo", callbacks=[shares], **chosen)
        rows += [
            {"run": f"{name}, epoch {epoch}", "seed": seed, "epochs": settings.epochs} | row
            for epoch, row in enumerate(shares.epochs)
        ]
    return rows


def percent(values: dict[str, float]) -> str:
    """Format a share as a percentage."""
    return f"{100 * values['mean']:.1f}"


def main(arguments: list[str] | None = None) -> list[Row]:
    """Train both runs of every seed."""
    options = parser("limits", __doc__, digits=True)
    options.set_defaults(epochs=15, seeds=1)
    options.add_argument("--network", choices=list(NETWORKS), default="narrow", help="what is trained")
    settings = report.parse(options, arguments)
    rows, summary = measured(settings, of_a_seed, SHARES, network=settings.network)
    of = {name: [row for row in summary if row["run"].startswith(name)] for name in RUNS}
    report.print_table(
        f"{settings.network}, {settings.samples:,} samples, {settings.epochs} epochs; shares of all samples in %",
        summary,
        {"run": lambda row: row["run"], **{name: lambda row, name=name: percent(row[name]) for name in SHARES}},
        "; ".join(
            f"{name}: {100 * mean(row['hidden']['mean'] for row in mine):.1f} % hidden on average" for name, mine in of.items()
        ),
    )
    return rows


if __name__ == "__main__":
    main()
