"""The training that benchmarks measure: real Trainers on small images in memory, without logs, bars or checkpoints."""

import argparse
import contextlib
import ctypes
import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from kakurenbo_recipes.data import ImageData, InMemoryImages
from kakurenbo_recipes.parquet_data import CIFAR10
from torch import Tensor, nn

# under this name it is not seen by replacing F.cross_entropy, only by a torch function mode
from torch.nn.functional import cross_entropy

from recipes.benchmarks import report

Batch = tuple[Tensor, Tensor]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # constants of mallopt in malloc.h


class RandomImages(ImageData):
    """Random images in the shape of CIFAR-10: a benchmark that needs no files.

    Args:
        samples: number of training images.
        seed: seed of the pixels and labels.
        settings: those of `ImageData`.
    """

    num_classes = 10
    mean = CIFAR10.mean
    std = CIFAR10.std

    def __init__(self, samples: int, seed: int = 0, **settings) -> None:
        super().__init__(**settings)
        self.samples = samples
        self.seed = seed

    def load(self) -> tuple[InMemoryImages, InMemoryImages]:
        """Return as many training images as asked for, and one test image."""
        generator = torch.Generator().manual_seed(self.seed)
        images = torch.randint(256, (self.samples, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (self.samples,), generator=generator)
        train = InMemoryImages(images, labels)
        return train, InMemoryImages(images[:1], labels[:1])


def image_options(options: argparse.ArgumentParser, samples: int, depth: int) -> None:
    """Add what says which network trains on which images; the time does not depend on the pixels."""
    options.add_argument("--data-root", type=Path, help="folder of CIFAR-10; without it, random images of that shape")
    options.add_argument("--samples", type=report.count, default=samples, help="training images")
    options.add_argument("--batch-size", type=report.count, default=128, help="samples of a step")
    options.add_argument("--depth", type=report.count, default=depth, help="layers of the CIFAR ResNet")
    options.add_argument("--width", type=report.count, default=16, help="channels of its first stage")


def described(settings: argparse.Namespace) -> report.Row:
    """Return what `image_options` came to, for the JSON file."""
    return {
        "network": f"CIFAR ResNet-{settings.depth}, width {settings.width}",
        "data": "random images" if settings.data_root is None else "CIFAR-10",
        **{name: getattr(settings, name) for name in ("samples", "batch_size", "rounds")},
    }


def images(settings: argparse.Namespace) -> ImageData:
    """Return the images of `image_options`, decoded."""
    if settings.data_root is None:
        data = RandomImages(settings.samples, settings.seed, batch_size=settings.batch_size)
    else:
        data = CIFAR10(str(settings.data_root), subset=settings.samples, batch_size=settings.batch_size)
    data.prepare_data()
    data.setup("fit")
    return data


class Classifier(L.LightningModule):
    """Cross-entropy and SGD, and nothing else that takes time.

    Args:
        network: maps images, float32 [B, 3, 32, 32], to logits [B, 10].
        by_name: call the criterion as `F.cross_entropy`, which the library sees at once; else by a name of its own,
            which only a torch function mode sees.
    """

    def __init__(self, network: nn.Module, by_name: bool = True) -> None:
        super().__init__()
        self.network = network
        self.by_name = by_name

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        images, labels = batch
        logits = self.network(images)
        return F.cross_entropy(logits, labels) if self.by_name else cross_entropy(logits, labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum, at a fixed rate."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def keep_freed_memory() -> None:
    """Let glibc neither return freed memory to the system nor divide it among threads.

    Fetching it again takes up to a tenth of a step on a CPU, and how often it happens differs from one fit to another.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc has no mallopt
        set_option = ctypes.CDLL(None).mallopt
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 1 << 30)):
            set_option(option, value)


def prepare() -> None:
    """Keep freed memory, and Lightning's greetings and hints out of the table."""
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")


def trainer(device: str, callbacks: list[L.Callback], max_epochs: int = 1, **settings) -> L.Trainer:
    """Return a Trainer on one device with everything off that a benchmark does not need."""
    return L.Trainer(
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        max_epochs=max_epochs,
        callbacks=callbacks,
        **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **settings},
        enable_model_summary=False,
    )
