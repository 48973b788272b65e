"""Small images of the samples that were hidden most and least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kakurenbo_lightning.record.schema import Thumbnails

SIDE = 64  # most pixels of a thumbnail's side
SHOWN = 24  # images of the most hidden samples, and of the least hidden


def thumbnails_of(dataset: Any, columns: Mapping[str, np.ndarray]) -> Thumbnails | None:
    """Images of the most and the least hidden samples; ``None`` when the items of the data set hold no images.

    Args:
        dataset: a data set of N items.
        columns: ``"loss"``, ``"times_trained"`` and ``"times_hidden"``, each ``[N]``.
    """
    loss, hidden = np.nan_to_num(columns["loss"], nan=np.inf), columns["times_hidden"]
    # Where samples are hidden, hard ones that an incomplete last batch dropped must not look like easy ones.
    order = np.lexsort((loss, -hidden) if hidden.any() else (loss, columns["times_trained"]))
    most, least = order[:SHOWN], order[::-1][:SHOWN].tolist()
    most = (most[hidden[most] > 0] if hidden.any() else most).tolist()
    images = {}
    for index in dict.fromkeys(most + least):
        image = thumbnail(dataset[index])
        if image is None:
            return None
        images[index] = image
    height, width = (max(image.shape[axis] for image in images.values()) for axis in (0, 1))
    return Thumbnails({index: _framed(image, height, width) for index, image in images.items()}, most, least)


def thumbnail(item: Any) -> np.ndarray | None:
    """The image of a data set's item, ``uint8[h, w, 3]`` of at most 64 x 64 pixels; ``None`` when it has none.

    The image is the item's first PIL image, tensor or array of shape ``[h, w]``, ``[c, h, w]`` or ``[h, w, c]`` with c = 1 or 3. What is
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
            return _small(pixels)
    return None


def _small(pixels: Tensor) -> np.ndarray:
    """Pixels ``[c, h, w]`` of any dtype as ``uint8[h, w, 3]``."""
    values = pixels.float().nan_to_num(0, 0, 0)
    if pixels.dtype != torch.uint8:
        low, high = values.min(), values.max()
        values = (values - low) / (high - low).clamp_min(1e-12) * 255
    largest = max(values.shape[1:])
    if largest > SIDE:
        size = [max(1, round(side * SIDE / largest)) for side in values.shape[1:]]
        values = F.interpolate(values[None], size=size, mode="area")[0]
    return values.round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy()


def _framed(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image in the middle of a black one of this size."""
    rest = [height - image.shape[0], width - image.shape[1]]
    return np.pad(image, [*((side // 2, side - side // 2) for side in rest), (0, 0)])
