"""What it costs to know where the losses of samples come from: the proof on the first batch, and reading them in each step after it.

For each way to write a loss, three steps take turns, each a forward and a backward pass: one that nothing watches, one on a first batch,
which is verified, and one later, whose values are read. No Trainer: what its hooks cost is in `overhead`.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from kakurenbo_recipes.models import CifarResNet
from torch import Tensor, nn
from tqdm import tqdm

from kakurenbo_lightning.signals.outputs import SampleOutputs
from recipes.benchmarks import report
from recipes.benchmarks.report import Row
from recipes.benchmarks.training import keep_freed_memory

WARM_UP = 2  # rounds that are not counted
TARGET = 0.05  # of a step, for a loss module whose values are evaluated row by row

Loss = Callable[[Tensor, Tensor], Tensor]


class Opaque(nn.Module):
    """A cross-entropy without a mean or sum over samples that could be seen: its values are evaluated row by row."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over the batch, by a matrix product."""
        rows = logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]
        return rows @ torch.full_like(rows, 1 / len(rows))


def criterion(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a criterion's result, called by its name."""
    return F.cross_entropy(logits, labels)


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a criterion without reduction, times a factor of each sample."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of what no criterion has made."""
    return -logits.log_softmax(1).gather(1, labels[:, None]).mean()


LOSSES: dict[str, Callable[[], Loss]] = {
    "F.cross_entropy": lambda: criterion,
    "focal, by a weight of each sample": lambda: focal,
    "a mean, written by hand": lambda: by_hand,
    "a loss module, row by row": Opaque,
}


def step(network: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of a batch."""
    images, labels = batch
    return loss(network(images), labels)


def measure(name: str, settings: argparse.Namespace, bar: tqdm) -> Row:
    """Return medians over rounds, each way compared with the plain step of its round."""
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    network, loss = CifarResNet().to(device), LOSSES[name]()
    batch = (
        torch.randn(settings.batch_size, 3, 32, 32, device=device),
        torch.randint(10, (settings.batch_size,), device=device),
    )
    plain = partial(step, network, loss, batch)
    clock = report.clock(settings.device, settings.clock)

    def observed(source: SampleOutputs) -> Tensor:
        source.device = device
        return source.observe(partial(step, network, loss, batch), batch, settings.batch_size, nullcontext)[0]

    known = SampleOutputs(("loss",))
    observed(known)
    ways: dict[str, Callable[[], Tensor]] = {
        "plain": plain,
        "later": lambda: observed(known),
        "first": lambda: observed(SampleOutputs(("loss",))),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(settings.rounds + WARM_UP):
        for way, run in ways.items():
            network.zero_grad(set_to_none=True)
            begun = clock()
            run().backward()
            seconds[way].append(clock() - begun)
        bar.update()
    counted = {way: taken[WARM_UP:] for way, taken in seconds.items()}
    ratios: Any = {
        way: [mine / other for mine, other in zip(counted[way], counted["plain"], strict=True)] for way in ("first", "later")
    }
    assert known.report is not None
    return {
        "loss": name,
        "source": known.report.source,
        "rounds": settings.rounds,
        "plain_ms": 1e3 * report.median_of(counted["plain"])["median"],
        "first_batch_steps": report.median_of(ratios["first"]),
        "later_ratio": report.median_of(ratios["later"]),
    }


def main(arguments: list[str] | None = None) -> Row:
    """Measure each way to write a loss."""
    options = report.parser("verification", __doc__)
    options.add_argument("--batch-size", type=report.count, default=128, help="samples of a step")
    options.add_argument("--rounds", type=report.count, default=40, help="of one step each way")
    settings = report.parse(options, arguments)
    keep_freed_memory()
    with tqdm(total=len(LOSSES) * (settings.rounds + WARM_UP), desc="verification", unit="round") as bar:
        rows = [measure(name, settings, bar) for name in LOSSES]
    met = rows[-1]["later_ratio"]["median"] <= 1 + TARGET
    report.print_table(
        f"A step of ResNet-8 at batch {settings.batch_size} whose losses are verified, or read, against one that nothing watches",
        rows,
        {
            "loss": lambda row: row["loss"],
            "plain step": lambda row: f"{row['plain_ms']:.1f} ms",
            "first batch, in steps": lambda row: report.interval(row["first_batch_steps"], ".2f"),
            "later step, ratio": lambda row: report.interval(row["later_ratio"], ".4f"),
        },
        f"Medians with intervals of 95 %. Row by row: at most {TARGET:.0%} more than a plain step: {report.verdict(met)}.",
    )
    return report.write(settings, batch_size=settings.batch_size, network="CIFAR ResNet-8", target=TARGET, met=met, losses=rows)


if __name__ == "__main__":
    main()
