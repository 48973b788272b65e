"""What planning costs: the time of `plan` of every method, as it is by default, by class, and with protected samples.

Statistics are made up: every sample measured, skewed losses, and what each method keeps beside them. Consecutive epochs
of a run are planned, the first one untimed. A static method (`forget`, `el2n`) plans once in a run; here, again and
again. On one CPU core.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kakurenbo_lightning import Epoch, SampleStatistics, available_methods, get_method
from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_lightning.core.statistics import TARGET
from kakurenbo_lightning.methods import IES
from kakurenbo_lightning.methods.base import Method
from recipes.benchmarks import report
from recipes.benchmarks.report import Row, in_units, seconds_of
from recipes.benchmarks.selection import made_up

MAX_EPOCHS = 100
TARGET_SECONDS, TARGET_SAMPLES = 0.15, 1_280_000
OPTIONS = ("default", "class", "protected")
PROTECTED_SHARE = 100  # one sample in 100 is protected


def options_for(method: str) -> tuple[str, ...]:
    """Return those of `OPTIONS` that a method accepts: only hide methods balance classes and protect samples."""
    return OPTIONS if available_methods()[method].family == "hide" else OPTIONS[:1]


def size_for_options(sizes: list[int]) -> int:
    """Return the size at which `OPTIONS` are measured: that of the target, or the next smaller one."""
    return max((size for size in sizes if size <= TARGET_SAMPLES), default=min(sizes))


def options_of(name: str, total: int) -> dict[str, Any]:
    """Return the settings that an entry of `OPTIONS` stands for, for a data set of `total` samples."""
    if name == "protected":
        return {"protected": range(0, total, PROTECTED_SHARE)}
    return {"balance": "class"} if name == "class" else {}


class MadeUp:
    """Random statistics as in the middle of a training, with the columns of any method.

    Args:
        total: number of samples.
        classes: number of classes, equally likely.
        seed: seed of all random numbers.
    """

    def __init__(self, total: int, classes: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._statistics = made_up(total, seed)
        self._statistics.epoch_seen.zero_()
        settled = torch.rand(total, generator=generator) < 0.3  # samples whose losses have settled, for the method ies
        self._columns = {
            "events": torch.poisson(torch.full((total,), 0.8), generator=generator).to(torch.int16),
            "learned": torch.rand(total, generator=generator) < 0.97,
            "el2n_sum": 10 * torch.rand(total, generator=generator) ** 2,
            "el2n_count": torch.full((total,), 10, dtype=torch.int16),
            **{column.name: torch.where(settled, self._statistics.loss, 2.0**age) for age, column in enumerate(IES.columns)},
            TARGET.name: torch.randint(classes, (total,), generator=generator, dtype=torch.int32),
        }

    def for_method(self, method: Method) -> SampleStatistics:
        """Return statistics with the columns of `method`; columns of a method of another package are constant."""
        columns = (*method.columns, TARGET) if method.needs_classes else method.columns
        self._statistics.extra = {column.name: self._column(column) for column in columns}
        return self._statistics

    def _column(self, column: Any) -> Tensor:
        known = self._columns.get(column.name)
        return column.full(len(self._statistics), "cpu") if known is None else known


def measure(name: str, options: str, statistics: MadeUp, total: int, repeats: int, clock: Callable[[], float]) -> Row:
    """Plan `repeats` epochs of a training and time them; one more comes first, untimed."""
    method = get_method(name, **options_of(options, total))
    rows = statistics.for_method(method)
    begins = method.scoring_epochs(MAX_EPOCHS) + getattr(method, "start_epoch", 0)
    seconds, hidden = [], []
    for index in range(begins, begins + repeats + 1):
        planning, plan = seconds_of(clock, method.plan, rows, Epoch(index, MAX_EPOCHS))
        seconds.append(planning)
        hidden.append(len(plan.hidden) / total)
        del plan
    return {
        "method": name,
        "options": options,
        "samples": total,
        "plan_s": median(seconds[1:]),
        "hidden_share": median(hidden[1:]),
    }


def main(arguments: list[str] | None = None) -> Row:
    """Measure every method at the chosen sizes, with every option at one of them."""
    # for a GPU use recipes.benchmarks.selection --device cuda
    options = report.parser("plans", __doc__, devices=["cpu"], threads=1)
    options.add_argument("--sizes", type=report.count, nargs="+", default=[128_000, 1_280_000, 12_800_000], help="samples")
    options.add_argument("--repeats", type=report.count, default=7, help="epochs to time of each")
    options.add_argument("--classes", type=report.count, default=1000, help="classes of the data set")
    options.add_argument("--methods", nargs="+", choices=available_methods(), default=list(available_methods()), help="which")
    settings = report.parse(options, arguments)
    everything = [(name, chosen) for name in settings.methods for chosen in options_for(name)]
    by_default, most = [(name, OPTIONS[0]) for name in settings.methods], size_for_options(settings.sizes)
    cases = {total: everything if total == most else by_default for total in settings.sizes}
    rows, clock = [], report.clock("cpu", settings.clock)
    with tqdm(**bar_settings(total=sum(map(len, cases.values())), desc="plans", unit="plan")) as bar:
        for total, plans in cases.items():
            statistics = MadeUp(total, settings.classes, settings.seed)
            for name, chosen in plans:
                rows.append(measure(name, chosen, statistics, total, settings.repeats, clock))
                bar.update()
    seconds = {(row["method"], row["options"], row["samples"]): row["plan_s"] for row in rows}

    def took(options: str, total: int) -> Callable[[Row], str]:
        return lambda row: in_units(seconds.get((row["method"], options, total)))

    report.print_table(
        "Planning an epoch, on one core",
        [row for row in rows if (row["options"], row["samples"]) == (OPTIONS[0], most)],
        {
            "method": lambda row: row["method"],
            **{f"{total:,}": took("default", total) for total in cases},
            f"{settings.classes:,} classes": took("class", most),
            "protected": took("protected", most),
            "per sample": lambda row: f"{1e9 * row['plan_s'] / most:.0f} ns",
            "hidden": lambda row: f"{row['hidden_share']:.1%}",
        },
        f"Medians. From the classes on: at {most:,} samples. protected: one sample in {PROTECTED_SHARE}. Target: {TARGET_SECONDS} s at "
        f"{TARGET_SAMPLES:,} samples.",
    )
    return report.write(settings, classes=settings.classes, plans=rows)


if __name__ == "__main__":
    main()
