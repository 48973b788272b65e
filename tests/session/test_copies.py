"""The callback is copied and pickled, before and after training; there is one in a Trainer, and it has samples."""

import copy
import pickle

import pytest
import torch
from helpers import Net, Points, fit, loader
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

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


@pytest.mark.parametrize("method", ["random", "selective_backprop", "plb"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_data_set_without_samples_is_named(method, drop_last):
    empty = DataLoader(TensorDataset(torch.zeros(0, 3)), 8, drop_last=drop_last)
    with pytest.raises(
        ValueError, match=r"^the train data set, a TensorDataset, has length 0, so there is nothing to train; check where"
    ):
        fit(Net(), empty, SampleSelection(method), max_epochs=1)


def test_a_sampler_without_samples_is_named():
    empty = DataLoader(Points(64), 8, sampler=SubsetRandomSampler([]), drop_last=True)
    with pytest.raises(
        ValueError, match=r"^epoch 0 has 0 samples to train: the train loader's sampler yields none, or everything is hidden"
    ):
        fit(Net(), empty, SampleSelection("random"), max_epochs=1)
