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
from torch.nn.functional import cross_entropy  # a name of its own: replacing F.cross_entropy does not reach it

Batch = tuple[Tensor, Tensor]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h


class RandomImages(ImageData):
    """Random images in the shape of CIFAR-10: a benchmark that needs no files.

    Args:
        samples: how many training images.
        seed: of the pixels and labels.
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


def images(data_root: Path | None, samples: int, batch_size: int, seed: int) -> ImageData:
    """Return `samples` images of CIFAR-10, or random ones when there is no `data_root`."""
    if data_root is None:
        return RandomImages(samples, seed, batch_size=batch_size)
    return CIFAR10(str(data_root), subset=samples, batch_size=batch_size)


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
        """Return SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def keep_freed_memory() -> None:
    """Let glibc neither return freed memory to the system nor divide it among threads.

    Fetching it anew takes up to a tenth of a step on a CPU, and how often it happens differs from one fit to another.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        set_option = ctypes.CDLL(None).mallopt
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 1 << 30)):
            set_option(option, value)


def prepare(settings: argparse.Namespace) -> None:
    """Take over the number of threads, and keep Lightning's greetings and hints out of the table."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
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
