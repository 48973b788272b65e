"""What it costs to know where the losses of samples come from: the proof on the first batch, and reading them in each step after it.

For each way to write a loss, two steps take turns, each a forward and a backward pass: one that nothing watches, and one whose values are
read, or, on a first batch, verified. Which comes first changes from pair to pair, so that other load on the machine meets both alike.

Reading costs so little of a step that the noise of its convolutions hides it. So it is measured once more on small images: the network
makes the same calls, the losses are of as many samples and classes, and only the arithmetic before them is less. No Trainer: what its
hooks cost is in `overhead`.
"""

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from kakurenbo_recipes.models import CifarResNet
from torch import Tensor, nn
from tqdm import tqdm

from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_lightning.signals.outputs import SampleOutputs
from recipes.benchmarks import report
from recipes.benchmarks.report import Row
from recipes.benchmarks.training import keep_freed_memory

SIDE, SMALL_SIDE = 32, 8  # pixels
WARM_UP = 2  # pairs of steps that are not counted
FIRSTS = 1 / 4  # pairs with a first batch, of `--rounds`
SMALL = 16  # pairs on small images, of `--rounds`
TARGET = 0.05  # largest extra share of a step, for a loss module that is evaluated row by row

Loss = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[], object]


class Opaque(nn.Module):
    """A cross-entropy whose mean over samples cannot be observed, so its values are evaluated row by row."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over the batch, computed by a matrix product."""
        rows = logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]
        return rows @ torch.full_like(rows, 1 / len(rows))


def criterion(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the result of a criterion that is called by its name."""
    return F.cross_entropy(logits, labels)


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Return an unreduced criterion times a factor for each sample."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of losses that no criterion call has made."""
    return -logits.log_softmax(1).gather(1, labels[:, None]).mean()


def two_terms(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a criterion plus a penalty: the weight of each is read from the loss's graph in every step."""
    return F.cross_entropy(logits, labels) + 0.1 * logits.square().sum(1).mean()


LOSSES: dict[str, Callable[[], Loss]] = {
    "F.cross_entropy": lambda: criterion,
    "focal, by a weight of each sample": lambda: focal,
    "a mean, written by hand": lambda: by_hand,
    "two terms, a criterion and a penalty": lambda: two_terms,
    "a loss module, row by row": Opaque,
}


def step(network: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of a batch."""
    images, labels = batch
    return loss(network(images), labels)


def ways(name: str, side: int, settings: argparse.Namespace) -> tuple[Step, Step, Step, SampleOutputs]:
    """Return a plain step, a step whose values are read, a step on a first batch, and the `SampleOutputs` that reads the second."""
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    network, loss = CifarResNet().to(device), LOSSES[name]()
    batch = (
        torch.randn(settings.batch_size, 3, side, side, device=device),
        torch.randint(10, (settings.batch_size,), device=device),
    )
    forward = partial(step, network, loss, batch)

    def trained(forward: Callable[[], Tensor]) -> None:
        network.zero_grad(set_to_none=True)
        forward().backward()

    def observed(source: SampleOutputs) -> Tensor:
        source.device = device
        return source.observe(forward, batch, settings.batch_size, nullcontext)[0]

    known = SampleOutputs(("loss",))
    observed(known)
    first = partial(trained, lambda: observed(SampleOutputs(("loss",))))
    return partial(trained, forward), partial(trained, lambda: observed(known)), first, known


def pairs(plain: Step, other: Step, count: int, clock: Callable[[], float]) -> list[tuple[float, float]]:
    """Return the seconds of `count` plain steps, each paired with the seconds of the other step."""
    made = []
    for number in range(count + WARM_UP):
        taken = {run: report.seconds_of(clock, run)[0] for run in ((plain, other) if number % 2 else (other, plain))}
        made.append((taken[plain], taken[other]))
    return made[WARM_UP:]


def measure(name: str, settings: argparse.Namespace, bar: tqdm) -> Row:
    """Return the median times over pairs of steps, and their ratio, for one way to write the loss."""
    clock = report.clock(settings.device, settings.clock)
    plain, later, first, known = ways(name, SIDE, settings)
    of_later = pairs(plain, later, settings.rounds, clock)
    bar.update()
    of_first = pairs(plain, first, math.ceil(FIRSTS * settings.rounds), clock)
    bar.update()
    of_small = pairs(*ways(name, SMALL_SIDE, settings)[:2], SMALL * settings.rounds, clock)
    bar.update()
    assert known.report is not None
    plain_s = median(plainly for plainly, _ in of_later)
    extra = report.median_of([mine - plainly for plainly, mine in of_small])
    return {
        "loss": name,
        "source": known.report.source,
        "rounds": settings.rounds,
        "plain_ms": 1e3 * plain_s,
        "first_batch_steps": report.median_of([mine / plainly for plainly, mine in of_first]),
        "later_ratio": report.median_of([mine / plainly for plainly, mine in of_later]),
        "small_pairs": len(of_small),
        "small_plain_ms": 1e3 * median(plainly for plainly, _ in of_small),
        "extra_us": {key: 1e6 * seconds for key, seconds in extra.items()},
        "extra_percent": {key: 100 * seconds / plain_s for key, seconds in extra.items()},
    }


def main(arguments: list[str] | None = None) -> Row:
    """Measure each way to write a loss."""
    options = report.parser("verification", __doc__, threads=1, clock="cpu")
    options.add_argument("--batch-size", type=report.count, default=128, help="samples of a step")
    options.add_argument("--rounds", type=report.count, default=32, help="pairs of a plain and a later step, for each way")
    settings = report.parse(options, arguments)
    keep_freed_memory()
    with tqdm(**bar_settings(total=3 * len(LOSSES), desc="verification", unit="measurement")) as bar:
        rows = [measure(name, settings, bar) for name in LOSSES]
    met = rows[-1]["extra_percent"]["high"] <= 100 * TARGET
    report.print_table(
        f"A step of ResNet-8 at batch {settings.batch_size} whose losses are verified, or read, against one that nothing watches",
        rows,
        {
            "loss": lambda row: row["loss"],
            "plain step": lambda row: f"{row['plain_ms']:.1f} ms",
            "first batch, in steps": lambda row: report.interval(row["first_batch_steps"], ".2f"),
            "later step, ratio": lambda row: report.interval(row["later_ratio"], ".3f"),
            "extra, us": lambda row: report.interval(row["extra_us"], ".0f"),
            "at most": lambda row: f"{row['extra_percent']['high']:.2f} %",
        },
        f"Medians of pairs with intervals of 95 %. extra: of a later step, on images of {SMALL_SIDE} pixels; at most: where its interval "
        f"ends, of the plain step. Row by row that shall be {TARGET:.0%} at most: {report.verdict(met)}.",
    )
    return report.write(settings, batch_size=settings.batch_size, network="CIFAR ResNet-8", target=TARGET, met=met, losses=rows)


if __name__ == "__main__":
    main()
