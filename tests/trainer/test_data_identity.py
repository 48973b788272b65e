"""A selection knows samples by their index: other samples, and other Trainers, are noticed on every road to training."""

import pytest
import torch
from helpers import GROWING, Points, Spy, SureNet, assert_trained_as_planned, fit, hide_then_grow, loader, trainer, watched_fit
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler

from kakurenbo_lightning.errors import ConflictError

OTHER = r"other samples than before.*new SampleSelection for new data, for each fold"
EPOCHS = len(GROWING)


class Counted(Points):
    """Counts how often it is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def fitted_twice(first, second):
    """Two epochs on ``first``, and the others on ``second``; the spy."""
    selection, module = hide_then_grow(), SureNet()
    spy = Spy(selection)
    made = fit(module, first, selection, spy, max_epochs=2)
    made.fit_loop.max_epochs = EPOCHS
    made.fit(module, second)
    return spy


def points(seed=0, **settings):
    return DataLoader(Points(64, seed=seed), 8, shuffle=True, **settings)


# --- a second fit


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_fit_on_other_data_of_the_same_length_is_refused(workers):
    with pytest.raises(ConflictError, match=OTHER):
        fitted_twice(points(num_workers=workers), points(seed=1, num_workers=workers))


@pytest.mark.slow_cases("2")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_fit_on_the_same_data_goes_on(workers):
    spy = fitted_twice(points(num_workers=workers), points(num_workers=workers))
    assert spy.steps == GROWING
    assert_trained_as_planned(spy)


def test_a_second_fit_on_the_same_data_set_does_not_read_it_again():
    train = DataLoader(Counted(64), 8, shuffle=True)
    assert fitted_twice(train, train).steps == GROWING
    trained, refreshed = 8 * sum(GROWING), 32 + 32 + 16
    assert train.dataset.reads == trained + refreshed + 16, "8 samples twice, when the first fit began"


@pytest.mark.parametrize("kind", ["samplers", "subsets"])
def test_the_next_fold_in_a_second_fit_is_refused(kind):
    data, folds = Points(96), torch.randperm(96, generator=torch.Generator().manual_seed(0)).chunk(3)
    parts = [torch.cat([fold for number, fold in enumerate(folds) if number != left_out]).tolist() for left_out in range(2)]

    def train(part):
        if kind == "samplers":
            return DataLoader(data, 8, sampler=SubsetRandomSampler(part))
        return DataLoader(Subset(data, part), 8, shuffle=True)

    what = "sampler of the train loader yields other samples" if kind == "samplers" else OTHER
    with pytest.raises(ConflictError, match=what):
        fitted_twice(train(parts[0]), train(parts[1]))
    assert fitted_twice(train(parts[0]), train(parts[0])).steps == GROWING


def test_each_fold_with_a_selection_of_its_own_works():
    data = Points(96)
    for start in (0, 32):
        spy, _, _ = watched_fit(train=DataLoader(Subset(data, range(start, start + 64)), 8, shuffle=True))
        assert spy.steps == GROWING


# --- a reloaded loader


class Reloading(SureNet):
    """Its train data have ``seeds[n]`` when they are loaded for the n-th time."""

    def __init__(self, seeds):
        super().__init__()
        self.seeds = iter(seeds)

    def train_dataloader(self):
        return points(next(self.seeds))


@pytest.mark.filterwarnings("ignore:.*reload_dataloaders_every_n_epochs")
def test_a_reloaded_loader_of_other_content_is_refused():
    selection = hide_then_grow()
    spy = Spy(selection)
    with pytest.raises(ConflictError, match=OTHER):
        fit(Reloading([0, 0, 1]), None, selection, spy, reload_dataloaders_every_n_epochs=1, max_epochs=EPOCHS)
    assert spy.steps == GROWING[:2]


@pytest.mark.filterwarnings("ignore:.*reload_dataloaders_every_n_epochs")
def test_a_data_set_that_changes_in_place_is_the_same_data_set():
    data = Points(64)

    class Resizing(SureNet):
        def train_dataloader(self):
            data.x = data.x * 1.5
            return DataLoader(data, 8, shuffle=True)

    selection = hide_then_grow()
    spy = Spy(selection)
    fit(Resizing(), None, selection, spy, reload_dataloaders_every_n_epochs=1, max_epochs=EPOCHS)
    assert spy.steps == GROWING


# --- several Trainers


def test_a_trainer_that_comes_back_after_another_one_is_refused():
    selection, module = hide_then_grow(), SureNet()
    spy = Spy(selection)
    first = fit(module, points(), selection, spy, max_epochs=2)
    fit(SureNet(), points(seed=1), selection, max_epochs=2)
    first.fit_loop.max_epochs = EPOCHS
    with pytest.raises(ConflictError, match=r"another Trainer since this one trained its 2 epochs.*SampleSelection of its own"):
        first.fit(module, points())
    assert spy.steps == GROWING[:2]


def test_a_trainer_that_comes_back_with_a_checkpoint_goes_on_from_there(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="at")
    selection, module = hide_then_grow(), SureNet()
    spy = Spy(selection)
    first = fit(module, points(), selection, spy, keep, max_epochs=2, enable_checkpointing=True)
    fit(SureNet(), points(seed=1), selection, max_epochs=2)
    first.fit_loop.max_epochs = EPOCHS
    first.fit(module, points(), ckpt_path=tmp_path / "at.ckpt")
    assert spy.steps == GROWING
    assert_trained_as_planned(spy)


class Nesting(SureNet):
    """Fits another module within the first batch of epoch 1, with ``callbacks``."""

    def __init__(self, *callbacks):
        super().__init__()
        self.callbacks, self.refused = callbacks, None

    def on_train_batch_start(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 0:
            try:
                trainer(*self.callbacks, max_epochs=2).fit(SureNet(), points(seed=1))
            except ConflictError as error:
                self.refused = error


def test_a_fit_within_a_fit_with_the_same_selection_is_refused_and_the_outer_one_goes_on():
    selection = hide_then_grow()
    module, spy = Nesting(selection), Spy(selection)
    fit(module, points(), selection, spy, max_epochs=EPOCHS)
    assert "in use by a Trainer that is fitting" in str(module.refused)
    assert "SampleSelection of its own" in str(module.refused)
    assert spy.steps == GROWING
    assert_trained_as_planned(spy)
    assert torch.equal(selection.statistics.confidence, (torch.arange(64) + 1) / 4096)


def test_a_fit_within_a_fit_with_a_selection_of_its_own_works():
    outer, inner = hide_then_grow(), hide_then_grow()
    module, spy = Nesting(inner), Spy(outer)
    fit(module, points(), outer, spy, max_epochs=EPOCHS)
    assert module.refused is None
    assert inner.totals.samples_hidden == 32
    assert spy.steps == GROWING
    assert_trained_as_planned(spy)


def test_a_trainer_after_one_that_failed_begins_anew():
    class Failing(SureNet):
        def on_train_epoch_end(self):
            raise RuntimeError("as planned")

    selection = hide_then_grow()
    with pytest.raises(RuntimeError, match="as planned"):
        fit(Failing(), loader(), selection)
    spy = Spy(selection)
    fit(SureNet(), points(seed=1), selection, spy, max_epochs=EPOCHS)
    assert spy.steps == GROWING
