"""Hiding by key on iterable data: look-ups of keys, and what an epoch that hides a share saves.

Look-ups: of a table of F times as many keys, in arrays, and one at a time through `selection.keep`. Epochs: a fit on webdataset's shards of
JPEG images in which every second epoch hides the share F at random. Passes over the same shards that only read them, or also
decode them, are made after the fit.
"""

import argparse
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kakurenbo_lightning import Epoch, SampleSelection, SampleStatistics
from kakurenbo_lightning.core.key_field import KeyField
from kakurenbo_lightning.core.key_filter import KeyFilter
from kakurenbo_lightning.core.key_table import KeyTable
from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_lightning.methods import RandomHiding
from kakurenbo_lightning.methods.hide.base import Choice
from recipes.benchmarks import report
from recipes.benchmarks.report import Row, in_units, median_of, seconds_of
from recipes.benchmarks.training import prepare, trainer

PIECE, SINGLE = 1 << 16, 50_000  # keys of a look-up, and of those one at a time
CLASSES, PER_SHARD, BATCH = 10, 256, 64


def look_ups(total: int, settings: argparse.Namespace, clock: Callable[[], float]) -> Row:
    """Measure a table that hides the share F of `total` keys."""
    generator = np.random.default_rng(settings.seed)
    keys = generator.integers(-(1 << 63), (1 << 63) - 1, total)
    hidden = keys[: int(settings.fraction * total)]
    building, table = seconds_of(clock, KeyTable, hidden, np.zeros(len(hidden), dtype=np.float32))
    asked = generator.permutation(keys)[: settings.asked]
    pieces = [asked[begin : begin + PIECE] for begin in range(0, len(asked), PIECE)]
    rates = [len(asked) / seconds_of(clock, lambda: [table.look_up(piece) for piece in pieces])[0] for _ in range(settings.turns)]
    keep = KeyFilter(KeyField(("id",)))
    keep.publish(table)
    some = [{"id": key} for key in asked[:SINGLE].tolist()]
    single = [seconds_of(clock, lambda: [keep(sample) for sample in some])[0] / len(some) for _ in range(settings.turns)]
    return {
        "samples": total,
        "build_s": building,
        "per_second": median_of(rates),
        "keep_s": median(single),
        "bytes": table.places.nbytes + table.weights.nbytes,
    }


# --- epochs


@dataclass(frozen=True)
class EveryOther(RandomHiding):
    """Hides in every second epoch."""

    name = "every_other"

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Return a draw, or nothing."""
        if epoch.index % 2:
            return super().choose(statistics, epoch)
        return Choice(torch.zeros(len(statistics), dtype=torch.bool))


class Network(L.LightningModule):
    """A few convolutions, so that an epoch does not consist of decoding alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(3, width, 5, 4, 2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        ]
        self.network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width, CLASSES))

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch of images, labels and keys."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD over all parameters."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Seconds(L.Callback):
    """The time of each epoch, from the end of the one before; comes after the selection."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.epochs = clock, []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of the first epoch."""
        self.epochs = [self.clock()]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the clock, and start that of the next epoch."""
        self.epochs.append(self.clock())


def write_shards(folder: Path, settings: argparse.Namespace) -> list[str]:
    """Write webdataset's shards of JPEG images that are smooth, as photographs are; return their paths."""
    import webdataset
    from PIL import Image

    generator, paths = np.random.default_rng(settings.seed), []
    for first in range(0, settings.samples, PER_SHARD):
        paths.append(str(folder / f"{first // PER_SHARD:05d}.tar"))
        with webdataset.TarWriter(paths[-1]) as tar:
            for number in range(first, min(first + PER_SHARD, settings.samples)):
                rough = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
                file = io.BytesIO()
                rough.resize((settings.pixels, settings.pixels), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
                tar.write({"__key__": f"{number:08d}", "jpg": file.getvalue(), "cls": number % CLASSES})
    return paths


def stream(paths: list[str], keep: Callable[[Any], bool] | None = None, decoded: bool = True) -> Any:
    """Return webdataset's pipeline: samples as they are read, or decoded to image, label and key."""
    import webdataset

    data = webdataset.WebDataset(paths, shardshuffle=False)
    data = data if keep is None else data.select(keep)
    return data.decode("torchrgb8").to_tuple("jpg", "cls", "__key__", "__url__") if decoded else data


def batches(samples: Any, size: int) -> Iterator[list[Any]]:
    """Yield batches of images as floats, labels, keys and shards."""
    images, labels, keys, urls = [], [], [], []
    for image, label, key, url in samples:
        for part, value in zip((images, labels, keys, urls), (image, label, key, url), strict=True):
            part.append(value)
        if len(images) == size:
            yield [torch.stack(images).float() / 255, torch.tensor(labels), keys, urls]
            images, labels, keys, urls = [], [], [], []
    if images:
        yield [torch.stack(images).float() / 255, torch.tensor(labels), keys, urls]


class Loader:
    """A loader in this process, whose processor time is counted."""

    def __init__(self, paths: list[str], keep: Callable[[Any], bool]) -> None:
        self.paths, self.keep = paths, keep

    def __iter__(self) -> Iterator[list[Any]]:
        return batches(stream(self.paths, self.keep), BATCH)


class OfRaw:
    """`selection.keep` of a sample as webdataset reads it, by key and shard."""

    def __init__(self, keep: Callable[..., bool]) -> None:
        self.keep = keep

    def __call__(self, sample: dict[str, Any]) -> bool:
        return self.keep(sample["__key__"], sample["__url__"])


def epochs(settings: argparse.Namespace, clock: Callable[[], float]) -> Row:
    """Measure pairs of epochs, one that trains on everything and one that hides."""
    with tempfile.TemporaryDirectory(prefix="keys-") as folder:
        paths = write_shards(Path(folder), settings)
        selection = SampleSelection(EveryOther(max_fraction=settings.fraction, start_epoch=1), seed=settings.seed, key=(2, 3))
        seconds = Seconds(clock)
        fit = trainer(settings.device, [selection, seconds], max_epochs=2 * settings.turns + 2)
        fit.fit(Network(settings.width), Loader(paths, OfRaw(selection.keep)))
        taken = np.diff(seconds.epochs)[2:]  # the first two fetch memory, and verify the first batch
        reading = [seconds_of(clock, lambda: sum(1 for _ in stream(paths, decoded=False)))[0] for _ in range(settings.turns)]
        decoding = [seconds_of(clock, lambda: sum(1 for _ in stream(paths)))[0] for _ in range(settings.turns)]
    full, hiding = taken[::2], taken[1::2]
    return {
        "samples": settings.samples,
        "hidden": int(settings.fraction * settings.samples),
        "full_s": median(full.tolist()),
        "hiding_s": median(hiding.tolist()),
        "ratio": median_of((hiding / full).tolist()),
        "reading_share": median(reading) / median(full.tolist()),
        "decoding_share": (median(decoding) - median(reading)) / median(full.tolist()),
    }


def main(arguments: list[str] | None = None) -> Row:
    """Measure, print two tables and write the JSON file."""
    options = report.parser("keys", __doc__, devices=("cpu",), clocks=("cpu", "wall"))
    options.add_argument("--sizes", type=report.count, nargs="+", default=[100_000, 1_000_000, 10_000_000], help="keys")
    options.add_argument("--asked", type=report.count, default=4_000_000, help="look-ups of a round")
    options.add_argument("--fraction", type=report.share, default=0.3, help="share that is hidden")
    options.add_argument("--turns", type=report.count, default=5, help="rounds, and pairs of epochs")
    options.add_argument("--samples", type=report.count, default=1024, help="images in the shards")
    options.add_argument("--pixels", type=report.count, default=224, help="of their sides")
    options.add_argument("--width", type=report.count, default=32, help="channels of the network")
    settings = report.parse(options, arguments)
    prepare()
    clock = report.clock(settings.device, settings.clock)
    tables = [look_ups(total, settings, clock) for total in tqdm(settings.sizes, **bar_settings(desc="keys", unit="size"))]
    report.print_table(
        "Look-ups of keys",
        tables,
        {
            "keys": lambda row: f"{row['samples']:,}",
            "per second": lambda row: f"{row['per_second']['median'] / 1e6:.1f} million",
            "one, by keep": lambda row: in_units(row["keep_s"]),
            "table made in": lambda row: in_units(row["build_s"]),
            "its size": lambda row: f"{row['bytes'] / row['samples']:.1f} B/sample",
        },
        f"A table of {settings.fraction:.0%} of the keys, asked for all of them, {PIECE:,} at a time.",
    )
    pairs = epochs(settings, clock)
    report.print_table(
        "Epochs",
        [pairs],
        {
            "images": lambda row: f"{row['samples']:,}",
            "an epoch": lambda row: in_units(row["full_s"]),
            "of which reading": lambda row: f"{row['reading_share']:.1%}",
            "decoding": lambda row: f"{row['decoding_share']:.1%}",
            f"one that hides {settings.fraction:.0%}": lambda row: f"{row['ratio']['median']:.3f}",
        },
        "The last column is in epochs that train on everything, median of pairs.",
    )
    return report.write(settings, sizes=tables, epochs=pairs)


if __name__ == "__main__":
    main()
