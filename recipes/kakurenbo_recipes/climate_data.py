"""DeepCAM's climate images: a reader of the HDF5 files of MLPerf HPC.

A file holds one moment of a climate simulation (CAM5): `climate/data`, float32 [768, 1152, 16], and the class of each pixel in
`climate/labels_0`, [768, 1152]: 0 background, 1 tropical cyclone, 2 atmospheric river. The folder that NERSC hands out has
train/, validation/ and test/ with files data-YYYY-MM-DD-HH-MM-S.h5, and stats.h5 with `climate/minval` and `climate/maxval`
([16], over the training files), which scale each channel to [0, 1]. Kurth et al.: "Exascale Deep Learning for Climate
Analytics", SC 2018; reference code: https://github.com/mlcommons/hpc/tree/main/deepcam.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import h5py
import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kakurenbo_recipes.deepcam import LIMITS, Synthetic, is_free
from kakurenbo_recipes.settings import check_setting, is_count, is_share

# class frequencies over all training pixels, from train.py of the reference code
CLASS_FREQUENCIES = (0.986267818390377, 0.0004578708870701058, 0.01327431072255291)
GLOBUS = "https://app.globus.org/file-manager?origin_id=0b226e2c-4de0-11ea-971a-021304b0cca7&origin_path=%2F"


def dataset_in(file: h5py.File, name: str) -> h5py.Dataset:
    """Return an array from an open file. h5py's lookup by name could also return a group, so the type is checked."""
    return cast(h5py.Dataset, file[name])


class ClimateFiles(Dataset):
    """Images in HDF5 files. The file is opened for each item, because open HDF5 files cannot be shared with worker processes.

    Args:
        files: one for each sample.
        low: float32 [C], value of each channel that is mapped to 0.
        high: float32 [C], value of each channel that is mapped to 1.
        channels: numbers of the channels to read; None for all.
    """

    def __init__(self, files: Sequence[Path], low: np.ndarray, high: np.ndarray, channels: Sequence[int] | None = None) -> None:
        self.files = list(files)
        self.channels = list(range(len(low))) if channels is None else list(channels)
        self.available = len(low)
        self.low = low[self.channels]
        span = (high - low)[self.channels]
        # a constant channel becomes 0 instead of a division by zero
        self.scale = np.divide(1, span, out=np.zeros_like(span), where=span > 0)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image, float32 [C, H, W], and the class of each pixel, int64 [H, W].

        Raises:
            ValueError: the file does not hold such arrays.
        """
        with h5py.File(self.files[index], "r") as file:
            found = {name: dataset_in(file, name).shape for name in ("climate/data", "climate/labels_0") if name in file}
            data, labels = found.get("climate/data", ()), found.get("climate/labels_0", ())
            if len(labels) != 2 or data != (*labels, self.available):
                raise ValueError(
                    f"{self.files[index]} holds {found or 'nothing'}, but climate/data [H, W, {self.available}] and climate/labels_0 "
                    "[H, W] are needed, with as many channels as stats.h5: take the file and stats.h5 from one set."
                )
            image, classes = dataset_in(file, "climate/data")[...], dataset_in(file, "climate/labels_0")[...]
        if len(self.channels) < self.available:
            image = image[..., self.channels]
        image = np.subtract(image, self.low, dtype=np.float32)
        image *= self.scale
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(classes.astype(np.int64))


class DeepCam(L.LightningDataModule):
    """DeepCAM data from a folder in NERSC's layout, real or synthetic.

    Args:
        root: folder of stats.h5, train/ and validation/ (and test/, for `Trainer.test`).
        channels: numbers of the channels to read; None for all 16. The network must have as many input channels.
        batch_size: samples of a training batch (of one process).
        eval_batch_size: samples of a validation batch.
        num_workers: worker processes of each loader.
        drop_last: whether to leave out an epoch's last training batch when it is short. Under `SampleSelection` this is not needed:
            it spreads a short tail over the batches before it, so that none has one sample only.
        held_out: share of the training images, drawn by `held_out_seed`, that are validated on in place of the validation images.
        held_out_seed: seed of that draw.

    Attributes:
        num_classes: 3.
        class_weights: weights of the classes in the loss, as in the reference code: each class's share of the pixels to the power of
            -1 / 8.

    Raises:
        FileNotFoundError: in `setup`, if a file or folder is missing.
    """

    num_classes = 3
    class_weights = tuple(share**-0.125 for share in CLASS_FREQUENCIES)

    def __init__(
        self,
        root: str = "data/deepcam",
        channels: Sequence[int] | None = None,
        batch_size: int = 2,
        eval_batch_size: int = 2,
        num_workers: int = 8,
        drop_last: bool = False,
        held_out: float = 0.0,
        held_out_seed: int = 0,
    ) -> None:
        super().__init__()
        check_setting("data.batch_size", batch_size, is_count(batch_size, 1), "an int >= 1", "Try 2.")
        check_setting("data.eval_batch_size", eval_batch_size, is_count(eval_batch_size, 1), "an int >= 1", "Try 2.")
        check_setting("data.num_workers", num_workers, is_count(num_workers, 0), "an int >= 0", "Try the number of cores.")
        check_setting("data.drop_last", drop_last, isinstance(drop_last, bool), "true or false", "Try false.")
        self.root, self.channels = Path(root).expanduser(), None if channels is None else list(channels)
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        check_setting("data.held_out", held_out, is_share(held_out), "a number in [0, 1)", "Try 0.1, or 0 for none.")
        check_setting("data.held_out_seed", held_out_seed, is_count(held_out_seed, 0), "an int >= 0", "Try 0.")
        self.drop_last, self.held_out, self.held_out_seed = drop_last, held_out, held_out_seed
        self._images: dict[str, ClimateFiles] = {}

    def setup(self, stage: str) -> None:
        """Find the files of the stage: "fit", "validate" or "test"."""
        low, high = self._range()
        known = self.channels is None or (
            len(self.channels) > 0 and all(is_count(channel, 0) and channel < len(low) for channel in self.channels)
        )
        check_setting("data.channels", self.channels, known, f"null or a list of ints below {len(low)}", "Use null for all.")
        parts = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ()}[stage]
        for part in parts:
            self._images[part] = ClimateFiles(self._part(part), low, high, self.channels)

    def _part(self, part: str) -> list[Path]:
        """Return the files of a part, with the held-out files moved from the training to the validation part."""
        if not self.held_out or part == "test":
            return self._files(part)
        files = self._files("train")
        order = np.random.default_rng(self.held_out_seed).permutation(len(files))
        held = set(order[: max(1, round(self.held_out * len(files)))].tolist())
        left = len(held) < len(files)
        check_setting("data.held_out", self.held_out, left, "a share that leaves a file to train", "Try 0.1, or 0 for none.")
        return [file for number, file in enumerate(files) if (number in held) == (part == "validation")]

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """Read the least and the largest value of each channel, float32 [C] each."""
        path = self.root / "stats.h5"
        if not path.is_file():
            raise self._missing("no stats.h5")
        with h5py.File(path, "r") as file:
            if "climate/minval" not in file or "climate/maxval" not in file:
                raise self._missing("a stats.h5 without climate/minval and climate/maxval")
            low, high = dataset_in(file, "climate/minval")[...], dataset_in(file, "climate/maxval")[...]
            return low.astype(np.float32), high.astype(np.float32)

    def _files(self, part: str) -> list[Path]:
        files = sorted((self.root / part).glob("data-*.h5"))
        if not files:
            raise self._missing(f"no files {part}/data-*.h5")
        return files

    def _missing(self, what: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"data.root={str(self.root)!r} holds {what}: it must hold stats.h5 and the folders train and validation with files "
            f"data-YYYY-MM-DD-HH-MM-S.h5. Fetch the folder All-Hist of NERSC (8.8 TB) through Globus, {GLOBUS}, and set data.root to it, "
            f"or make synthetic files: python -m kakurenbo_recipes.deepcam -o {self.root}"
        )

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled loader of the training images."""
        return self._loader("train", self.batch_size, shuffle=True, drop_last=self.drop_last)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of the validation images."""
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the test images."""
        return self._loader("test", self.eval_batch_size)

    def _loader(self, part: str, batch_size: int, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
        workers = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        pinned = torch.cuda.is_available()
        return DataLoader(self._images[part], batch_size, shuffle, drop_last=drop_last, pin_memory=pinned, **workers)


class GeneratedDeepCam(DeepCam):
    """Synthetic files, written if they do not exist: the data of `debug=true`, read like the real ones.

    Args:
        root: folder to write to.
        files: number of training images.
        validation: number of validation images.
        height: height of an image in pixels.
        width: width of an image in pixels.
        generator_seed: seed of all random numbers.
        settings: those of `DeepCam`.
    """

    def __init__(
        self,
        root: str = "data/deepcam_synthetic",
        files: int = 64,
        validation: int = 16,
        height: int = 96,
        width: int = 144,
        generator_seed: int = 0,
        **settings,
    ) -> None:
        sizes = {"files": files, "validation": validation, "height": height, "width": width, "generator_seed": generator_seed}
        for name, value in sizes.items():
            least, most = LIMITS[name.removeprefix("generator_")]
            fits = is_count(value, least) and value <= most
            check_setting(f"data.{name}", value, fits, f"an int from {least} to {most}", "Leave it out for the default.")
        super().__init__(root, **{"num_workers": 0, **settings})
        self.made = Synthetic(files, validation, 0, height, width, generator_seed)

    def prepare_data(self) -> None:
        """Write the files if they do not exist.

        Raises:
            ValueError: the folder holds files that were made with other settings.
        """
        if is_free(self.root):
            self.made.write(self.root)
        found = Synthetic.read(self.root)
        hint = "Choose another folder, or delete this one."
        check_setting("data.root", str(self.root), found == self.made, f"new, or synthetic files of {self.made}", hint)
