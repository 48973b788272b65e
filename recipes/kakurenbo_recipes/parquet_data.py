"""Images in parquet files as Hugging Face `datasets` writes and reads them, among them CIFAR-10.

Small images of one size are decoded into memory. Large ones are decoded by workers from the copy that `datasets` keeps in its cache in
Arrow's format: parquet packs some hundred images into a group that is read as a whole, so a random order would read each of them
hundreds of times.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torchvision
from tqdm import tqdm

from kakurenbo_lightning.core.progress import bar_settings
from kakurenbo_recipes.data import ImageData, InMemoryImages
from kakurenbo_recipes.data_tools import checked_scale, leaving_no_empty_folders, shared
from kakurenbo_recipes.parquet_part import ParquetPart, part_files
from kakurenbo_recipes.torchvision_data import LargeImages, joined

TEST_PARTS = ("test", "validation", "valid", "val")


def in_memory(part: ParquetPart, limit: int | None = None, quiet: bool = True) -> InMemoryImages:
    """Decode the images (JPEG, PNG, ...) of a part into memory: uint8 [N, 3, H, W].

    Args:
        part: a part of a data set.
        limit: decode only the first so many images; None for all.
        quiet: show no progress.

    Raises:
        ValueError: an image cannot be decoded, or the images are not all of one size.
    """
    total = len(part) if limit is None else min(limit, len(part))
    images, settings = torch.empty(0, dtype=torch.uint8), {"desc": f"decoding {part.files[0].name}", "total": total, "unit": ""}
    for index, decoded in enumerate(tqdm(islice(part.images(), total), **bar_settings(**settings, disable=quiet))):
        image = torch.from_numpy(np.array(decoded)).permute(2, 0, 1)
        if index == 0:
            images = torch.empty((total, *image.shape), dtype=torch.uint8)
        if image.shape != images.shape[1:]:
            path, row = part.place(index)
            raise ValueError(
                f"{path}: row {row} is an image of shape {tuple(image.shape)}, the first one is of shape {tuple(images.shape[1:])}. All "
                "images must be of one size: scale them to one before, or use data=parquet_large, which crops them to one."
            )
        images[index] = image
    return InMemoryImages(images, part.targets[:total])


class ParquetParts:
    """The training and the test part of a data set in parquet files in the layout of Hugging Face `datasets`; base of data modules.

    The number of classes is the one that Hugging Face wrote into the training files, else the highest training label and one more.

    Args:
        root: folder of `train.parquet` and `test.parquet` or of files like `train-00000-of-00005.parquet`, or of a folder `data` of such.
        train: name of the training part.
        test: name of the part to test on; None: the first of test, validation, valid and val that exists.
        image_column: column of the encoded images; None: `image` or `img`.
        label_column: column of the classes; None: `label`, `labels` or `fine_label`.
        settings: those of the data module.
    """

    def __init__(
        self,
        root: str = "data/parquet",
        train: str = "train",
        test: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        **settings,
    ) -> None:
        super().__init__(**settings)
        self.root, self.train, self.test = Path(root).expanduser(), train, TEST_PARTS if test is None else (test,)
        self.columns = image_column, label_column

    @property
    def num_classes(self) -> int:
        """Number of classes in the training part."""
        return self.train_part.num_classes

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, if Hugging Face wrote them."""
        return self.train_part.classes

    @cached_property
    def train_part(self) -> ParquetPart:
        """The part to train on.

        Raises:
            FileNotFoundError: it does not exist.
        """
        part = self._part("train", (self.train,))
        part.check_labels(part.num_classes)
        return part

    @cached_property
    def test_part(self) -> ParquetPart:
        """The part to test on. Its labels must occur in the training part.

        Raises:
            FileNotFoundError: it does not exist.
        """
        part = self._part("test", self.test)
        part.check_labels(self.train_part.num_classes)
        return part

    def has(self, *names: str) -> bool:
        """Whether one of the named parts exists."""
        return any(part_files(self.root, name) for name in names)

    @property
    def has_test(self) -> bool:
        """Whether there is a part to test on. If it was named explicitly it must exist."""
        return self.test != TEST_PARTS or self.has(*TEST_PARTS)

    def _part(self, setting: str, names: Sequence[str]) -> ParquetPart:
        if files := next(filter(None, (part_files(self.root, name) for name in names)), None):
            return ParquetPart(files, *self.columns)
        raise FileNotFoundError(
            f"data.root={str(self.root)!r} holds no {names[0]}.parquet and no {names[0]}-00000-of-*.parquet"
            + (f", nor any of {', '.join(names[1:])}" if names[1:] else "")
            + f", neither itself nor in its folder data. Set data.root to the folder of the files, or data.{setting} to what they "
            "are called before the first dash or dot"
            + (", or validate on some of the training images: data.held_out=0.1" if setting == "test" else "")
        )


class ParquetImages(ParquetParts, ImageData):
    """Small images of one size, decoded into memory (N x 3 x H x W bytes).

    Args:
        mean: mean of each of the three channels, in [0, 1]; None: computed from the training images, see `channel_statistics`.
        std: standard deviation of each channel; None: likewise.
        settings: those of `ParquetParts` and of `ImageData`; without a part to test on `held_out` must be above 0.
    """

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, **settings) -> None:
        super().__init__(**settings)
        if scale := checked_scale(mean, std):
            self.mean, self.std = scale

    def load(self) -> tuple[InMemoryImages, InMemoryImages | None]:
        """Decode both parts; only the training part if images of it are held out and there is no test part."""
        test = self.test_part if self.has_test or not self.held_out else None  # raises an error before anything is decoded
        return self._read(self.train_part, self.subset), None if test is None else self._read(test, self.eval_subset)

    def _read(self, part: ParquetPart, limit: int | None) -> InMemoryImages:
        files = tuple((path.resolve(), path.stat().st_mtime_ns, path.stat().st_size) for path in part.files)
        return shared((files, part.image, part.label, limit), lambda: in_memory(part, limit, self.quiet))


class CIFAR10(ParquetImages):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.

    Args:
        root: folder of the parquet files, see `ParquetParts`; without them, the folder of torchvision's download.
        settings: those of `ParquetImages`.
    """

    num_classes: int = 10
    class_names: Sequence[str] | None = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def __init__(self, root: str = "data/cifar10", **settings) -> None:
        super().__init__(root=root, **settings)

    def prepare_data(self) -> None:
        """Download the data set with torchvision if it does not exist."""
        if self.has(self.train) and self.has(*self.test):
            return
        try:
            with leaving_no_empty_folders(self.root):
                torchvision.datasets.CIFAR10(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"data.root={str(self.root)!r} holds no CIFAR-10 and the download failed ({error}). Save the two parquet files of "
                "https://huggingface.co/datasets/uoft-cs/cifar10 as train.parquet and test.parquet in "
                f"{self.root.resolve()}, or unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz there, or set data.root to the "
                "folder that has them."
            ) from None

    def load(self) -> tuple[InMemoryImages, InMemoryImages | None]:
        """Return both parts as uint8 [N, 3, 32, 32]."""
        if self.has(self.train) and self.has(*self.test):
            return super().load()
        return self._unpacked(True, self.subset), self._unpacked(False, self.eval_subset)

    def _unpacked(self, train: bool, limit: int | None) -> InMemoryImages:
        key = ("CIFAR10", self.root.resolve(), train, limit)
        return shared(key, lambda: joined([torchvision.datasets.CIFAR10(self.root, train=train)], limit))


class ParquetLargeImages(ParquetParts, LargeImages):
    """Images of different sizes, decoded and cropped by workers. Without a test part, a share of the training images is held out.

    Args:
        cache: folder for the copies that `datasets` makes, as large as the files; None: its default ($HF_DATASETS_CACHE).
        settings: those of `ParquetParts` and of `LargeImages`.
    """

    def __init__(self, cache: str | None = None, **settings) -> None:
        super().__init__(**settings)
        self.cache = None if cache is None else Path(cache).expanduser()

    def prepare_data(self) -> None:
        """Make the cached copy of each part."""
        self.load()

    def load(self) -> tuple[ParquetPart, ParquetPart | None]:
        """Open the cached copies, which are made if they do not exist."""
        parts = self.train_part, self.test_part if self.has_test else None
        for part in filter(None, parts):
            part.cache = self.cache
            _ = part.copy
        return parts
