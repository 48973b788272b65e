"""What `save=0.1` to `0.3` really saves: the CPU time of each run against its baseline's, beside what the model of it counted.

For each seed, on scikit-learn's digits at 16 pixels with the CIFAR ResNet-8: the baseline, and each method for each share that is to be
saved. The runs of a seed begin with the same weights. The model counts samples: hidden ones, less refreshed ones times the measured share
of a forward pass. What seconds and costs are: `recipes.benchmarks.fits`.
"""

import argparse
from typing import Any

import lightning as L
from kakurenbo_recipes.data import Digits

from recipes.benchmarks import report
from recipes.benchmarks.fits import STEPS_BETWEEN, Fits, Row, cell, compared, measured, parser

METHODS = ("kakurenbo", "random")
KEYS = (
    "asked",
    "chosen_share",
    "chosen_interval",
    "forward_share",
    "predicted",
    "saved",
    "accuracy",
    "difference",
    "hidden_share",
    "cpu_s",
)


class Chosen(L.Callback):
    """Keeps what `save` has chosen: `share`, `every` and `forward`. Comes after the selection."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read what the selection has chosen when the training is over."""
        selection: Any = trainer.callbacks[0]  # type: ignore[attr-defined]
        self.saving: Row = selection.session.control.state_dict()["saving"]


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return the rows of the baseline, and of each method for each share."""
    run = Fits(settings, data=Digits, size=16, crop_padding=1).run
    baseline = run("baseline", seed, "baseline")
    rows = [baseline]
    for method in METHODS:
        for save in settings.save:
            chosen = Chosen()
            row = run(f"{method}, save={save:g}", seed, method, callbacks=[chosen], save=save)
            spared = row["samples_hidden"] - chosen.saving["forward"] * row["samples_refreshed"]
            rows.append(
                row
                | {"asked": save, "chosen_share": chosen.saving["share"], "chosen_interval": chosen.saving["every"]}
                | {"forward_share": chosen.saving["forward"], "predicted": spared / (settings.samples * settings.epochs)}
                | {"saved": 1 - row["cost"] / baseline["cost"]}
            )
    return [{**dict.fromkeys(KEYS), **compared(row, baseline)} for row in rows]


def main(arguments: list[str] | None = None) -> list[Row]:
    """Train every run of every seed."""
    options = parser("save", __doc__, digits=True)
    options.set_defaults(samples=1400, batch_size=50, learning_rate=0.05, epochs=20, seeds=1)
    options.add_argument("--save", type=report.share, nargs="+", default=[0.1, 0.2, 0.3], help="shares of the time to save")
    settings = report.parse(options, arguments)
    rows, summary = measured(settings, of_a_seed, KEYS, data="digits, 16 pixels", save=settings.save)
    columns = {
        "run": lambda row: row["run"],
        "F": cell("chosen_share", ".3f"),
        "interval": cell("chosen_interval", ".0f"),
        "forward, %": cell("forward_share", ".0f", 100),
        "hidden, %": cell("hidden_share", ".1f", 100),
        "by the model, %": cell("predicted", ".1f", 100),
        "saved, %": cell("saved", ".1f", 100),
        "test accuracy, %": cell("accuracy", ".2f", 100),
        "to baseline": cell("difference", "+.2f", 100),
        "CPU seconds": cell("cpu_s", ".1f"),
    }
    report.print_table(
        f"CIFAR ResNet-8, {settings.samples:,} digits of 16 pixels, {settings.epochs} epochs, {settings.seeds} seeds",
        summary,
        columns,
        "F and interval are those of the last epochs. Saved: CPU seconds of fit in units of a reference step that is timed every "
        f"{STEPS_BETWEEN} steps, against the baseline of the seed; differences are in points.",
    )
    return rows


if __name__ == "__main__":
    main()
