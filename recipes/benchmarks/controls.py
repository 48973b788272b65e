"""Is it the method, or only training less? InfoBatch and KAKURENBO against controls of equal data and of equal time.

For each seed, on CIFAR-10 with the CIFAR ResNet-8: the baseline, each method, hiding the same share at random, and a
baseline of fewer epochs that takes as long as the method did, its learning rate fully decayed. The runs of a seed begin
with the same weights and are compared with its baseline.

Seconds are those of `fit`, without validation. Other load on the machine changes wall time, and also how much
is done in a CPU second. So a step of a reference network is timed every few steps, and equal time means equal CPU
seconds in units of that step.
"""

import argparse
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from recipes.benchmarks import report
from recipes.benchmarks.fits import (
    STEPS_BETWEEN,
    Fits,
    Row,
    described,
    parse,
    parser,
    save,
    shorter,
    spread,
    training_data,
    written,
)
from recipes.benchmarks.training import prepare

METHODS = {"infobatch": {"prune_ratio": 0.5}, "kakurenbo": {"max_fraction": 0.3, "tau": 0.7}}
RUNS = 1 + 3 * len(METHODS)  # of a seed


def runs_of_a_seed(run: Callable[..., Row], seed: int, epochs: int) -> Iterator[Row]:
    """Yield `RUNS` rows: the baseline, and of each method its run and its two controls.

    Args:
        run: `Fits.run`.
        seed: of all of them.
        epochs: of all but those of equal time.
    """
    baseline = run("baseline", seed, epochs, "baseline")
    yield baseline
    for method, options in METHODS.items():
        row = run(method, seed, epochs, method, **options)
        yield row
        yield run(f"random, data of {method}", seed, epochs, "random", max_fraction=round(row["hidden_share"], 3))
        yield run(f"baseline, time of {method}", seed, shorter(epochs, row, baseline), "baseline")


def summarise(rows: list[Row]) -> list[Row]:
    """Return mean and deviation over the seeds of each run, and against the baseline of the same seed."""
    baselines = {row["seed"]: row for row in rows if row["run"] == "baseline"}
    summary = []
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        figures = {key: spread([row[key] for row in mine]) for key in ("accuracy", "samples_trained", "hidden_share", "cpu_s")}
        figures["difference"] = spread([row["accuracy"] - baselines[row["seed"]]["accuracy"] for row in mine])
        figures["time_ratio"] = spread([row["cost"] / baselines[row["seed"]]["cost"] for row in mine])
        summary.append({"run": name, "seeds": len(mine), "epochs": [row["epochs"] for row in mine], **figures})
    return summary


def show(summary: list[Row], settings: argparse.Namespace) -> None:
    """Print one row per run."""
    report.print_table(
        f"CIFAR ResNet-8, {settings.samples:,} images of CIFAR-10, {settings.epochs} epochs, seeds: {settings.seeds}",
        ["run", "epochs", "test accuracy, %", "to baseline", "samples trained", "CPU seconds", "time ratio"],
        [
            [
                row["run"],
                ", ".join(str(epochs) for epochs in dict.fromkeys(row["epochs"])),
                written(row["accuracy"], ".2f", 100),
                written(row["difference"], "+.2f", 100).replace("+- +", "+- "),
                written(row["samples_trained"], ",.0f"),
                written(row["cpu_s"], ".1f"),
                written(row["time_ratio"], ".3f"),
            ]
            for row in summary
        ],
        "Mean +- standard deviation over the seeds; differences (in points) and ratios are to the baseline of the same seed. "
        "The machine is shared: time ratios, and equal time (in whole epochs), are of CPU seconds of fit in units of a "
        f"reference step that is timed every {STEPS_BETWEEN} steps.",
    )


def main(arguments: list[str] | None = None) -> Row:
    """Train every run of every seed, one after another."""
    settings = parse(parser("controls", __doc__), arguments)
    prepare(settings)
    result = described("controls", settings) | {"methods": METHODS}
    data = training_data(settings)
    rows, started = [], time.perf_counter()
    with tqdm(total=RUNS * settings.seeds, desc="controls", unit="run") as bar:
        fits = Fits(data, settings, bar)
        fits.warm_up()
        for seed in range(settings.seed, settings.seed + settings.seeds):
            for row in runs_of_a_seed(fits.run, seed, settings.epochs):
                rows.append(row)
                bar.update()
                result |= {"wall_s": time.perf_counter() - started, "summary": summarise(rows), "runs": rows}
                save(settings.json, result)
    show(result["summary"], settings)
    report.write(settings.json, result)
    return result


if __name__ == "__main__":
    main()
