"""Data sets that read files, in ways that break when another process has opened them; importable in a spawned worker."""

import os

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

CLASSES, FEATURES = 3, 6


def points(count, seed=0):
    """Features ``float32[count, 6]`` of three well separated classes, no two rows alike."""
    classes = np.arange(count) % CLASSES
    noise = np.random.default_rng(seed).normal(scale=0.5, size=(count, FEATURES))
    return (3 * np.eye(FEATURES)[classes] + noise).astype(np.float32)


class RawFile(Dataset):
    """Opens its file, unbuffered, when it is first read. An item is ``(x, class, index, whether this process opened the file)``.

    Args:
        path: of ``float32[count, 6]``.
        count: samples.
        by_init: the file is opened by :meth:`open`, which a ``worker_init_fn`` calls, and by nothing else.
    """

    def __init__(self, path, count, by_init=False):
        self.path, self.count, self.by_init = str(path), count, by_init
        self.file = self.opened_by = None

    def __len__(self):
        return self.count

    def open(self):
        self.file, self.opened_by = open(self.path, "rb", buffering=0), os.getpid()  # noqa: SIM115

    def __getitem__(self, index):
        if self.file is None:
            assert not self.by_init, "read before worker_init_fn has opened it"
            self.open()
        self.file.seek(index * FEATURES * 4)
        x = np.frombuffer(self.file.read(FEATURES * 4), dtype=np.float32)
        return torch.from_numpy(x.copy()), index % CLASSES, index, self.opened_by == os.getpid()


def open_file(number):
    """A ``worker_init_fn``."""
    get_worker_info().dataset.open()


class HDF5(Dataset):
    """Opens an HDF5 file when it is first read, as its users do; it cannot be pickled from then on."""

    def __init__(self, path, count):
        self.path, self.count, self.file = str(path), count, None

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if self.file is None:
            self.file = h5py.File(self.path, "r")
        return torch.from_numpy(self.file["x"][index]), index % CLASSES, index


class InWorkers(Dataset):
    """Cannot be read in the main process."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        assert get_worker_info() is not None, "read in the main process"
        return self.data[index]
