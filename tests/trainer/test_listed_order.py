"""Samplers and batch samplers of the user's own: an epoch is trained in their order, without what is hidden."""

import random
import threading
from collections import Counter

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from cuts import SaveAt
from helpers import Net, Points, Spy, SureNet, fit, hide_then_grow
from listings import ALL, BATCH, BATCHES, COUNT, LENGTHS, Listing, batches_of, by
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError, MismatchError
from kakurenbo_lightning.trainer.listed_order import ListedOrder
from recipes.benchmarks.forked import printed, run_ranks


class Buckets(Sampler):
    """Batches of samples of similar length, the last one of each bucket shorter; shuffles lists of its own in place."""

    def __init__(self, count=COUNT, batch_size=BATCH, generator=None):
        by_length = sorted(range(count), key=LENGTHS.__getitem__)
        self.buckets = [by_length[start : start + 33] for start in range(0, count, 33)]
        self.batch_size, self.generator = batch_size, generator or random.Random(3)

    def __iter__(self):
        batches = []
        for bucket in self.buckets:
            self.generator.shuffle(bucket)
            batches += [bucket[start : start + self.batch_size] for start in range(0, len(bucket), self.batch_size)]
        self.generator.shuffle(batches)
        return iter(batches)


class InEpoch(Sampler):
    """A permutation of some samples by its own epoch, as DistributedSampler has it."""

    def __init__(self, samples):
        self.samples, self.epoch = list(samples), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(len(self.samples))
        return iter([self.samples[place] for place in order])


class ByNumPy(Sampler):
    """A permutation by a generator of NumPy."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __iter__(self):
        return iter(self.generator.permutation(COUNT))


def in_order(spy, epoch):
    """The samples of an epoch as they were trained."""
    return [index for batch in spy.batches[epoch] for index in batch]


def contents(value):
    """All that a sampler holds, the states of its generators too, as text."""
    if isinstance(value, Sampler):
        return {name: contents(each) for name, each in vars(value).items()}
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, random.Random):
        return value.getstate()
    return str(value.bit_generator.state if isinstance(value, np.random.Generator) else value)


EACH = {
    "buckets": lambda: batches_of(Buckets()),
    "buckets by numpy": lambda: batches_of(Buckets(generator=np.random.default_rng(1))),
    "of transformers": lambda: by(LengthGroupedSampler(BATCH, lengths=LENGTHS, generator=torch.Generator().manual_seed(1))),
    "of transformers, global": lambda: by(LengthGroupedSampler(BATCH, lengths=LENGTHS)),
    "set_epoch": lambda: by(InEpoch(range(COUNT))),
    "numpy": lambda: by(ByNumPy()),
    "within a batch sampler": lambda: batches_of(BatchSampler(InEpoch(range(COUNT)), BATCH, False)),
    "subclass": lambda: batches_of(type("Own", (BatchSampler,), {})(RandomSampler(range(COUNT)), BATCH, False)),
}


@pytest.mark.parametrize("name", EACH)
def test_an_epoch_is_trained_in_the_order_of_the_sampler_without_what_is_hidden(name):
    loader, selection = EACH[name](), hide_then_grow()
    before = contents(loader.batch_sampler)
    spy = Spy(selection)
    fit(SureNet(dropout=0.0), loader, selection, spy, max_epochs=5)
    order = ListedOrder(EACH[name](), 1)
    seed = selection.session.data.sampler.seed
    listed = [order(epoch, seed).indices.tolist() for epoch in range(5)]
    for epoch in range(5):
        hidden = set(spy.hidden[epoch])
        kept = [index for index in listed[epoch] if index not in hidden]
        assert len(kept) + len(hidden) == COUNT and sorted(kept) == spy.trained(epoch)
        assert in_order(spy, epoch) == kept or name.startswith("buckets")
    assert len(spy.hidden[1]) > 20
    assert len(set(map(tuple, listed))) == 5
    assert contents(loader.batch_sampler) == before  # the user's is as it was


def test_batches_stay_within_their_buckets():
    """Of 33 samples each; a bucket has fewer than a batch left at most, and those of all buckets come last."""
    bucket = dict(zip(sorted(range(COUNT), key=LENGTHS.__getitem__), (place // 33 for place in range(COUNT)), strict=True))
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SureNet(dropout=0.0), batches_of(Buckets()), selection, spy, max_epochs=4)
    for epoch in range(4):
        kept = Counter(bucket[index] for index in spy.trained(epoch))
        whole = sum(count // BATCH for count in kept.values())
        batches = [[bucket[index] for index in batch] for batch in spy.batches[epoch]]
        assert all(len(batch) == BATCH and len(set(batch)) == 1 for batch in batches[:whole])
        assert len(set(map(tuple, batches[:whole]))) > 1
        rest = [each for batch in batches[whole:] for each in batch]
        assert rest == sorted(rest, key=rest.index)  # those of a bucket side by side


@pytest.mark.slow_cases(
    *("of transformers, global", "of transformers", "numpy", "buckets by numpy", "within a batch sampler", "subclass"),
    *("infobatch", "forget"),
)
@pytest.mark.parametrize("method", ["kakurenbo", "infobatch", "forget", "selective_backprop"])
@pytest.mark.parametrize("name", EACH)
def test_cut_and_resumed_equals_uncut(tmp_path, name, method):
    def run(*callbacks, **settings):
        selection = SampleSelection(method, seed=3, **({"static_epochs": 2} if method == "forget" else {}))
        module, spy = Net(dropout=0.0), Spy(selection)
        fit(module, EACH[name](), selection, *callbacks, spy, max_epochs=4, enable_checkpointing=False, **settings)
        return spy, module

    spy, expected = run(SaveAt(tmp_path / "cut.ckpt", "on_train_batch_end", 2, 3))
    again, module = run(ckpt_path=tmp_path / "cut.ckpt", seed=9)
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert in_order(again, 3) == in_order(spy, 3)


def test_a_part_that_a_sampler_lists_is_all_that_is_trained():
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SureNet(dropout=0.0), by(InEpoch(range(20, 80))), selection, spy, max_epochs=3)
    assert all({*spy.trained(epoch), *spy.hidden[epoch]} == set(range(20, 80)) for epoch in range(3))


def test_what_drop_last_leaves_out_is_trained_in_another_epoch():
    kind = type("Own", (BatchSampler,), {})
    order = ListedOrder(batches_of(kind(RandomSampler(range(COUNT)), BATCH, True)), 1)
    assert order.universe.indices is None and order.drop_last
    assert sorted(order(3, 0).indices.tolist()) == list(range(COUNT))


def fit_rank(folder):
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SureNet(dropout=0.0), batches_of(Buckets()), selection, spy, max_epochs=3, accelerator="cpu", devices=2, strategy="ddp")
    sampler = selection.session.data.sampler
    kept = sampler.layout(2).order.of(torch.tensor(sorted(set(range(COUNT)) - set(spy.hidden[2]))), BATCH)
    torch.save([spy.batches[2], kept], folder / f"{sampler.rank}.pt")


def test_two_ranks_have_one_order(tmp_path):
    assert run_ranks(fit_rank, (tmp_path,), 2, log=tmp_path / "log") == [0, 0], printed(tmp_path / "log", 2)
    (first, kept), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(kept, other) and len(first) == len(second) and len(kept) < COUNT
    batches = [batch for pair in zip(first, second, strict=True) for batch in pair]
    assert [index for batch in batches for index in batch] == kept.tolist()
    assert {len(batch) for batch in batches[:-4]} == {BATCH}  # the last two steps share what is left


def cut_rank(folder):
    selection, save = hide_then_grow(), SaveAt(folder / "cut.ckpt", "on_train_batch_end", 2, 1)
    spy = Spy(selection)
    settings = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 3}
    fit(SureNet(dropout=0.0), batches_of(Buckets()), selection, save, spy, **settings)
    torch.save(spy.batches[2][:2], folder / f"{selection.session.data.sampler.rank}.pt")


def test_one_rank_trains_what_two_have_left_of_an_epoch(tmp_path):
    assert run_ranks(cut_rank, (tmp_path,), 2, log=tmp_path / "log") == [0, 0], printed(tmp_path / "log", 2)
    done = [index for rank in range(2) for batch in torch.load(tmp_path / f"{rank}.pt") for index in batch]
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SureNet(dropout=0.0), batches_of(Buckets()), selection, spy, max_epochs=3, ckpt_path=tmp_path / "cut.ckpt")
    hidden = set(selection.plan.hidden.tolist())
    assert hidden and sorted(done + in_order(spy, 2)) == [index for index in range(COUNT) if index not in hidden]


def forever():
    while True:
        yield 1


REFUSED = {
    "nothing": (lambda: by(Listing([])), "sampler=Listing yields nothing in epoch 0"),
    "no batches": (lambda: batches_of(Listing([])), "batch_sampler=Listing yields nothing"),
    "empty batches": (lambda: batches_of(Listing([[], []])), "batch_sampler=Listing yields nothing"),
    "batches as samples": (lambda: by(Listing([[1, 2], [3, 4]])), "it must yield indices of samples, 0 to 100"),
    "words": (lambda: by(Listing(["a", "b"])), "it must yield indices of samples"),
    "repeated": (lambda: by(Listing([*ALL, 7])), 'sample 7 more than once in epoch 0.*SampleSelection\\("weighted"'),
    "outside": (lambda: by(Listing([0, 101])), "yields sample 101 in epoch 0; samples are 0 to 100"),
    "negative": (lambda: by(Listing([0, -1])), "yields sample -1"),
    "without an end": (
        lambda: by(type("Endless", (Sampler,), {"__iter__": lambda self: forever()})()),
        "more than once in epoch 0",
    ),
    "others in each epoch": (lambda: by(Listing(ALL[:50], ALL[50:])), "lists other samples in each epoch"),
    "batches of any size": (
        lambda: batches_of(Listing([ALL[0:1], ALL[1:3], ALL[3:9], ALL[9:20], ALL[20:60], ALL[60:]])),
        "yields batches of 1 to 41 samples",
    ),
    "larger batches": (
        lambda: batches_of(Listing(BATCHES, [ALL[start : start + 16] for start in range(0, COUNT, 16)])),
        "yields batches of 5 to 8 samples in epoch 0, and of 16 in another",
    ),
    "batches of repeated ones": (lambda: batches_of(Listing([*BATCHES, *BATCHES[:2]])), "more than once in epoch 0"),
    "a generator": (lambda: by(index for index in ALL), "sampler=generator cannot be copied"),
    "of one rank": (lambda: by(Listing(ALL, num_replicas=2, rank=0)), "num_replicas=2\\) lists the samples of one rank"),
    "not to be copied": (lambda: by(Listing(ALL, lock=threading.Lock())), "cannot be copied \\(TypeError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_sampler_that_lists_no_epoch_is_refused_by_name(name):
    make, said = REFUSED[name]
    with pytest.raises(ConflictError, match=said):
        fit(SureNet(), make(), hide_then_grow(), max_epochs=2)


def test_larger_batches_in_a_later_epoch_are_an_error_there():
    larger = [ALL[start : start + 16] for start in range(0, COUNT, 16)]
    with pytest.raises(ConflictError, match="batches of 5 to 16 samples in epoch 3, and of 8 in another"):
        fit(SureNet(), batches_of(Listing(BATCHES, BATCHES, BATCHES, larger)), hide_then_grow(), max_epochs=5)


@pytest.mark.parametrize(
    "sampler", [ALL[::-1], range(COUNT), np.arange(COUNT)[::-1], torch.arange(COUNT)], ids=lambda each: type(each).__name__
)
def test_any_iterable_is_a_sampler(sampler):
    assert ListedOrder(by(sampler), 1)(2, 0).indices.tolist() == [int(index) for index in sampler]


def test_a_list_of_batches_is_a_batch_sampler():
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SureNet(dropout=0.0), batches_of(BATCHES[::-1]), selection, spy, max_epochs=3)
    assert spy.batches[0] == [*BATCHES[-2::-1], BATCHES[-1]]  # the short one comes last
    assert all(sorted([*spy.trained(epoch), *spy.hidden[epoch]]) == ALL for epoch in range(3))


class Counting(Sampler):
    """Another order whenever it is asked, by a count of its own."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        return iter(np.random.default_rng(self.epoch).permutation(COUNT).tolist())


def test_a_sampler_that_counts_its_epochs_itself_is_asked_as_often():
    order, sampler = ListedOrder(by(Counting()), 1), Counting()
    expected = [list(sampler) for _ in range(4)]
    assert [order(epoch, 0).indices.tolist() for epoch in (0, 1, 1, 3, 2)] == [expected[epoch] for epoch in (0, 1, 1, 3, 2)]
    assert ListedOrder(by(Counting()), 1)(3, 5).indices.tolist() == expected[3]  # in a resumed run


class Held(Sampler):
    """Has its generator, its epoch and its data within other objects."""

    def __init__(self, data):
        self.parts = [type("Part", (), {})()]
        self.parts[0].generators, self.parts[0].data = {"one": random.Random(1)}, data
        self.inner = type("Inner", (), {"epoch": 0, "set_epoch": lambda self, epoch: setattr(self, "epoch", epoch)})()

    def __iter__(self):
        order = [(index + self.inner.epoch) % COUNT for index in ALL]
        return iter([*self.parts[0].generators["one"].sample(order[:50], 50), *order[50:]])


def test_what_a_sampler_is_made_of_is_seeded_and_knows_the_epoch():
    order = ListedOrder(by(Held(Points(COUNT))), 1)
    orders = [order(epoch, 0).indices.tolist() for epoch in range(3)]
    assert [each[50:] for each in orders] == [[(index + epoch) % COUNT for index in ALL[50:]] for epoch in range(3)]
    shuffles = [[(index - epoch) % COUNT for index in each[:50]] for epoch, each in enumerate(orders)]
    assert len(set(map(tuple, shuffles))) == 3


@pytest.mark.parametrize("method", ["plb", "iswr"])
def test_a_method_that_draws_has_an_order_of_its_own(method):
    with pytest.raises(ConflictError, match=f"sampler=InEpoch lists the order of an epoch, and {method} draws it"):
        fit(SureNet(), by(InEpoch(range(COUNT))), SampleSelection(method), max_epochs=2)


def test_another_order_within_an_epoch_is_refused_and_after_it_is_not(tmp_path):
    within, after = (tmp_path / f"{name}.ckpt" for name in ("within", "after"))
    saves = SaveAt(within, "on_train_batch_end", 1, 2), SaveAt(after, "on_train_epoch_end", 1)
    fit(SureNet(dropout=0.0), batches_of(Buckets()), hide_then_grow(), *saves, max_epochs=3)
    with pytest.raises(MismatchError, match="lists epoch 1 in another order than that of the checkpoint, which is of step 3"):
        fit(SureNet(dropout=0.0), batches_of(Buckets(batch_size=4)), hide_then_grow(), max_epochs=3, ckpt_path=within)
    fit(SureNet(dropout=0.0), batches_of(Buckets(batch_size=4)), hide_then_grow(), max_epochs=3, ckpt_path=after)


def test_the_data_set_is_not_copied():
    class Uncopied(Dataset):
        def __len__(self):
            return COUNT

        def __getitem__(self, index):
            return Points(COUNT)[index]

        def __deepcopy__(self, memo):
            raise AssertionError("a data set may be larger than memory")

    data = Uncopied()
    order = ListedOrder(DataLoader(data, BATCH, sampler=Listing(ALL, source=data)), 1)
    assert order(0, 0).indices.tolist() == ALL


@pytest.mark.parametrize("kept", [lambda trainer: trainer, lambda trainer: [trainer.lightning_module]])
def test_a_sampler_that_keeps_the_trainer_or_the_module_copies_neither(kept):
    class Uncopied(Net):
        def __deepcopy__(self, memo):
            raise AssertionError("it may take most of the device's memory")

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(Uncopied())
    loader = DataLoader(Points(COUNT), BATCH, sampler=Listing(ALL, source=kept(trainer)))
    assert ListedOrder(loader, 1)(0, 0).indices.tolist() == ALL
