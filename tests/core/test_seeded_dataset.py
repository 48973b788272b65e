"""Samples that are the same in every run, worker and order."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from kakurenbo_lightning import SeededDataset
from kakurenbo_lightning.core.seeded_dataset import set_dataset_epoch


class Noisy(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), float(torch.rand(1))


def by_epoch(dataset, order, workers):
    """Epoch -> index -> the random numbers of its sample."""
    made = DataLoader(dataset, batch_size=None, sampler=order, num_workers=workers, persistent_workers=workers > 0)
    found = {}
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        found[epoch] = {row[0]: tuple(row[1:]) for row in made}
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_depend_on_seed_epoch_and_index_alone(workers):
    forward = by_epoch(SeededDataset(Noisy()), range(10), workers)
    backward = by_epoch(SeededDataset(Noisy()), [9, 4, 0], workers)
    other = by_epoch(SeededDataset(Noisy(), seed=1), range(10), workers)
    for epoch in (0, 1):
        assert len(set(forward[epoch].values())) == 10
        assert backward[epoch] == {index: forward[epoch][index] for index in (9, 4, 0)}
    assert not set(forward[0].values()) & set(forward[1].values())
    assert not set(forward[0].values()) & set(other[0].values())


def test_a_sample_leaves_the_random_streams_alone():
    torch.manual_seed(0)
    expected = float(torch.rand(1))
    torch.manual_seed(0)
    SeededDataset(Noisy())[3]
    assert float(torch.rand(1)) == expected


def test_the_epoch_reaches_data_sets_inside_others():
    parts = [SeededDataset(Noisy()) for _ in range(3)]
    set_dataset_epoch(ConcatDataset([Subset(parts[0], [0]), parts[1], SeededDataset(parts[2])]), 7)
    assert [int(part._epoch) for part in parts] == [7, 7, 7]
