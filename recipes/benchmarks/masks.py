"""Proxy masks: is half of each batch, chosen by a small network, as good as the half that the network itself would choose?

For each seed, on digits or CIFAR-10 with the CIFAR ResNet-8: the baseline; the half of each batch with the highest losses, scored by the
network itself or by a ResNet-8 of a quarter of its width that is trained on every fourth batch; a random half; and a baseline of
fewer epochs that takes as long as the run with the small network, its learning rate fully decayed. The runs of a seed begin with the
same weights and are compared with its baseline. What seconds and costs are: `recipes.benchmarks.fits`.
"""

import argparse
from functools import partial
from typing import Any

from kakurenbo_recipes.models import CifarResNet

from recipes.benchmarks import report
from recipes.benchmarks.fits import BELOW, Fits, Row, cell, compared, measured, parser, shorter, title

TOPK: dict[str, Any] = {"score": "topk", "keep": 0.5, "pool": False}
RUNS: dict[str, dict[str, Any]] = {
    "half, scored by the network": TOPK,
    "half, proxy masks": {**TOPK, "scorer": partial(CifarResNet, 8, 4), "train_scorer_every": 4},
    "half, at random": {"score": "random", "pool": False},
}
TIMED = "half, proxy masks"
KEYS = ("accuracy", "difference", "samples_trained", "samples_scored", "cpu_s", "time_ratio")


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return the rows of the baseline, of the runs, and of the control of equal time."""
    run = Fits(settings).run
    baseline = run("baseline", seed, "baseline")
    rows = [baseline, *(run(name, seed, "selective_backprop", **options) for name, options in RUNS.items())]
    timed = next(row for row in rows if row["run"] == TIMED)
    rows.append(run(f"baseline, time of {TIMED}", seed, "baseline", shorter(settings.epochs, timed, baseline)))
    return [compared(row, baseline) for row in rows]


def main(arguments: list[str] | None = None) -> list[Row]:
    """Train every run of every seed."""
    options = parser("masks", __doc__, digits=True, devices=("cpu", "cuda"))
    options.set_defaults(samples=1437, learning_rate=0.05)
    settings = report.parse(options, arguments)
    rows, summary = measured(settings, of_a_seed, KEYS)
    columns = {
        "run": lambda row: row["run"],
        "epochs": lambda row: ", ".join(map(str, row["epochs"])),
        "test accuracy, %": cell("accuracy", ".2f", 100),
        "to baseline": cell("difference", "+.2f", 100),
        "samples trained": cell("samples_trained", ",.0f"),
        "CPU seconds": cell("cpu_s", ".1f"),
        "time ratio": cell("time_ratio", ".3f"),
    }
    report.print_table(
        title(settings),
        summary,
        columns,
        BELOW,
    )
    return rows


if __name__ == "__main__":
    main()
