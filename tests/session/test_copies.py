"""The callback is copied and pickled, before and after training; there is one in a Trainer, and it has samples."""

import copy
import pickle

import pytest
import torch
from helpers import Net, fit, loader
from torch.utils.data import DataLoader, TensorDataset

from kakurenbo_lightning import SampleSelection


@pytest.mark.parametrize("method", ["kakurenbo", "selective_backprop", "plb"])
def test_a_copy_trains_as_the_original_did(method):
    selection = SampleSelection(method, seed=3)
    weights = fit(Net(), loader(), selection, max_epochs=3).model.state_dict()
    for copied in (copy.deepcopy(selection), pickle.loads(pickle.dumps(selection))):
        assert copied.session is None and copied.method == selection.method
        again = fit(Net(), loader(), copied, max_epochs=3).model.state_dict()
        assert all(torch.equal(again[name], value) for name, value in weights.items())
        assert copied.totals.samples_trained == selection.totals.samples_trained


def test_two_selections_in_one_trainer_are_named():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `SampleSelection`"):
        fit(Net(), loader(), SampleSelection("random"), SampleSelection("random"), max_epochs=1)


def test_a_data_set_without_samples_is_named():
    with pytest.raises(ValueError, match=r"has 0 samples to train.*the data set or its sampler may be empty"):
        fit(Net(), DataLoader(TensorDataset(torch.zeros(0, 3))), SampleSelection("random"), max_epochs=1)
