"""torchdata's StatefulDataLoader: the selection keeps the position in the epoch in its place."""

import pytest
import torch
from cuts import SaveAt
from helpers import Net, Points, Spy, SureNet, fit, hide_then_grow
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError

SETTINGS = {
    "shuffled": {"batch_size": 8, "shuffle": True},
    "in order": {"batch_size": 8},
    "drop_last": {"batch_size": 7, "shuffle": True, "drop_last": True},
    "workers": {"batch_size": 8, "shuffle": True, "num_workers": 2},
    "a batch sampler": {"batch_sampler": BatchSampler(SequentialSampler(range(64)), 8, False)},
}


def trained(kind, name, *callbacks, method=None, **settings):
    selection = hide_then_grow() if method is None else SampleSelection(method)
    spy, module = Spy(selection), SureNet(dropout=0.0) if method is None else Net(dropout=0.0)
    fit(module, kind(Points(64), **SETTINGS[name]), selection, *callbacks, spy, max_epochs=4, **settings)
    return spy, module


@pytest.mark.slow_cases("workers")
@pytest.mark.parametrize("name", SETTINGS)
def test_it_trains_what_a_data_loader_trains(name):
    (stateful, module), (plain, expected) = (trained(kind, name) for kind in (StatefulDataLoader, DataLoader))
    assert stateful.batches == plain.batches and stateful.hidden[1]
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["kakurenbo", "selective_backprop", "plb"])
def test_cut_and_resumed_equals_uncut(tmp_path, method):
    save = SaveAt(tmp_path / "cut.ckpt", "on_train_batch_end", 2, 2)
    _, expected = trained(StatefulDataLoader, "shuffled", save, method=method, enable_checkpointing=False)
    _, module = trained(StatefulDataLoader, "shuffled", method=method, enable_checkpointing=False, ckpt_path=save.path, seed=9)
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_draws_with_replacement_and_subclasses_are_refused_as_of_a_data_loader():
    own = type("Own", (StatefulDataLoader,), {})
    with pytest.raises(ConflictError, match=r"Own keeps its own position.*StatefulDataLoader itself"):
        fit(SureNet(), own(Points(64), 8), hide_then_grow(), max_epochs=2)
    with pytest.raises(ConflictError, match=r"RandomSampler\(replacement=True"):
        loader = StatefulDataLoader(Points(64), 8, sampler=RandomSampler(Points(64), replacement=True))
        fit(SureNet(), loader, hide_then_grow(), max_epochs=2)
