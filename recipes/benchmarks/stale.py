"""Do the values that a stream draws by stay true? Stored against real ones, epoch by epoch, and what scoring again buys.

Each run trains the CIFAR ResNet-8 on CIFAR-10. Before each epoch some samples of the training set are scored again,
only to compare: how far the stored distribution is from the real one over them (total variation distance, 0 to 1), and
which share of their pairs the stored values order as the real ones do (1: all, 0.5: none at all). `--plot` draws both.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib

from recipes.benchmarks import report
from recipes.benchmarks.fits import Fits, Row, cell, measured, parser, spread, title

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FIGURES = {
    "distribution_distance": "distance of stored and real distribution",
    "ordered_share": "pairs in the right order",
    "effective_share": "effective share of the samples",
}
RUNS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "owc": ("owc", {}),
    "lb": ("lb", {}),
    "nlb": ("nlb", {}),
    "plb": ("plb", {}),
    "peb": ("peb", {}),
    "plb, refresh_share 0.1": ("plb", {"refresh_share": 0.1}),
}


class Watch(L.Callback):
    """Keeps the metrics that the selection logs in each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the metrics of the epoch. This callback comes after the selection."""
        self.epochs.append({name: float(trainer.callback_metrics[f"selection/{name}"]) for name in FIGURES})


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return the rows of the runs, with the figures of the last epoch, and of all epochs under `watched`."""
    fits, rows = Fits(settings), []
    for name in settings.runs:
        (method, options), watch = RUNS[name], Watch()
        row = fits.run(name, seed, method, callbacks=[watch], diagnose=settings.diagnose, **options)
        rows.append(row | watch.epochs[-1] | {"watched": watch.epochs})
    return rows


def draw(rows: list[Row], target: Path) -> None:
    """Plot the rows: one panel per figure, one line per run, with the deviation over the seeds around it."""
    figure, panels = plt.subplots(1, len(FIGURES), figsize=(4.2 * len(FIGURES), 3.8), layout="constrained")
    for (name, heading), axes in zip(FIGURES.items(), panels, strict=True):
        for run in dict.fromkeys(row["run"] for row in rows):
            epochs = zip(*(row["watched"] for row in rows if row["run"] == run), strict=True)
            points = [spread([seed[name] for seed in epoch]) for epoch in epochs]
            (line,) = axes.plot([point["mean"] for point in points], marker=".", label=run)
            low, high = ([point["mean"] + sign * (point["std"] or 0.0) for point in points] for sign in (-1, 1))
            axes.fill_between(range(len(points)), low, high, color=line.get_color(), alpha=0.15)
        axes.set(title=heading, xlabel="epoch", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    print(f"picture: {target}")


def main(arguments: list[str] | None = None) -> list[Row]:
    """Train every run of every seed."""
    options = parser("stale", __doc__)
    options.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), help="which")
    options.add_argument("--diagnose", type=report.count, default=1000, help="samples to compare before each epoch")
    options.add_argument("--plot", type=Path, help="PNG file to write")
    settings = report.parse(options, arguments)
    keys = ("accuracy", "cost", "samples_refreshed", *FIGURES)
    rows, summary = measured(settings, of_a_seed, keys, diagnose=settings.diagnose)
    columns = {
        "run": lambda row: row["run"],
        "test accuracy, %": cell("accuracy", ".2f", 100),
        "cost, reference steps": cell("cost", ",.0f"),
        "scored only": cell("samples_refreshed", ",.0f"),
        **{heading: cell(name, ".3f") for name, heading in FIGURES.items()},
    }
    report.print_table(
        title(settings),
        summary,
        columns,
        "Mean +- standard deviation over the seeds; the last three before (the very last one: after) the last epoch, over "
        f"{settings.diagnose:,} samples. Scored only: forward passes without training, those of the comparison too.",
    )
    if settings.plot:
        draw(rows, settings.plot)
    return rows


if __name__ == "__main__":
    main()
