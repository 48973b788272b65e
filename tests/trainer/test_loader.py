"""Whatever brings the train loader: data modules, hooks, subclasses, a CombinedLoader, workers."""

import os

import lightning.pytorch as pl
import pytest
import torch
from helpers import GROWING, Net, Points, SureNet, assert_trained_as_planned, fit, hide_then_grow, loader, watched_fit
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler, Subset

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError

EPOCHS = len(GROWING)


def assert_ran_as_planned(spy):
    assert spy.steps == list(spy.lengths.values()) == GROWING
    assert_trained_as_planned(spy)


# --- where the loader comes from


class PointsModule(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(16, shuffle=False)


def test_a_data_module_works():
    spy, _, _ = watched_fit(train=PointsModule())
    assert_ran_as_planned(spy)
    assert [spy.validations[epoch] for epoch in range(EPOCHS)] == [[n] for n in GROWING]


def test_a_module_with_its_own_loader_works():
    class SelfLoading(SureNet):
        def train_dataloader(self):
            return loader()

    spy, _, _ = watched_fit(SelfLoading())
    assert_ran_as_planned(spy)


def test_a_combined_loader_of_one_works():
    spy, _, _ = watched_fit(train=CombinedLoader(loader(), "max_size_cycle"))
    assert_ran_as_planned(spy)


def out_of(batch):
    """The batch that comes alone in a list or a dict."""
    while len(batch) == 1:
        [batch] = batch.values() if isinstance(batch, dict) else batch
    return batch


class Wrapped(SureNet):
    """Its batches come in something."""

    def __init__(self):
        super().__init__()
        self.kinds = set()

    def training_step(self, batch, batch_idx):
        self.kinds.add((type(batch), torch.is_grad_enabled()))
        return super().training_step(out_of(batch), batch_idx)


class WrappedNet(Net):
    """Its values are those of the criterion call that is seen."""

    def training_step(self, batch, batch_idx):
        return super().training_step(out_of(batch), batch_idx)


class Indexed(pl.Callback):
    """The indices of each batch that comes in a list or dict of one, by epoch, and what is hidden."""

    def __init__(self, selection):
        self.selection, self.trained, self.hidden = selection, {}, {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.hidden[trainer.current_epoch] = self.selection.plan.hidden.tolist()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.trained.setdefault(trainer.current_epoch, []).extend(out_of(batch)[2].tolist())


ONE_LOADER = {
    "list": (lambda: [loader()], list),
    "dict": (lambda: {"a": loader()}, dict),
    "nested": (lambda: {"a": [loader()]}, dict),
    "combined list": (lambda: CombinedLoader([loader()], "min_size"), list),
    "combined dict": (lambda: CombinedLoader({"a": loader()}, "max_size_cycle"), dict),
}


@pytest.mark.parametrize("name", ONE_LOADER)
def test_one_loader_in_a_list_or_dict_is_one_loader_whose_batches_come_in_one(name):
    make, kind = ONE_LOADER[name]
    plain = Wrapped()
    fit(plain, make(), max_epochs=1)
    selection, module = hide_then_grow(), Wrapped()
    indexed = Indexed(selection)
    fit(module, make(), selection, indexed, max_epochs=EPOCHS)
    assert plain.kinds == {(kind, True)}
    assert module.kinds == {(kind, True), (kind, False)}, "in scoring passes too"
    for epoch, hidden in indexed.hidden.items():
        assert sorted(indexed.trained[epoch] + hidden) == list(range(64))
    assert [len(hidden) for hidden in indexed.hidden.values()] == [0, 32, 32, 16, 0]
    assert torch.equal(selection.statistics.confidence, (torch.arange(64) + 1) / 4096)


@pytest.mark.slow_cases("infobatch", "selective_backprop")
@pytest.mark.parametrize("method", ["kakurenbo", "infobatch", "selective_backprop", "plb"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.quick("plb"))])
def test_values_of_a_batch_in_a_list_are_those_of_the_batch(method, workers):
    seen = []
    for wrap in (lambda train: train, lambda train: [train], lambda train: {"a": train}):
        module, selection = WrappedNet(dropout=0.0), SampleSelection(method)
        fit(module, wrap(loader(num_workers=workers)), selection, max_epochs=3)
        seen.append((selection.statistics.loss, module.state_dict()))
    torch.testing.assert_close(seen[1:], [seen[0]] * 2, rtol=0, atol=0, equal_nan=True)


def test_the_users_loader_is_left_as_it_was():
    given = loader()
    before = dict(vars(given))
    watched_fit(train=given)
    assert vars(given) == before
    assert len(given) == 8
    assert sorted(int(i) for batch in given for i in batch[2]) == list(range(64))


# --- kinds of loader


class NamedLoader(DataLoader):
    """Takes more than DataLoader does, and uses it."""

    def __init__(self, name, dataset, *, scale=1.0, **settings):
        super().__init__(dataset, collate_fn=self.collate, **settings)
        self.name, self.scale = name, scale

    def collate(self, items):
        x, y, index = torch.utils.data.default_collate(items)
        return self.scale * x, y, index


class HiddenArguments(DataLoader):
    """Cannot be made anew from its attributes."""

    def __init__(self, count):
        super().__init__(Points(count), 8, True)


@pytest.mark.slow_cases("True")
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: DataLoader(Points(64), 8, True, None, None, 0), id="positional arguments"),
        pytest.param(lambda: NamedLoader("mine", Points(64), scale=2.0, batch_size=8, shuffle=True), id="extra arguments"),
        pytest.param(lambda: HiddenArguments(64), id="hidden arguments"),
        pytest.param(lambda: DataLoader(Points(64), 8, sampler=RandomSampler(Points(64))), id="random sampler"),
        pytest.param(lambda: DataLoader(Points(64), 8, sampler=SequentialSampler(Points(64))), id="sequential sampler"),
        pytest.param(
            lambda: DataLoader(Points(64), 8, sampler=DistributedSampler(Points(64), num_replicas=1, rank=0)),
            id="distributed sampler",
        ),
        pytest.param(
            lambda: DataLoader(Points(64), batch_sampler=BatchSampler(RandomSampler(Points(64)), 8, False)),
            id="plain batch sampler",
        ),
        pytest.param(lambda: DataLoader(Points(64), 8, shuffle=True, generator=torch.Generator()), id="own generator"),
        pytest.param(lambda: DataLoader(Subset(Points(100), range(64)), 8, shuffle=True), id="subset"),
    ],
)
def test_a_loader_of_this_kind_works(make, hooked):
    class Hooked(SureNet):
        def train_dataloader(self):
            return make()

    spy, _, _ = watched_fit(Hooked()) if hooked else watched_fit(train=make())
    assert_ran_as_planned(spy)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_plain_batch_sampler_keeps_its_order_and_its_tail_rule(shuffle, drop_last):
    data = Points(61)
    batches = BatchSampler((RandomSampler if shuffle else SequentialSampler)(data), 8, drop_last)
    spy, _, _ = watched_fit(train=DataLoader(data, batch_sampler=batches), max_epochs=1)
    assert spy.steps == [7 if drop_last else 8]
    order = [index for batch in spy.batches[0] for index in batch]
    assert (order != sorted(order)) == shuffle


def test_a_subclass_keeps_its_behaviour():
    class Scaled(SureNet):
        seen = 0.0

        def training_step(self, batch, batch_idx):
            self.seen = max(self.seen, float(batch[0].abs().max()))
            return super().training_step(batch, batch_idx)

    module = Scaled()
    watched_fit(module, NamedLoader("mine", Points(64), scale=1000.0, batch_size=8, shuffle=True))
    assert module.seen > 1000


class OwnIter(DataLoader):
    """Goes by no sampler."""

    def __iter__(self):
        return iter(list(super().__iter__()))


class OwnIterator(DataLoader):
    def _get_iterator(self):
        return super()._get_iterator()


@pytest.mark.parametrize(("kind", "name"), [(OwnIter, "__iter__"), (OwnIterator, "_get_iterator")])
def test_a_subclass_that_iterates_in_its_own_way_is_refused_by_name(kind, name):
    with pytest.raises(
        ConflictError, match=rf"test_loader.{kind.__name__} is a DataLoader with an {name} of its own.*collate_fn"
    ):
        fit(Net(), kind(Points(64), 8, shuffle=True), hide_then_grow())


def test_a_loader_that_lightning_has_patched_is_none_of_these():
    """Lightning wraps methods of every DataLoader class while ``train_dataloader`` runs."""

    class Own(DataLoader):
        pass

    class Building(SureNet):
        def train_dataloader(self):
            return Own(Points(64), 8, shuffle=True)

    spy, _, _ = watched_fit(Building())
    assert_ran_as_planned(spy)


def test_a_collate_function_and_batched_fetching_work():
    class Fetching(Points):
        def __getitems__(self, indices):
            return [self[index] for index in indices]

    def collate(items):
        x, y, index = torch.utils.data.default_collate(items)
        return {"x": x, "y": y, "index": index}

    class Keyed(SureNet):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch["x"], batch["y"], batch["index"]

    spy, selection, _ = watched_fit(Keyed(), DataLoader(Fetching(64), 8, shuffle=True, collate_fn=collate))
    assert_ran_as_planned(spy)
    assert torch.equal(selection.statistics.confidence, (torch.arange(64) + 1) / 4096)


# --- workers


class WorkerPoints(Dataset):
    """Points whose noise is drawn in the worker, and that tell its process id."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        x = torch.rand(6)
        x[index % 3] += 3.0
        return x, index % 3, index, os.getpid()


class PidNet(SureNet):
    """Remembers which processes its batches come from, in training and in the refresh pass, and what they drew."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.trained_by, self.refreshed_by, self.drawn = set(), set(), {}

    def training_step(self, batch, batch_idx):
        (self.trained_by if torch.is_grad_enabled() else self.refreshed_by).update(batch[3].tolist())
        if torch.is_grad_enabled():
            self.drawn[self.trainer.current_epoch, batch_idx] = batch[0].clone()
        return super().training_step(batch, batch_idx)


def test_workers_that_persist_serve_all_epochs_and_refresh_passes():
    module = PidNet()
    spy, _, _ = watched_fit(module, DataLoader(WorkerPoints(), 8, shuffle=True, num_workers=2, persistent_workers=True))
    assert spy.steps == GROWING
    assert len(module.trained_by) == 2
    assert module.refreshed_by == module.trained_by
    assert os.getpid() not in module.trained_by


def test_workers_that_do_not_persist_are_others_in_each_epoch_and_refresh_pass():
    module = PidNet()
    spy, _, made = watched_fit(module, DataLoader(WorkerPoints(), 8, shuffle=True, num_workers=2))
    assert spy.steps == GROWING
    assert made.train_dataloader.persistent_workers is False
    assert len(module.trained_by) == 2 * EPOCHS
    assert len(module.refreshed_by) == 2 * sum(map(bool, list(spy.hidden.values())[:-1]))
    assert not module.refreshed_by & module.trained_by
    assert_every_epoch_draws_anew(module)


def test_every_epoch_draws_anew_without_workers():
    module = PidNet()
    watched_fit(module, DataLoader(WorkerPoints(), 8, shuffle=True))
    assert_every_epoch_draws_anew(module)


def assert_every_epoch_draws_anew(module):
    first = [module.drawn[epoch, 0] for epoch in range(EPOCHS)]
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])


def test_what_workers_draw_depends_on_the_seed_of_the_selection_alone():
    drawn = []
    for seed in (0, 17):
        module = PidNet()
        train = DataLoader(WorkerPoints(), 8, shuffle=True, num_workers=2)
        fit(module, train, SampleSelection("baseline", seed=5), max_epochs=2, seed=seed)
        drawn.append(module.drawn)
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=0)


def test_no_batch_of_an_earlier_plan_is_left_in_the_workers():
    class Ending(Net):
        """Ends epochs early, so that the workers have fetched more than was trained."""

        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 3 and self.trainer.current_epoch % 2 == 0 else None

    spy, _, _ = watched_fit(Ending(), loader(num_workers=2, prefetch_factor=4))
    for epoch, hidden in spy.hidden.items():
        assert not set(spy.trained(epoch)) & set(hidden)
        assert len(set(spy.trained(epoch))) == len(spy.trained(epoch))


def test_reading_the_number_of_steps_early_builds_the_loader_once():
    built = []

    class Early(SureNet):
        def train_dataloader(self):
            built.append(1)
            return loader(num_workers=2)

        def configure_optimizers(self):
            self.total = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    module = Early()
    spy, _, _ = watched_fit(module)
    assert module.total == 8 * EPOCHS
    assert built == [1]
    assert_ran_as_planned(spy)
