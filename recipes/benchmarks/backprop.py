"""What scoring before training saves: epochs of the backprop family against ordinary ones over the same samples.

All fits train in one process and take turns of an epoch, so that other load on the machine meets them alike, and are
compared turn by turn. `plain` has no callback, `baseline` is `SampleSelection("baseline")`; the loops by hand are plain
PyTorch with the same two passes, and show what the engine adds to them. Beside that, the time of a percentile.

To measure another way of scoring, add it to `VARIANTS`.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import lcm
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from kakurenbo_recipes.data import ImageData
from kakurenbo_recipes.models import CifarResNet
from torch import Tensor, nn
from tqdm import tqdm

from kakurenbo_lightning import SampleSelection, available_methods
from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_lightning.methods.backprop.selective_backprop import percentile
from recipes.benchmarks import report
from recipes.benchmarks.report import Row, in_units, interval, seconds_of, verdict
from recipes.benchmarks.training import Classifier, described, image_options, images, prepare, trainer
from recipes.benchmarks.turns import TakeEpochs, take_turns

OVERHEAD, PERCENTILE_SECONDS, HISTORY = 0.03, 1e-4, 1024  # largest overhead and time allowed; number of losses in the history
SMALLEST = 2  # the engine trains no batch of fewer samples, because of BatchNorm
PHASES = ("score", "forward", "backward")


@dataclass(frozen=True)
class Variant:
    """Something to measure.

    Attributes:
        method: name of the method.
        settings: its settings. A value that is a `partial` is called for each fit, so that each gets a network of its own.
        target: largest ratio to the baseline, for the network of the issue.
        cycle: number of epochs that belong together.
        keep: share of each batch that a loop by hand chooses, to compare with; None for no such loop.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    target: float | None = None
    cycle: int = 1
    keep: float | None = None

    def selection(self, seed: int) -> SampleSelection:
        """Return the callback of one fit, without warm-up epochs."""
        given = {name: value() if isinstance(value, partial) else value for name, value in self.settings.items()}
        warm = {"warmup_epochs": 0} if available_methods()[self.method].family == "backprop" else {}
        return SampleSelection(self.method, seed=seed, **warm, **given)


def proxy() -> Classifier:
    """A network that takes less than a tenth of the time of ResNet-20 of width 16."""
    # not channels_last: torch 2.14.1 on a CPU writes beyond its memory in the backward pass of such convolutions of 4 channels
    return Classifier(CifarResNet(8, 4))


VARIANTS = {
    "baseline": Variant("baseline"),
    "SB 50 %": Variant("selective_backprop", {"beta": 1.0, "score": "topk"}, target=0.82, keep=0.5),
    "SB 25 %": Variant("selective_backprop", {"beta": 3.0, "score": "topk"}, target=0.58, keep=0.25),
    "SB 25 %, inference_mode": Variant("selective_backprop", {"beta": 3.0, "score": "topk", "inference_mode": True}),
    "SB 25 %, autocast": Variant("selective_backprop", {"beta": 3.0, "score": "topk", "autocast": "bf16"}),
    "SB 25 %, compile": Variant("selective_backprop", {"beta": 3.0, "score": "topk", "compile": True}),
    "SB 25 %, scale 1/2": Variant("selective_backprop", {"beta": 3.0, "score": "topk", "scale": 0.5}),
    "SB 25 %, proxy": Variant("selective_backprop", {"beta": 3.0, "score": "topk", "scorer": partial(proxy)}, target=0.40),
    "StaleSB 25 %, n = 3": Variant("stale_sb", {"beta": 3.0, "staleness": 3}, target=0.40, cycle=3),
}
PLAIN = "plain"


def by_hand(name: str) -> str:
    """Return the name of the loop that is compared with a variant, or with `PLAIN`."""
    return f"{name}, by hand"


class Loop:
    """Selective-Backprop in plain PyTorch: score, choose the highest losses of each batch, and train full batches of them.

    Args:
        data: its loader, augmentation and batch size.
        network: the network to train, with the optimizer of `Classifier`.
        keep: share of a batch that is chosen; None trains each batch as it is.

    Attributes:
        trained: number of trained samples.
        steps: number of optimizer steps.
    """

    def __init__(self, data: ImageData, network: nn.Module, keep: float | None) -> None:
        self.trained = self.steps = 0
        self._data, self._network, self._keep = data, network, keep
        self._optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        self._pool: list[tuple[Tensor, Tensor]] = []

    def fit(self, timer: TakeEpochs, epochs: int) -> None:
        """Train for ``epochs`` epochs, and time each with ``timer``."""
        loader, size = self._data.train_dataloader(), self._data.batch_size
        for _ in range(epochs):
            timer.on_train_epoch_start()
            for pixels, labels in loader:
                batch = self._data.normalise(self._data.augment(pixels)), labels
                if self._keep is None:
                    self._step(*batch)
                    continue
                self._pool.append(self._chosen(*batch))
                if self._waiting() >= size:
                    self._step(*self._take(size))
            if self._waiting() >= SMALLEST:
                self._step(*self._take(self._waiting()))
        timer.on_train_end(None, None)

    def _chosen(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._network.eval()
        with torch.no_grad():
            losses = F.cross_entropy(self._network(pixels), labels, reduction="none")
        self._network.train()
        rows = losses.argsort(descending=True, stable=True)[: max(1, int(self._keep * len(losses)))]
        return pixels[rows], labels[rows]

    def _waiting(self) -> int:
        return sum(len(labels) for _, labels in self._pool)

    def _take(self, count: int) -> tuple[Tensor, Tensor]:
        pixels, labels = (torch.cat(parts) for parts in zip(*self._pool, strict=True))
        self._pool = [(pixels[count:], labels[count:])] if count < len(labels) else []
        return pixels[:count], labels[:count]

    def _step(self, pixels: Tensor, labels: Tensor) -> None:
        self._optimizer.zero_grad()
        F.cross_entropy(self._network(pixels), labels).backward()
        self._optimizer.step()
        self.trained += len(labels)
        self.steps += 1


class Arms:
    """Trains everything that is compared, in turns.

    Args:
        settings: the command line.

    Attributes:
        seconds: seconds of each counted epoch, by name.
        mean_seconds: mean seconds of all epochs, by name.
        selections: callbacks, by name of the variant.
        loops: by name.
        epochs: number of epochs of each fit, warm-up included.
        clock: the clock by which `seconds` are taken.
    """

    def __init__(self, settings: argparse.Namespace) -> None:
        self._settings = settings
        self.clock: str = settings.clock
        self._chosen = {name: VARIANTS[name] for name in settings.variants}
        self._warm_up = lcm(*(variant.cycle for variant in self._chosen.values()))
        self.epochs = self._warm_up * (1 + settings.rounds)
        self.seconds: dict[str, list[float]] = {}
        self.mean_seconds: dict[str, float] = {}
        self.selections: dict[str, SampleSelection] = {}
        self.loops: dict[str, Loop] = {}

    def train(self) -> None:
        """Train all arms, in turns of one epoch."""
        settings = self._settings
        torch.manual_seed(settings.seed)
        data = images(settings)
        by_hands = {PLAIN: None, **{name: variant.keep for name, variant in self._chosen.items() if variant.keep}}
        with tqdm(
            **bar_settings(total=self.epochs * (1 + len(self._chosen) + len(by_hands)), desc="backprop", unit="epoch")
        ) as bar:
            timers, fits = {}, []

            def enter(name: str, fit: Callable[[TakeEpochs], Any]) -> None:
                timer = timers[name] = TakeEpochs(1, report.clock(settings.device, settings.clock), bar.update)
                fits.append((timer, partial(fit, timer)))

            enter(PLAIN, partial(self._fit, data, None))
            for name, variant in self._chosen.items():
                self.selections[name] = variant.selection(settings.seed)
                enter(name, partial(self._fit, data, self.selections[name]))
            for name, keep in by_hands.items():
                loop = self.loops[name] = Loop(copy.copy(data), self._network(), keep)
                enter(by_hand(name), partial(loop.fit, epochs=self.epochs))
            take_turns(fits)
        self.mean_seconds = {name: mean(timer.seconds) for name, timer in timers.items()}
        self.seconds = {name: timer.seconds[self._warm_up :] for name, timer in timers.items()}

    def _network(self) -> nn.Module:
        return CifarResNet(self._settings.depth, self._settings.width).to(memory_format=torch.channels_last)

    def _fit(self, data: ImageData, selection: SampleSelection | None, timer: TakeEpochs) -> None:
        callbacks = [timer] if selection is None else [selection, timer]
        training = trainer(self._settings.device, callbacks, self.epochs)
        training.fit(Classifier(self._network()), datamodule=copy.copy(data))

    def ratio(self, name: str, to: str, cycle: int = 1) -> dict[str, float]:
        """Return the median ratio of cycles of epochs, and its interval."""
        mine, others = (cycles(self.seconds[arm], cycle) for arm in (name, to))
        return report.median_of([one / other for one, other in zip(mine, others, strict=True)])

    def overhead(self, name: str) -> dict[str, dict[str, float]]:
        """Return what a variant adds to its loop by hand, as a share of that: in all, and less what Lightning adds without it."""
        arms = [self.seconds[arm] for arm in (name, by_hand(name), PLAIN, by_hand(PLAIN))]
        in_all = [mine / hand - 1 for mine, hand, _, _ in zip(*arms, strict=True)]
        own = [(mine - hand - (plain - plain_hand)) / hand for mine, hand, plain, plain_hand in zip(*arms, strict=True)]
        return {"overhead": report.median_of(in_all), "overhead_of_the_engine": report.median_of(own)}


def cycles(seconds: list[float], length: int) -> list[float]:
    """Return the sums of `length` epochs each."""
    return [sum(seconds[first : first + length]) for first in range(0, len(seconds), length)]


def row_of(name: str, arms: Arms, samples: int) -> Row:
    """Return what is written down of a variant."""
    variant, totals = VARIANTS[name], arms.selections[name].totals
    seconds = report.median_of([cycle / variant.cycle for cycle in cycles(arms.seconds[name], variant.cycle)])
    to_baseline = arms.ratio(name, "baseline", variant.cycle)
    phases = {phase: getattr(totals, f"{phase}_seconds") / arms.epochs for phase in PHASES}
    rest = arms.mean_seconds[name] - sum(phases.values()) if arms.clock == "wall" else None
    return {
        "variant": name,
        "method": variant.method,
        "settings": json.loads(json.dumps(variant.settings, default=str)),
        "trained_share": totals.samples_trained / (arms.epochs * samples),
        "epoch_s": seconds,
        "ratio": to_baseline,
        "ratio_to_plain": arms.ratio(name, PLAIN, variant.cycle),
        "target": variant.target,
        "met": None if variant.target is None else to_baseline["median"] <= variant.target,
        "phases_s": phases | {"data_and_other": rest},
        **(arms.overhead(name) if variant.keep else {}),
    }


def percentile_seconds(repeats: int, seed: int) -> dict[str, float]:
    """Return the median time to compute the percentiles of `HISTORY` losses among as many others, and its interval."""
    losses, history = torch.rand(2, HISTORY, generator=torch.Generator().manual_seed(seed))
    seconds = [seconds_of(time.perf_counter, percentile, losses, history)[0] for _ in range(repeats + repeats // 10 + 1)]
    return report.median_of(seconds[-repeats:])


def show(result: Row) -> None:
    """Print one row per variant."""
    title = f"{result['network']}, {result['samples']:,} samples of {result['data']}"
    report.print_table(
        f"{title}: an epoch that scores before it trains",
        result["variants"],
        {
            "variant": lambda row: row["variant"],
            "trained": lambda row: f"{row['trained_share']:.1%}",
            "to baseline": lambda row: interval(row["ratio"], ".3f"),
            "target": lambda row: "-" if row["target"] is None else f"{row['target']:.2f} {verdict(row['met'])}",
            "to plain": lambda row: f"{row['ratio_to_plain']['median']:.3f}",
            "more than by hand": lambda row: interval(row.get("overhead"), ".1%"),
            "of it the engine's": lambda row: interval(row.get("overhead_of_the_engine"), ".1%"),
        },
        f"Medians of {result['rounds']} rounds, compared turn by turn, and their intervals of 95 %. Targets are for ResNet-20 of width 16 "
        f"and batches of 128; target of what the engine adds: {OVERHEAD:.0%}.",
    )
    phases = {"score": "score", "forward": "forward", "backward": "backward", "data and other": "data_and_other"}
    report.print_table(
        f"{title}: where an epoch goes",
        [row for row in result["variants"] if any(row["phases_s"][phase] for phase in PHASES)],
        {
            "variant": lambda row: row["variant"],
            "median epoch": lambda row: in_units(row["epoch_s"]["median"]),
            **{head: partial(lambda phase, row: in_units(row["phases_s"][phase]), phase) for head, phase in phases.items()},
        },
        "PhaseTimer: means of all epochs, by the wall clock; the last column is what is left of the mean epoch (not with --clock cpu).",
    )
    took = result["percentile_s"]["median"]
    print(f"percentiles of {HISTORY} losses in {HISTORY}: {in_units(took)}, target 100 us {verdict(took <= PERCENTILE_SECONDS)}")


def main(arguments: list[str] | None = None) -> Row:
    """Measure the chosen variants, print a table and write the rows to the JSON file."""
    options = report.parser("backprop", __doc__, devices=["cpu"])  # which the targets, and the loops by hand, are for
    image_options(options, samples=2048, depth=20)
    options.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="which; baseline always")
    options.add_argument("--rounds", type=report.count, default=8, help="of as many epochs as the longest cycle has (3)")
    options.add_argument("--percentiles", type=report.count, default=2000, help="how many to time")
    settings = report.parse(options, arguments)
    settings.variants = list(dict.fromkeys(["baseline", *settings.variants]))
    prepare()
    took, arms = percentile_seconds(settings.percentiles, settings.seed), Arms(settings)
    arms.train()
    variants = [row_of(name, arms, settings.samples) for name in settings.variants]
    result = report.write(settings, **described(settings), percentile_s=took, variants=variants)
    show(result)
    return result


if __name__ == "__main__":
    main()
