"""Synthetic climate images in files of DeepCAM's form: `python -m kakurenbo_recipes.deepcam`.

Noise like weather, ellipses of rotating wind and low pressure (class 1) and long bent bands of moist air (class 2), as rare as in the
real data, with a stats.h5; `kakurenbo_recipes.climate_data` reads them and says what the files hold. Each image depends on the seed and
its number only, so that a larger set holds the smaller one.

torch is imported only when images are made, so that the help is fast.
"""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from kakurenbo_lightning.core.progress import bar_settings

PARTS = ("train", "validation", "test")
# smallest and largest allowed value of each setting
LIMITS = {
    "files": (2, 10**6),
    "validation": (1, 10**6),
    "test": (0, 10**6),
    "height": (32, 4096),
    "width": (32, 4096),
    "seed": (0, 2**31),
}


@dataclass(frozen=True)
class Synthetic:
    """The settings from which a synthetic set is made.

    Attributes:
        files: number of training images.
        validation: number of validation images.
        test: number of test images.
        height: height of an image in pixels.
        width: width of an image in pixels.
        seed: seed of all random numbers.
    """

    files: int = 64
    validation: int = 16
    test: int = 0
    height: int = 96
    width: int = 144
    seed: int = 0

    @classmethod
    def read(cls, root: Path) -> "Synthetic | None":
        """Return the settings of the set in a folder; None if it holds none."""
        path = root / "synthetic.json"
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    def write(self, root: Path) -> None:
        """Write the set to a temporary folder, which is renamed to `root` when it is complete."""
        from kakurenbo_recipes.climate import climate

        unfinished = root.with_name(f"{root.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        statistics = Statistics()
        with tqdm(**bar_settings(total=self.files + self.validation + self.test, desc="climate files", unit="file")) as bar:
            for number, (part, count) in enumerate(zip(PARTS, (self.files, self.validation, self.test), strict=True)):
                (unfinished / part).mkdir(parents=True)
                for index in range(count):
                    data, labels = climate(self.height, self.width, np.random.default_rng([self.seed, number, index]))
                    write_file(unfinished / part / file_name(index), data, labels)
                    if part == "train":
                        statistics.add(data)
                    bar.update()
        statistics.write(unfinished / "stats.h5")
        (unfinished / "synthetic.json").write_text(json.dumps(asdict(self)) + "\n")
        unfinished.rename(root)


def is_free(folder: Path) -> bool:
    """Whether a folder is empty or does not exist."""
    return not folder.exists() or not any(folder.iterdir())


def file_name(index: int) -> str:
    """Return the name of a file, made of its moment: one every three hours."""
    return (datetime(2106, 1, 1) + timedelta(hours=3 * index)).strftime("data-%Y-%m-%d-%H-%M-0.h5")


def write_file(path: Path, data: np.ndarray, labels: np.ndarray) -> None:
    """Write an image (float32 [H, W, C]) and its classes (integers [H, W]) as a file of DeepCAM."""
    with h5py.File(path, "w") as file:
        file["climate/data"], file["climate/labels_0"] = data, labels


class Statistics:
    """Count, mean, mean square, smallest and largest value of each channel over the pixels of all images added."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, data: np.ndarray) -> None:
        """Add an image, float32 [H, W, C]."""
        pixels = data.reshape(-1, data.shape[2]).astype(np.float64)
        self._parts.append(np.stack([pixels.mean(0), np.square(pixels).mean(0), pixels.min(0), pixels.max(0)]))

    def write(self, path: Path) -> None:
        """Write a stats.h5 in the layout of the real one."""
        mean, square, least, most = np.stack(self._parts, axis=1)
        found = {"mean": mean.mean(0), "sqmean": square.mean(0), "minval": least.min(0), "maxval": most.max(0)}
        with h5py.File(path, "w") as file:
            file["climate/count"] = len(self._parts)
            for name, values in found.items():
                file[f"climate/{name}"] = values.astype(np.float32)


def checked(arguments: list[str] | None) -> tuple[Synthetic, Path]:
    """Read the command line; exit when a setting is not possible."""
    options = argparse.ArgumentParser(
        prog="python -m kakurenbo_recipes.deepcam", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    helps = {
        "files": "training images (the real set has 121,266)",
        "validation": "validation images (the real set has 15,158)",
        "test": "test images",
        "height": "pixels from north to south (768 in the real set)",
        "width": "pixels from west to east (1152 in the real set); an image takes 64 bytes for a pixel",
        "seed": "seed of all random numbers (default: 0)",
    }
    default = Synthetic()
    for name, text in helps.items():
        value = getattr(default, name)
        options.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{text} (default: {value})")
    folder = Path("data/deepcam_synthetic")
    options.add_argument("-o", "--output", type=Path, default=folder, help=f"folder to write (default: {folder})")
    settings = options.parse_args(arguments)
    for name, (least, most) in LIMITS.items():
        if not least <= (value := getattr(settings, name)) <= most:
            options.error(f"--{name} {value} is not possible: it must be from {least} to {most}")
    if not is_free(settings.output):
        options.error(f"--output {settings.output} exists and is not empty: choose another folder, or delete this one")
    return Synthetic(**{name: getattr(settings, name) for name in helps}), settings.output


def main(arguments: list[str] | None = None) -> None:
    """Write a synthetic set and say how to train on it."""
    made, folder = checked(arguments)
    made.write(folder)
    total = made.files + made.validation + made.test
    print(f"{total:,} files in {folder}; train on them: kakurenbo-train experiment=deepcam data.root={folder}")


if __name__ == "__main__":
    main()
