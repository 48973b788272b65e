"""Wrong labels: what methods that prefer high losses make of them, with and without a cap.

Each run trains the CIFAR ResNet-8 on CIFAR-10 with a share of the training labels replaced by wrong ones; the test labels
are right. The runs of a seed begin with the same weights, have the same wrong labels, and are compared with its baseline.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from recipes.benchmarks import report
from recipes.benchmarks.fits import Fits, Row, compared, measured, parser, title, written

NOISE = (0.0, 0.001, 0.1, 0.2)
RUNS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "baseline": ("baseline", {}),
    "kakurenbo": ("kakurenbo", {}),
    "selective_backprop": ("selective_backprop", {}),
    "plb": ("plb", {}),
    "plb, cap_quantile 0.8": ("plb", {"cap_quantile": 0.8}),
}
FIGURES = ("accuracy", "difference", "time_ratio")


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return one row for each run, with the figures of each share of wrong labels."""
    rows: dict[str, Row] = {}
    for noise in settings.noise:
        run = Fits(settings, label_noise=noise, label_noise_seed=seed).run
        found = {name: run(name, seed, method, **options) for name, (method, options) in RUNS.items()}
        for name, row in found.items():
            figures = compared(row, found["baseline"])
            rows.setdefault(name, row).update({f"{key}_at_{noise}": figures[key] for key in FIGURES})
    return list(rows.values())


def main(arguments: list[str] | None = None) -> list[Row]:
    """Train every run of every seed and share."""
    options = parser("noise", __doc__)
    options.add_argument("--noise", nargs="+", type=report.share, default=list(NOISE), help="shares of wrong training labels")
    settings = report.parse(options, arguments)
    keys = [f"{key}_at_{noise}" for noise in settings.noise for key in FIGURES]
    rows, summary = measured(settings, of_a_seed, keys, noise=settings.noise)

    def at(noise: float) -> Any:
        accuracy, difference = f"accuracy_at_{noise}", f"difference_at_{noise}"
        return lambda row: f"{written(row[accuracy], '.2f', 100)} ({written(row[difference], '+.2f', 100)})"

    report.print_table(
        f"{title(settings)}: test accuracy in %",
        summary,
        {"run": lambda row: row["run"], **{f"{noise:.1%} wrong": at(noise) for noise in settings.noise}},
        "Mean +- standard deviation over the seeds; in brackets the difference to the baseline of the same seed and labels.",
    )
    return rows


if __name__ == "__main__":
    main()
