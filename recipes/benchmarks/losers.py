"""Do the biggest losers get there sooner? Methods that score before they train, against ordinary training by the clock.

For each seed, on CIFAR-10 with the CIFAR ResNet-8: the baseline, each run of `RUNS`, and for those of `CONTROLLED` a baseline
of fewer epochs that takes as long, its learning rate fully decayed. The runs of a seed begin with the same weights and are
compared with its baseline. The test error is taken after each epoch; as in the paper (Jiang et al., 2019) a run is there
when its error is at most 1.4 times the baseline's last one. What seconds and costs are: `recipes.benchmarks.fits`.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.benchmarks import report
from recipes.benchmarks.fits import Fits, Row, cell, compared, measured, parser, shorter, title

THERE = 1.4  # a run has arrived at this multiple of the baseline's last error
SHARES = (0.25, 0.5, 0.75, 1.0)  # shares of the baseline's time at which errors are compared
RUNS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "selective_backprop, beta 1": ("selective_backprop", {"beta": 1.0}),
    "selective_backprop, beta 3": ("selective_backprop", {"beta": 3.0}),
    "stale_sb, beta 1": ("stale_sb", {"beta": 1.0, "staleness": 3}),
    "sb_fixed": ("sb_fixed", {}),
    "katharopoulos": ("katharopoulos", {}),
}
CONTROLLED = ("selective_backprop, beta 1", "stale_sb, beta 1")
KEYS = (
    "error",
    "difference",
    "time_ratio",
    "samples_trained",
    "cpu_s",
    "there_cpu_s",
    "there_ratio",
    *map("error_at_{}".format, SHARES),
)


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return the rows of the baseline, of the runs, and where there is one of a run's control."""
    run = Fits(settings, each_epoch=True).run
    baseline = run("baseline", seed, "baseline")
    rows = [baseline]
    for name in settings.runs:
        method, options = RUNS[name]
        rows.append(run(name, seed, method, **options))
        if name in CONTROLLED:
            rows.append(run(f"baseline, time of {name}", seed, "baseline", shorter(settings.epochs, rows[-1], baseline)))
    return [against(row, baseline) for row in rows]


def against(row: Row, baseline: Row) -> Row:
    """Return a row compared with the baseline of its seed; costs become multiples of the baseline's."""
    whole = baseline["curve"][-1]
    there, own = (arrival(one["curve"], THERE * whole["error"]) for one in (row, baseline))
    by_then = {share: [point for point in row["curve"] if point["cost"] <= share * whole["cost"]] for share in SHARES}
    return {
        **compared(row, baseline),
        "error": row["curve"][-1]["error"],
        "there_cpu_s": there and there["cpu_s"],
        "there_ratio": there and there["cost"] / own["cost"],
        **{f"error_at_{share}": points[-1]["error"] if points else None for share, points in by_then.items()},
    }


def arrival(curve: Sequence[Row], error: float) -> Row | None:
    """Return the first point of the curve with at most this error; None if there is none."""
    return next((point for point in curve if point["error"] <= error), None)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Train every run of every seed."""
    options = parser("losers", __doc__)
    options.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), help="which, beside the baseline")
    settings = report.parse(options, arguments)
    rows, summary = measured(settings, of_a_seed, KEYS, there=THERE)
    columns = {
        "run": lambda row: row["run"],
        "epochs": lambda row: ", ".join(map(str, row["epochs"])),
        "last test error, %": cell("error", ".2f", 100),
        "accuracy to baseline": cell("difference", "+.2f", 100),
        "time ratio": cell("time_ratio", ".3f"),
        f"to {THERE} x error, s": cell("there_cpu_s", ".1f"),
        "ratio to baseline's": cell("there_ratio", ".3f"),
    }
    note = (
        "Mean +- standard deviation over the seeds, differences in points; seconds are CPU seconds of fit, without validation, ratios "
        "are of costs. A dash where not every seed gets there."
    )
    report.print_table(title(settings), summary, columns, note)
    at = {f"{share:.0%} of the baseline's time": cell(f"error_at_{share}", ".2f", 100) for share in SHARES}
    columns = {"run": lambda row: row["run"], **at}
    note = "After the last epoch that is over by then; - before the first one."
    report.print_table(f"{title(settings)}: test error in %, against the time", summary, columns, note)
    return rows


if __name__ == "__main__":
    main()
