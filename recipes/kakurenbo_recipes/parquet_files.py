"""Images in parquet files as Hugging Face `datasets` writes them: which files a part has, and what is in them.

Small images: `kakurenbo_recipes.parquet_data`. Large ones: `kakurenbo_recipes.arrow_data`.
"""

import io
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
TEST_PARTS = ("test", "validation", "valid", "val")
ROWS = 256  # that are read at a time


def part_files(root: Path, part: str) -> tuple[Path, ...]:
    """Return the files of a part in their order: `part.parquet` or `part-00000-of-00005.parquet` and so on, in `root` or `root/data`.

    Returns:
        The files; none when the part is not there.

    Raises:
        FileNotFoundError: some of several files are there, and some not.
    """
    for folder in (root, root / "data"):
        if (whole := folder / f"{part}.parquet").is_file():
            return (whole,)
        shards = {}
        for path in sorted(folder.glob(f"{part}-*.parquet")):
            if found := re.fullmatch(rf"{re.escape(part)}-(\d+)-of-(\d+)(-\w+)?\.parquet", path.name):
                shards.setdefault(int(found[2]), {})[int(found[1])] = path
        for total, paths in shards.items():
            if missing := sorted(set(range(total)) - set(paths)):
                raise FileNotFoundError(
                    f"{folder} holds {len(paths)} of the {total} files of the part {part!r}, but not {part}-{missing[0]:05d}-of-"
                    f"{total:05d}.parquet. Download what is missing."
                )
        if len(shards) > 1:
            counts = " and in ".join(map(str, shards))
            raise FileNotFoundError(f"{folder} holds the part {part!r} in {counts} files. Leave only the one or the other.")
        for total, paths in shards.items():
            return tuple(paths[number] for number in range(total))
    return ()


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file.

    Raises:
        ValueError: it is damaged, or no parquet file.
    """
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} is not a whole parquet file ({error}). Download it anew; a file of a few hundred bytes may be a pointer of Git LFS."
        ) from None


def decoded(data: object | None, path: Path, row: int) -> Image.Image:
    """Decode an image to RGB; `path` and `row` are for the error.

    Raises:
        ValueError: there are no bytes, or Pillow cannot read them.
    """
    if data is None:
        raise ValueError(
            f"{path}: row {row} holds no encoded image: its bytes are null. Use a data set that has the images in the file."
        )
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(
            f"{path}: row {row} cannot be decoded ({type(error).__name__}: {error}). Download the file anew, or remove the row."
        ) from None


@dataclass(frozen=True)
class ParquetPart:
    """The files of one part of a data set.

    Args:
        files: at least one, in order.
        image_column: of the encoded images, a struct with the field `bytes`, or bytes; None: one of `IMAGE_COLUMNS`.
        label_column: of the classes, integers; None: one of `LABEL_COLUMNS`.
    """

    files: tuple[Path, ...]
    image_column: str | None = None
    label_column: str | None = None

    @property
    def name(self) -> str:
        """What the part is called, as `train`."""
        return re.sub(r"(-\d+-of-\d+(-\w+)?)?\.parquet$", "", self.files[0].name)

    def columns(self, path: Path) -> tuple[str, str]:
        """Return the names of the two columns in one of the files.

        Raises:
            ValueError: one is missing or of another type.
        """
        with opened(path) as file:
            schema = file.schema_arrow
        image = self.image_column, IMAGE_COLUMNS, "a struct with the field 'bytes'", _holds_bytes
        label = self.label_column, LABEL_COLUMNS, "integers", pa.types.is_integer
        return _column(path, schema, "image_column", *image), _column(path, schema, "label_column", *label)

    @cached_property
    def starts(self) -> list[int]:
        """The number of samples before each file, and at last of all."""
        starts = [0]
        for path in self.files:
            with opened(path) as file:
                starts.append(starts[-1] + file.metadata.num_rows)
        return starts

    def __len__(self) -> int:
        return self.starts[-1]

    def place(self, index: int) -> tuple[Path, int]:
        """Return the file that a sample is in, and its row there."""
        number = bisect_right(self.starts, index) - 1
        return self.files[number], index - self.starts[number]

    @cached_property
    def labels(self) -> Tensor:
        """The class of each sample, int64 [N].

        Raises:
            ValueError: one is missing or negative, or there are none.
        """
        labels = []
        for path in self.files:
            column = self.columns(path)[1]
            with opened(path) as file:
                values = file.read([column])[column].cast(pa.int64()).fill_null(-1).to_numpy().copy()
            if (wrong := np.flatnonzero(values < 0)).size:
                raise ValueError(
                    f"{path}: row {wrong[0]} has the label {values[wrong[0]]} in the column {column!r} (-1 stands for none), but classes "
                    "from 0 on are needed. Data sets of Hugging Face often hide the labels of the part 'test': try data.test=validation"
                )
            labels.append(torch.from_numpy(values))
        if not any(map(len, labels)):
            raise ValueError(f"{self.files[0]} holds no rows. Download the file anew.")
        return torch.cat(labels)

    @cached_property
    def num_classes(self) -> int:
        """How many names of classes Hugging Face wrote into the first file; without them, the highest label and one more."""
        return len(self.class_names) if self.class_names else int(self.labels.max()) + 1

    @cached_property
    def class_names(self) -> list[str] | None:
        """The names that Hugging Face wrote into the first file, if any."""
        return class_names(self.files[0], self.columns(self.files[0])[1])

    def check_labels(self, num_classes: int) -> None:
        """Raise a ValueError when a label is not below `num_classes`."""
        if (wrong := (self.labels >= num_classes).nonzero()).numel():
            path, row = self.place(int(wrong[0]))
            raise ValueError(
                f"{path}: row {row} has the label {int(self.labels[wrong[0]])}, but the training part has {num_classes} classes. "
                "Are both parts of one data set?"
            )

    def encoded(self) -> Iterator[pa.Array]:
        """Yield the encoded images of at most `ROWS` samples at a time, binary."""
        for path in self.files:
            column = self.columns(path)[0]
            with opened(path) as file:
                for batch in file.iter_batches(ROWS, columns=[column]):
                    values = batch.column(0)
                    yield pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values


def _column(
    path: Path,
    schema: pa.Schema,
    setting: str,
    wanted: str | None,
    usual: tuple[str, ...],
    needed: str,
    suits: Callable[..., bool],
) -> str:
    """Return the name of the column that is wanted, or is one of the usual ones, and holds what is needed."""
    names = (wanted,) if wanted else usual
    name = next((name for name in names if name in schema.names), None)
    if name is None:
        raise ValueError(
            f"{path} has the columns {schema.names}, but {' or '.join(map(repr, names))}, {needed}, is missing. Take the file from a "
            f"Hugging Face image classification data set, or name the column: data.{setting}=..."
        )
    kind = schema.field(name).type
    if not suits(kind):
        raise ValueError(
            f"{path}: the column {name!r} holds {kind}, not {needed}. Name another one of {schema.names}: data.{setting}=..."
        )
    return name


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def class_names(path: Path, column: str) -> list[str] | None:
    """Return the names of the classes that Hugging Face wrote into a file; None when there are none."""
    try:
        with opened(path) as file:
            written = (file.schema_arrow.metadata or {})[b"huggingface"]
        feature = json.loads(written)["info"]["features"][column]
        return feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):  # not there, or in another form
        return None


@dataclass(frozen=True)
class ParquetSet:
    """The two parts of a data set in parquet files.

    Args:
        root: folder of the files, or of a folder `data` with them.
        train: name of the training part.
        test: name of the part to test on; None: the first of `TEST_PARTS` that is there.
        image_column: see `ParquetPart`.
        label_column: see `ParquetPart`.
    """

    root: Path
    train: str = "train"
    test: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    @cached_property
    def train_part(self) -> ParquetPart:
        """The training part."""
        return self._part("train", (self.train,))

    @cached_property
    def test_part(self) -> ParquetPart:
        """The part to test on, whose labels are known to the training part.

        Raises:
            FileNotFoundError: it is not there.
        """
        part = self._part("test", TEST_PARTS if self.test is None else (self.test,))
        part.check_labels(self.train_part.num_classes)
        return part

    @property
    def has_test(self) -> bool:
        """Whether there is a part to test on; one that is asked for by name has to be there."""
        return self.test is not None or self.has(*TEST_PARTS)

    def has(self, *names: str) -> bool:
        """Tell whether one of the named parts is there."""
        return any(part_files(self.root, name) for name in names)

    def _part(self, setting: str, names: tuple[str, ...]) -> ParquetPart:
        files = next(filter(None, (part_files(self.root, name) for name in names)), ())
        if not files:
            raise FileNotFoundError(
                f"data.root={str(self.root)!r} holds no {names[0]}.parquet and no {names[0]}-00000-of-*.parquet"
                + (f", nor any of {', '.join(names[1:])}" if names[1:] else "")
                + f", neither itself nor in its folder data. Set data.root to the folder of the files, or data.{setting} to what they "
                "are called before the first dash or dot"
                + (", or validate on some of the training images: data.held_out=0.1" if setting == "test" else "")
            )
        part = ParquetPart(files, self.image_column, self.label_column)
        if setting == "train":
            part.check_labels(part.num_classes)
        return part
