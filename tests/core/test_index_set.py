"""Sets of indices in a bit each, against masks."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kakurenbo_lightning.core import index_set
from kakurenbo_lightning.core.index_set import IndexSet

MASKS = st.lists(st.booleans(), min_size=1, max_size=70).map(np.array)


@given(mask=MASKS, start=st.integers(0, 30), step=st.integers(1, 5), length=st.integers(1, 9))
def test_members_are_those_of_the_mask(mask, start, step, length):
    members, expected = IndexSet.of_mask(mask), np.flatnonzero(mask)
    assert len(members) == len(expected) and members.tensor().tolist() == expected.tolist()
    assert np.array_equal(members.mask(start, step), mask[start::step])
    pieces = list(members.pieces(length))
    assert np.concatenate([[], *pieces]).tolist() == expected.tolist()
    assert all(len(piece) == length for piece in pieces[:-1])
    numbers = range(min(start, len(expected)), len(expected), step)
    assert members.some(numbers).tolist() == expected[start::step].tolist()
    assert members.holds(torch.arange(len(mask))).tolist() == mask.tolist()
    assert members.complement().tensor().tolist() == np.flatnonzero(~mask).tolist()


@given(mask=MASKS, data=st.data())
def test_a_set_within_another_goes_by_the_number_of_each_member(mask, data):
    members = IndexSet.of_mask(mask)
    numbers = np.array(data.draw(st.lists(st.booleans(), min_size=len(members), max_size=len(members))), dtype=bool)
    chosen = members.within(IndexSet.of_mask(numbers))
    assert chosen.tensor().tolist() == np.flatnonzero(mask)[numbers].tolist()
    assert chosen <= members and (members <= chosen) == numbers.all()
    assert (chosen.checksum() == members.checksum()) == numbers.all()


def test_windows_join_without_a_seam(monkeypatch):
    monkeypatch.setattr(index_set, "WINDOW", 16)
    mask = np.random.default_rng(0).random(1003) < 0.4
    members, expected = IndexSet.of_mask(mask), np.flatnonzero(mask)
    assert members.tensor().tolist() == expected.tolist()
    assert members.some(range(3, 300, 7)).tolist() == expected[3:300:7].tolist()
    assert np.array_equal(members.mask(2, 3), mask[2::3])
    numbers = np.random.default_rng(1).random(len(members)) < 0.5
    assert members.within(IndexSet.of_mask(numbers)).tensor().tolist() == expected[numbers].tolist()
    assert IndexSet.everything(1003).tensor().tolist() == list(range(1003))
