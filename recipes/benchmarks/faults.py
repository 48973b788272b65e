"""Nothing is lost: kills real trainings with SIGKILL at random moments, resumes them and compares with uninterrupted ones.

A method, a number of ranks, a moment, a batch, how often checkpoints are saved, how many batches are accumulated and whether the training
stops early are drawn. The training runs in processes of its own until one rank kills itself at that moment, and the others are killed with
it. Or a checkpoint is saved in that moment first, or SLURM's signal comes, or SIGTERM.
New processes with other random seeds resume from the newest checkpoint, and most of them are killed again. Weights, BatchNorm, optimizer,
schedule, statistics, plans, the indices of each batch, learning rates, the value of each validation, what an early stopping and a
monitored checkpoint saw of it, and logged selection metrics must then be those of the uninterrupted training, which saved no checkpoints,
bit for bit on every rank. Exits with 1 when one is not, or when a half-written checkpoint is found.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import torch
from tqdm import tqdm

from kakurenbo_lightning import DamagedCheckpointError, available_methods, get_method
from kakurenbo_lightning.core.checkpoint_file import check_whole
from kakurenbo_lightning.core.progress import bar_settings
from recipes.benchmarks import report
from recipes.benchmarks.fault_record import MOMENTS, WRITES, Event, Kill
from recipes.benchmarks.fault_run import differences, position, settings_of, train_to_file
from recipes.benchmarks.forked import printed, run_ranks
from recipes.benchmarks.report import Row

EVERY = (1, 5)  # steps between checkpoints
LIVES = (1, 2, 3, 4)  # kills of one training
ACCUMULATE = (1, 1, 2, 3)  # batches accumulated per step; backprop methods, which skip steps, always have 1
STOPPING = 0.4  # share of the trainings that may stop early
LIMIT_SECONDS = 150  # of one life
Results = list[Row]


class FaultError(RuntimeError):
    """A training failed otherwise than it was made to."""


def deck(choices: Sequence[Any], draws: random.Random) -> Iterator[Any]:
    """Yield from the shuffled choices, all of them before any comes again."""
    while True:
        yield from draws.sample(choices, len(choices))


def draw_kill(events: list[Event], moment: str, after: int, world_size: int, draws: random.Random) -> Kill | None:
    """Draw when to kill a training; `None` when `moment` does not come any more.

    Args:
        events: moments of the uninterrupted training.
        moment: one of `MOMENTS`.
        after: batches that must have been trained before, at least until the first checkpoint.
        world_size: number of ranks; only rank 0 writes.
        draws: source of random numbers.
    """
    last = max(tick for _, tick, _ in events)
    if moment in WRITES:
        return Kill(moment, draws.randint(after + 1, last), draws.randint(0, 1)) if after < last else None
    later = [event for event in events if event[0] == moment.rpartition(":")[2] and event[1] > after]
    if not later:
        return None
    _, tick, index = draws.choice(later)
    return Kill(moment, tick, index, draws.randrange(world_size))


@dataclass(frozen=True)
class Training:
    """One training, in processes of its own.

    Attributes:
        folder: for checkpoints, results and what ranks print.
        method: a registered name.
        world_size: number of ranks.
        every: steps between checkpoints; 0 for none.
        stopping: with an early stopping, a monitored checkpoint and a rate that go by the validation, see `fault_run.train`.
        accumulate: batches of a step.
    """

    folder: Path
    method: str
    world_size: int
    every: int = 0
    stopping: bool = False
    accumulate: int = 1

    def finish(self, name: str, **options: Any) -> Results:
        """Run to the end and return the results by rank; `options` are those of `fault_run.train`."""
        codes = self._run(name, **options)
        if any(codes):
            raise FaultError(f"the {name} training failed: exit codes {codes}\n{self._printed(name)}")
        return [torch.load(self.folder / f"{name}.{rank}.pt", weights_only=True) for rank in range(self.world_size)]

    def die(self, kill: Kill, **options: Any) -> str:
        """Run until `kill` and return where that was."""
        place = self.folder / "killed.json"
        place.unlink(missing_ok=True)
        codes = self._run("killed", kill=kill, **options)
        died = any(codes) if kill.how == "terminate" else codes[0 if kill.how == "requeue" else kill.rank] == -SIGKILL
        if not died or not place.exists():
            raise FaultError(f"rank {kill.rank} did not reach {kill}: exit codes {codes}\n{self._printed('killed')}")
        where = json.loads(place.read_text())
        return f"epoch {where['epoch']}, batch {where['batch'] + 1} of {where['of']}"

    def _run(self, name: str, **options: Any) -> list[int]:
        self.folder.mkdir(parents=True, exist_ok=True)
        function = partial(train_to_file, every=self.every, **self._settings | options)
        arguments = (self.folder, name, self.method)
        return run_ranks(function, arguments, self.world_size, log=self.folder / name, seconds=LIMIT_SECONDS)

    @property
    def _settings(self) -> dict[str, Any]:
        return {"stopping": self.stopping} | ({} if self.accumulate == 1 else {"accumulate_grad_batches": self.accumulate})

    def _printed(self, name: str) -> str:
        return printed(self.folder / name, self.world_size)


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


def batches_done(checkpoint: Path) -> int:
    """Return how many batches were begun in the run that saved it; not all of them made a step."""
    return torch.load(checkpoint, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]


class Faults:
    """Draws trainings, kills and resumes them.

    Args:
        folder: for files; one training of each method and number of ranks is run to its end there first.
        settings: the command line.
    """

    def __init__(self, folder: Path, settings: argparse.Namespace) -> None:
        self.folder = folder
        self.seed = settings.seed
        draws = random.Random(settings.seed)
        self._methods, self._world_sizes = (
            deck(list(settings.methods), draws),
            deck(settings.world_sizes, random.Random(settings.seed + 2)),
        )
        self._moments = deck(settings.moments, random.Random(settings.seed + 1))
        self._next = [next(self._moments) for _ in settings.moments]
        self._whole: dict[tuple[str, int, bool, int], Results] = {}
        self._number = 0

    def whole(self, training: Training) -> Results:
        """Return the results of the training without checkpoints and interruption, by rank."""
        which = training.method, training.world_size, training.stopping, training.accumulate
        if which not in self._whole:
            self._whole[which] = replace(training, folder=self.folder / "-".join(map(str, which)), every=0).finish("whole")
        return self._whole[which]

    def next(self, most: int) -> Row:
        """Kill one training once or more, at most `most` times, resume it each time and compare in the end."""
        self._number += 1
        draws, method, world_size = random.Random(f"{self.seed}:{self._number}"), next(self._methods), next(self._world_sizes)
        accumulate = 1 if get_method(method, **settings_of(method)).family == "backprop" else draws.choice(ACCUMULATE)
        every, stopping = draws.randint(*EVERY), draws.random() < STOPPING
        training = Training(self.folder / str(self._number), method, world_size, every, stopping, accumulate)
        row = {"method": method, "world_size": world_size, "every_n_train_steps": every, "stopping": stopping}
        row |= {"accumulate": accumulate, "kills": []}
        started = time.perf_counter()
        try:
            whole, resume, seed = self.whole(training), None, 0
            for _ in range(min(most, draws.choice(LIVES))):
                kill = self._draw(whole[0]["events"], training, resume, draws)
                if kill is None:
                    break
                killed = asdict(kill) | {"at": "-", "resumed_from": "-"}
                row["kills"].append(killed)
                killed["at"] = training.die(kill, resume=resume, seed=seed)
                resume, seed = newest(training.folder), seed + 1
                where = position(resume)
                killed["resumed_from"] = f"{resume.stem}, epoch {where['epoch']} after {where['step']}"
            results = training.finish("resumed", resume=resume, seed=seed)
            names = [differences(mine, its) for mine, its in zip(whole, results, strict=True)]
            row["differs"] = [f"rank {rank}: {name}" for rank in range(world_size) for name in names[rank]]
            row["exact"] = not row["differs"]
        except RuntimeError as error:
            row |= {"exact": False, "error": str(error)}
        return row | {"seconds": time.perf_counter() - started}

    def _draw(self, events: list[Event], training: Training, resume: Path | None, draws: random.Random) -> Kill | None:
        """Draw the next kill: of the moment that waits longest of those that still come in the training, if one does."""
        behind = batches_done(resume) if resume else 0
        for place, moment in enumerate(self._next):
            # until the first checkpoint, which some moments bring themselves
            first = 1 if moment.startswith(("save:", "requeue:")) else training.every * training.accumulate
            kill = draw_kill(events, moment, max(first, behind), training.world_size, draws)
            if kill is not None:
                del self._next[place]
                self._next.append(next(self._moments))
                return kill
        return None


def show(rows: list[Row]) -> None:
    """Print one row per kill, and what went wrong."""
    report.print_table(
        "Killed and resumed",
        [kill | {"row": row, "last": kill is row["kills"][-1]} for row in rows for kill in row["kills"]],
        {
            "method and ranks": lambda kill: f"{kill['row']['method']} on {kill['row']['world_size']}",
            "killed": lambda kill: kill["moment"],
            "at": lambda kill: kill["at"],
            "resumed from": lambda kill: kill["resumed_from"],
            "exact": lambda kill: ("yes" if kill["row"]["exact"] else "NO") if kill["last"] else "again",
        },
    )
    for row in rows:
        if not row["exact"]:
            print(failure(row))


def failure(row: Row) -> str:
    """Return what went wrong in a training."""
    return f"{row['method']} on {row['world_size']} ranks, {row['kills']}: {row.get('error') or row['differs']}"


def numbers(text: str) -> list[int]:
    """Read whole numbers, separated by commas."""
    return [report.count(part) for part in text.split(",")]


def main(arguments: list[str] | None = None) -> Row:
    """Kill and resume random trainings, compare them with uninterrupted ones, and print the outcome."""
    options = report.parser("faults", __doc__, devices=["cpu"])
    options.add_argument("--kills", type=report.count, default=100, help="how many")
    options.add_argument("--world-sizes", type=numbers, default=[1, 2, 3], help="numbers of ranks, separated by commas")
    options.add_argument("--methods", nargs="+", choices=available_methods(), default=available_methods(), help="which")
    options.add_argument("--moments", nargs="+", choices=MOMENTS, default=list(MOMENTS), help="of the kills")
    settings = report.parse(options, arguments)
    started, rows = time.perf_counter(), []
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as folder,
        tqdm(**bar_settings(total=settings.kills, desc="faults", unit="kill")) as bar,
    ):
        faults = Faults(Path(folder), settings)
        while bar.n < settings.kills:
            rows.append(faults.next(settings.kills - bar.n))
            if not rows[-1]["exact"]:
                tqdm.write(failure(rows[-1]))
            bar.update(max(1, len(rows[-1]["kills"])))
    show(rows)
    kills = sum(len(row["kills"]) for row in rows)
    exact = sum(len(row["kills"]) for row in rows if row["exact"])
    print(f"{kills} kills, {exact} exact resumes, {kills - exact} failures")
    counts = {"seed": settings.seed, "kills": kills, "exact": exact, "failures": kills - exact}
    result = report.write(settings, **counts, seconds=time.perf_counter() - started, trainings=list(map(brief, rows)))
    if kills != exact or not all(row["exact"] for row in rows):
        raise SystemExit(1)
    return result


def brief(row: Row) -> Row:
    """Return what is written down of a training: of an exact one not where, but at which moments it was killed."""
    moments = [kill["moment"] for kill in row["kills"]]
    return (
        {key: row[key] for key in ("method", "world_size", "every_n_train_steps", "stopping", "accumulate")}
        | {"moments": moments, "exact": row["exact"]}
        | ({} if row["exact"] else {key: row[key] for key in ("kills", "differs", "error") if key in row})
    )


if __name__ == "__main__":
    main()
