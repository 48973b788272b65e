"""Do the values that a stream draws by stay true? Stored against real ones, epoch by epoch, and what looking again buys.

Each run trains the CIFAR ResNet-8 on CIFAR-10. Before each epoch some samples of the training set are looked at again,
only to compare: how far the stored distribution is from the real one over them (total variation distance, 0 to 1), and
which share of their pairs the stored values order as the real ones do (1: all, 0.5: none at all). `--plot` draws both.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
from tqdm import tqdm

from recipes.benchmarks import report
from recipes.benchmarks.fits import Fits, Row, described, parse, parser, save, spread, training_data, written
from recipes.benchmarks.training import prepare

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FIGURES = {
    "distribution_distance": "distance of stored and real distribution",
    "ordered_share": "pairs in the right order",
    "effective_share": "effective share of the samples",
}
RUNS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "lb": ("lb", {}),
    "nlb": ("nlb", {}),
    "plb": ("plb", {}),
    "peb": ("peb", {}),
    "plb, refresh_share 0.1": ("plb", {"refresh_share": 0.1}),
}


class Watch(L.Callback):
    """Keeps what the selection logs of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep it; this callback comes after the selection."""
        logged = trainer.callback_metrics
        self.epochs.append({name: float(logged[f"selection/{name}"]) for name in FIGURES if f"selection/{name}" in logged})


def summarise(rows: list[Row]) -> list[Row]:
    """Return mean and deviation over the seeds of each run: of the last epoch, and epoch by epoch."""
    summary = []
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        epochs = list(zip(*(row["watched"] for row in mine), strict=True))
        curves = {figure: [spread([seed[figure] for seed in epoch]) for epoch in epochs] for figure in epochs[0][0]}
        figures = {key: spread([row[key] for row in mine]) for key in ("accuracy", "cost", "samples_refreshed")}
        summary.append({"run": name, "seeds": len(mine), **figures, "curves": curves})
    return summary


def draw(summary: list[Row], target: Path) -> None:
    """Write the picture: one panel for each figure, one line for each run, the deviation over the seeds around it."""
    names = [name for name in FIGURES if any(name in row["curves"] for row in summary)]
    figure, panels = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.8), layout="constrained")
    for name, axes in zip(names, panels, strict=True):
        for row in summary:
            curve = row["curves"].get(name, [])
            middle = [point["mean"] for point in curve]
            (line,) = axes.plot(range(len(curve)), middle, marker=".", label=row["run"])
            around = [point["std"] or 0.0 for point in curve]
            low, high = ([m + sign * s for m, s in zip(middle, around, strict=True)] for sign in (-1, 1))
            axes.fill_between(range(len(curve)), low, high, color=line.get_color(), alpha=0.15)
        axes.set_title(FIGURES[name])
        axes.set_xlabel("epoch")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    print(f"picture: {target}")


def show(summary: list[Row], settings: argparse.Namespace) -> None:
    """Print one row per run."""

    def last(row: Row, name: str) -> str:
        return written(row["curves"][name][-1], ".3f") if name in row["curves"] else "-"

    report.print_table(
        f"CIFAR ResNet-8, {settings.samples:,} images of CIFAR-10, {settings.epochs} epochs, seeds: {settings.seeds}",
        ["run", "test accuracy, %", "cost, reference steps", "looked at", *FIGURES.values()],
        [
            [
                row["run"],
                written(row["accuracy"], ".2f", 100),
                written(row["cost"], ",.0f"),
                written(row["samples_refreshed"], ",.0f"),
                *(last(row, name) for name in FIGURES),
            ]
            for row in summary
        ],
        "Mean +- standard deviation over the seeds; the last three before (the very last one: after) the last epoch, over "
        f"{settings.diagnose:,} samples. Looked at: forward passes only, those of the comparison too.",
    )


def main(arguments: list[str] | None = None) -> Row:
    """Train every run of every seed, one after another."""
    options = parser("stale", __doc__)
    options.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), help="which")
    options.add_argument("--diagnose", type=report.count, default=1000, help="samples to compare before each epoch")
    options.add_argument("--plot", type=Path, help="PNG file to write")
    settings = parse(options, arguments)
    prepare(settings)
    result = described("stale", settings) | {"diagnose": settings.diagnose}
    data = training_data(settings)
    rows, started = [], time.perf_counter()
    with tqdm(total=len(settings.runs) * settings.seeds, desc="stale", unit="run") as bar:
        fits = Fits(data, settings, bar)
        fits.warm_up()
        for seed in range(settings.seed, settings.seed + settings.seeds):
            for name in settings.runs:
                (method, chosen), watch = RUNS[name], Watch()
                row = fits.run(name, seed, settings.epochs, method, callbacks=[watch], diagnose=settings.diagnose, **chosen)
                rows.append(row | {"watched": watch.epochs})
                bar.update()
                result |= {"wall_s": time.perf_counter() - started, "summary": summarise(rows), "runs": rows}
                save(settings.json, result)
    show(result["summary"], settings)
    if settings.plot:
        draw(result["summary"], settings.plot)
    report.write(settings.json, result)
    return result


if __name__ == "__main__":
    main()
