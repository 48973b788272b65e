"""Do the biggest losers get there sooner? Methods that look before they train, against ordinary training by the clock.

For each seed, on CIFAR-10 with the CIFAR ResNet-8: the baseline, each run of `RUNS`, and for some of them a baseline of
fewer epochs that takes as long, its learning rate fully decayed. The runs of a seed begin with the same weights and are
compared with its baseline. The test error is taken after each epoch; as in the paper (Jiang et al., 2019) a run is
there when its error is at most 1.4 times the baseline's last one.

Seconds are those of `fit`, without validation, and costs are CPU seconds in units of a reference step, see
`recipes.benchmarks.fits`. `--part 1/2` and `--part 2/2` share the runs between two processes; `--merge` makes one table of
their files.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.benchmarks import report
from recipes.benchmarks.fits import SETTINGS, Fits, Row, described, parse, parser, save, shorter, spread, training_data, written
from recipes.benchmarks.training import prepare

THERE = 1.4  # times the baseline's last error
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the baseline's time


@dataclass(frozen=True)
class Run:
    """A method to train.

    Attributes:
        method: its name.
        settings: of it.
        control: whether a baseline of equal time is trained too.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: bool = False


RUNS = {
    "selective_backprop, beta 1": Run("selective_backprop", {"beta": 1.0}, control=True),
    "selective_backprop, beta 3": Run("selective_backprop", {"beta": 3.0}),
    "stale_sb, beta 1": Run("stale_sb", {"beta": 1.0, "staleness": 3}, control=True),
    "sb_fixed": Run("sb_fixed"),
    "katharopoulos": Run("katharopoulos"),
}
Job = tuple[int, str]  # seed and name of a run


def jobs(seeds: Sequence[int], names: Sequence[str], part: tuple[int, int] = (1, 1)) -> list[Job]:
    """Return what part i of n trains, beside the baselines: neighbours, of about as many fits as in the other parts."""
    everything = [(seed, name) for seed in seeds for name in names]
    number, parts = part
    fits = [1 + RUNS[name].control for _, name in everything]
    mine, before = [], 0
    for job, count in zip(everything, fits, strict=True):
        if math.floor((before + count / 2) * parts / sum(fits)) == number - 1:
            mine.append(job)
        before += count
    return mine


def fits_of(todo: Sequence[Job]) -> int:
    """Return how many fits `train` makes."""
    return len({seed for seed, _ in todo}) + sum(1 + RUNS[name].control for _, name in todo)


def train(run: Callable[..., Row], todo: Sequence[Job], epochs: int) -> Iterator[Row]:
    """Yield the rows of each seed: its baseline, the runs, and where there is one a run's control.

    Args:
        run: `Fits.run`.
        todo: what to train, seed by seed.
        epochs: of all but the controls.
    """
    baselines: dict[int, Row] = {}
    for seed, name in todo:
        if seed not in baselines:
            baselines[seed] = run("baseline", seed, epochs, "baseline")
            yield compared(baselines[seed], baselines[seed])
        chosen = RUNS[name]
        row = run(name, seed, epochs, chosen.method, **chosen.settings)
        yield compared(row, baselines[seed])
        if chosen.control:
            control = run(f"baseline, time of {name}", seed, shorter(epochs, row, baselines[seed]), "baseline")
            yield compared(control, baselines[seed])


def compared(row: Row, baseline: Row) -> Row:
    """Return a row with what it is in comparison with the baseline of its seed, trained in the same process.

    Costs here are in units of the baseline's.
    """
    whole = baseline["curve"][-1]
    there = arrival(row["curve"], THERE * whole["error"])
    own = arrival(baseline["curve"], THERE * whole["error"])
    by_then = {share: [point for point in row["curve"] if point["cost"] <= share * whole["cost"]] for share in SHARES}
    return {
        **row,
        "error": row["curve"][-1]["error"],
        "difference": row["curve"][-1]["error"] - whole["error"],
        "time_ratio": row["cost"] / baseline["cost"],
        "there_cpu_s": there and there["cpu_s"],
        "there_epoch": there and there["epoch"],
        "there_ratio": there and there["cost"] / own["cost"],
        "error_at": {str(share): points[-1]["error"] if points else None for share, points in by_then.items()},
    }


def arrival(curve: Sequence[Row], error: float) -> Row | None:
    """Return the first point with at most this error, if there is one."""
    return next((point for point in curve if point["error"] <= error), None)


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Return mean and deviation over the seeds of each run; of what not all seeds have, only how many have it."""
    summary = []
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        keys = ("error", "difference", "time_ratio", "samples_trained", "cpu_s", "there_cpu_s", "there_ratio")
        summary.append(
            {
                "run": name,
                "seeds": len(mine),
                "there": sum(row["there_epoch"] is not None for row in mine),
                "epochs": [row["epochs"] for row in mine],
                **{key: spread_of_all([row[key] for row in mine]) for key in keys},
                "error_at": {key: spread_of_all([row["error_at"][key] for row in mine]) for key in mine[0]["error_at"]},
            }
        )
    return summary


def spread_of_all(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Return mean and deviation, or nothing when a value is missing."""
    return None if None in values else spread(values)


def show(result: Row) -> None:
    """Print what each run came to, and its test error by the time."""
    summary = result["summary"]
    title = f"CIFAR ResNet-8, {result['samples']:,} images of CIFAR-10, {result['epochs']} epochs"
    report.print_table(
        title,
        ["run", "epochs", "last test error, %", "to baseline", "time ratio", f"to {THERE} x error, s", "ratio to baseline's"],
        [
            [
                row["run"],
                ", ".join(str(epochs) for epochs in dict.fromkeys(row["epochs"])),
                written(row["error"], ".2f", 100),
                written(row["difference"], "+.2f", 100).replace("+- +", "+- "),
                written(row["time_ratio"], ".3f"),
                written(row["there_cpu_s"], ".1f") if row["there_cpu_s"] else f"{row['there']} of {row['seeds']} seeds",
                written(row["there_ratio"], ".3f") if row["there_ratio"] else "-",
            ]
            for row in summary
        ],
        f"Mean +- standard deviation over the seeds ({result['seeds']}), differences in points; seconds are CPU seconds of fit, without "
        "validation, ratios are of costs.",
    )
    report.print_table(
        f"{title}: test error in %, against the time",
        ["run", *(f"{share:.0%} of the baseline's time" for share in SHARES)],
        [
            [
                row["run"],
                *(written(row["error_at"][str(share)], ".2f", 100) if row["error_at"][str(share)] else "-" for share in SHARES),
            ]
            for row in summary
        ],
        "After the last epoch that is over by then; - before the first one.",
    )


def merged(paths: Sequence[Path]) -> Row:
    """Return one result of the files of several parts; of equal runs (the baselines) the first one counts.

    Raises:
        ValueError: the files are of different settings.
    """
    parts = [json.loads(path.read_text()) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        for name in ("benchmark", "network", *SETTINGS):
            if part[name] != parts[0][name]:
                raise ValueError(f"{path} is of {name}={part[name]!r}, {paths[0]} of {parts[0][name]!r}: they make no one table")
    rows: dict[tuple[str, int], Row] = {}
    for part in parts:
        for row in part["runs"]:
            rows.setdefault((row["run"], row["seed"]), row)
    order = ["baseline", *(name for run in RUNS for name in (run, f"baseline, time of {run}"))]
    runs = sorted(rows.values(), key=lambda row: (row["seed"], order.index(row["run"])))
    return {
        **parts[0],
        "wall_s": max(part["wall_s"] for part in parts),
        "machines": [part["machine"] for part in parts],
        "summary": summarise(sorted(runs, key=lambda row: order.index(row["run"]))),
        "runs": runs,
    }


def part_of(text: str) -> tuple[int, int]:
    """Read i/n."""
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text} is not i/n with 1 <= i <= n; write for example 1/2")
    return int(number), int(parts)


def main(arguments: list[str] | None = None) -> Row:
    """Train the runs of each seed one after another, or merge the files of parts."""
    options = parser("losers", __doc__, data_required=False)
    options.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), help="which, beside the baseline")
    options.add_argument("--part", type=part_of, default=(1, 1), help="i/n: train only the i-th of n parts")
    options.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="train nothing, make one table of these")
    settings = parse(options, arguments)
    if settings.merge:
        try:
            result = merged(settings.merge)
        except ValueError as error:
            options.error(f"--merge: {error}")
    elif settings.data_root is None:
        options.error("--data-root is missing; only --merge does without")
    else:
        result = measured(settings)
    show(result)
    report.write(settings.json, result)
    return result


def measured(settings: argparse.Namespace) -> Row:
    """Train."""
    prepare(settings)
    todo = jobs(range(settings.seed, settings.seed + settings.seeds), settings.runs, settings.part)
    if not todo:
        raise SystemExit(f"--part {settings.part[0]}/{settings.part[1]}: there is nothing left for it; use fewer parts")
    result = described("losers", settings) | {"part": "{}/{}".format(*settings.part), "there": THERE}
    data = training_data(settings)
    rows, started = [], time.perf_counter()
    with tqdm(total=fits_of(todo), desc="losers", unit="run") as bar:
        fits = Fits(data, settings, bar, each_epoch=True)
        fits.warm_up()
        for row in train(fits.run, todo, settings.epochs):
            rows.append(row)
            bar.update()
            result |= {"wall_s": time.perf_counter() - started, "summary": summarise(rows), "runs": rows}
            save(settings.json, result)
    return result


if __name__ == "__main__":
    main()
