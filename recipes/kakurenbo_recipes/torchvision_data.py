"""Data sets of torchvision: small ones held in memory, and folders of large images read by workers."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets
from torchvision.transforms import v2

from kakurenbo_recipes.data import ImageData, InMemoryImages
from kakurenbo_recipes.data_tools import checked_scale, existing, leaving_no_empty_folders, shared, stratified
from kakurenbo_recipes.settings import check_setting, is_count, is_share

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HELD_OUT = 0.02  # share of the training images to validate on if there are no validation images


@dataclass(frozen=True)
class Source:
    """Where torchvision has a data set, and how it is normalised.

    Attributes:
        parts: makes the training and the test part, each a list of data sets, from the root folder and whether to download.
        num_classes: number of classes.
        mean: mean of each channel, in [0, 1].
        std: standard deviation of each channel.
        flip: whether mirrored images keep their class.
    """

    parts: Callable[[Path, bool], tuple[list[Dataset], list[Dataset]]]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool


def _by_train(name: str, **options: Any) -> Callable[[Path, bool], tuple[list[Dataset], list[Dataset]]]:
    def parts(root: Path, download: bool) -> tuple[list[Dataset], list[Dataset]]:
        made = [getattr(datasets, name)(root, train=train, download=download, **options) for train in (True, False)]
        return made[:1], made[1:]

    return parts


def _svhn(*training: str) -> Callable[[Path, bool], tuple[list[Dataset], list[Dataset]]]:
    def parts(root: Path, download: bool) -> tuple[list[Dataset], list[Dataset]]:
        train: list[Dataset] = [datasets.SVHN(root, split=split, download=download) for split in training]
        return train, [datasets.SVHN(root, split="test", download=download)]

    return parts


SVHN_MEAN, SVHN_STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
SOURCES = {
    "cifar100": Source(_by_train("CIFAR100"), 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), True),
    "svhn": Source(_svhn("train"), 10, SVHN_MEAN, SVHN_STD, False),
    "svhn_extra": Source(_svhn("train", "extra"), 10, SVHN_MEAN, SVHN_STD, False),  # 604,388 images, as in the SB paper
    "mnist": Source(_by_train("MNIST"), 10, (0.1307,) * 3, (0.3081,) * 3, False),
    "emnist": Source(_by_train("EMNIST", split="balanced"), 47, (0.1751,) * 3, (0.3332,) * 3, False),
}


class TorchvisionImages(ImageData):
    """A small data set of torchvision, decoded into memory. Grey images get three channels.

    Args:
        name: one of `SOURCES`: cifar100, svhn, svhn_extra (train and extra), mnist, emnist (balanced).
        root: folder of torchvision's download.
        download: whether to download missing files.
        settings: those of `ImageData`.

    Raises:
        ValueError: unknown name.
    """

    name: str

    def __init__(self, name: str, root: str = "data/torchvision", download: bool = False, **settings) -> None:
        check_setting("data.name", name, name in SOURCES, f"one of {', '.join(SOURCES)}", "Try cifar100.")
        source = SOURCES[name]
        self.name, self.num_classes, self.mean, self.std = name, source.num_classes, source.mean, source.std
        super().__init__(**{"flip": source.flip, **settings})
        self.root, self.download = Path(root).expanduser(), download

    def prepare_data(self) -> None:
        """Download the data set if that is allowed, or raise an error that says what to do."""
        self._parts(self.download)

    def load(self) -> tuple[InMemoryImages, InMemoryImages]:
        """Return both parts as uint8 [N, 3, H, W]."""

        def read() -> tuple[InMemoryImages, InMemoryImages]:
            train, test = self._parts(False)
            made = joined(train, self.subset), joined(test, self.eval_subset)
            made[0].classes = getattr(train[0], "classes", None)
            return made

        train, test = shared((self.name, self.root.resolve(), self.subset, self.eval_subset), read)
        self.class_names = train.classes
        return train, test

    def _parts(self, download: bool) -> tuple[list[Dataset], list[Dataset]]:
        try:
            with leaving_no_empty_folders(self.root):
                return SOURCES[self.name].parts(self.root, download)
        except (OSError, RuntimeError) as error:
            how, hint = "torchvision finds nothing there", "Add data.download=true to fetch it"
            if download:
                how, hint = "the download failed", "Try again where the network is there"
            raise FileNotFoundError(
                f"data.root={str(self.root)!r} holds no {self.name}: {how} ({' '.join(str(error).split())}). {hint}, or put what "
                f"torchvision.datasets downloads into {self.root.resolve()}."
            ) from None


# Any: torchvision has no type for data sets with `data`
def joined(parts: Sequence[Any], limit: int | None = None) -> InMemoryImages:
    """Concatenate torchvision data sets in memory, cut to the first `limit` images."""
    labels, done, pixels = [], 0, torch.empty(0, dtype=torch.uint8)
    total = sum(len(part.data) for part in parts)
    total = total if limit is None else min(limit, total)
    for part in parts:
        first = part.data[: total - done]
        images = first if isinstance(first, Tensor) else torch.from_numpy(np.asarray(first))
        if images.dim() == 3:  # grey, [N, H, W]
            images = images[:, None].expand(-1, 3, -1, -1)
        elif images.shape[3] == 3:  # [N, H, W, 3]
            images = images.permute(0, 3, 1, 2)
        if not labels:
            pixels = torch.empty(total, *images.shape[1:], dtype=torch.uint8)
        pixels[done : done + len(images)] = images
        done += len(images)
        labels.append(torch.as_tensor(np.asarray(getattr(part, "targets", getattr(part, "labels", None)))).long())
    return InMemoryImages(pixels, torch.cat(labels)[:total])


class LargeImages(L.LightningDataModule):
    """Large images of different sizes, decoded and augmented by workers. A subclass provides the images in `load`.

    The standard augmentation is a random crop of 8 % to 100 % of the area, randomly mirrored. Validation uses the middle of the
    scaled image.

    Args:
        size: side in pixels of what the network sees.
        batch_size: samples of a training batch (of one process).
        eval_batch_size: samples of a validation batch.
        num_workers: worker processes of each loader.
        held_out: share of the training images of each class to validate on instead of the test images; None: no held-out images if
            there are test images, else `HELD_OUT`.
        held_out_seed: seed of that draw.
        mean: mean of each channel, in [0, 1].
        std: standard deviation of each channel.
        train_transform: maps a PIL image to what the network trains on, float32 [3, size, size], normalised by `mean` and `std`, in
            place of the standard augmentations; None for those.
        eval_size: side in pixels of validation images; None for `size`.
        eval_resize: length in pixels of the shorter side before the middle is cut out; None for 256 / 224 of `eval_size`.

    Attributes:
        train_images: the training images; None before `setup`.
        val_images: the images to validate on; None before `setup`.
        test_images: the test images, the same as `val_images` when none are held out; None before `setup` and where there are none.
    """

    num_classes: int

    def __init__(
        self,
        size: int = 224,
        batch_size: int = 32,
        eval_batch_size: int = 100,
        num_workers: int = 8,
        held_out: float | None = None,
        held_out_seed: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        train_transform: Callable[[Image.Image], Tensor] | None = None,
        eval_size: int | None = None,
        eval_resize: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("size", size, 8), ("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1)):
            check_setting(f"data.{name}", value, is_count(value, least), f"an int >= {least}", "Leave it out for the default.")
        check_setting("data.num_workers", num_workers, is_count(num_workers, 0), "an int >= 0", "Try the number of cores.")
        is_part = held_out is None or is_share(held_out)
        check_setting("data.held_out", held_out, is_part, "null or a number in [0, 1)", f"Try {HELD_OUT}, or null.")
        check_setting("data.held_out_seed", held_out_seed, is_count(held_out_seed, 0), "an int >= 0", "Try 0.")
        makes = train_transform is None or callable(train_transform)
        check_setting(
            "data.train_transform", train_transform, makes, "null or something to call", "Use null for the standard ones."
        )
        self.size, self.batch_size, self.eval_batch_size, self.num_workers = size, batch_size, eval_batch_size, num_workers
        self.held_out, self.held_out_seed, self.train_transform = held_out, held_out_seed, train_transform
        for name, value in (("eval_size", eval_size), ("eval_resize", eval_resize)):
            known = value is None or is_count(value, 8)
            check_setting(f"data.{name}", value, known, "null or an int >= 8", "Use null for the usual one.")
        self.eval_size = eval_size or size
        self.eval_resize = eval_resize or round(self.eval_size * 256 / 224)
        fits = self.eval_resize >= self.eval_size
        check_setting(
            "data.eval_resize", eval_resize, fits, f"at least eval_size={self.eval_size}", "Use null for the usual one."
        )
        self.mean, self.std = checked_scale(mean, std) or (IMAGENET_MEAN, IMAGENET_STD)
        self.train_images: Dataset | None = None
        self.val_images: Dataset | None = None
        self.test_images: Dataset | None = None

    def load(self) -> tuple[Dataset, Dataset | None]:
        """Return the training and the test images (None if there are none): data sets with `targets` and a `transform` to be set."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Find the images, once for all the fits of a process."""
        if self.train_images is not None:
            return
        train, test = cast(tuple[Any, Any], self.load())  # cast: PyTorch's Dataset declares neither `targets` nor `transform`
        to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        crop = [v2.RandomResizedCrop(self.size, antialias=True), v2.RandomHorizontalFlip()]
        middle = [v2.Resize(self.eval_resize, antialias=True), v2.CenterCrop(self.eval_size)]
        whole, val = copy.copy(train), test  # a copy of the training images with the transform of validation
        train.transform = self.train_transform or v2.Compose([*crop, *to_float])
        for images in (whole, test):
            if images is not None:
                images.transform = v2.Compose([*middle, *to_float])
        share = self.held_out if self.held_out is not None else HELD_OUT if test is None else 0.0
        if share > 0:
            kept, held = stratified(torch.as_tensor(train.targets), share, self.held_out_seed)
            allowed, hint = "a share that leaves an image to train", "Use images of which each class has at least two."
            check_setting("data.held_out", share, len(held) > 0, allowed, hint)
            train, val = Subset(train, kept.tolist()), Subset(whole, held.tolist())
        check_setting("data.held_out", share, val is not None, "above 0 where there are no test images", f"Try {HELD_OUT}.")
        self.train_images, self.val_images, self.test_images = train, val, test

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled loader of the training images."""
        return self._loader(self.train_images, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of the validation images."""
        return self._loader(self.val_images, self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the test images if there are any, else of the validation images."""
        return self._loader(
            self.val_images if self.test_images is None else self.test_images, self.eval_batch_size, shuffle=False
        )

    def _loader(self, images: Dataset | None, batch_size: int, shuffle: bool) -> DataLoader:
        workers = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        images = existing(images, "the data set of the loader", "setup()")
        return DataLoader(images, batch_size, shuffle=shuffle, pin_memory=torch.cuda.is_available(), **workers)


class FolderImages(LargeImages):
    """Images in folders by class, as ImageNet-1K's: `root/train/CLASS/*` and `root/val/CLASS/*`.

    Args:
        root: folder that holds the parts.
        train: name of the training folder.
        val: name of the validation folder; None if there is none (`kakurenbo-fractal` makes none).
        settings: those of `LargeImages`.
    """

    def __init__(self, root: str = "data/imagenet", train: str = "train", val: str | None = "val", **settings) -> None:
        super().__init__(**settings)
        self.root, self._folders = Path(root).expanduser(), {"train": train, "val": val}

    @property
    def num_classes(self) -> int:
        """Number of folders in the training folder."""
        return sum(path.is_dir() for path in self._folder("train").iterdir())

    def load(self) -> tuple[Dataset, Dataset | None]:
        """Find the images of both parts."""
        train = datasets.ImageFolder(self._folder("train"))
        if self._folders["val"] is None:
            return train, None
        val = datasets.ImageFolder(self._folder("val"))
        if other := sorted(set(train.classes) ^ set(val.classes)):
            raise ValueError(
                f"data.root={str(self.root)!r}: the class {other[0]!r} has a folder in only one of {' and '.join(self._folders.values())}. "
                "Both need the same classes."
            )
        return train, val

    def _folder(self, part: str) -> Path:
        folder = self.root / self._folders[part]
        if not folder.is_dir() or not any(path.is_dir() for path in folder.iterdir()):
            none = "" if part == "train" else "; with data.val=null a share of the training images is validated on"
            raise FileNotFoundError(
                f"data.root={str(self.root)!r} holds no folder {self._folders[part]!r} with a folder for each class; put the images "
                f"into {folder.resolve()}/CLASS/ (for ImageNet-1K, https://image-net.org/download), or set data.root{none}"
            )
        return folder
