"""Small images of one size in parquet files as Hugging Face `datasets` writes them, decoded into memory, among them CIFAR-10.

Large images of different sizes: `kakurenbo_recipes.arrow_data`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from kakurenbo_recipes.data import ImageData, InMemoryImages
from kakurenbo_recipes.data_tools import checked_scale, leaving_no_empty_folders
from kakurenbo_recipes.parquet_files import TEST_PARTS, ParquetPart, ParquetSet, decoded


def read_parquet(part: ParquetPart) -> InMemoryImages:
    """Decode all images (JPEG, PNG, ...) of a part into memory: uint8 [N, 3, H, W].

    Raises:
        ValueError: a column is missing, an image cannot be decoded, or the images are not all of one size.
    """
    labels, images, total = part.labels, None, len(part)
    every = (value.as_buffer() for values in part.encoded() for value in values)
    name = part.files[0].name
    for index, data in enumerate(tqdm(every, f"decoding {name}", total, unit="", disable=rank_zero_only.rank != 0)):
        image = torch.from_numpy(np.array(decoded(data, *part.place(index)))).permute(2, 0, 1)
        if images is None:
            images = torch.empty((total, *image.shape), dtype=torch.uint8)
        if image.shape != images.shape[1:]:
            path, row = part.place(index)
            raise ValueError(
                f"{path}: row {row} is an image of shape {tuple(image.shape)}, the first one is of shape {tuple(images.shape[1:])}. All "
                "images must be of one size: scale them to one before, or use data=parquet_large, which crops them to one."
            )
        images[index] = image
    return InMemoryImages(images, labels)


class ParquetImages(ImageData):
    """Small images of one size in parquet files in the layout of Hugging Face `datasets`, decoded into memory.

    They take N x 3 x H x W bytes. The number of classes is the one that Hugging Face wrote into the training files, else the highest
    training label and one more.

    Args:
        root: folder of `train.parquet` and `test.parquet` or of files like `train-00000-of-00005.parquet`, or of a folder `data` of such.
        train: name of the training part.
        test: name of the part to test on; None: the first of test, validation, valid and val that is there. Without any of them
            `held_out` must be above 0.
        image_column: of the encoded images; None: `image` or `img`.
        label_column: of the classes; None: `label`, `labels` or `fine_label`.
        mean: of each of the three channels, in [0, 1]; None: computed from the training images, see `channel_statistics`.
        std: of each channel; None: likewise.
        settings: those of `ImageData`.
    """

    def __init__(
        self,
        root: str = "data/parquet",
        train: str = "train",
        test: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **settings,
    ) -> None:
        super().__init__(**settings)
        self.root = Path(root).expanduser()
        self.files = ParquetSet(self.root, train, test, image_column, label_column)
        if scale := checked_scale(mean, std):
            self.mean, self.std = scale

    @property
    def num_classes(self) -> int:
        """Number of classes of the training part."""
        return self.files.train_part.num_classes

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where Hugging Face wrote them."""
        return self.files.train_part.class_names

    def load(self) -> tuple[InMemoryImages, InMemoryImages | None]:
        """Decode both parts, or the training part where images of it are held out and there is no other."""
        train = self.files.train_part
        test = None if self.held_out and not self.files.has_test else self.files.test_part  # raises before anything is decoded
        return read_parquet(train), None if test is None else read_parquet(test)


class CIFAR10(ParquetImages):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.

    Args:
        root: folder of the parquet files, see `ParquetImages`; without them, the folder of torchvision's download.
        settings: those of `ParquetImages`.
    """

    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def __init__(self, root: str = "data/cifar10", **settings) -> None:
        super().__init__(root, **settings)

    def prepare_data(self) -> None:
        """Download the data set with torchvision unless it is there already."""
        if self._has_parquet():
            return
        from torchvision.datasets import CIFAR10 as Download

        try:
            with leaving_no_empty_folders(self.root):
                Download(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"data.root={str(self.root)!r} holds no CIFAR-10 and the download failed ({error}). "
                f"Save the two parquet files of https://huggingface.co/datasets/uoft-cs/cifar10 as train.parquet and "
                f"test.parquet in {self.root.resolve()}, or unpack "
                f"https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz there, or set data.root to the folder that "
                f"has them."
            ) from None

    def load(self) -> tuple[InMemoryImages, InMemoryImages | None]:
        """Return both parts as uint8 [N, 3, 32, 32]."""
        if self._has_parquet():
            return super().load()
        from torchvision.datasets import CIFAR10 as Download

        from kakurenbo_recipes.torchvision_data import joined

        return joined([Download(self.root, train=True)]), joined([Download(self.root, train=False)])

    def _has_parquet(self) -> bool:
        return self.files.has(self.files.train) and self.files.has(*([self.files.test] if self.files.test else TEST_PARTS))
