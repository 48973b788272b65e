"""The order of very many indices: a permutation, and each equally likely."""

import torch
from frequencies import assert_counts
from hypothesis import given
from hypothesis import strategies as st

from kakurenbo_lightning.core.permutation import shuffled


@given(count=st.integers(0, 100), block=st.integers(1, 9))
def test_shuffling_in_piles_is_a_permutation(count, block):
    mixed = shuffled(torch.arange(count) * 2, torch.Generator().manual_seed(count), block)
    assert sorted(mixed.tolist()) == list(range(0, 2 * count, 2))


def test_shuffling_in_piles_is_uniform():
    """The place of one of 34 indices in piles of 2, and how far after it another one comes."""
    generator, places, distances = torch.Generator().manual_seed(0), [], []
    for _ in range(1700):
        order = shuffled(torch.arange(34), generator, block=2).argsort().tolist()
        places.append(order[5])
        distances.append((order[6] - order[5]) % 34)
    assert_counts(torch.tensor(places).bincount(minlength=34), [50] * 34)
    assert_counts(torch.tensor(distances).bincount(minlength=34), [0] + [1700 / 33] * 33)
