"""Shared by the tests of benchmarks: process-wide settings put back, a CIFAR-10 of sixteen images, and a look at what was written."""

import json
import logging
from contextlib import contextmanager

import numpy as np
import torch
from image_files import write_parquet


@contextmanager
def as_before():
    """One thread is enough here; the number of threads and Lightning's log level are put back afterwards."""
    threads, log = torch.get_num_threads(), logging.getLogger("lightning.pytorch")
    level = log.level
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    log.setLevel(level)


def written(path):
    """What a benchmark wrote, which says with what it was measured."""
    result = json.loads(path.read_text())
    machine = result["machine"]
    assert machine["command"].startswith("python -m recipes.benchmarks.")
    assert machine["torch"] == torch.__version__
    return result


def tiny_cifar(folder, colours=((0, 0, 0),)):
    """Sixteen training and test images of eight classes of one colour each, in the layout that
    `kakurenbo_recipes.parquet_data.CIFAR10` reads.

    Args:
        folder: where to.
        colours: of the classes, in turn.
    """
    labels = list(range(8)) * 2
    images = [np.full((32, 32, 3), colours[label % len(colours)], np.uint8) for label in labels]
    for part in ("train", "test"):
        write_parquet(folder / f"{part}.parquet", images, labels, "img")
