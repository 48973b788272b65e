"""A data set is recognised by a few of its samples, whatever they are, and nothing of the process changes meanwhile."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from kakurenbo_lightning import SeededDataset
from kakurenbo_lightning.core.fingerprint import fingerprint


class Made(Dataset):
    """Samples that functions make when they are read."""

    def __init__(self, *makers):
        self.makers = makers

    def __len__(self):
        return len(self.makers)

    def __getitem__(self, index):
        return self.makers[index]()


class Image:
    """Has ``tobytes``, as PIL's images do."""

    def tobytes(self):
        return b"pixels"


def augmented():
    return torch.rand(2), np.random.rand(2), random.random()


SAMPLES = {
    "tensor": lambda: torch.ones(2),
    "bfloat16": lambda: torch.ones(2, dtype=torch.bfloat16),
    "empty": lambda: torch.empty(0),
    "array": lambda: np.ones(2),
    "objects": lambda: np.array([object(), None]),
    "scalar": lambda: np.float32(3),
    "text": lambda: "text",
    "image": lambda: Image(),
    "dict": lambda: {"a": torch.ones(2), "b": [1, 2.0, None, b"x"]},
    "object": lambda: object(),
    "augmented": augmented,
}


@pytest.mark.parametrize("name", SAMPLES)
def test_it_repeats_and_sees_the_length_whatever_a_sample_is(name):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = fingerprint(Made(*[SAMPLES[name]] * 3))
    assert torch.equal(torch.rand(1), expected), "the caller's random stream is as it was"
    random.random(), np.random.rand()
    assert fingerprint(Made(*[SAMPLES[name]] * 3)) == first
    assert fingerprint(Made(*[SAMPLES[name]] * 4)) != first


def test_it_sees_values_and_types():
    values = (1, 2, "1", torch.tensor(1), torch.tensor(1.0), np.array(1))
    assert len({fingerprint(Made(lambda value=value: value)) for value in values}) == len(values)


def test_it_depends_neither_on_the_epoch_nor_on_a_generator_of_the_data_set():
    seeded = SeededDataset(Made(*[augmented] * 3))
    first = fingerprint(seeded)
    seeded.set_epoch(5)
    assert fingerprint(Subset(seeded, range(3))) == fingerprint(seeded) == first
    generator = np.random.default_rng(0)
    own = Made(*[lambda: generator.random(2)] * 3)
    assert fingerprint(own) == fingerprint(own)


def test_a_sample_that_cannot_be_read_counts_by_its_error():
    def fail(error):
        raise error

    broken, other = Made(lambda: fail(KeyError("a"))), Made(lambda: fail(ValueError("a")))
    assert fingerprint(broken) == fingerprint(broken) != fingerprint(other)
