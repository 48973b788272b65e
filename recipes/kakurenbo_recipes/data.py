"""Small image data sets, decoded once into memory and augmented on the device.

A data set of 60,000 images of 32 x 32 pixels is 180 MB of uint8, so nothing is decoded twice: a batch is one indexing
of a tensor, and the random crop, the flip and the normalisation are done for the whole batch on the device.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning.core.random import stream_seed
from kakurenbo_recipes.data_tools import channel_statistics, existing, stratified
from kakurenbo_recipes.settings import check_setting, is_count, is_share


class InMemoryImages(Dataset):
    """Images and labels held as tensors, indexed by the batch.

    Args:
        images: uint8 [N, 3, H, W].
        labels: int64 [N].

    Attributes:
        classes: names of the classes; None if they have none.
    """

    classes: Sequence[str] | None = None

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image, uint8 [3, H, W], and its label, int64 []."""
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch: images, uint8 [B, 3, H, W], and labels, int64 [B]."""
        rows = torch.as_tensor(indices)
        return self.images[rows], self.labels[rows]

    def part(self, rows: Tensor) -> "InMemoryImages":
        """Return the samples with these indices, int64 [M]. The images are copied, so the others can be freed."""
        return InMemoryImages(self.images[rows], self.labels[rows])


def keep_batch(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the batch unchanged, because `InMemoryImages.__getitems__` has already collated it."""
    return batch


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flipped: Tensor, padding: int) -> Tensor:
    """Cut a window of the original size from each zero-padded image, and mirror it where `flipped` is true.

    Args:
        images: [B, C, H, W] of any dtype.
        top: int64 [B], the window's first row in the padded image, 0 to 2 * padding.
        left: int64 [B], the window's first column, 0 to 2 * padding.
        flipped: bool [B], whether to mirror the window left to right.
        padding: pixels of zeros added on each side.

    Returns:
        [B, C, H, W], the dtype of `images`, on its device.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    pixels = pixels.view(batch, 1, height * width).expand(batch, channels, height * width)
    return padded.flatten(2).gather(2, pixels).view_as(images)


def cut_out(images: Tensor, side: int, places: Tensor) -> Tensor:
    """Set a square of each image to 0, the mean colour after normalisation (DeVries & Taylor, 2017); at the border only a part of the
    square.

    Args:
        images: [B, C, H, W] of any dtype.
        side: side of the square in pixels.
        places: float [2, B] in [0, 1), the middle of the square, from top to bottom and from left to right.

    Returns:
        [B, C, H, W].
    """

    def inside(length: int, place: Tensor) -> Tensor:  # bool [B, length]
        first = (place * length).long()[:, None] - side // 2
        at = torch.arange(length, device=images.device)
        return (at >= first) & (at < first + side)

    rows, columns = inside(images.shape[2], places[0]), inside(images.shape[3], places[1])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def first_rows(images: InMemoryImages, setting: str, count: int | None) -> InMemoryImages:
    """Return the first `count` of the images. A ValueError names the setting if there are fewer."""
    if count is None or count == len(images):
        return images
    check_setting(f"data.{setting}", count, count <= len(images), f"at most {len(images)}", "Use null for all of them.")
    return images.part(torch.arange(count))


def with_label_noise(labels: Tensor, share: float, num_classes: int, seed: int) -> Tensor:
    """Return a copy of the labels in which a share is wrong. With the same seed a larger share changes the same labels and more.

    Args:
        labels: int64 [N].
        share: the nearest whole number to share * N labels are replaced by another class, drawn uniformly.
        num_classes: number of classes, >= 2.
        seed: seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(labels), generator=generator)
    steps = torch.randint(1, num_classes, (len(labels),), generator=generator)
    rows = rows[: round(share * len(labels))]
    noisy = labels.clone()
    noisy[rows] = (labels[rows] + steps[: len(rows)]) % num_classes
    return noisy


class ImageData(L.LightningDataModule):
    """Loaders over in-memory images. A subclass provides the images in `load`.

    Args:
        batch_size: samples per training batch and process.
        eval_batch_size: samples per validation batch and process.
        num_workers: worker processes of each loader; 0 is fastest for data in memory.
        subset: train on the first `subset` images only, and do not decode the others; None for all.
        eval_subset: validate and test on the first test images only; None for all.
        label_noise: share of the training labels that are replaced by another class; test labels are unchanged.
        label_noise_seed: seed of the choice of labels and of their replacements.
        drop_last: whether to leave out an epoch's last training batch when it is short: a batch of a few samples can
            spoil the statistics of batch normalisation, and hiding changes the length of the last batch.
        crop_padding: padding of the random crop in pixels; 0 for no crop.
        flip: whether to mirror half of the training images.
        cutout: side in pixels of the square that gets the mean colour at a random place of each training image; 0 for none.
        held_out: share of the training images of each class, drawn by `held_out_seed`, to validate on instead of the test images,
            because what is chosen by validation accuracy must not be chosen by the test images. The last accuracy of a run is then
            theirs.
        held_out_seed: seed of the draw of held-out images.
        resize: side in pixels to which the augmented images are scaled on the device, for a network that takes larger ones; None leaves
            them as they are.

    Attributes:
        num_classes: number of classes.
        mean: mean of each channel, in [0, 1]; computed from the training images in `setup` if a subclass does not set it.
        std: standard deviation of each channel; likewise.
        class_names: names of the classes; None if they have none.
        train_images: the training images, labels with noise; None before `setup`.
        val_images: the held-out images; None when there are none.
        test_images: the test images; None before `setup` and where there are none.
        clean_labels: int64 [N], the labels of `train_images` without noise; None before `setup`.
    """

    num_classes: int
    class_names: Sequence[str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        num_workers: int = 0,
        subset: int | None = None,
        label_noise: float = 0.0,
        label_noise_seed: int = 0,
        drop_last: bool = False,
        crop_padding: int = 4,
        flip: bool = True,
        cutout: int = 0,
        held_out: float = 0.0,
        held_out_seed: int = 0,
        resize: int | None = None,
        eval_subset: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.subset, self.label_noise, self.label_noise_seed, self.drop_last = subset, label_noise, label_noise_seed, drop_last
        self.crop_padding, self.flip, self.cutout, self.resize = crop_padding, flip, cutout, resize
        self.held_out, self.held_out_seed, self.eval_subset = held_out, held_out_seed, eval_subset
        self._check_settings()
        self.train_images: InMemoryImages | None = None
        self.val_images: InMemoryImages | None = None
        self.test_images: InMemoryImages | None = None
        self.clean_labels: Tensor | None = None
        self._scale: Tensor | None = None  # [2, 1, 3, 1, 1]: mean and standard deviation in units of a uint8 pixel

    def _check_settings(self) -> None:
        for name, least, fix in (
            ("batch_size", 1, "Try 128."),
            ("eval_batch_size", 1, "Try 500."),
            ("num_workers", 0, "Try 0."),
            ("label_noise_seed", 0, "Try 0."),
            ("crop_padding", 0, "Use 0 for no crop."),
            ("cutout", 0, "Use 16, or 0 for none."),
            ("held_out_seed", 0, "Try 0."),
        ):
            check_setting(f"data.{name}", value := getattr(self, name), is_count(value, least), f"an int >= {least}", fix)
        for name, least, fix in (
            ("subset", 1, "Use null for all training images."),
            ("eval_subset", 1, "Use null for all test images."),
            ("resize", 8, "Use null to leave the images as they are."),
        ):
            value = getattr(self, name)
            known = value is None or is_count(value, least)
            check_setting(f"data.{name}", value, known, f"null or an int >= {least}", fix)
        for name in ("label_noise", "held_out"):
            check_setting(
                f"data.{name}", value := getattr(self, name), is_share(value), "a number in [0, 1)", "Try 0.1, or 0 for none."
            )
        for name, fix in (("drop_last", "Try false."), ("flip", "Use false for no mirroring.")):
            check_setting(f"data.{name}", value := getattr(self, name), isinstance(value, bool), "true or false", fix)

    def load(self) -> tuple[InMemoryImages, InMemoryImages | None]:
        """Return the training and the test images; None in place of the latter if there are none, which requires `held_out`.

        Images beyond `subset` and `eval_subset` need not be returned, because they are not used.
        """
        raise NotImplementedError

    @property
    def quiet(self) -> bool:
        """Whether reading shows no progress bar: if the Trainer shows none, and on all ranks but one."""
        trainer = self.trainer
        return trainer is not None and (trainer.progress_bar_callback is None or not trainer.is_global_zero)

    def setup(self, stage: str) -> None:
        """Read the images, once for all fits of a process."""
        if self.train_images is not None:
            return
        train, test = self.load()
        train = first_rows(train, "subset", self.subset)
        if test is not None:
            test = first_rows(test, "eval_subset", self.eval_subset)
        val = None
        if self.held_out:
            kept, held = stratified(train.labels, self.held_out, self.held_out_seed)
            enough = len(held) > 0
            check_setting("data.held_out", self.held_out, enough, "0 where each class has one image only", "Or take more images.")
            train, val = train.part(kept), train.part(held)
        some = val is not None or test is not None
        check_setting("data.held_out", self.held_out, some, "above 0 where there are no test images", "Try 0.1.")
        enough = not self.drop_last or len(train) >= self.batch_size
        check_setting("data.batch_size", self.batch_size, enough, f"at most {len(train)}", "Or use data.drop_last=false.")
        if self.mean is None:
            self.mean, self.std = channel_statistics(train)
        self.clean_labels = train.labels
        train = copy.copy(train)
        train.classes = self.class_names
        train.labels = with_label_noise(train.labels, self.label_noise, self.num_classes, self.label_noise_seed)
        self.train_images, self.val_images, self.test_images = train, val, test

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled loader of the training images."""
        return self._loader(self.train_images, self.batch_size, training=True)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of the held-out images; without `held_out`, of the test images."""
        images = self.test_images if self.val_images is None else self.val_images
        return self._loader(images, self.eval_batch_size, training=False)

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the test images if there are any, else of the held-out images."""
        images = self.val_images if self.test_images is None else self.test_images
        return self._loader(images, self.eval_batch_size, training=False)

    def _loader(self, images: InMemoryImages | None, batch_size: int, training: bool) -> DataLoader:
        return DataLoader(
            existing(images, "the data set of the loader", "setup()"),
            batch_size=batch_size,
            shuffle=training,
            drop_last=training and self.drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # cast: PyTorch's type assumes a data set without `__getitems__`, whose collate_fn gets a list
            collate_fn=cast(Any, keep_batch),
        )

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Augment (only in training), normalise and scale the batch on its device: images become float32 [B, 3, H, W].

        A scoring pass over hidden samples counts as training here: it sees augmented images, as in the published code.
        """
        images, labels = batch
        training = self.trainer is not None and self.trainer.training
        generator = self.generator(images.device) if training else None
        images = self.normalise(self.augment(images, generator) if training else images)
        if training and self.cutout:
            images = cut_out(images, self.cutout, torch.rand(2, len(images), generator=generator, device=images.device))
        if self.resize is not None:
            images = F.interpolate(images, size=(self.resize, self.resize), mode="bicubic", antialias=True)
        return images, labels

    def generator(self, device: torch.device) -> torch.Generator:
        """Return a random generator to augment a batch, specific to this rank and seeded by a draw from the CPU's global stream.

        The global stream is equal on all ranks, so the rank is part of the seed. It is restored on resuming, so a draw from it makes a
        resumed run augment the same way.
        """
        rank = 0 if self.trainer is None else self.trainer.global_rank
        drawn = int(torch.randint(2**62, (), device="cpu"))
        return torch.Generator(device).manual_seed(stream_seed(drawn, 0, f"augmentation:{rank}"))

    def augment(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images [B, 3, H, W], each cropped at a random place and randomly mirrored.

        Args:
            images: [B, 3, H, W] of any dtype.
            generator: random generator on the device of the images; None for the global stream.
        """
        batch, device = len(images), images.device
        top, left = torch.randint(2 * self.crop_padding + 1, (2, batch), generator=generator, device=device)
        flipped = torch.rand(batch, generator=generator, device=device) < (0.5 if self.flip else 0.0)
        return crop_and_flip(images, top, left, flipped, self.crop_padding)

    def normalise(self, images: Tensor) -> Tensor:
        """Return uint8 images [B, 3, H, W] as float32 of zero mean and unit variance per channel."""
        # copy only once, because a copy for each batch would make the GPU wait
        if self._scale is None or self._scale.device != images.device:
            self._scale = 255 * torch.tensor([self.mean, self.std], device=images.device).view(2, 1, 3, 1, 1)
        mean, std = self._scale
        return (images - mean) / std


class Digits(ImageData):
    """Scikit-learn's 1,797 digits of 8 x 8 pixels, included in the package and scaled up so that a network has work to do.

    Args:
        size: height and width in pixels after bilinear scaling.
        test_share: share of the images kept for validation, stratified by class.
        split_seed: seed of that split.
        settings: those of `ImageData`.
    """

    num_classes = 10
    class_names = tuple("0123456789")
    mean = (0.3054,) * 3
    std = (0.3237,) * 3

    def __init__(self, size: int = 32, test_share: float = 0.2, split_seed: int = 0, **settings) -> None:
        super().__init__(**{"batch_size": 64, "flip": False, **settings})
        check_setting("data.size", size, is_count(size, 8), "an int >= 8", "Try 32.")
        check_setting("data.test_share", test_share, 0.01 <= test_share <= 0.99, "within 0.01 and 0.99", "Try 0.2.")
        check_setting("data.split_seed", split_seed, is_count(split_seed, 0), "an int >= 0", "Try 0.")
        self.size = size
        self.test_share = test_share
        self.split_seed = split_seed

    def load(self) -> tuple[InMemoryImages, InMemoryImages]:
        """Return the images scaled to [N, 3, size, size] in uint8, split by class."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = cast(Any, load_digits())  # cast: without type hints the wrong return type is inferred
        pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
        pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bilinear", align_corners=False)
        images = pixels.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        labels = torch.from_numpy(digits.target).long()
        train, test = train_test_split(
            torch.arange(len(labels)).numpy(), test_size=self.test_share, random_state=self.split_seed, stratify=digits.target
        )
        return InMemoryImages(images[train], labels[train]), InMemoryImages(images[test], labels[test])
