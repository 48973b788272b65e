"""What selecting costs where each rank has a share of the statistics, beside statistics that every rank has.

Real processes that talk through gloo record an epoch, merge, plan the next one with KAKURENBO and make their own order of it; the plans of
all runs of a size must be equal. `--simulate` does the same for one rank of many: the others are taken to have and to send what it does.
"""

import argparse
import json
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from kakurenbo_lightning import Epoch, SampleStatistics, get_method
from kakurenbo_lightning.core.collectives import Collectives
from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_lightning.core.shard import Layout
from kakurenbo_lightning.core.sharded_statistics import ShardedStatistics
from recipes.benchmarks import report
from recipes.benchmarks.forked import printed, run_ranks
from recipes.benchmarks.report import Row, in_units, seconds_of
from recipes.benchmarks.selection import BATCH_SIZE, forget_peak, memory_peak

METHOD: dict[str, Any] = {"max_fraction": 0.3, "tau": 0.7}
STEP = 1 << 16  # samples that are recorded at a time
LIMIT_SECONDS = 3000


class Alike(Collectives):
    """One rank of many, alone in its process: the others have, and send, what it does."""

    def sum(self, counts: np.ndarray) -> np.ndarray:
        """Return the counts of so many ranks."""
        self.sent += counts.nbytes
        return np.asarray(counts) * self.size

    def gather(self, data: np.ndarray) -> list[np.ndarray]:
        """Return the data of so many ranks."""
        self.sent += len(data) * (self.size - 1)
        return [data] * self.size

    def gather_objects(self, mine: Any) -> list[Any]:
        """Return it for each rank."""
        return [mine] * self.size

    def exchange(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Return what this rank sends, in place of what the others do."""
        self.sent += sum(map(len, parts)) - len(parts[self.rank]) + 8 * (self.size - 1)
        return parts


def values_of(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return made-up values of samples, the same wherever they are made: skewed losses with ties, three quarters right."""
    bits = rows.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    first, second, third = (((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.float32) / 65536 for shift in (48, 32, 16))
    return {
        "loss": torch.from_numpy(8 * first**3 + second / 64),
        "confidence": torch.from_numpy(np.sqrt(third)),
        "correct": torch.from_numpy(second < 0.75),
    }


def measure(statistics: SampleStatistics, layout: Layout, trained: torch.Tensor, clock: Any) -> Row:
    """Record the samples `trained` in epoch 0, merge, plan epoch 1 and make this rank's order of it."""
    method = get_method("kakurenbo", **METHOD)
    forget_peak("cpu")
    before, recording = memory_peak("cpu"), 0.0
    for rows in trained.split(STEP):
        rows = rows.long()
        values = values_of(rows)
        recording += seconds_of(clock, method.record, statistics, rows, values, Epoch(0))[0]
    merging, _ = seconds_of(clock, statistics.merge)
    ranks = statistics.ranks if isinstance(statistics, ShardedStatistics) else Collectives(0, 1)
    sent = ranks.sent
    planning, plan = seconds_of(clock, method.plan, statistics, Epoch(1, 100))
    sharding, shard = seconds_of(clock, lambda: plan.shard(layout).indices)
    peak = memory_peak("cpu") - before
    hidden = plan.kept.complement() if hasattr(plan, "kept") else IndexSet.of_mask(mask_of(plan.hidden, statistics.total))
    return {
        "hidden": plan.hidden_count,
        "checksum": hidden.checksum(),
        "order": int((shard.long() * torch.arange(1, len(shard) + 1)).sum()),
        "record_s": recording,
        "merge_s": merging,
        "plan_s": planning,
        "shard_s": sharding,
        "seconds": merging + planning + sharding,
        "sent_records": sent,
        "sent": ranks.sent,
        "peak": peak,
    }


def mask_of(rows: torch.Tensor, total: int) -> torch.Tensor:
    """Return `bool[total]`, true at `rows`."""
    return torch.zeros(total, dtype=torch.bool).index_fill_(0, rows, True)


def run_rank(folder: Path, kind: str, total: int, size: int, clock_name: str) -> None:
    """Measure on one rank of a process group, and write its row."""
    torch.set_num_threads(1)
    rank, clock = int(os.environ.get("RANK", 0)), report.clock("cpu", clock_name)
    if size > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=LIMIT_SECONDS))
    ranks = Collectives(rank, size)
    statistics = ShardedStatistics(total, ranks) if kind == "sharded" else SampleStatistics(total)
    # each rank trains a contiguous part, of all owners
    trained = torch.arange(rank * total // size, (rank + 1) * total // size)
    row = measure(statistics, Layout(BATCH_SIZE, size, rank, epoch=1), trained, clock)
    (folder / f"{rank}.json").write_text(json.dumps(row))


def on_ranks(kind: str, total: int, size: int, clock: str) -> list[Row]:
    """Return the rows of `size` processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codes = run_ranks(run_rank, (folder, kind, total, size, clock), size, log=folder / "rank", seconds=LIMIT_SECONDS)
        if any(codes):
            raise RuntimeError(f"exit codes {codes}\n{printed(folder / 'rank', size)}")
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def summed_up(kind: str, total: int, size: int, rows: list[Row]) -> Row:
    """Return one row for all ranks: the slowest and the largest."""
    trained = total - rows[0]["hidden"]
    most = {
        name: max(row[name] for row in rows) for name in ("record_s", "merge_s", "plan_s", "shard_s", "seconds", "peak", "sent")
    }
    columns, sent = 11 / size, sum(row["sent"] for row in rows)
    if kind == "replicated":
        columns, sent = 12, 2 * (size - 1) * 12 * total  # by a ring, of three columns of 32 bits
    return {
        "samples": total,
        "ranks": size,
        "statistics": kind,
        "hidden": rows[0]["hidden"],
        **{name: value for name, value in most.items() if name.endswith("_s") or name == "seconds"},
        "statistics_bytes_per_sample": columns,
        "peak_bytes_per_sample": most["peak"] / total,
        "sent_bytes_per_record": sum(row["sent_records"] for row in rows) / total,
        "sent_bytes_per_trained_sample": sent / trained,
        "checksums": sorted({row["checksum"] for row in rows}),
    }


def simulated(total: int, size: int, clock_name: str) -> Row:
    """Measure one rank of `size`, in this process."""
    torch.set_num_threads(1)
    ranks, share = Alike(0, size), total // size
    statistics = ShardedStatistics(share * size, ranks)
    places = torch.arange(share)
    trained = places * size + places % size  # samples of every owner
    row = measure(statistics, Layout(BATCH_SIZE, size, 0, epoch=1), trained, report.clock("cpu", clock_name))
    found = summed_up("sharded", share * size, size, [row])
    for name in ("sent_bytes_per_record", "sent_bytes_per_trained_sample"):
        found[name] *= size
    return found | {"simulated": True}


def main(arguments: list[str] | None = None) -> Row:
    """Measure each size on each number of ranks, and simulate one rank of many."""
    options = report.parser("sharded", __doc__ or "", devices=("cpu",))
    options.add_argument("--sizes", type=report.count, nargs="+", default=[10_000_000], help="samples of the data set")
    options.add_argument("--ranks", type=report.count, nargs="+", default=[1, 2, 4], help="processes")
    options.add_argument(
        "--replicated-up-to", type=report.count, default=10_000_000, help="largest size for several replicated ranks"
    )
    options.add_argument("--simulate", type=report.count, nargs=2, metavar=("SAMPLES", "RANKS"), help="one rank of many")
    settings: argparse.Namespace = report.parse(options, arguments)
    rows: list[Row] = []
    cases = [(kind, total, size) for total in settings.sizes for kind in ("replicated", "sharded") for size in settings.ranks]
    for kind, total, size in tqdm(cases, **bar_settings(desc="sharded", unit="run")):
        if kind == "sharded" and size == 1:
            continue  # one rank has all rows
        if kind == "replicated" and size > 1 and total > settings.replicated_up_to:
            continue
        rows.append(summed_up(kind, total, size, on_ranks(kind, total, size, settings.clock)))
        sums = {checksum for row in rows if row["samples"] == total for checksum in row["checksums"]}
        assert len(sums) == 1, f"the plans of {total} samples differ: {rows}"
        report.write(settings, runs=rows)  # what is there already, should the next one be killed
    if settings.simulate:
        total, size = settings.simulate
        rows.append(simulated(total, size, settings.clock))
    report.print_table(
        "KAKURENBO: merge the statistics of an epoch, plan the next one, make a rank's order",
        rows,
        {
            "samples": lambda row: f"{row['samples']:,}",
            "ranks": lambda row: f"{row['ranks']}{' (one of them)' * ('simulated' in row)}",
            "statistics": lambda row: row["statistics"],
            "merge": lambda row: in_units(row["merge_s"]),
            "plan": lambda row: in_units(row["plan_s"]),
            "order": lambda row: in_units(row["shard_s"]),
            "all": lambda row: in_units(row["seconds"]),
            "columns": lambda row: f"{row['statistics_bytes_per_sample']:.2f} B",
            "peak": lambda row: f"{row['peak_bytes_per_sample']:.1f} B",
            "sent": lambda row: f"{row['sent_bytes_per_trained_sample']:.1f} B",
        },
        "Of the slowest rank. Columns and peak: bytes a rank for each sample of the data set; peak: beyond the columns, with records, plan "
        "and order. Sent: bytes of all ranks together for each sample that the epoch trains; of replicated statistics what a ring sends.",
    )
    return report.write(settings, runs=rows)


if __name__ == "__main__":
    main()
