"""Grey images in memory-mapped files: the arrays that `kakurenbo-fractal --format array` writes, read batch by batch."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kakurenbo_recipes.data import ImageData, InMemoryImages
from kakurenbo_recipes.data_tools import checked_scale, stratified
from kakurenbo_recipes.settings import check_setting, is_count


class MappedImages(InMemoryImages):
    """Grey images from a memory-mapped NumPy file, which is never read as a whole.

    A batch is copied from the file and expanded to three channels by a view. In other processes the file is mapped again.

    Args:
        path: path of the array, uint8 [M, H, W].
        labels: int64 [N], classes of the samples.
        rows: int64 [N], row of each sample in the array.
    """

    def __init__(self, path: Path, labels: Tensor, rows: Tensor) -> None:
        self.path = path
        self.labels = labels
        self.rows = rows

    def __getstate__(self) -> dict[str, object]:
        """Drop the memory map, because pickling would copy it as a whole."""
        return {name: value for name, value in self.__dict__.items() if name != "array"}

    @cached_property
    def array(self) -> np.ndarray:
        """The memory-mapped file, uint8 [M, H, W], read-only."""
        return np.load(self.path, mmap_mode="r")

    @property
    def images(self) -> Tensor:
        """All images of these samples, uint8 [N, 3, H, W]. One channel is read into memory; the three are views of it."""
        return self._read(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image, uint8 [3, H, W], and its label, int64 []."""
        return self._read(self.rows[index][None])[0], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch: images, uint8 [B, 3, H, W], and labels, int64 [B]."""
        chosen = torch.as_tensor(indices)
        return self._read(self.rows[chosen]), self.labels[chosen]

    def part(self, rows: Tensor) -> "MappedImages":
        """Return the samples with these indices, int64 [M], without reading an image."""
        return MappedImages(self.path, self.labels[rows], self.rows[rows])

    def _read(self, rows: Tensor) -> Tensor:
        # np.take copies, because a read-only map cannot become a tensor
        grey = torch.from_numpy(np.take(self.array, rows.numpy(), axis=0))
        return grey[:, None].expand(-1, 3, -1, -1)


class ArrayImages(ImageData):
    """Grey images of one size in `root/images.npy` (uint8 [N, S, S]), with their classes in `root/labels.npy` (int64 [N]).

    Args:
        root: folder of the two files, as `kakurenbo-fractal --format array` leaves it.
        test_share: share of the images of each class that is used for testing, because fractals have no test images.
        split_seed: seed of that split.
        mean: mean of each of the three channels, in [0, 1]; None: computed from the training images, see `channel_statistics`.
        std: standard deviation of each channel; None: likewise.
        settings: those of `ImageData`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a setting is wrong, or the files do not hold what they should.
    """

    def __init__(
        self,
        root: str = "data/fractal",
        test_share: float = 0.02,
        split_seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **settings,
    ) -> None:
        super().__init__(**settings)
        is_part = isinstance(test_share, int | float) and not isinstance(test_share, bool) and 0 < test_share < 1
        check_setting("data.test_share", test_share, is_part, "a number above 0 and below 1", "Try 0.02.")
        check_setting("data.split_seed", split_seed, is_count(split_seed, 0), "an int >= 0", "Try 0.")
        self.root, self.test_share, self.split_seed = Path(root).expanduser(), test_share, split_seed
        if scale := checked_scale(mean, std):
            self.mean, self.std = scale

    @property
    def num_classes(self) -> int:
        """The highest label plus one."""
        return int(self._labels.max()) + 1

    def load(self) -> tuple[MappedImages, MappedImages]:
        """Return the training and the test images, two parts of one array."""
        path = self._file("images")
        every, labels = np.load(path, mmap_mode="r"), self._labels
        if every.dtype != np.uint8 or every.ndim != 3 or len(every) != len(labels):
            raise ValueError(
                f"{path} holds {every.dtype} {list(every.shape)}, but uint8 [{len(labels)}, S, S] is needed, an image for each of the "
                f"{len(labels)} labels in labels.npy. Make both again: kakurenbo-fractal --format array"
            )
        train, test = stratified(labels, self.test_share, self.split_seed)
        hint = "Use images of which each class has at least two."
        check_setting("data.test_share", self.test_share, len(test) > 0, "a share that leaves an image to train", hint)
        return MappedImages(path, labels[train], train), MappedImages(path, labels[test], test)

    @cached_property
    def _labels(self) -> Tensor:
        path = self._file("labels")
        labels = np.load(path)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels) or labels.min() < 0:
            raise ValueError(
                f"{path} holds {labels.dtype} {list(labels.shape)}, with {labels[:5]} first, but int64 [N] of classes, all of them 0 or "
                "more, is needed, one for each image in images.npy"
            )
        return torch.from_numpy(labels.astype(np.int64))

    def _file(self, name: str) -> Path:
        path = self.root / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(
                f"data.root={str(self.root)!r} holds no {name}.npy. Set data.root to the folder that has it, or make the images: "
                f"kakurenbo-fractal --format array --size 32 -o {self.root}"
            )
        return path
