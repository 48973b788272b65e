"""Samplers are known by what they yield: the selection lives on those samples; the others are never trained, scored or counted."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import ONE_OF_A_KIND, Net, Points, Spy, SureNet, fit, hide_then_grow
from lightning.pytorch.callbacks import ModelCheckpoint
from method_tester import short_run
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from kakurenbo_lightning import SampleSelection, available_methods, get_method
from kakurenbo_lightning.errors import ConflictError, MismatchError

COUNT = 100
FIRST = list(range(60))
SCATTERED = sorted(torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))[:60].tolist())
STREAMS = [name for name in available_methods() if short_run(name, COUNT).stream_samples(1, 1) is not None]


def loader_of(sampler):
    return DataLoader(Points(COUNT), 8, sampler=sampler)


class Trained(pl.Callback):
    """Which samples each epoch trains, in order."""

    def __init__(self):
        self.epochs = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs.setdefault(trainer.current_epoch, []).extend(batch[2].tolist())


def hidden_run(train, method=None, module=None, **settings):
    """Five epochs, some of which hide; the selection, the spy and the module."""
    selection = hide_then_grow() if method is None else SampleSelection(method)
    spy, module = Spy(selection), module or SureNet(dropout=0.0)
    fit(module, train, selection, spy, **{"max_epochs": 5, **settings})
    return selection, spy, module


SAMPLERS = {
    "sequential": (lambda: SequentialSampler(range(60)), FIRST),
    "random": (lambda: RandomSampler(range(60)), FIRST),
    "distributed": (lambda: DistributedSampler(range(60), num_replicas=1, rank=0), FIRST),
    "distributed, in order": (lambda: DistributedSampler(range(60), num_replicas=1, rank=0, shuffle=False), FIRST),
    "of another source": (lambda: SequentialSampler([7] * 60), FIRST),  # torch counts it, and yields its places
    "subset": (lambda: SubsetRandomSampler(SCATTERED), SCATTERED),
    "subset, shuffled": (lambda: SubsetRandomSampler(SCATTERED[::-1]), SCATTERED),
    "subset, tensor": (lambda: SubsetRandomSampler(torch.tensor(SCATTERED)), SCATTERED),
    "subset, array": (lambda: SubsetRandomSampler(np.array(SCATTERED)), SCATTERED),
    "subset, range": (lambda: SubsetRandomSampler(range(20, 80)), list(range(20, 80))),
    "subset of all": (lambda: SubsetRandomSampler(range(COUNT)), list(range(COUNT))),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_samples_of_the_sampler_are_trained_as_in_plain_lightning(name):
    make, expected = SAMPLERS[name]
    orders = []
    for callbacks in ([], [SampleSelection("baseline")]):
        trained = Trained()
        fit(Net(), loader_of(make()), *callbacks, trained, max_epochs=2)
        assert [sorted(epoch) for epoch in trained.epochs.values()] == [expected] * 2
        orders.append([epoch == expected for epoch in trained.epochs.values()])
    assert orders[0] == orders[1], "in ascending order, or not"


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_hidden_is_among_them(name):
    make, expected = SAMPLERS[name]
    selection, spy, _ = hidden_run(loader_of(make()))
    assert [len(hidden) for hidden in spy.hidden.values()] == [0, *(int(share * len(expected)) for share in (0.5, 0.5, 0.25)), 0]
    for epoch in range(5):
        assert sorted(spy.trained(epoch) + spy.hidden[epoch]) == expected
    statistics = selection.statistics
    assert len(statistics) == COUNT
    assert statistics.measured.nonzero().squeeze(1).tolist() == expected
    others = [index for index in range(COUNT) if index not in expected]
    assert statistics.loss[others].isnan().all()
    assert statistics.confidence[others].isnan().all()


# --- the run is that of the part by itself


@pytest.mark.quick(*ONE_OF_A_KIND, "random", "iswr")
@pytest.mark.parametrize("name", [name for name in available_methods() if name not in (*STREAMS, "rho_loss", "weighted")])
def test_a_run_on_a_part_is_the_run_on_that_part_alone(name):
    """``rho_loss`` and ``weighted`` have a table of the whole data set."""
    method = short_run(name, COUNT)
    part, one, module = hidden_run(loader_of(SubsetRandomSampler(SCATTERED)), method, Net(dropout=0.0))
    alone, other, expected = hidden_run(DataLoader(Subset(Points(COUNT), SCATTERED), 8, shuffle=True), method, Net(dropout=0.0))
    assert dict(one.batches) == dict(other.batches)
    assert {epoch: [SCATTERED[place] for place in hidden] for epoch, hidden in other.hidden.items()} == one.hidden
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(part.statistics.loss[SCATTERED], alone.statistics.loss, rtol=0, atol=0, equal_nan=True)
    assert (part.totals.samples_trained, part.totals.samples_hidden) == (
        alone.totals.samples_trained,
        alone.totals.samples_hidden,
    )


@pytest.mark.parametrize("settings", [{"balance": "class"}, {"unbiased": True}, {"protected_classes": (1,)}], ids=str)
def test_options_hold_within_a_part(settings):
    method = get_method("random", max_fraction=0.4, **settings)
    _, one, module = hidden_run(loader_of(SubsetRandomSampler(SCATTERED)), method, Net(dropout=0.0))
    _, other, expected = hidden_run(DataLoader(Subset(Points(COUNT), SCATTERED), 8, shuffle=True), method, Net(dropout=0.0))
    assert any(one.hidden.values())
    assert dict(one.batches) == dict(other.batches)
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_protected_samples_are_those_of_the_data_set():
    inside, outside = SCATTERED[::2], [index for index in range(COUNT) if index not in SCATTERED]
    method = get_method("random", max_fraction=0.5, protected=[*inside, *outside[:5]])
    _, spy, _ = hidden_run(loader_of(SubsetRandomSampler(SCATTERED)), method)
    assert [len(hidden) for hidden in spy.hidden.values()] == [len(SCATTERED) // 4] * 5
    assert not {index for hidden in spy.hidden.values() for index in hidden} & set(inside)


# --- resumed


@pytest.mark.slow_cases("infobatch", "forget", "stale_sb", "first")
@pytest.mark.parametrize("indices", [SCATTERED, FIRST], ids=["scattered", "first"])
@pytest.mark.parametrize("name", ["kakurenbo", "infobatch", "forget", "iswr", "selective_backprop", "stale_sb"])
def test_a_run_on_a_part_resumes_exactly(tmp_path, name, indices):
    def run(folder=None, **settings):
        keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}") if folder else None
        selection = SampleSelection(short_run(name, COUNT))
        spy, module = Spy(selection), Net(dropout=0.0)
        train = loader_of(SubsetRandomSampler(indices))
        fit(
            module,
            train,
            selection,
            *([keep] if keep else []),
            spy,
            enable_checkpointing=keep is not None,
            max_epochs=4,
            **settings,
        )
        return selection, spy, module

    whole, _, expected = run(tmp_path)
    steps = sorted(int(path.stem.split("=")[1]) for path in tmp_path.glob("*.ckpt"))
    for step in (steps[len(steps) // 2], steps[-2]):
        resumed, spy, module = run(ckpt_path=tmp_path / f"step={step}.ckpt", seed=9)
        assert {index for epoch in spy.batches for index in spy.trained(epoch)} <= set(indices)
        torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(resumed.statistics.loss, whole.statistics.loss, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(resumed.plan.indices, whole.plan.indices)


def test_a_checkpoint_of_another_part_is_refused(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="at")
    selection = hide_then_grow()
    fit(SureNet(), loader_of(SubsetRandomSampler(SCATTERED)), selection, keep, max_epochs=2, enable_checkpointing=True)
    for other in (SubsetRandomSampler(FIRST), None):
        with pytest.raises(MismatchError, match="sampler yields other samples of the data set"):
            fit(SureNet(), loader_of(other), hide_then_grow(), ckpt_path=tmp_path / "at.ckpt", max_epochs=3)


# --- refused


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_from_a_part_is_refused_by_name(name):
    with pytest.raises(ConflictError, match=rf"60 of 100 samples, and {name} draws from the whole data set; use .*Subset"):
        fit(Net(), loader_of(SubsetRandomSampler(SCATTERED)), SampleSelection(short_run(name, COUNT)))


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: SubsetRandomSampler([0, 1, 1, 2]), ["name 1 samples more than once", "each once"]),
        (lambda: SubsetRandomSampler([0, 100]), ["are 0 to 100", "from 0 to 99"]),
        (lambda: SubsetRandomSampler([-1, 5]), ["are -1 to 5"]),
        (lambda: SubsetRandomSampler([True, False] * 50), ["type bool", "integers"]),
        (lambda: SubsetRandomSampler([0.0, 1.0]), ["type float64"]),
        (
            lambda: SequentialSampler(range(101)),
            ["SequentialSampler is made of 101 samples, the data set has 100", "shuffle=True"],
        ),
        (
            lambda: RandomSampler(range(COUNT), replacement=True),
            ["RandomSampler(replacement=True, num_samples=100) is not allowed"],
        ),
        (lambda: RandomSampler(range(COUNT), num_samples=60), ["num_samples=60) is not allowed", "SubsetRandomSampler(indices)"]),
        (lambda: RandomSampler(range(50), num_samples=COUNT), ["num_samples=100) is not allowed"]),
        (lambda: DistributedSampler(range(COUNT), num_replicas=4, rank=1), ["num_replicas=4, rank=1", "rank 0 of 1"]),
        (
            lambda: WeightedRandomSampler([1.0] * COUNT, COUNT),
            ['SampleSelection("weighted", weights=...)', 'balance="class"', "plb", "shuffle=True"],
        ),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_a_sampler_that_cannot_be_honoured_is_refused(make, parts, batched):
    train = loader_of(make())
    if batched:
        train = DataLoader(Points(COUNT), batch_sampler=BatchSampler(make(), 8, False))
    with pytest.raises(ConflictError) as caught:
        fit(Net(), train, hide_then_grow())
    for part in parts:
        assert part in str(caught.value)


def test_an_empty_subset_is_refused():
    with pytest.raises(ValueError, match="0 samples to train"):
        fit(Net(), loader_of(SubsetRandomSampler([])), hide_then_grow())
