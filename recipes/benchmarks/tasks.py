"""Data sets of the arena: CIFAR-10, fractals of ten kinds (with much redundancy), or text, the source code of torch.

Fractals are made by the benchmark (`kakurenbo-fractal`), text is where torch is installed, so only CIFAR-10 needs files.
"""

import argparse
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kakurenbo_recipes import formula_images
from kakurenbo_recipes.array_data import ArrayImages
from kakurenbo_recipes.data import ImageData, InMemoryImages
from kakurenbo_recipes.parquet_data import CIFAR10
from torch import Tensor, nn

from recipes.benchmarks.fits import SGD

FOLDERS = ("nn", "_inductor", "distributed", "testing", "_dynamo", "ao", "fx", "onnx", "utils", "_higher_order_ops")
LENGTH = 128  # length of a piece of text in bytes
PIECES = 5_000  # most pieces of a class
MOST_FRACTALS = 1000  # of a kind, that `kakurenbo-fractal` makes
TESTED = 5  # every so many-th file is for testing


class SourceCode(ImageData):
    """Pieces of the source code of the installed torch, int64 [N, 128] bytes; the class of a piece is the folder it is from.

    Whole files are tested on, so that no piece of a file that is trained on is among them. Other versions of torch have other text.

    Args:
        settings: those of `ImageData`.
    """

    num_classes = len(FOLDERS)
    class_names = FOLDERS
    mean = std = (0.0, 0.0, 0.0)  # text is not normalised

    def load(self) -> tuple[InMemoryImages, InMemoryImages]:
        """Return the pieces of text to train on and those to test on."""
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        labels: tuple[list[int], list[int]] = ([], [])
        for label, folder in enumerate(FOLDERS):
            for tested, piece in pieces(Path(torch.__file__).parent / folder):
                parts[tested].append(piece)
                labels[tested].append(label)
        train, test = (InMemoryImages(torch.stack(part), torch.tensor(own)) for part, own in zip(parts, labels, strict=True))
        # shuffled, because `subset` takes the first samples
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        return train.part(order), test

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Leave text as it is."""
        return batch


def pieces(folder: Path) -> Iterator[tuple[bool, Tensor]]:
    """Yield whether a piece of the folder's Python files is tested on, and its bytes, int64 [LENGTH]; spaces of indents are one."""
    files = sorted(folder.rglob("*.py"))
    made = []
    for file in files:
        text = b"\n".join(line.strip() for line in file.read_bytes().splitlines() if line.strip())
        tested = zlib.crc32(file.relative_to(folder).as_posix().encode()) % TESTED == 0
        starts = range(0, len(text) - LENGTH + 1, LENGTH)
        made += [(tested, text[start : start + LENGTH]) for start in starts]
    step = max(1, len(made) // PIECES)  # take pieces from all files evenly
    for tested, piece in made[::step][:PIECES]:
        yield tested, torch.tensor(list(piece))


class ByteTransformer(nn.Module):
    """A Transformer of two layers over groups of four bytes.

    Args:
        width: number of features.
        num_classes: number of logits.
    """

    def __init__(self, width: int = 64, num_classes: int = len(FOLDERS)) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width // 2)
        self.groups = nn.Conv1d(width // 2, width, 4, stride=4)
        self.places = nn.Parameter(torch.zeros(LENGTH // 4, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.logits = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))

    def forward(self, text: Tensor) -> Tensor:
        """Map bytes [B, 128], whole numbers of any dtype, to logits [B, num_classes]."""
        groups = self.groups(self.bytes(text.long()).transpose(1, 2)).transpose(1, 2)
        return self.logits(self.layers(groups + self.places).mean(1))


@dataclass(frozen=True)
class Task:
    """A data set with the network and settings for it.

    Attributes:
        title: its name in pictures.
        data: a function of the command line that returns a function that makes the data module.
        network: makes the only network that fits the data; None for any of the arena's image networks.
        optimizer: makes the optimizer from parameters and `lr`.
        defaults: defaults of command-line options.
    """

    title: str
    data: Callable[[argparse.Namespace], Callable[..., ImageData]]
    network: Callable[[], nn.Module] | None = None
    optimizer: Callable[..., torch.optim.Optimizer] = SGD
    defaults: dict[str, Any] = field(default_factory=dict)


def cifar10(settings: argparse.Namespace) -> Callable[..., ImageData]:
    """Return a function that makes the CIFAR-10 data module."""
    if settings.data_root is None:
        raise SystemExit(
            "--data-root is missing: the task cifar10 needs the folder of CIFAR-10. --task fractals and text need no files."
        )
    return partial(CIFAR10, str(settings.data_root))


def fractals(settings: argparse.Namespace) -> Callable[..., ImageData]:
    """Make the fractals, unless they are there, and return what reads them: ten categories, a sixth of the images tested on."""
    folder = settings.folder / "fractals"
    each = -(-settings.samples * 6 // 5 // 10)
    if each > MOST_FRACTALS:
        most = MOST_FRACTALS * 10 * 5 // 6
        raise SystemExit(
            f"--samples {settings.samples} is not possible: of ten kinds there are at most {most:,} fractals to train on."
        )
    if not (folder / "images.npy").is_file():
        formula_images.main([f"--instances={each}", "--categories=10", "--size=32", "--format=array", f"--output={folder}"])
    return partial(ArrayImages, str(folder), test_share=1 / 6)


TASKS: dict[str, Task] = {
    "cifar10": Task("CIFAR-10", cifar10),
    "fractals": Task("fractals", fractals, defaults={"samples": 8_330, "epochs": 30}),
    "text": Task(
        "source code",
        lambda settings: SourceCode,
        ByteTransformer,
        torch.optim.AdamW,
        {"samples": 30_000, "epochs": 10, "learning_rate": 1e-3},
    ),
}
