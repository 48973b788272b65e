"""Does a resumed run have the data set of the saved one?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from kakurenbo_lightning.core.random import isolated_rng, seed_everything
from kakurenbo_lightning.core.seeded_dataset import num_samples, set_dataset_epoch

PROBES = 8


def fingerprint(dataset: Dataset) -> str:
    """A hash of the length and of the bytes of a few samples, spread evenly over the data set.

    Random augmentations are drawn from a fixed seed meanwhile; the caller's random streams are left as they are. A sample that is not
    the same when it is read twice (a data set with a generator of its own) counts by its place alone, and one that cannot be read
    by its error's type: training will raise it where it belongs.
    """
    total = num_samples(dataset)
    digest = hashlib.blake2b(str(total).encode(), digest_size=16)
    set_dataset_epoch(dataset, 0)
    with isolated_rng():
        for probe in range(min(PROBES, total)):
            index = probe * total // min(PROBES, total)
            first, second = _sample(dataset, index), _sample(dataset, index)
            digest.update(first if first == second else b"changing")
    return digest.hexdigest()


def loader_fingerprint(loader: DataLoader) -> str:
    """:func:`fingerprint` of a loader's data set, which is read where the loader reads it.

    With workers that is another process, started for it in the loader's way: a data set that opens its file when it is first read must not
    be read here, because workers that are forked afterwards would all read through the one handle, and spawned ones could not be given it.

    Raises:
        Exception: what starting a worker raises, as it would when training begins.
    """
    if not loader.num_workers:
        return fingerprint(loader.dataset)
    probe = DataLoader(
        _Probe(loader.dataset),
        batch_size=None,
        num_workers=1,
        timeout=loader.timeout,
        worker_init_fn=partial(_begin_worker, loader.worker_init_fn),
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),  # not the global one, which training draws from
    )
    [found] = probe
    return found


class _Probe(Dataset):
    """A data set of one item: the fingerprint of ``dataset``, computed in the worker that reads it."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        return fingerprint(self.dataset)


def _begin_worker(init: Callable[[int], None] | None, number: int) -> None:
    """The user's ``worker_init_fn`` finds its own data set in ``get_worker_info().dataset``, and may change or replace parts of it."""
    info: Any = get_worker_info()
    object.__setattr__(info, "dataset", info.dataset.dataset)  # read-only otherwise
    if init is not None:
        init(number)


def _sample(dataset: Dataset, index: int) -> bytes:
    """A hash of one sample; of the type of its error where it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    seed_everything(index)
    try:
        _update(digest, dataset[index])
    except Exception as error:
        digest.update(type(error).__name__.encode())
    return digest.digest()


def _update(digest: Any, value: Any) -> None:
    """Feed one sample into ``digest``, going through lists, dicts and the fields of objects."""
    if isinstance(value, torch.Tensor):
        digest.update(str((value.dtype, tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    elif isinstance(value, np.ndarray | np.generic):
        content = b"objects" if value.dtype.hasobject else value.tobytes()
        digest.update(str((value.dtype, value.shape)).encode() + content)
    elif isinstance(value, str | bytes | int | float | bool | None):
        digest.update(repr(value).encode())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _update(digest, value[key])
    elif isinstance(value, Sequence):
        digest.update(str(len(value)).encode())
        for part in value:
            _update(digest, part)
    elif hasattr(value, "tobytes"):  # PIL images
        digest.update(value.tobytes())
    else:
        digest.update(type(value).__qualname__.encode())
