"""The order of very many indices: a permutation, and each equally likely."""

import torch
from frequencies import assert_counts
from hypothesis import given
from hypothesis import strategies as st

from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.permutation import first_of_shuffled, share_of_shuffled, shuffled


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


@given(mask=st.lists(st.booleans(), min_size=1, max_size=120), block=st.integers(1, 9), step=st.integers(1, 5), data=st.data())
def test_a_share_of_an_order_is_that_of_the_whole_order(mask, block, step, data):
    """Each rank's places, what was trained in another layout left out; for a few piles and many."""
    members = torch.tensor(mask).nonzero().squeeze(1)
    order = shuffled(members, torch.Generator().manual_seed(step), block)
    stop = data.draw(st.integers(0, len(members)))
    places = range(data.draw(st.integers(0, stop)), stop, step)
    share = share_of_shuffled(IndexSet.of_mask(torch.tensor(mask)), torch.Generator().manual_seed(step), places, block)
    assert share.tolist() == order[places.start : stop : step].tolist()


@given(total=st.integers(1, 120), block=st.integers(1, 9), data=st.data())
def test_the_first_of_an_order_are_those_of_the_whole_order(total, block, data):
    """And the generator has drawn as much."""
    count, whole, part = (
        data.draw(st.integers(0, total)),
        torch.Generator().manual_seed(total),
        torch.Generator().manual_seed(total),
    )
    order = shuffled(torch.arange(total), whole, block)
    first = first_of_shuffled(total, count, part, block)
    assert first.tensor().tolist() == sorted(order[:count].tolist())
    assert torch.equal(whole.get_state(), part.get_state())
