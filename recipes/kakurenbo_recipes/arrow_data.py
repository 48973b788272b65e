"""Large images in parquet files, read one by one: a copy in Arrow's own format is mapped into memory, and workers decode from it.

Parquet packs some hundred images into a group that is read as a whole, so a random order would read every image hundreds of times.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from kakurenbo_recipes.parquet_files import ParquetPart, ParquetSet, decoded
from kakurenbo_recipes.torchvision_data import LargeImages

MADE_FROM = b"kakurenbo.made_from"


class ArrowImages(Dataset):
    """The encoded images of an Arrow file, each decoded when it is asked for. Copies in other processes map the file anew.

    Args:
        path: of the file that `arrow_copy` has made.
        part: what it was made from.

    Attributes:
        targets: int64 [N], the classes.
        transform: what is made of a PIL image; None leaves it as it is.
    """

    def __init__(self, path: Path, part: ParquetPart) -> None:
        self.path, self.part, self.targets, self.made_from = path, part, part.labels, made_from(part)
        self.transform: Callable[[Image.Image], Any] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Leave out the map, which would be copied as a whole."""
        return {name: value for name, value in self.__dict__.items() if name != "encoded"}

    @cached_property
    def encoded(self) -> pa.ChunkedArray:
        """The mapped images, binary.

        Raises:
            ValueError: the file is damaged, not there any more, or by now a copy of other files than those the classes were read from.
        """
        if (found := opened_copy(self.path, self.made_from, len(self))) is not None:
            return found
        raise ValueError(
            f"{self.path} is not the copy of the {len(self):,} images whose classes were read from {self.part.files[0]}: one of the "
            "files has changed since. Delete the copy and start again; runs on other files need no other data.cache."
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the transformed image and its class."""
        image = decoded(self.encoded[index].as_buffer(), *self.part.place(index))
        return image if self.transform is None else self.transform(image), int(self.targets[index])


def arrow_copy(part: ParquetPart, path: Path) -> None:
    """Write the encoded images of a part into one Arrow file, in which each can be read by itself, unless it is there already.

    It takes the disk space of the parquet files, or more where those are compressed, and gets its name when it is whole. When they change
    it is made anew.

    Raises:
        OSError: the file cannot be written.
    """
    now = made_from(part)
    if opened_copy(path, now, len(part)) is not None:
        return
    schema = pa.schema([("image", pa.large_binary())], metadata={MADE_FROM: now})
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            pa.OSFile(str(partial), "wb") as file,
            pa.ipc.new_file(file, schema) as writer,
            tqdm(total=len(part), desc=f"copying to {path}", unit="", disable=rank_zero_only.rank != 0) as bar,
        ):
            for values in part.encoded():
                writer.write_batch(pa.record_batch([values.cast(pa.large_binary())], schema=schema))
                bar.update(len(values))
        partial.replace(path)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error}). It takes as much of the disk as the parquet files, or more: set data.cache to a "
            "folder that has room."
        ) from None
    finally:
        with suppress(OSError):  # not there
            partial.unlink()


def copy_of(part: ParquetPart, cache: Path) -> Path:
    """Return where the copy of a part is: a name of its own for other files, or another column."""
    source = json.dumps([[str(file.resolve()) for file in part.files], part.columns(part.files[0])[0]])
    return cache / f"{part.name}-{hashlib.sha1(source.encode()).hexdigest()[:10]}.arrow"


def made_from(part: ParquetPart) -> bytes:
    """Return what the copy of a part is made from: the files as they are now, and the column."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in part.files]
    return json.dumps([files, part.columns(part.files[0])[0]]).encode()


def opened_copy(path: Path, source: bytes, count: int) -> pa.ChunkedArray | None:
    """Map the images of a copy, binary; None when it is not there, damaged, or not of `count` images made from `source`."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError):
        return None
    made = (table.schema.metadata or {}).get(MADE_FROM)
    return table.column(0) if made == source and len(table) == count else None


class ParquetLargeImages(LargeImages):
    """Images of different sizes in parquet files in the layout of Hugging Face `datasets`, decoded and cropped by workers.

    Args:
        root: folder of the files, see `ParquetImages`.
        train: name of the training part.
        test: name of the part to validate on; None: the first of test, validation, valid and val that is there; when none is, a share
            of the training images.
        image_column: of the encoded images; None: `image` or `img`.
        label_column: of the classes; None: `label`, `labels` or `fine_label`.
        cache: folder for the copies in Arrow's format, each named by the files it is of; None: `root/arrow`.
        settings: those of `LargeImages`.
    """

    def __init__(
        self,
        root: str = "data/parquet",
        train: str = "train",
        test: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        cache: str | None = None,
        **settings,
    ) -> None:
        super().__init__(**settings)
        self.files = ParquetSet(Path(root).expanduser(), train, test, image_column, label_column)
        self.cache = self.files.root / "arrow" if cache is None else Path(cache).expanduser()

    @property
    def num_classes(self) -> int:
        """Number of classes of the training part."""
        return self.files.train_part.num_classes

    def prepare_data(self) -> None:
        """Make the copies, one for each part."""
        for part in self._parts().values():
            arrow_copy(part, copy_of(part, self.cache))

    def load(self) -> tuple[ArrowImages, ArrowImages | None]:
        """Open the copies."""
        self.prepare_data()  # where nobody has called it
        found = {name: ArrowImages(copy_of(part, self.cache), part) for name, part in self._parts().items()}
        found["train"].classes = self.files.train_part.class_names
        return found["train"], found.get("test")

    def _parts(self) -> dict[str, ParquetPart]:
        parts = {"train": self.files.train_part}
        if self.files.has_test:
            parts["test"] = self.files.test_part
        return parts
