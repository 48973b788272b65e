"""What selecting costs: time and memory of KAKURENBO's plan of an epoch and of sharding it, on one CPU core.

Each size runs in a process of its own, so that one peak of memory does not hide another. Up to `--loop-up-to` samples
the same is done by a sort and Python loops, which must hide the same samples.
"""

import argparse
import math
import random
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from kakurenbo_lightning import Epoch, SampleStatistics, get_method
from kakurenbo_lightning.core.plan import EpochPlan
from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_lightning.core.shard import Layout
from recipes.benchmarks import report
from recipes.benchmarks.report import Row, in_units, seconds_of

MAX_FRACTION, TAU = 0.3, 0.7
BATCH_SIZE = 256
PEAK_RESET = "5"  # value for /proc/self/clear_refs that resets the peak, see proc(5)


def made_up(total: int, seed: int, device: str = "cpu") -> SampleStatistics:
    """Return random statistics as after an epoch: skewed losses with ties, three quarters correct, a few NaN and unmeasured."""
    statistics = SampleStatistics(total)
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, total, 1 << 20):  # in pieces, so that making them does not raise the peak of memory
        rows = slice(first, min(first + (1 << 20), total))
        size = rows.stop - first
        loss = torch.empty(size).log_normal_(-1.0, 1.5, generator=generator)
        loss[torch.rand(size, generator=generator) < 0.01] = 0.125
        loss[torch.rand(size, generator=generator) < 0.0005] = float("nan")
        statistics.loss[rows] = loss
        statistics.confidence[rows] = torch.rand(size, generator=generator) ** 0.3
        statistics.correct[rows] = torch.rand(size, generator=generator) < 0.75
        statistics.epoch_seen[rows] = 0
    statistics.epoch_seen[: total // 1000] = -1
    return statistics.to(device)


def memory_peak(device: str) -> int:
    """Largest number of bytes in use since the last `forget_peak`: of main memory, and of the GPU if there is one."""
    on_device = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    in_kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    peak = in_kilobytes[0] if in_kilobytes else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return on_device + peak * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: str) -> None:
    """Reset the peak of memory, if the system allows it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text(PEAK_RESET)
    except OSError:  # not on Linux, or not permitted: then the peak is that of the process so far
        return


def select_with_loops(statistics: SampleStatistics, max_fraction: str, tau: float) -> tuple[set[int], list[int]]:
    """Return the indices to hide and those to train, found by Python loops.

    Args:
        statistics: statistics on the CPU.
        max_fraction: the largest share that may be hidden, as a decimal.
        tau: smallest confidence with which a correct sample of low loss is hidden.
    """
    losses = statistics.loss.tolist()
    confidences = statistics.confidence.tolist()
    corrects = statistics.correct.tolist()
    epochs_seen = statistics.epoch_seen.tolist()
    threshold = torch.tensor(tau).item()  # rounded to float32 like the confidences it is compared with

    measured = [i for i in range(len(losses)) if epochs_seen[i] >= 0 and math.isfinite(losses[i])]
    measured.sort(key=lambda i: losses[i])  # a stable sort: among equal losses the lower index comes first
    hidden = set()
    for i in measured[: int(Fraction(max_fraction) * len(losses))]:
        if corrects[i] and confidences[i] >= threshold:
            hidden.add(i)
    return hidden, [i for i in range(len(losses)) if i not in hidden]


def shard_with_loops(indices: list[int], batch_size: int, world_size: int, rank: int, seed: int) -> list[list[int]]:
    """Shuffle the indices and return the batches of one rank, with Python loops."""
    shuffled = list(indices)
    random.Random(seed).shuffle(shuffled)
    mine = [shuffled[position] for position in range(rank, len(shuffled), world_size)]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


def loop_seconds(clock: Callable[[], float], statistics: SampleStatistics, plan: EpochPlan) -> float:
    """Time the Python loops once.

    Raises:
        AssertionError: they hide other samples than `plan` does.
    """
    statistics = statistics.to("cpu")
    selecting, (hidden, indices) = seconds_of(clock, select_with_loops, statistics, str(MAX_FRACTION), TAU)
    sharding, batches = seconds_of(clock, shard_with_loops, indices, BATCH_SIZE, 1, 0, 0)
    assert hidden == set(plan.hidden.tolist()), "the loops hide other samples than the method"
    assert sum(map(len, batches)) == len(plan.indices)
    return selecting + sharding


def measure(total: int, settings: argparse.Namespace) -> Row:
    """Plan and shard an epoch of `total` samples; up to `settings.loop_up_to` the loops take turns with the method."""
    torch.set_num_threads(1)
    device, seed, clock = settings.device, settings.seed, report.clock(settings.device, settings.clock)
    statistics = made_up(total, seed, device)
    method = get_method("kakurenbo", max_fraction=MAX_FRACTION, tau=TAU)
    epoch = Epoch(1, 100, seed)
    forget_peak(device)
    before = memory_peak(device)
    plans, sharding, loops = [], [], []
    for repeat in range(settings.repeats + 1):
        planning, plan = seconds_of(clock, method.plan, statistics, epoch)
        cutting, shard = seconds_of(clock, plan.shard, Layout(BATCH_SIZE, seed=seed, epoch=1))
        if repeat == 0:
            peak = memory_peak(device) - before
            continue  # a warm-up: the first time memory is fetched from the system
        plans.append(planning)
        sharding.append(cutting)
        if total <= settings.loop_up_to and repeat <= 3:
            loops.append(loop_seconds(clock, statistics, plan))
            statistics.to(device)
        hidden, steps = len(plan.hidden), shard.steps
        del plan, shard
    both = list(map(sum, zip(plans, sharding, strict=True)))
    return {
        "samples": total,
        "hidden": hidden,
        "steps": steps,
        "repeats": settings.repeats,
        "plan_s": median(plans),
        "shard_s": median(sharding),
        "seconds": median(both),
        "ns_per_sample": 1e9 * median(both) / total,
        "loop_s": median(loops) if loops else None,
        "times_faster": median(loops) / median(both) if loops else None,
        "statistics_bytes_per_sample": statistics.bytes_per_sample,
        "peak_bytes_per_sample": peak / total,
    }


def main(arguments: list[str] | None = None) -> Row:
    """Measure the chosen sizes, each in its own process."""
    sizes = [50_000, 1_280_000, 10_000_000, 100_000_000]
    options = report.parser("selection", __doc__)
    options.add_argument("--sizes", type=report.count, nargs="+", default=sizes, help="samples of the data set")
    options.add_argument("--repeats", type=report.count, default=9, help="times to measure each size")
    options.add_argument("--loop-up-to", type=report.count, default=1_280_000, help="largest size for the loops")
    settings = report.parse(options, arguments)
    settings.machine["threads"] = 1
    rows = []
    for total in tqdm(settings.sizes, **bar_settings(desc="selection", unit="size")):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(measure, total, settings).result())
    report.print_table(
        "KAKURENBO: plan an epoch and shard it, on one core",
        rows,
        {
            "samples": lambda row: f"{row['samples']:,}",
            "plan": lambda row: in_units(row["plan_s"]),
            "shard": lambda row: in_units(row["shard_s"]),
            "both": lambda row: in_units(row["seconds"]),
            "per sample": lambda row: f"{row['ns_per_sample']:.1f} ns",
            "loops": lambda row: in_units(row["loop_s"]),
            "faster": lambda row: f"{row['times_faster']:.0f} x" if row["loop_s"] else "-",
            "peak memory": lambda row: f"{row['peak_bytes_per_sample']:.0f} B/sample",
        },
        f"Medians. Statistics: {rows[0]['statistics_bytes_per_sample']} bytes per sample; peak memory: beyond them, "
        "including the plan and its order (16 bytes per trained sample, 8 per hidden one).",
    )
    return report.write(settings, sizes=rows)


if __name__ == "__main__":
    main()
