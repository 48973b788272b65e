"""Is it the method, or only training less? InfoBatch and KAKURENBO against controls of equal data and of equal time.

For each seed, on CIFAR-10 with the CIFAR ResNet-8: the baseline, each method, hiding the same share at random, and a
baseline of fewer epochs that takes as long as the method did, its learning rate fully decayed. The runs of a seed begin
with the same weights and are compared with its baseline. What seconds and costs are: `recipes.benchmarks.fits`.
"""

import argparse

from recipes.benchmarks import report
from recipes.benchmarks.fits import STEPS_BETWEEN, Fits, Row, cell, compared, measured, parser, shorter, title

METHODS = {"infobatch": {"prune_ratio": 0.5}, "kakurenbo": {"max_fraction": 0.3, "tau": 0.7}}
KEYS = ("accuracy", "difference", "samples_trained", "hidden_share", "cpu_s", "time_ratio")


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return the rows of the baseline, and of each method and its two controls."""
    run = Fits(settings).run
    baseline = run("baseline", seed, "baseline")
    rows = [baseline]
    for method, options in METHODS.items():
        row = run(method, seed, method, **options)
        alike = run(f"random, data of {method}", seed, "random", max_fraction=round(row["hidden_share"], 3))
        epochs = shorter(settings.epochs, row, baseline)
        rows += [row, alike, run(f"baseline, time of {method}", seed, "baseline", epochs)]
    return [compared(row, baseline) for row in rows]


def main(arguments: list[str] | None = None) -> list[Row]:
    """Train every run of every seed."""
    settings = report.parse(parser("controls", __doc__), arguments)
    rows, summary = measured(settings, of_a_seed, KEYS, methods=METHODS)
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
        "Mean +- standard deviation over the seeds; differences (in points) and ratios are to the baseline of the same seed. "
        "The machine is shared: time ratios, and equal time (in whole epochs), are of CPU seconds of fit in units of a "
        f"reference step that is timed every {STEPS_BETWEEN} steps.",
    )
    return rows


if __name__ == "__main__":
    main()
