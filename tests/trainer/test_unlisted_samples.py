"""Samples that a user's sampler leaves out of some epochs, repeats, or never lists."""

import random

import numpy as np
import pytest
from helpers import Spy, SureNet, fit, hide_then_grow
from listings import ALL, BATCH, BATCHES, COUNT, LENGTHS, Listing, batches_of, by
from torch.utils.data import Sampler

from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.trainer.listed_order import ListedOrder


class Dropping(Sampler):
    """Buckets of similar length; each leaves out what makes no batch, others in each epoch."""

    def __init__(self, buckets=3, part=range(COUNT)):
        self.buckets, self.part, self.epoch = buckets, part, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        generator, by_length = random.Random(self.epoch), sorted(self.part, key=LENGTHS.__getitem__)
        size = -(-len(by_length) // self.buckets)
        for start in range(0, len(by_length), size):
            bucket = by_length[start : start + size]
            generator.shuffle(bucket)
            yield from (bucket[at : at + BATCH] for at in range(0, len(bucket) - BATCH + 1, BATCH))


@pytest.mark.parametrize("part", [range(COUNT), range(20, 90)])
def test_what_buckets_leave_out_is_trained_too(part):
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SureNet(dropout=0.0), batches_of(Dropping(part=part)), selection, spy, max_epochs=4)
    assert all(sorted([*spy.trained(epoch), *spy.hidden[epoch]]) == list(part) for epoch in range(4))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("excluded", [{50}, {3, 50}, {0, 1, 2, 3, 4, 5, 100}])
def test_a_few_samples_that_no_epoch_lists_are_not_among_those_that_one_leaves_out(batched, excluded):
    """Samples that cannot be read, say, are not made part of the epoch, although each leaves out as many others."""
    part = [index for index in ALL if index not in excluded]
    loader = batches_of(Dropping(part=part)) if batched else by(Truncated(0, part))
    order = ListedOrder(loader, 1)
    assert all(sorted(order(epoch, 0).indices.tolist()) == part for epoch in range(30))


@pytest.mark.parametrize("seed", range(20))
def test_what_chance_left_out_at_first_may_be_listed_later(seed):
    """Of a sampler that drops its last batch some samples are in none of the first epochs."""
    order = ListedOrder(by(Truncated(seed)), 1)
    assert all(sorted(order(epoch, 0).indices.tolist()) == ALL for epoch in range(20))


class Truncated(Sampler):
    """A permutation without its last few."""

    def __init__(self, seed, part=range(COUNT)):
        self.seed, self.part, self.epoch = seed, part, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.part)[:-7].tolist())


def test_samples_that_fill_batches_are_trained_once():
    """As torchvision's GroupedBatchSampler repeats some of a group to fill its last batch."""
    filled = [*BATCHES[:-1], [*BATCHES[-1], *ALL[90:93]]]
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SureNet(dropout=0.0), batches_of(Listing(filled)), selection, spy, max_epochs=3)
    assert all(sorted([*spy.trained(epoch), *spy.hidden[epoch]]) == ALL for epoch in range(3))


def test_others_in_a_later_epoch_are_an_error_there():
    with pytest.raises(ConflictError, match="lists samples in epoch 2 that it did not list before"):
        fit(SureNet(), by(Listing(ALL[:50], ALL[:50], ALL[:51])), hide_then_grow(), max_epochs=4)
