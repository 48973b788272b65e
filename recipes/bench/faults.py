"""Nothing is lost: kills real trainings with SIGKILL at random moments, resumes them and compares with uninterrupted ones.

Each kill draws a method, a number of ranks, a moment, a batch and how often checkpoints are saved. The training runs in
processes of its own until one rank kills itself at that moment, and the others are killed with it. New processes with
other random seeds resume from the newest checkpoint. Weights, BatchNorm, optimizer, schedule, statistics, plans, the
indices of each batch, learning rates and logged selection metrics must then be those of the uninterrupted training, which
saved no checkpoints, bit for bit on every rank. Exits with 1 when one is not, or when a half-written checkpoint is found.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from signal import SIGKILL
from typing import Any

import torch
from tqdm import tqdm

from kakurenbo_lightning import DamagedCheckpointError, available_methods
from kakurenbo_lightning.checkpoint_io import check_whole
from recipes.bench import report
from recipes.bench.fault_run import EPOCH_ENDS, MOMENTS, WRITES, Event, Kill, differences, train_to_file
from recipes.bench.forked import printed, run_ranks

EVERY = (1, 5)  # steps between checkpoints
LIMIT_SECONDS = 60  # of one training
Results = list[dict[str, Any]]


class FaultError(RuntimeError):
    """A training failed otherwise than it was made to."""


def decks(choices: Sequence[Any], draws: random.Random) -> Iterator[Any]:
    """Yield from the shuffled choices, all of them before any comes again."""
    while True:
        yield from draws.sample(choices, len(choices))


def draw_kill(events: list[Event], moment: str, every: int, world_size: int, draws: random.Random) -> Kill | None:
    """Draw when to kill a training after its first checkpoint; `None` when `moment` does not come in it.

    Args:
        events: of the uninterrupted training.
        moment: one of `MOMENTS`.
        every: steps between checkpoints.
        world_size: number of ranks; only rank 0 writes.
        draws: where randomness is from.
    """
    if moment in WRITES:
        last = max(tick for _, tick, _ in events)
        return Kill(moment, draws.randint(every + 1, last), draws.randint(0, 2))
    later = [event for event in events if event[0] == moment and event[1] > every]
    if not later:
        return None
    _, tick, index = draws.choice(later)
    return Kill(moment, tick, index, draws.randrange(world_size))


class Trainings:
    """Runs trainings in processes of their own.

    Args:
        folder: for checkpoints, results and what ranks print.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole: dict[tuple[str, int], Results] = {}

    def whole(self, method: str, world_size: int) -> Results:
        """Return the results of the uninterrupted training, by rank; it runs once."""
        if (method, world_size) not in self._whole:
            folder = self._make(f"{method}-{world_size}-whole")
            self._whole[method, world_size] = self._finish(folder, "whole", method, world_size)
        return self._whole[method, world_size]

    def killed(self, number: int, method: str, world_size: int, every: int, kill: Kill) -> tuple[Path, dict[str, int]]:
        """Run a training until it is killed; return its folder and where it was."""
        folder = self._make(f"{number}-{method}-{world_size}")
        codes = self._run(folder, "killed", method, world_size, every=every, kill=kill)
        if codes[kill.rank] != -SIGKILL or not (folder / "killed.json").exists():
            raise FaultError(f"rank {kill.rank} did not reach its kill: exit codes {codes}\n{printed(folder / 'killed', world_size)}")
        return folder, json.loads((folder / "killed.json").read_text())

    def resumed(self, folder: Path, method: str, world_size: int, every: int, checkpoint: Path, seed: int) -> Results:
        """Return the results of a training that goes on from `checkpoint`."""
        return self._finish(folder, "resumed", method, world_size, every=every, resume=checkpoint, seed=seed)

    def _make(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        return folder

    def _run(self, folder: Path, name: str, method: str, world_size: int, **options: Any) -> list[int]:
        function = partial(train_to_file, **options)
        return run_ranks(function, (folder, name, method), world_size, log=folder / name, seconds=LIMIT_SECONDS)

    def _finish(self, folder: Path, name: str, method: str, world_size: int, **options: Any) -> Results:
        codes = self._run(folder, name, method, world_size, **options)
        if any(codes):
            raise FaultError(f"the {name} training failed: exit codes {codes}\n{printed(folder / name, world_size)}")
        return [torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in range(world_size)]


def newest(folder: Path) -> Path:
    """Return the newest checkpoint; every file under a checkpoint's name must be whole.

    Raises:
        FaultError: one is not, or there is none.
    """
    files = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        raise FaultError(f"no checkpoint in {folder}")
    for file in files:
        try:
            check_whole(file)
        except DamagedCheckpointError as error:
            raise FaultError(f"half-written: {error}") from error
    return files[-1]


def kill_and_resume(number: int, trainings: Trainings, method: str, world_size: int, kill: Kill, every: int) -> dict[str, Any]:
    """Kill one training, resume it and compare; return the row of the table."""
    row = {"method": method, "world_size": world_size, "moment": kill.moment, "rank": kill.rank, "every_n_train_steps": every}
    started = time.perf_counter()
    try:
        whole = trainings.whole(method, world_size)
        folder, where = trainings.killed(number, method, world_size, every, kill)
        row["at"] = f"epoch {where['epoch']}, batch {where['batch'] + 1} of {where['of']}"
        checkpoint = newest(folder)
        state = torch.load(checkpoint, weights_only=True)["callbacks"]["SampleSelection"]
        row["resumed_from"] = f"{checkpoint.name}, epoch {state['epoch']} after batch {state['step']}"
        results = trainings.resumed(folder, method, world_size, every, checkpoint, seed=1000 + number)
        row["differs"] = [
            f"rank {rank}: {name}" for rank in range(world_size) for name in differences(whole[rank], results[rank])
        ]
        row["exact"] = not row["differs"]
    except RuntimeError as error:
        row |= {"exact": False, "error": str(error)}
    return row | {"seconds": time.perf_counter() - started}


def draw_all(trainings: Trainings, settings: argparse.Namespace) -> Iterator[tuple[str, int, Kill, int]]:
    """Draw method, number of ranks, kill and steps between checkpoints, without end."""
    draws = random.Random(settings.seed)
    pairs = [(method, world_size) for method in settings.methods for world_size in settings.world_sizes]
    moments = decks(settings.moments, draws)
    for method, world_size in decks(pairs, draws):
        every, events = draws.randint(*EVERY), trainings.whole(method, world_size)[0]["events"]
        for moment in moments:
            kill = draw_kill(events, moment, every, world_size, draws)
            if kill is not None:
                yield method, world_size, kill, every
                break


def show(rows: list[dict[str, Any]]) -> None:
    """Print one row per kill, the sums, and what went wrong."""
    report.print_table(
        "Killed and resumed",
        ["method", "ranks", "killed", "at", "resumed from", "exact"],
        [
            [
                row["method"],
                str(row["world_size"]),
                row["moment"],
                row.get("at", "-"),
                row.get("resumed_from", "-"),
                "yes" if row["exact"] else "NO",
            ]
            for row in rows
        ],
    )
    for row in rows:
        if not row["exact"]:
            print(f"{row['method']} on {row['world_size']} ranks, {row['moment']}: {row.get('error') or row['differs']}")
    exact = sum(row["exact"] for row in rows)
    print(f"{len(rows)} kills, {exact} exact resumes, {len(rows) - exact} failures")


def numbers(text: str) -> list[int]:
    """Read whole numbers, separated by commas."""
    return [report.count(part) for part in text.split(",")]


def options() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.bench.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=report.count, default=30, help="how many (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--world-sizes", type=numbers, default=[1, 2], help="numbers of ranks (default 1,2)")
    parser.add_argument("--methods", nargs="+", choices=available_methods(), default=available_methods(), help="(default all)")
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=list(MOMENTS), help="(default all)")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench/faults.json"), help="file to write")
    return parser


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Kill, resume, compare."""
    settings = options().parse_args(arguments)
    started, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        trainings = Trainings(Path(folder))
        kills = draw_all(trainings, settings)
        for number in tqdm(range(settings.kills), desc="faults", unit="kill"):
            rows.append(kill_and_resume(number, trainings, *next(kills)))
    show(rows)
    failures = sum(not row["exact"] for row in rows)
    result = {
        "benchmark": "faults",
        "machine": report.machine("cpu"),
        "seed": settings.seed,
        "kills": len(rows),
        "exact": len(rows) - failures,
        "failures": failures,
        "seconds": time.perf_counter() - started,
        "rows": rows,
    }
    report.write(settings.json, result)
    if failures:
        raise SystemExit(1)
    return result


if __name__ == "__main__":
    main()
