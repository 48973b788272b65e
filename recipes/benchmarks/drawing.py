"""What drawing by probability costs: a draw and an update of the sum tree, against `torch.multinomial` with a dense update.

Both take turns in one process, so that other load on the machine meets them alike, with the same values. What the whole
stream adds to a training step: `python -m recipes.benchmarks.overhead --method plb --cases resnet8`.
"""

import argparse
import time

import torch
from torch import Tensor
from tqdm import tqdm

from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_lightning.core.sum_tree import SumTree
from recipes.benchmarks import report
from recipes.benchmarks.report import Row, in_units, seconds_of, verdict

SIZES = (50_000, 1_280_000, 10_000_000, 100_000_000)
TARGETS = {1_280_000: 0.35e-3, 100_000_000: 0.8e-3}  # seconds of a draw and an update
FASTER, BYTES = 5.0, 2.0  # than multinomial at 1.28 million; per sample beyond the values
MOST = 1 << 24  # torch.multinomial takes no more categories


class Dense:
    """The same operations on one plain array: a draw and an update cost O(N)."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.probability = values / values.sum()

    def draw(self, count: int) -> Tensor:
        """Draw ``count`` indices with replacement."""
        return torch.multinomial(self.probability, count, replacement=True)

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Write new values of some indices and normalise all of them."""
        self.values[indices] = values
        torch.div(self.values, self.values.sum(), out=self.probability)


def measure(size: int, settings: argparse.Namespace, bar: tqdm) -> Row:
    """Return medians over rounds, each with the table and, where it can, the dense version."""
    generator = torch.Generator().manual_seed(settings.seed)
    values = torch.rand(size, generator=generator) + 0.1
    table, dense = SumTree(values), Dense(values.clone()) if size < MOST else None
    seconds: dict[str, list[float]] = {"draw": [], "update": [], "both": [], "dense": []}
    for _ in range(settings.rounds + settings.rounds // 10 + 1):
        written = torch.rand(settings.draws, generator=generator) + 0.1
        draw, indices = seconds_of(time.perf_counter, table.draw, settings.draws, generator)
        update, _ = seconds_of(time.perf_counter, table.update, indices, written)
        row = {"draw": draw, "update": update, "both": draw + update}
        if dense is not None:
            first, indices = seconds_of(time.perf_counter, dense.draw, settings.draws)
            row["dense"] = first + seconds_of(time.perf_counter, dense.update, indices, written)[0]
        for name, value in row.items():
            seconds[name].append(value)
        bar.update()
    seconds = {name: found[-settings.rounds :] for name, found in seconds.items()}
    state = table.state_dict()
    extra = sum(level.numel() * level.element_size() for level in state["sums"]) / size
    target = TARGETS.get(size) if settings.draws == 256 else None
    both = report.median_of(seconds["both"])
    faster = [old / new for old, new in zip(seconds["dense"], seconds["both"], strict=True)] if dense else []
    return {
        "samples": size,
        "draw_s": report.median_of(seconds["draw"]),
        "update_s": report.median_of(seconds["update"]),
        "both_s": both,
        "target_s": target,
        "met": None if target is None else both["median"] <= target,
        "dense_s": report.median_of(seconds["dense"]) if dense else None,
        "times_faster": report.median_of(faster) if faster else None,
        "bytes_per_sample_beyond_the_values": extra,
    }


def main(arguments: list[str] | None = None) -> Row:
    """Measure the chosen sizes, print a table and write the JSON file."""
    options = report.parser("drawing", __doc__, devices=["cpu"], threads=1)  # where the stream keeps its table
    options.add_argument("--sizes", nargs="+", type=report.count, default=list(SIZES), help="numbers of samples")
    options.add_argument("--draws", type=report.count, default=256, help="of a batch")
    options.add_argument("--rounds", type=report.count, default=500, help="draws and updates to time")
    settings = report.parse(options, arguments)
    with tqdm(
        **bar_settings(total=len(settings.sizes) * (settings.rounds + settings.rounds // 10 + 1), desc="drawing", unit="round")
    ) as bar:
        rows = [measure(size, settings, bar) for size in settings.sizes]
    report.print_table(
        f"Draw {settings.draws} and update {settings.draws}",
        rows,
        {
            "samples": lambda row: f"{row['samples']:,}",
            "draw": lambda row: in_units(row["draw_s"]["median"]),
            "update": lambda row: in_units(row["update_s"]["median"]),
            "both": lambda row: in_units(row["both_s"]["median"]),
            "target": lambda row: f"{in_units(row['target_s'])} {verdict(row['met'])}",
            "multinomial": lambda row: in_units(row["dense_s"]["median"]) if row["dense_s"] else "takes at most 2^24",
            "times faster": lambda row: f"{row['times_faster']['median']:.1f}" if row["times_faster"] else "-",
            "bytes per sample": lambda row: f"{row['bytes_per_sample_beyond_the_values']:.3f}",
        },
        f"Medians of {settings.rounds} rounds. Targets: {FASTER:.0f} times faster at 1.28 million, {BYTES:.0f} bytes per sample beyond "
        "the float32 values.",
    )
    return report.write(settings, draws=settings.draws, rounds=settings.rounds, sizes=rows)


if __name__ == "__main__":
    main()
