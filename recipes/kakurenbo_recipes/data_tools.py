"""Tools that data modules share: stratified splits, pixel statistics, and downloads that leave no empty folders behind."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from kakurenbo_recipes.settings import check_setting

if TYPE_CHECKING:  # a circular import at run time
    from kakurenbo_recipes.data import InMemoryImages

Made = TypeVar("Made")

PIXELS = 50_000_000  # at most so many pixels are used for mean and standard deviation; enough for all of CIFAR-10


def existing(value: Made | None, name: str, step: str) -> Made:
    """Return what a setup step has made.

    Raises:
        RuntimeError: it is None, because the step has not run.
    """
    if value is None:
        raise RuntimeError(f"{name} is None, but it must be there: run {step} first, which makes it.")
    return value


def shared(key: Hashable, make: Callable[[], Made]) -> Made:
    """Return what `make` returned for the same key earlier in this process, or call it.

    Only the last two results are kept (a training and a test part), so that a sweep over methods reads its images once, and a sweep over
    data sets does not keep all of them. Shared objects must not be changed.

    Args:
        key: everything that the result depends on.
        make: makes the result.
    """
    found = _SHARED.pop(key) if key in _SHARED else make()
    _SHARED[key] = found
    while len(_SHARED) > 2:
        _SHARED.pop(next(iter(_SHARED)))
    return found


_SHARED: dict[Hashable, Any] = {}  # module level, because the runs of a process share nothing else


def stratified(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the samples of each class into a rest and a share, drawn with `seed`.

    The number taken from each class is the nearest whole number to its share, at least one, but never all.

    Args:
        labels: int64 [N], >= 0.
        share: share of each class to split off, in [0, 1).
        seed: seed of the draw.

    Returns:
        The rows of the rest and of the share, int64, ascending.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # sorted by class, in random order within each class
    counts = labels.bincount()
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    taken = (share * counts).round().long().clamp_min(1).minimum(counts - 1)
    drawn = place < taken.repeat_interleave(counts)
    return order[~drawn].sort().values, order[drawn].sort().values


def channel_statistics(images: "InMemoryImages") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over all pixels of the images, in units of 255.

    If the data set has more than `PIXELS` pixels, only as many evenly spread images are used as have that many pixels.

    Args:
        images: return uint8 [B, 3, H, W] and labels for a list of indices.
    """
    area = images[0][0][0].numel()
    taken = max(1, min(len(images), PIXELS // area))
    rows = torch.arange(taken) * len(images) // taken
    counts = torch.zeros(3, 256, dtype=torch.int64)  # histogram of the pixel values of each channel
    for some in rows.split(max(1, 1_000_000 // area)):
        pixels = images.__getitems__(some.tolist())[0]
        counts += torch.stack([pixels[:, channel].reshape(-1).bincount(minlength=256) for channel in range(3)])
    weights, values = counts.double() / counts.sum(1, keepdim=True), torch.arange(256).double() / 255
    mean = (weights * values).sum(1)
    # a constant channel would have a deviation of 0
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt().clamp_min(1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def checked_scale(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the settings `data.mean` and `data.std` as three numbers each, or None if both are None.

    Raises:
        ValueError: only one of them is given, or they are not three numbers, or a deviation is not above 0.
    """
    if mean is None and std is None:
        return None
    for name, values, least in (("mean", mean, float("-inf")), ("std", std, 0)):
        ok = isinstance(values, Sequence) and len(values) == 3 and all(isinstance(v, int | float) and v > least for v in values)
        allowed = "three numbers" if name == "mean" else "three numbers above 0"
        check_setting(f"data.{name}", values, ok, f"{allowed}, one for each channel", "Set mean and std, or neither of them.")
    assert mean is not None and std is not None  # check_setting above guarantees it
    return tuple(mean), tuple(std)


@contextmanager
def leaving_no_empty_folders(root: Path) -> Iterator[None]:
    """Context that removes the empty folders created at and below `root` if the code inside fails."""
    known = {path for path in (root, *root.parents) if path.exists()} | set(root.iterdir() if root.is_dir() else ())
    try:
        yield
    except Exception:
        new = [path for path in (root.iterdir() if root.is_dir() else ()) if path not in known]
        # deepest first, so that parents are empty by then
        below = sorted((path for top in new for path in (top, *top.rglob("*"))), reverse=True)
        for folder in (*below, *(path for path in (root, *root.parents) if path not in known)):
            with suppress(OSError):  # rmdir refuses files and folders with content, which must stay
                folder.rmdir()
        raise
