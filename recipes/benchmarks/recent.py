"""`orderdp`, `ies`, `rcap`, `balance="rcap"` and `fraction_schedule`, each against hiding the same share at random, on small digits.

A perceptron of 128 units on scikit-learn's digits; `--rare` leaves fewer and fewer training samples of each class, down to a
twentieth. For each seed: the baseline, each run of `RUNS`, and `random` with the share that the run hid on average. The runs of a
seed have the same data and begin with the same weights. So small a data set shows what a method costs in accuracy at its share, not
what it is worth on a large one.
"""

import argparse
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks import report
from recipes.benchmarks.fits import Row, cell, summarise
from recipes.benchmarks.on_digits import Perceptron, digits, fewer_of_each
from recipes.benchmarks.training import prepare, trainer

ALTERNATING = [1.5, 1.5, 0.5, 0.5]
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "orderdp": ("orderdp", {}),
    "ies": ("ies", {}),
    "rcap": ("rcap", {}),
    "kakurenbo": ("kakurenbo", {}),
    "kakurenbo, balance rcap": ("kakurenbo", {"balance": "rcap"}),
    "kakurenbo, schedule": ("kakurenbo", {"fraction_schedule": ALTERNATING}),
    "random, balance rcap": ("random", {"balance": "rcap"}),
    "random, schedule": ("random", {"fraction_schedule": ALTERNATING}),
}
CLASSES = 10
COLUMNS = {
    "accuracy": ("test accuracy, %", ".2f", 100),
    "difference": ("to baseline", "+.2f", 100),
    "worst": ("worst class, %", ".1f", 100),
    "samples_trained": ("samples trained", ",.0f", 1),
    "samples_refreshed": ("scored", ",.0f", 1),
    "hidden_share": ("hidden, %", ".1f", 100),
}


def run(settings: argparse.Namespace, seed: int, name: str, method: str, **options: Any) -> Row:
    """Train one run and return its row of the table."""
    train, test = digits(seed)
    train, (x, y) = fewer_of_each(train) if settings.rare else train, test.tensors
    L.seed_everything(seed, verbose=False)
    module, selection = Perceptron(), SampleSelection(method, **options)
    trainer("cpu", [selection], settings.epochs).fit(module, DataLoader(train, settings.batch_size, shuffle=True))
    with torch.no_grad():
        right = (module.network(x).argmax(1) == y).double()
    totals = selection.totals
    return {
        **{"run": name, "seed": seed, "epochs": settings.epochs, "accuracy": float(right.mean())},
        "worst": min(float(right[y == c].mean()) for c in range(CLASSES)),
        **{"samples_trained": totals.samples_trained, "samples_refreshed": totals.samples_refreshed},
        "hidden_share": totals.samples_hidden / (totals.samples_trained + totals.samples_hidden),
    }


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return the rows of the baseline, and of each run and its control."""
    rows = [run(settings, seed, "baseline", "baseline")]
    for name, (method, options) in RUNS.items():
        row = run(settings, seed, name, method, **options)
        share = round(row["hidden_share"], 3)
        rows += [row, run(settings, seed, f"random, data of {name}", "random", max_fraction=share)]
    return [row | {"difference": row["accuracy"] - rows[0]["accuracy"]} for row in rows]


def main(arguments: list[str] | None = None) -> Row:
    """Train every run of every seed."""
    options = report.parser("recent", str(__doc__), devices=["cpu"], clocks=["cpu"], threads=1)
    options.add_argument("--rare", action="store_true", help="leave fewer training samples of each class than of the one before")
    options.add_argument("--epochs", type=report.count, default=20, help="of each run")
    options.add_argument("--batch-size", type=report.count, default=64, help="samples of a step")
    options.add_argument("--seeds", type=report.count, default=5, help="how many, from --seed on")
    settings = report.parse(options, arguments)
    prepare()
    rows = [row for seed in range(settings.seed, settings.seed + settings.seeds) for row in of_a_seed(settings, seed)]
    summary = summarise(rows, *COLUMNS)
    columns = {"run": lambda row: row["run"]} | {head: cell(key, form, scale) for key, (head, form, scale) in COLUMNS.items()}
    report.print_table(f"digits, {settings.epochs} epochs, {settings.seeds} seeds", summary, columns)
    known = {name: getattr(settings, name) for name in ("rare", "epochs", "batch_size", "seeds")}
    return report.write(settings, **known, runs={name: options for name, (_, options) in RUNS.items()}, summary=summary)


if __name__ == "__main__":
    main()
