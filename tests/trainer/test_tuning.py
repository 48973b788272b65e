"""Lightning's learning-rate finder and batch-size scaler leave the selection as if they had not run."""

import pytest
from helpers import GROWING, Spy, assert_trained_as_planned, dealt_steps, fit, hide_then_grow, trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from tuning import FIND, FindLater, SelfLoadingNet

from kakurenbo_lightning import SampleSelection

EPOCHS = len(GROWING)


def assert_ran_as_planned(spy, lengths=GROWING):
    assert spy.steps == list(spy.lengths.values()) == lengths
    assert sorted(spy.hidden) == list(range(EPOCHS))
    assert_trained_as_planned(spy)


def undisturbed():
    """Batches of the run without finder or scaler."""
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SelfLoadingNet(dropout=0.0), None, selection, spy, max_epochs=EPOCHS)
    return spy.batches


def test_the_rate_finder_callback_runs_before_the_first_epoch(tmp_path):
    selection, finder = hide_then_grow(), LearningRateFinder(attr_name="rate", **FIND)
    spy = Spy(selection)
    made = fit(SelfLoadingNet(), None, selection, finder, spy, max_epochs=EPOCHS, default_root_dir=tmp_path)
    assert len(finder.optimal_lr.results["lr"]) == 12
    assert_ran_as_planned(spy)
    assert made.global_step == sum(GROWING)


def test_the_tuner_finds_a_rate_and_the_fit_after_it_is_undisturbed(tmp_path):
    selection = hide_then_grow()
    spy, module = Spy(selection), SelfLoadingNet(dropout=0.0)
    made = trainer(selection, spy, max_epochs=EPOCHS, default_root_dir=tmp_path)
    found = Tuner(made).lr_find(module, min_lr=1e-4, max_lr=1e-2, num_training=12, update_attr=False)
    assert len(found.results["lr"]) == 12
    assert not spy.batches
    made.fit(module)
    assert_ran_as_planned(spy)
    assert spy.batches == undisturbed()


def test_the_rates_the_finder_tries_are_not_scaled(tmp_path):
    selection = hide_then_grow()
    module, seen = SelfLoadingNet(), []
    made = trainer(selection, max_epochs=EPOCHS, default_root_dir=tmp_path)

    class Watched(type(module)):
        def training_step(self, batch, batch_idx):
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

    found = Tuner(made).lr_find(Watched(), min_lr=1e-4, max_lr=1e-2, num_training=12, update_attr=False)
    assert seen == found.results["lr"]


def test_the_finder_trains_on_full_epochs_and_counts_nothing(tmp_path):
    class Recording(SelfLoadingNet):
        trained = ()

        def training_step(self, batch, batch_idx):
            self.trained = [*self.trained, *batch[2].tolist()]
            return super().training_step(batch, batch_idx)

    selection, module = SampleSelection("random", max_fraction=0.5), Recording()
    made = trainer(selection, max_epochs=EPOCHS, default_root_dir=tmp_path)
    Tuner(made).lr_find(module, min_lr=1e-4, max_lr=1e-2, num_training=16, update_attr=False)
    assert sorted(module.trained) == sorted([*range(64)] * 2)
    made.fit(module)
    assert selection.totals.samples_hidden == 32 * EPOCHS
    assert selection.totals.samples_trained == 32 * EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_batch_size_finder_callback_plans_with_the_size_it_found(mode, tmp_path):
    selection = hide_then_grow()
    spy, module = Spy(selection), SelfLoadingNet()
    finder = BatchSizeFinder(mode=mode, steps_per_trial=1, init_val=2, max_trials=3)
    fit(module, None, selection, finder, spy, max_epochs=EPOCHS, default_root_dir=tmp_path)
    size = module.batch_size
    assert size > 2
    kept = [64, 32, 32, 48, 64]
    assert_ran_as_planned(spy, [dealt_steps(n, size) for n in kept])
    assert {len(batch) for batches in spy.batches.values() for batch in batches[:-2]} == {size}


def test_the_tuner_scales_the_batch_size_and_the_fit_after_it_uses_it(tmp_path):
    selection = hide_then_grow()
    spy, module = Spy(selection), SelfLoadingNet()
    made = trainer(selection, spy, max_epochs=EPOCHS, default_root_dir=tmp_path)
    size = Tuner(made).scale_batch_size(module, steps_per_trial=1, init_val=2, max_trials=3)
    made.fit(module)
    assert size == module.batch_size > 2
    assert_ran_as_planned(spy, [dealt_steps(n, size) for n in (64, 32, 32, 48, 64)])


def test_a_rate_finder_in_the_middle_of_the_run_loses_no_statistics(tmp_path):
    selection = hide_then_grow()
    spy = Spy(selection)
    finder = FindLater(attr_name="rate", update_attr=False, **FIND)
    fit(SelfLoadingNet(dropout=0.0), None, selection, finder, spy, max_epochs=EPOCHS, default_root_dir=tmp_path)
    assert_ran_as_planned(spy)
    assert selection.statistics.epoch_seen.tolist() == [EPOCHS - 1] * 64
    assert spy.batches == undisturbed()
