"""How many samples a batch of iterable data has, and where its loader stands."""

from collections import namedtuple

import pytest
import torch
from flows import CountingFlow
from torchdata.stateful_dataloader import StatefulDataLoader

from kakurenbo_lightning.trainer.arrivals import rows_of
from kakurenbo_lightning.trainer.loader_place import LoaderPlaces

Named = namedtuple("Named", "x y")


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        ([torch.zeros(3, 2), torch.zeros(3)], 3),
        ({"scale": torch.tensor(1.0), "x": torch.zeros(4)}, 4),
        (Named(["a", "b"], torch.zeros(2)), 2),
        ({"text": ["a", "b", "c"]}, 3),
        ((["a", "b"], [1, 2]), 2),
        (["a", "b"], 2),
        ((3, 1), None),
        ([3, 1], None),
        ({"x": 1.0}, None),
        ("text", None),
    ],
)
def test_rows_are_those_of_the_first_tensor_or_list(batch, rows):
    assert rows_of(batch) == rows


def numbers(batch):
    return batch[2].tolist()


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_place_is_that_of_a_batch_that_was_loaded_ahead(done):
    """Four batches are loaded when the place after ``done`` of them is asked for."""
    places = LoaderPlaces(StatefulDataLoader(CountingFlow(64), batch_size=8))
    iterator, _ = places.begin(0, 0, seed=0)
    batches = []
    for number in range(4):
        batches.append(numbers(next(iterator)))
        places.took(number, 8 * (number + 1))
    state = places.state_dict(done)
    again = LoaderPlaces(StatefulDataLoader(CountingFlow(64), batch_size=8))
    again.load_state_dict(state, done)
    resumed, _ = again.begin(0, done, seed=0)
    assert state["samples"] == 8 * done
    assert [numbers(next(resumed)) for _ in range(4 - done)] == batches[done:]


def test_beginning_draws_by_the_epoch_and_leaves_the_random_numbers_as_they_were():
    class Drawing(list):
        def __iter__(self):
            self.append(torch.rand(1).item())
            return iter([torch.zeros(1)])

    drawn = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1)):
        torch.manual_seed(len(drawn))
        before = torch.get_rng_state()
        loader = Drawing()
        LoaderPlaces(loader).begin(epoch, 0, seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn += list.__getitem__(loader, slice(None))
    assert drawn[0] == drawn[1] != drawn[2]
