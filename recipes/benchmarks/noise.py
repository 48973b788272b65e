"""Wrong labels: what methods that prefer high losses make of them, with and without a cap.

Each run trains the CIFAR ResNet-8 on CIFAR-10 with a share of the training labels replaced by wrong ones; the test labels
are right. The runs of a seed begin with the same weights, have the same wrong labels, and are compared with its baseline.
`--part 1/2` and `--part 2/2` share the runs between two processes; `--merge` makes one table of their files.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.benchmarks import report
from recipes.benchmarks.fits import Fits, Row, described, parse, parser, save, spread, training_data, written
from recipes.benchmarks.losers import part_of
from recipes.benchmarks.training import prepare

NOISE = (0.0, 0.001, 0.1, 0.2)
RUNS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "baseline": ("baseline", {}),
    "kakurenbo": ("kakurenbo", {}),
    "kakurenbo, drop_top 0.1": ("kakurenbo", {"drop_top": 0.1}),
    "selective_backprop": ("selective_backprop", {}),
    "plb": ("plb", {}),
    "plb, cap_quantile 0.8": ("plb", {"cap_quantile": 0.8}),
}


def summarise(rows: list[Row]) -> list[Row]:
    """Return mean and deviation over the seeds, also of the difference to the baseline of the same seed and noise."""
    baselines = {(row["seed"], row["noise"]): row for row in rows if row["run"] == "baseline"}
    summary = []
    for noise, name in dict.fromkeys((row["noise"], row["run"]) for row in rows):
        mine = [row for row in rows if (row["noise"], row["run"]) == (noise, name)]
        pairs = [(row, baselines[row["seed"], noise]) for row in mine if (row["seed"], noise) in baselines]
        summary.append(
            {
                "noise": noise,
                "run": name,
                "seeds": len(mine),
                "accuracy": spread([row["accuracy"] for row in mine]),
                "difference": spread([row["accuracy"] - base["accuracy"] for row, base in pairs]) if pairs else None,
                "time_ratio": spread([row["cost"] / base["cost"] for row, base in pairs]) if pairs else None,
            }
        )
    return sorted(summary, key=lambda row: (row["noise"], list(RUNS).index(row["run"])))


def show(result: Row) -> None:
    """Print one row per run, one column per share of wrong labels."""
    found = {(row["noise"], row["run"]): row for row in result["summary"]}
    names, noises = (list(dict.fromkeys(row[key] for row in result["summary"])) for key in ("run", "noise"))

    def cell(noise: float, name: str) -> str:
        row = found.get((noise, name))
        if row is None:
            return "-"
        difference = row["difference"] and written(row["difference"], "+.2f", 100).replace("+- +", "+- ")
        return written(row["accuracy"], ".2f", 100) + (f" ({difference})" if difference and name != "baseline" else "")

    title = f"CIFAR ResNet-8, {result['samples']:,} images of CIFAR-10, {result['epochs']} epochs, seeds: {result['seeds']}"
    report.print_table(
        f"{title}: test accuracy in %",
        ["run", *(f"{noise:.1%} wrong" for noise in noises)],
        [[name, *(cell(noise, name) for noise in noises)] for name in names],
        "Mean +- standard deviation over the seeds; in brackets the difference to the baseline of the same seed and labels.",
    )


def merged(paths: list[Path]) -> Row:
    """Return one result of the files of several parts."""
    parts = [json.loads(path.read_text()) for path in paths]
    rows = [row for part in parts for row in part["runs"]]
    machines = [part["machine"] for part in parts]
    return {
        **parts[0],
        "machines": machines,
        "wall_s": max(part["wall_s"] for part in parts),
        "summary": summarise(rows),
        "runs": rows,
    }


def measured(settings: argparse.Namespace) -> Row:
    """Train."""
    prepare(settings)
    number, parts = settings.part
    seeds = range(settings.seed, settings.seed + settings.seeds)
    todo = [(seed, noise, name) for seed in seeds for noise in settings.noise for name in settings.runs][number - 1 :: parts]
    result = described("noise", settings)
    datasets: dict[tuple[int, float], Any] = {}
    rows, started = [], time.perf_counter()
    with tqdm(total=len(todo), desc="noise", unit="run") as bar:
        for seed, noise, name in todo:
            if (seed, noise) not in datasets:
                datasets[seed, noise] = training_data(settings, label_noise=noise, label_noise_seed=seed)
            method, chosen = RUNS[name]
            row = Fits(datasets[seed, noise], settings, bar).run(name, seed, settings.epochs, method, **chosen)
            rows.append(row | {"noise": noise})
            bar.update()
            result |= {"wall_s": time.perf_counter() - started, "summary": summarise(rows), "runs": rows}
            save(settings.json, result)
    return result


def main(arguments: list[str] | None = None) -> Row:
    """Train the runs, or merge the files of parts."""
    options = parser("noise", __doc__, data_required=False)
    options.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), help="which")
    options.add_argument("--noise", nargs="+", type=report.share, default=list(NOISE), help="shares of wrong training labels")
    options.add_argument("--part", type=part_of, default=(1, 1), help="i/n: train only the i-th of n parts")
    options.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="train nothing, make one table of these")
    settings = parse(options, arguments)
    if not settings.merge and settings.data_root is None:
        options.error("--data-root is missing; only --merge does without")
    result = merged(settings.merge) if settings.merge else measured(settings)
    show(result)
    report.write(settings.json, result)
    return result


if __name__ == "__main__":
    main()
