"""Samplers that list what they are given, and loaders in the order of a sampler, over COUNT samples in batches of BATCH."""

import torch
from helpers import Points
from torch.utils.data import DataLoader, Sampler

COUNT, BATCH = 101, 8
LENGTHS = torch.randint(1, 200, (COUNT,), generator=torch.Generator().manual_seed(0)).tolist()
ALL = list(range(COUNT))
BATCHES = [ALL[start : start + BATCH] for start in range(0, COUNT, BATCH)]


class Listing(Sampler):
    """Whatever it is given, by epoch."""

    def __init__(self, *listings, **attributes):
        self.listings, self.epoch = listings, 0
        vars(self).update(attributes)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(self.listings[min(self.epoch, len(self.listings) - 1)])


def batches_of(sampler, data=None):
    """A loader whose batches are the sampler's."""
    return DataLoader(data or Points(COUNT), batch_sampler=sampler)


def by(sampler):
    """A loader in the order of a sampler."""
    return DataLoader(Points(COUNT), BATCH, sampler=sampler)
