"""Near-duplicates: whether the losses of samples over the epochs tell which of them are copies of each other.

Some training images of CIFAR-10 are replaced by copies of others, one half exact and the other a tenth brighter. The loss of every sample
is kept after each epoch of a KAKURENBO run, which scores the hidden samples too. A sample's neighbour is the one of its class whose
logarithms of the losses are the nearest in the Euclidean sense. If losses told copies, each would be the other's neighbour.
"""

import argparse

import lightning as L
import torch
from kakurenbo_recipes.data import InMemoryImages
from torch import Tensor

from kakurenbo_lightning import EpochPlan, SampleSelection
from recipes.benchmarks import report
from recipes.benchmarks.arena import NETWORKS
from recipes.benchmarks.fits import Fits, Row, cell, measured, parser

BRIGHTER = 1.1  # factor on the pixels of every second copy
SMALLEST = 1e-6  # loss, before its logarithm is taken
OFTEN = 1 / 3  # of the epochs: from so many on a sample counts as always hidden, for none is hidden in the first ones
AUGMENTED = {"augmented": {}, "not augmented": {"crop_padding": 0, "flip": False}}
FIGURES = ("copies", "chance", "found", "precision")


class Curves(L.Callback):
    """Keeps the loss of every sample after each epoch, and how often it was hidden.

    Attributes:
        losses: by epoch, each float32 [N].
        times_hidden: int64 [N].
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.times_hidden = torch.zeros(())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the losses."""
        selection = next(callback for callback in trainer.callbacks if isinstance(callback, SampleSelection))
        assert selection.statistics is not None and isinstance(selection.plan, EpochPlan)
        self.losses.append(selection.statistics.loss.clone())
        hidden = torch.zeros(len(selection.statistics), dtype=torch.int64)
        hidden[selection.plan.hidden] = 1
        self.times_hidden = self.times_hidden + hidden


def with_copies(data: InMemoryImages, share: float) -> tuple[InMemoryImages, Tensor]:
    """Return the data with copies of its first samples in place of its last, and each sample's copy, int64 [N], -1 for none."""
    count = int(share * len(data))
    images, labels, copy_of = data.images.clone(), data.labels.clone(), torch.full((len(data),), -1)
    originals, copies = torch.arange(count), torch.arange(len(data) - count, len(data))
    images[copies], labels[copies] = images[originals], labels[originals]
    images[copies[::2]] = (BRIGHTER * images[copies[::2]].float()).clamp(max=255).to(images.dtype)
    copy_of[originals], copy_of[copies] = copies, originals
    return InMemoryImages(images, labels), copy_of


def neighbours(losses: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each sample's neighbour within its class, int64 [N], and how far it is, float32 [N]; -1 and infinity where there is none.

    Args:
        losses: float32 [N, E] over the epochs.
        labels: int64 [N].
    """
    curves = losses.clamp(min=SMALLEST).log()
    nearest, distance = torch.full_like(labels, -1), torch.full((len(labels),), torch.inf)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) > 1:
            between = torch.cdist(curves[rows], curves[rows]).fill_diagonal_(torch.inf)
            distance[rows], places = between.min(1)
            nearest[rows] = rows[places]
    return nearest, distance


def judged(losses: Tensor, labels: Tensor, copy_of: Tensor, among: Tensor) -> Row:
    """Return how well neighbours tell copies among some of the samples.

    Args:
        losses: float32 [N, E] over the epochs.
        labels: int64 [N].
        copy_of: int64 [N], each sample's copy, -1 for none.
        among: bool [N], the samples that are compared with each other.

    Returns:
        How many of them are ``copies`` of one another; of these, the share that is ``found`` as the neighbour, and what it would be by
        ``chance``; and the ``precision`` of the same number of nearest neighbours. ``None`` for each where there are no copies.
    """
    rows = among.nonzero()[:, 0]
    place = torch.full_like(copy_of, -1)
    place[rows] = torch.arange(len(rows))
    copies = torch.where(copy_of[rows] >= 0, place[copy_of[rows]], -1)
    known = copies >= 0
    count = int(known.sum())
    if not count:
        return {"copies": 0, "chance": None, "found": None, "precision": None}
    nearest, distance = neighbours(losses[rows], labels[rows])
    hits = known & (nearest == copies)
    others = (labels[rows].bincount() - 1)[labels[rows]][known]
    first = distance.argsort()[:count]
    return {
        "copies": count,
        "chance": (1 / others).mean().item(),
        "found": hits[known].float().mean().item(),
        "precision": hits[first].float().mean().item(),
    }


def of_a_seed(settings: argparse.Namespace, seed: int) -> list[Row]:
    """Return a row for all samples and one for those that are always hidden, with and without augmentation."""
    rows: list[Row] = []
    for name, options in AUGMENTED.items():
        fits, curves = Fits(settings, network=NETWORKS[settings.network], **options), Curves()
        fits.data.train_images, copy_of = with_copies(fits.data.train_images, settings.copies)
        run = fits.run(name, seed, "kakurenbo", callbacks=[curves])
        losses, labels = torch.stack(curves.losses, 1), fits.data.train_images.labels
        common = {key: run[key] for key in ("seed", "epochs", "accuracy", "hidden_share")}
        groups = {"every sample": torch.ones_like(labels).bool(), "always hidden": curves.times_hidden >= OFTEN * run["epochs"]}
        rows += [
            {"run": f"{name}: {group}", **common, **judged(losses, labels, copy_of, among)} for group, among in groups.items()
        ]
    return rows


def main(arguments: list[str] | None = None) -> list[Row]:
    """Train both runs of every seed."""
    options = parser("copies", __doc__)
    options.set_defaults(epochs=15)
    options.add_argument(
        "--copies", type=report.share, default=0.08, help="share of the training images that are copies of others"
    )
    options.add_argument("--network", choices=list(NETWORKS), default="narrow", help="what is trained")
    settings = report.parse(options, arguments)
    rows, summary = measured(settings, of_a_seed, (*FIGURES, "accuracy"), network=settings.network, share_copied=settings.copies)
    report.print_table(
        f"{settings.network}, {settings.samples:,} images of CIFAR-10 of which {settings.copies:.1%} are copies, {settings.epochs} epochs",
        summary,
        {
            "compared": lambda row: row["run"],
            "with a copy": cell("copies", ",.0f"),
            "by chance (%)": cell("chance", ".2f", 100),
            "found (%)": cell("found", ".1f", 100),
            "precision (%)": cell("precision", ".1f", 100),
        },
        f"Mean +- standard deviation over {settings.seeds} seeds. found: of the samples with a copy, those whose neighbour it is; "
        f"precision: of as many neighbours, the nearest ones. Always hidden: in {OFTEN:.0%} of the epochs or more.",
    )
    return rows


if __name__ == "__main__":
    main()
