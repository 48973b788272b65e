"""One part of a data set in parquet files as Hugging Face `datasets` writes them: its files, images and labels."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import datasets
import datasets.config
import datasets.exceptions
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")


def part_files(root: Path, part: str) -> list[Path]:
    """Return the files of a part in order: `part.parquet`, or `part-00000-of-00005.parquet` and so on, in `root` or `root/data`.

    Returns:
        The files; an empty list if the part does not exist.

    Raises:
        FileNotFoundError: some of several files are missing.
    """
    name = re.compile(rf"{re.escape(part)}-(\d+)-of-(\d+)(-\w+)?\.parquet")
    for folder in (root, root / "data"):
        if (whole := folder / f"{part}.parquet").is_file():
            return [whole]
        found = [(name.fullmatch(path.name), path) for path in folder.glob(f"{part}-*.parquet")]
        shards = sorted((int(match[1]), int(match[2]), path) for match, path in found if match)
        total = max((of for _, of, _ in shards), default=0)
        if [shard[:2] for shard in shards] != [(number, total) for number in range(total)]:
            names = ", ".join(path.name for _, _, path in shards)
            raise FileNotFoundError(f"{folder} holds {names}: a part of {part!r}, or two downloads. Leave a whole one there.")
        if shards:
            return [path for _, _, path in shards]
    return []


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context that turns Arrow's errors about a file into a ValueError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, TypeError) as error:
        raise ValueError(
            f"{path} is not a whole parquet file with encoded images and integer labels ({error}). Download it again (a file of a few "
            "hundred bytes may be a pointer of Git LFS), or name other columns: data.image_column=... data.label_column=..."
        ) from None


class ParquetPart(Dataset):
    """One part of a data set in parquet files; an item is a PIL image in RGB and its class.

    Args:
        files: one or more files, in order.
        image_column: column of the encoded images, a struct with the field `bytes`, or bytes; None: one of `IMAGE_COLUMNS`.
        label_column: column of the classes, integers; None: one of `LABEL_COLUMNS`.
        cache: folder for the copy that `datasets` makes to read single images; None: where it keeps its own ($HF_DATASETS_CACHE).

    Attributes:
        classes: names of the classes from the first file; None if there are none.
        transform: applied to each image; None returns it unchanged.

    Raises:
        ValueError: the first file is damaged, or a column is missing there.
    """

    def __init__(
        self, files: list[Path], image_column: str | None = None, label_column: str | None = None, cache: Path | None = None
    ) -> None:
        self.files, self.cache = files, cache
        with reading(files[0]):
            columns = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
        self.image = self._column(columns, "image_column", (image_column,) if image_column else IMAGE_COLUMNS)
        self.label = self._column(columns, "label_column", (label_column,) if label_column else LABEL_COLUMNS)
        self.classes: list[str] | None = getattr(columns[self.label], "names", None)
        self.transform: Callable[[Image.Image], Any] | None = None

    def _column(self, columns: Mapping[str, Any], setting: str, names: Sequence[str]) -> str:
        if found := [name for name in names if name in columns]:
            return found[0]
        raise ValueError(
            f"{self.files[0]} has the columns {list(columns)}, but {' or '.join(map(repr, names))} is missing. Take the file from a "
            f"Hugging Face image classification data set, or name the column: data.{setting}=..."
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the transformed image and its class."""
        rows = self.copy
        with self._naming(index):
            image = rows[int(index)][self.image].convert("RGB")
        return image if self.transform is None else self.transform(image), int(self.targets[index])

    def images(self) -> Iterator[Image.Image]:
        """Yield all images in their order, from the parquet files themselves."""
        index = 0
        for path in self.files:
            with reading(path):
                table = datasets.Dataset(pq.read_table(path, columns=[self.image])).cast_column(self.image, datasets.Image())
            rows = cast(Iterator[dict[str, Any]], iter(table))  # cast: `datasets` declares lists as well
            for _ in range(len(table)):
                with self._naming(index):
                    image = next(rows)[self.image].convert("RGB")
                yield image
                index += 1

    @cached_property
    def copy(self) -> datasets.Dataset:
        """The rows in the cache of `datasets`, memory-mapped. Changed files get a new copy.

        Raises:
            OSError: the copy cannot be written or read.
        """
        features = datasets.Features({self.image: datasets.Image(), self.label: datasets.Value("int64")})
        cache = self.cache or datasets.config.HF_DATASETS_CACHE
        options = {"features": features, "columns": list(features), "cache_dir": str(cache)}
        try:
            return datasets.Dataset.from_parquet([str(path) for path in self.files], **options)
        except (OSError, pa.ArrowException, datasets.exceptions.DatasetGenerationError) as error:
            raise OSError(
                f"the copy of {self.files[0]} in {cache} cannot be made or read ({error.__cause__ or error}). It takes as much of the "
                "disk as the parquet files, or more: set data.cache to another folder, or delete what is damaged."
            ) from error

    @contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        """Context that turns any error about an image into a ValueError that names its file and row."""
        try:
            yield
        except Exception as error:  # Pillow raises many kinds of errors; null bytes raise an AttributeError
            path, row = self.place(index)
            raise ValueError(
                f"{path}: row {row} cannot be decoded ({type(error).__name__}: {error}). Download the file again, or remove the row; a "
                "data set must have the encoded images in the file."
            ) from None

    def place(self, index: int) -> tuple[Path, int]:
        """Return the file that holds a sample, and its row in that file."""
        starts = [0, *accumulate(pq.read_metadata(path).num_rows for path in self.files)]
        number = bisect_right(starts, index) - 1
        return self.files[number], index - starts[number]

    @cached_property
    def targets(self) -> Tensor:
        """The class of each sample, int64 [N].

        Raises:
            ValueError: a label is missing or negative, or there are no labels.
        """
        labels = []
        for path in self.files:
            with reading(path):
                values = pq.read_table(path, columns=[self.label])[self.label].cast(pa.int64()).fill_null(-1).to_numpy()
            labels.append(torch.tensor(values))
        if not any(map(len, labels)):
            raise ValueError(f"{self.files[0]} holds no rows. Download the file again.")
        found = torch.cat(labels)
        hint = "Data sets of Hugging Face often hide the labels of the part 'test': try data.test=validation"
        self._check(found, found >= 0, f"must be 0 or more (-1 stands for none). {hint}")
        return found

    @cached_property
    def num_classes(self) -> int:
        """Number of class names, or the highest label plus one if there are no names."""
        return len(self.classes) if self.classes else int(self.targets.max()) + 1

    def check_labels(self, num_classes: int) -> None:
        """Raise a ValueError if a label is not below `num_classes`."""
        allowed = f"must be below {num_classes}, the classes of the training part. Are both parts of one data set?"
        self._check(self.targets, self.targets < num_classes, allowed)

    def _check(self, labels: Tensor, ok: Tensor, allowed: str) -> None:
        if not ok.all():
            wrong = int(ok.int().argmin())
            path, row = self.place(wrong)
            raise ValueError(
                f"{path}: row {row} has the label {int(labels[wrong])} in the column {self.label!r}, but it {allowed}"
            )
