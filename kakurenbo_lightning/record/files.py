"""The files of a run folder: each is whole or not there."""

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

FORMAT = 1
SECRET = re.compile(r"(^|[._-])(key|apikey|token|password|passwd|secret)$", re.IGNORECASE)
ADDRESS = re.compile(r"(://)[^/@\s]+@")
RUN, EPOCHS, SAMPLES, THUMBNAILS = "run.json", "selection.parquet", "samples.parquet", "thumbnails.npz"
LOSS_EDGES = np.logspace(-6, 2, 49)  # of the histograms
SIDE = 64  # most pixels of a thumbnail's side
SHOWN = 24  # thumbnails of the most hidden samples, and of the least hidden
Shown = tuple[dict[int, np.ndarray], list[int], list[int]]


def replaced(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file under another name, then give it the name `path`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def command() -> str:
    """Return what was typed, without secrets."""
    words = sys.orig_argv or sys.argv or [""]
    return shlex.join(_masked(word) for word in [Path(words[0]).name, *words[1:]])


def without_secrets(value: Any, name: str = "") -> Any:
    """Return settings with HIDDEN in the place of passwords: of values of keys like `api_key`, and in addresses."""
    if isinstance(value, Mapping):
        return {key: without_secrets(part, str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part, name) for part in value]
    if isinstance(value, str):
        return "HIDDEN" if value and SECRET.search(name) else ADDRESS.sub(r"\1HIDDEN@", value)
    return value


def _masked(word: str) -> str:
    name, equals, _ = word.partition("=")
    return f"{name}=HIDDEN" if equals and SECRET.search(name) else ADDRESS.sub(r"\1HIDDEN@", word)


def write_run(folder: Path, told: Mapping[str, Any]) -> None:
    """Write run.json."""
    text = json.dumps(_json({"format": FORMAT, **told}), indent=2, allow_nan=False) + "\n"
    replaced(folder / RUN, lambda path: path.write_text(text))


def _json(value: Any) -> Any:
    """Return `value` with null for numbers that JSON does not have (NaN), and text for what it does not know."""
    if isinstance(value, Mapping):
        return {str(key): _json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_epochs(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write selection.parquet, a row per epoch; a column that a row lacks is null in it."""
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    table = table.replace_schema_metadata({"loss_edges": json.dumps(LOSS_EDGES.tolist())})
    replaced(folder / EPOCHS, lambda path: pq.write_table(table, path))


def write_samples(folder: Path, columns: Mapping[str, np.ndarray], epochs: int) -> None:
    """Write samples.parquet, a row per sample: what was known of them after `epochs` epochs."""
    count = len(next(iter(columns.values())))
    table = pa.table({"index": np.arange(count), **columns}).replace_schema_metadata({"epochs": str(epochs)})
    replaced(folder / SAMPLES, lambda path: pq.write_table(table, path, compression="zstd"))


def write_thumbnails(folder: Path, images: Mapping[int, np.ndarray], most: Sequence[int], least: Sequence[int]) -> None:
    """Write thumbnails.npz: images (uint8 [h, w, 3] by data set index, all of one size) and two orders of them."""
    arrays = {
        "indices": np.array(list(images)),
        "images": np.stack(list(images.values())),
        "most_hidden": np.array(most),
        "least_hidden": np.array(least),
    }

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    replaced(folder / THUMBNAILS, write)


def histogram(loss: Tensor) -> list[int]:
    """Count losses (float [N]) between `LOSS_EDGES`; what is not finite is left out, what is beyond is in the outer bins."""
    finite = loss[loss.isfinite()]
    low, high, bins = np.log10(LOSS_EDGES[0]), np.log10(LOSS_EDGES[-1]), len(LOSS_EDGES) - 1
    places = (finite.clamp_min(1e-30).log10() - low) * (bins / (high - low))
    return torch.bincount(places.long().clamp(0, bins - 1), minlength=bins).tolist()


def thumbnails(dataset: Any, columns: Mapping[str, np.ndarray]) -> Shown | None:
    """Return images by index, and the indices of the most and of the least hidden samples; None when the data are no images.

    Args:
        dataset: of N items.
        columns: "loss", "times_trained" and "times_hidden" of each item.
    """
    loss, hidden = np.nan_to_num(columns["loss"], nan=np.inf), columns["times_hidden"]
    # of methods that hide, hard samples that an incomplete last batch dropped must not look like easy ones
    order = np.lexsort((loss, -hidden) if hidden.any() else (loss, columns["times_trained"]))
    most, least = order[:SHOWN].tolist(), order[::-1][:SHOWN].tolist()
    images = {}
    for index in dict.fromkeys(most + least):
        image = thumbnail(dataset[index])
        if image is None:
            return None
        images[index] = image
    sides = [max(image.shape[axis] for image in images.values()) for axis in (0, 1)]
    return {index: _framed(image, *sides) for index, image in images.items()}, most, least


def _framed(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `image` [h, w, 3] in the middle of a black one of this size."""
    rest = [height - image.shape[0], width - image.shape[1]]
    return np.pad(image, [*((side // 2, side - side // 2) for side in rest), (0, 0)])


def thumbnail(item: Any) -> np.ndarray | None:
    """Return the image of a data set's item, uint8 [h, w, 3] of at most 64 x 64 pixels; None when there is none.

    The image is the item's first tensor or array of shape [C, H, W] or [H, W, C] with 1 or 3 channels, or a PIL image. What is
    not uint8 is scaled from its least to its largest value.
    """
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else [item]
    for part in parts:
        if hasattr(part, "convert"):  # PIL
            part = np.array(part.convert("RGB"))
        if not isinstance(part, Tensor | np.ndarray) or part.ndim not in (2, 3) or min(part.shape) < 1:
            continue
        pixels = torch.as_tensor(part).detach().cpu()
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if pixels.shape[0] not in (1, 3):
            pixels = pixels.permute(2, 0, 1)
        if pixels.shape[0] in (1, 3) and min(pixels.shape[1:]) >= 4:
            return _as_thumbnail(pixels)
    return None


def _as_thumbnail(pixels: Tensor) -> np.ndarray:
    values = pixels.float().nan_to_num(0, 0, 0)
    if pixels.dtype != torch.uint8:
        low, high = values.min(), values.max()
        values = (values - low) / (high - low).clamp_min(1e-12) * 255
    largest = max(values.shape[1:])
    if largest > SIDE:
        size = [max(1, round(side * SIDE / largest)) for side in values.shape[1:]]
        values = F.interpolate(values[None], size=size, mode="area")[0]
    return values.round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy()
