"""The loop stays true: an epoch has the length it is planned with, and trains what is planned, once."""

import warnings
from dataclasses import asdict
from datetime import timedelta

import lightning
import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    GROWING,
    Net,
    Points,
    SureNet,
    assert_trained_as_planned,
    dealt_steps,
    fit,
    hide_then_grow,
    loader,
    watched_fit,
)
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from packaging import version

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.core.durations import time_factor

EPOCHS = len(GROWING)


# --- length


def test_lengths_follow_epochs_that_shrink_and_grow_again():
    spy, _, _ = watched_fit(val=loader())
    assert spy.steps == GROWING
    assert list(spy.lengths.values()) == GROWING
    assert list(spy.val_checks.values()) == GROWING


@pytest.mark.parametrize("count", [57, 61, 65])
def test_lengths_are_exact_with_a_ragged_tail(count):
    spy, _, _ = watched_fit(train=loader(count))
    kept = [count - len(hidden) for hidden in spy.hidden.values()]
    assert kept == [count, count - count // 2, count - count // 2, count - count // 4, count]
    assert spy.steps == list(spy.lengths.values()) == [dealt_steps(n, 8) for n in kept]


def test_drop_last_drops_the_tail_of_every_epoch():
    spy, _, _ = watched_fit(train=loader(61, drop_last=True))
    assert spy.steps == list(spy.lengths.values()) == [7, 3, 3, 5, 7]
    assert all(len(batch) == 8 for batches in spy.batches.values() for batch in batches)


class BarWatch(pl.Callback):
    """Position and total of the training bar after the last batch of each epoch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == trainer.num_training_batches:
            bar = trainer.progress_bar_callback
            if isinstance(bar, RichProgressBar):
                task = next(task for task in bar.progress.tasks if task.id == bar.train_progress_bar_id)
                self.seen.append((task.completed, task.total))
            else:
                self.seen.append((bar.train_progress_bar.n, bar.train_progress_bar.total))


def skip_unless_rich_works():
    try:
        fit(SureNet(), loader(), RichProgressBar(), max_epochs=1, enable_progress_bar=True)
    except IndexError:
        pytest.skip("this Lightning and this rich do not work together")


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_the_progress_bar_has_the_total_of_each_epoch(bar):
    if bar is RichProgressBar:
        skip_unless_rich_works()
    watch = BarWatch()
    fit(SureNet(), loader(), hide_then_grow(), bar(), watch, max_epochs=EPOCHS, enable_progress_bar=True)
    assert [total for _, total in watch.seen] == GROWING


class OwnHidden(SureNet):
    """Shows a metric of its own under that name."""

    def training_step(self, batch, batch_idx):
        self.log("hidden", 7.0, prog_bar=True, logger=False)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("module", "share"), [(SureNet, "0.500"), (OwnHidden, "7.000")])
def test_the_progress_bar_shows_the_hidden_share_unless_the_user_has_a_metric_of_that_name(module, share):
    class Shown(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1:
                self.text = str(trainer.progress_bar_callback.train_progress_bar)

    bar, shown = TQDMProgressBar(), Shown()
    made = fit(module(), loader(), hide_then_grow(), bar, shown, max_epochs=EPOCHS, enable_progress_bar=True)
    assert f"hidden={share}" in shown.text and shown.text.count("hidden=") == 1
    assert ("hidden" in made.callback_metrics) is (module is OwnHidden)
    assert "get_metrics" not in vars(bar)


def test_what_the_user_put_into_the_bar_stays_there():
    bar, texts = TQDMProgressBar(), []
    bar.get_metrics = own = lambda *args: texts.append(args) or {"mine": 5}
    fit(SureNet(), loader(), hide_then_grow(), bar, max_epochs=EPOCHS, enable_progress_bar=True)
    assert texts and bar.get_metrics is own

    class Failing(SureNet):
        def on_train_epoch_end(self):
            raise RuntimeError("the user's")

    with pytest.raises(RuntimeError, match="the user's"):
        fit(Failing(), loader(), hide_then_grow(), bar, max_epochs=EPOCHS, enable_progress_bar=True)
    assert bar.get_metrics is own, "let go of twice: by the exception and by the end"


def test_a_module_that_ends_an_epoch_early_leaves_the_next_one_whole():
    class Leaver(SureNet):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.trainer.current_epoch == 1 and batch_idx == 2 else None

    spy, _, _ = watched_fit(Leaver())
    assert spy.steps == [8, 3, 4, 6, 8]  # the spy sees the batch that is not trained


# --- content


@pytest.mark.parametrize("module", [Net, SureNet])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow_cases("Net"))])
def test_every_kept_sample_is_trained_once_and_no_hidden_one(module, workers):
    spy, selection, _ = watched_fit(module(), loader(61, num_workers=workers))
    assert_trained_as_planned(spy, 61)
    assert all(spy.hidden[epoch] for epoch in (1, 2, 3))
    if module is SureNet:
        assert torch.equal(selection.statistics.confidence, (torch.arange(61) + 1) / 4096), "each row is of its sample"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_captured_loss_is_the_one_of_the_sample_of_its_index(workers):
    class Still(Net):
        """Neither the weights nor the statistics of BatchNorm change, so each sample has one loss for ever."""

        def on_train_epoch_start(self):
            self.network.eval()

    module, data = Still(rate=0.0), Points(61)
    _, selection, _ = watched_fit(module, loader(61, num_workers=workers))
    with torch.no_grad():
        logits = module.network(data.x)
    torch.testing.assert_close(selection.statistics.loss, F.cross_entropy(logits, data.y, reduction="none"))
    torch.testing.assert_close(selection.statistics.confidence, logits.softmax(1).amax(1))
    assert torch.equal(selection.statistics.correct, logits.argmax(1) == data.y)


def test_an_unshuffled_loader_trains_in_ascending_order():
    spy, _, _ = watched_fit(train=loader(61, shuffle=False))
    for epoch, hidden in spy.hidden.items():
        order = [index for batch in spy.batches[epoch] for index in batch]
        assert order == sorted(set(range(61)) - set(hidden))


def test_a_shuffled_loader_trains_in_another_order_each_epoch():
    spy, _, _ = watched_fit(selection=SampleSelection("baseline"))
    orders = [tuple(index for batch in spy.batches[epoch] for index in batch) for epoch in range(EPOCHS)]
    assert len(set(orders)) == EPOCHS
    assert all(sorted(order) == list(range(64)) for order in orders)


def test_the_seed_decides_the_order():
    orders = [watched_fit(selection=SampleSelection("baseline", seed=seed), max_epochs=2)[0].batches for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


# --- validation


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, [[8], [4], [4], [6], [8]], id="each epoch"),
        pytest.param({"val_check_interval": 0.5}, [[4, 8], [2, 4], [2, 4], [3, 6], [4, 8]], id="half an epoch"),
        pytest.param({"val_check_interval": 0.1}, [range(1, n + 1) for n in GROWING], id="less than a batch"),
        pytest.param({"val_check_interval": 3}, [[3, 6], [3], [3], [3, 6], [3, 6]], id="3 batches"),
        pytest.param({"val_check_interval": 7}, [[7], [4], [4], [6], [7]], id="longer than the shortest epoch"),
        pytest.param({"check_val_every_n_epoch": 2}, [[], [4], [], [6], []], id="every other epoch"),
        pytest.param(
            {"check_val_every_n_epoch": None, "val_check_interval": 10}, [[], [2], [], [4], [8]], id="counted across epochs"
        ),
    ],
)
def test_validation_runs_when_it_should(settings, expected):
    spy, _, _ = watched_fit(val=loader(shuffle=False), **settings)
    assert [list(spy.validations[epoch]) for epoch in range(EPOCHS)] == [list(batches) for batches in expected]
    assert spy.steps == GROWING


def test_validation_by_the_clock_is_left_to_lightning():
    if version.parse(lightning.__version__) < version.parse("2.6"):
        pytest.skip("val_check_interval takes no duration before Lightning 2.6")
    spy, _, _ = watched_fit(val=loader(16, shuffle=False), val_check_interval=timedelta(0))  # always due
    assert [spy.validations[epoch] for epoch in range(EPOCHS)] == [list(range(1, n + 1)) for n in GROWING]
    spy, _, _ = watched_fit(val=loader(16, shuffle=False), val_check_interval=timedelta(days=1))
    assert not spy.validations
    assert spy.steps == GROWING


# --- limits


def test_a_float_limit_follows_the_length_of_the_epoch():
    spy, _, _ = watched_fit(train=loader(61), limit_train_batches=0.5, val=loader())
    kept = [61 - len(hidden) for hidden in spy.hidden.values()]
    assert any(n < 61 for n in kept)
    assert spy.steps == list(spy.lengths.values()) == [max(1, int(dealt_steps(n, 8) * 0.5)) for n in kept]
    assert [spy.validations[epoch] for epoch in range(EPOCHS)] == [[n] for n in spy.steps]
    for epoch, hidden in spy.hidden.items():
        assert len(set(spy.trained(epoch))) == len(spy.trained(epoch))
        assert not set(spy.trained(epoch)) & set(hidden)


def test_an_integer_limit_is_kept_and_warned_about():
    with pytest.warns(UserWarning, match=r"limit_train_batches=5\) fixes the number of batches"):
        spy, _, _ = watched_fit(limit_train_batches=5)
    kept = [64 - len(hidden) for hidden in spy.hidden.values()]
    assert spy.steps == [min(5, dealt_steps(n, 8)) for n in kept]


@pytest.mark.parametrize("steps", [1, 8, 13])
def test_max_steps_is_exact(steps):
    spy, _, made = watched_fit(max_steps=steps, max_epochs=-1)
    assert made.global_step == sum(spy.steps) == steps


def test_max_steps_counts_optimizer_steps_under_accumulation():
    spy, _, made = watched_fit(max_steps=5, max_epochs=-1, accumulate_grad_batches=3)
    assert made.global_step == 5
    assert spy.steps == [8, 4]  # 3 steps of 3, 3 and 2 batches, then 2 of 3 and 1


def test_max_time_and_min_epochs_leave_the_epochs_whole():
    spy, _, _ = watched_fit(max_time="00:01:00:00", min_epochs=2)
    assert spy.steps == GROWING


@pytest.mark.parametrize(("limit", "spared"), [(3, 0), (6, 4 * 16), (0.5, 4 * 16), (1.0, 4 * 32)])
def test_only_what_would_have_been_trained_is_saved(limit, spared):
    """64 samples in batches of 8, of which each epoch hides 32; behind the limit nothing would have been trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, selection, _ = watched_fit(
            selection=SampleSelection("random", max_fraction=0.5), max_epochs=4, limit_train_batches=limit
        )
    totals = selection.totals
    assert (totals.samples_spared, totals.samples_hidden) == (spared, 128)
    assert (totals.saved_seconds > -totals.refresh_seconds - totals.select_seconds) == (spared > 0)
    plain = totals.samples_trained + spared
    assert (
        f"{totals.samples_trained / plain:.1%}" in totals.table("hide")[0] and f"{spared / plain:.1%}" in totals.table("hide")[1]
    )
    assert (f"would have cut off {128 - spared} of them anyway" in totals.summary("hide")) == (spared < 128)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("random", {"max_epochs": -1, "max_steps": 20}),
        ("random", {"max_epochs": 4, "max_steps": 14}),
        ("random", {"max_epochs": 4, "max_steps": 29}),
        ("random", {"max_epochs": 4, "max_steps": 5, "accumulate_grad_batches": 4}),
        ("forget", {"max_epochs": 4}),
    ],
    ids=["steps alone", "cut", "only plain training is cut", "accumulation", "scoring epochs"],
)
def test_what_is_saved_is_the_way_to_the_end_of_plain_training(method, settings):
    own = SampleSelection(method, max_fraction=0.5, **({"static_epochs": 1} if method == "forget" else {}))
    plain = SampleSelection("baseline")
    for selection in (own, plain):
        watched_fit(selection=selection, **settings)
    own, plain = own.totals, plain.totals
    assert own.samples_hidden > 0 and own.samples_spared == plain.samples_trained - own.samples_trained
    assert own.ideal == pytest.approx(1 - own.samples_trained / plain.samples_trained * time_factor(asdict(own)))


@pytest.mark.parametrize("settings", [{"limit_train_batches": 0}, {"max_epochs": 0}, {"max_steps": 0}])
def test_a_run_of_nothing_trains_nothing(settings):
    spy, _, _ = watched_fit(**settings)
    assert not spy.batches


def test_fast_dev_run_runs_one_batch():
    spy, _, _ = watched_fit(fast_dev_run=True, val=loader())
    assert spy.steps == [1]
    assert spy.validations == {0: [1]}


def test_a_barebones_trainer_hides_too():
    spy, _, _ = watched_fit(barebones=True)
    assert spy.steps == GROWING
