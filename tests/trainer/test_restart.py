"""Static methods: score some epochs, choose once, and train anew from the initial state within one ``fit``."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, Net, Spy, fit, loader
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError

SCORED, EPOCHS = 2, 3
STATIC = [("forget", {"static_epochs": SCORED}), ("el2n", {"score_epochs": (1, SCORED)})]


def by_epoch(optimizer, module):
    return StepLR(optimizer, 1, gamma=0.5)


def by_step(optimizer, module):
    steps = int(module.trainer.estimated_stepping_batches)
    return {"scheduler": OneCycleLR(optimizer, 0.3, total_steps=steps), "interval": "step"}


class Keep(Callback):
    """The batches, and torch's random stream at the first of each epoch."""

    def __init__(self):
        self.batches, self.streams = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.streams[trainer.current_epoch] = torch.get_rng_state()
        self.batches.setdefault(trainer.current_epoch, []).append(batch)


def static_fit(method, settings, *callbacks, module=None, count=60, **trainer):
    selection = SampleSelection(method, max_fraction=0.25, **settings)
    spy, keep, module = Spy(selection), Keep(), module or Net(dropout=0.0)
    made = fit(module, loader(count), selection, spy, keep, *callbacks, **{"max_epochs": EPOCHS, **trainer})
    return made, selection, spy, keep, module


@pytest.mark.parametrize("method, settings", STATIC)
def test_everything_is_trained_while_it_scores_and_then_the_same_rest(method, settings):
    _, selection, spy, _, _ = static_fit(method, settings)
    assert [len(hidden) for hidden in spy.hidden.values()] == [0] * SCORED + [15] * EPOCHS
    assert len({tuple(spy.hidden[epoch]) for epoch in range(SCORED, SCORED + EPOCHS)}) == 1
    for epoch, hidden in spy.hidden.items():
        assert spy.trained(epoch) == sorted(set(range(60)) - set(hidden))
    assert selection.totals.samples_trained == 60 * SCORED + 45 * EPOCHS
    assert selection.totals.scoring_epochs == SCORED
    assert f"({SCORED} epochs of them before it started again)" in selection.totals.summary()


def test_el2n_scores_once_by_the_network_as_the_scoring_epochs_left_it():
    """In eval mode (dropout), over all samples, before the weights go back."""

    left = []  # at each epoch's end

    class Scored(Net):
        def on_train_epoch_end(self):
            left.append(copy.deepcopy(self.network).eval())

    settings = {"score_epochs": (1, SCORED), "score_pass": True}
    _, selection, spy, _, _ = static_fit("el2n", settings, module=Scored(dropout=0.5))
    data = loader(60).dataset
    with torch.no_grad():
        error = left[SCORED - 1](data.x).softmax(1) - F.one_hot(data.y, CLASSES)
    score = error.norm(dim=1)
    assert torch.allclose(selection.statistics.extra["el2n_sum"], score, atol=1e-6)
    assert set(selection.statistics.extra["el2n_count"].tolist()) == {1}
    assert spy.hidden[SCORED] == score.argsort()[:15].sort().values.tolist()
    assert selection.totals.samples_refreshed == 60


@pytest.mark.parametrize("method, settings", STATIC)
@pytest.mark.parametrize("schedule", [None, by_epoch])
def test_the_second_training_begins_as_a_new_one(method, settings, schedule):
    """Its weights and BatchNorm are those of a plain loop from a new network over the same batches."""
    _, _, _, keep, module = static_fit(method, settings, module=Net(dropout=0.0, schedule=schedule))
    twin = Net(dropout=0.0)
    optimizer = twin.configure_optimizers()
    for number, epoch in enumerate(range(SCORED, SCORED + EPOCHS)):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (0.5**number if schedule else 1)
        for x, y, _ in keep.batches[epoch]:
            optimizer.zero_grad()
            F.cross_entropy(twin.network(x), y).backward()
            optimizer.step()
    for name, value in twin.state_dict().items():
        assert torch.allclose(value, module.state_dict()[name], atol=1e-6), name


def test_random_streams_go_back_too():
    _, _, _, keep, _ = static_fit(*STATIC[0], module=Net(dropout=0.5))
    assert torch.equal(keep.streams[0], keep.streams[SCORED])
    assert not torch.equal(keep.streams[1], keep.streams[SCORED])


def test_a_schedule_made_for_the_user_s_epochs_is_run_whole_twice_begun():
    made, _, spy, _, _ = static_fit(*STATIC[0], module=Net(schedule=by_step))
    first, again = spy.rates[0], spy.rates[SCORED]
    assert again[0] == pytest.approx(first[0])
    final = made.lr_scheduler_configs[0].scheduler
    assert final.last_epoch == final.total_steps == 8 * EPOCHS


def test_the_epochs_come_on_top_and_are_logged(tmp_path):
    made, _, spy, _, _ = static_fit(*STATIC[1], logger=CSVLogger(tmp_path))
    assert sorted(spy.batches) == list(range(SCORED + EPOCHS))
    assert made.max_epochs == EPOCHS
    assert made.callback_metrics["selection/scoring_epochs"] == SCORED


class Falling(Net):
    """Its metric is best in the scoring epochs."""

    def on_train_epoch_end(self):
        self.log("metric", float(self.current_epoch if self.current_epoch < SCORED else 10 - self.current_epoch))


@pytest.mark.parametrize("name", ["{epoch}", "best"])
def test_the_best_checkpoint_is_of_the_second_training(tmp_path, name):
    best = ModelCheckpoint(tmp_path, monitor="metric", mode="min", save_last=True, filename=name)
    static_fit(*STATIC[0], best, module=Falling(), enable_checkpointing=True)
    last = SCORED + EPOCHS - 1
    assert best.best_model_score == 10 - last
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == last
    kept = {f"epoch={last}.ckpt"} if name == "{epoch}" else {"best.ckpt"}
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", *kept}


def test_early_stopping_waits_for_the_second_training():
    """It would have stopped in the third scoring epoch."""

    class Rising(Net):
        def on_train_epoch_end(self):
            self.log("metric", float(self.current_epoch))

    stop = EarlyStopping("metric", mode="min", patience=1)
    _, selection, spy, _, _ = static_fit("forget", {"static_epochs": 5}, stop, module=Rising(), max_epochs=6)
    assert sorted(spy.batches) == list(range(7))  # five to score, and two until it stops
    assert selection.totals.scoring_epochs == 5 and len(selection.plan.hidden) == 15
    assert stop.stopped_epoch == 6


def test_a_run_that_ends_while_it_scores_says_so():
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.fit_loop.max_epochs = 1

    with pytest.warns(UserWarning, match="the run ended in its 2 scoring epochs: nothing was hidden"):
        _, selection, _, _, _ = static_fit(*STATIC[0], Stop())
    assert "started again" not in selection.totals.summary()


def test_what_was_scored_stays_scored_when_the_run_gets_longer(tmp_path):
    """A share of ``max_epochs`` is taken once."""
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    settings = ("forget", {"static_epochs": 0.25})
    made, selection, _, _, module = static_fit(*settings, keep, max_epochs=4, enable_checkpointing=True)
    hidden = selection.plan.hidden
    made.fit_loop.max_epochs = 12
    made.fit(module, loader(60))
    assert made.current_epoch == 13
    assert torch.equal(selection.plan.hidden, hidden)
    _, resumed, spy, _, _ = static_fit(*settings, max_epochs=12, ckpt_path=tmp_path / "epoch=4.ckpt")
    assert sorted(spy.batches) == list(range(5, 13))
    assert torch.equal(resumed.plan.hidden, hidden)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_checkpoint_of_a_training_that_it_did_not_score_is_refused(tmp_path, epochs):
    for number, callbacks in enumerate(([], [SampleSelection("kakurenbo")])):
        folder = tmp_path / str(number)
        fit(Net(), loader(60), *callbacks, ModelCheckpoint(folder), max_epochs=epochs, enable_checkpointing=True)
        selection = SampleSelection("forget", static_epochs=2, on_mismatch="reset")
        with pytest.raises(ConflictError, match="epochs 0 to 1 was not scored by this method"):
            fit(Net(), loader(60), selection, max_epochs=5, ckpt_path=next(folder.iterdir()))


def test_a_checkpoint_callback_that_monitors_nothing_leaves_one_file(tmp_path):
    static_fit(*STATIC[0], ModelCheckpoint(tmp_path), enable_checkpointing=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"epoch={SCORED + EPOCHS - 1}-step=34.ckpt"]


def test_buffers_that_no_checkpoint_holds_go_back_too():
    class Counting(Net):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.register_buffer("count", torch.zeros(()), persistent=False)

        def training_step(self, batch, batch_idx):
            self.count += self.training
            return super().training_step(batch, batch_idx)

    _, _, spy, _, module = static_fit(*STATIC[0], module=Counting())
    assert module.count == sum(len(spy.batches[epoch]) for epoch in range(SCORED, SCORED + EPOCHS))


class Finetuning(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        """Nothing."""

    def finetune_function(self, pl_module, epoch, optimizer):
        """Nothing."""


def test_callbacks_that_cannot_be_put_back_are_refused():
    for callback in (StochasticWeightAveraging(1e-2), Finetuning(), GradientAccumulationScheduler({1: 2})):
        with pytest.raises(ConflictError, match=f"callback {type(callback).__name__}: .* effects cannot be put back; remove it"):
            static_fit(*STATIC[0], callback)


def test_a_training_that_changed_its_parameter_groups_cannot_start_again():
    class Unfreeze(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.optimizers[0].add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})

    with pytest.raises(ConflictError, match="cannot start again: its parameter groups changed while it was scored"):
        static_fit(*STATIC[0], Unfreeze())


def test_the_lr_finder_runs_before_a_static_method():
    class Tuned(Net):
        def configure_optimizers(self):
            self.hparams.lr = self.lr = getattr(self, "lr", 0.1)
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    module = Tuned()
    module.lr = 0.1
    finder = LearningRateFinder(num_training_steps=5)
    made, selection, _, _, _ = static_fit(*STATIC[0], finder, module=module, count=120)
    assert made.current_epoch == SCORED + EPOCHS
    assert len(selection.plan.hidden) == 30


def test_validation_every_few_epochs_that_do_not_fit_is_told():
    with pytest.warns(UserWarning, match="no multiple of check_val_every_n_epoch=3"):
        static_fit(*STATIC[0], check_val_every_n_epoch=3)


def test_a_second_fit_of_a_finished_static_run_trains_on():
    made, selection, _, _, module = static_fit(*STATIC[0])
    made.fit_loop.max_epochs = EPOCHS + 1
    made.fit(module, loader(60))
    assert made.current_epoch == SCORED + EPOCHS + 1
    assert made.max_epochs == EPOCHS + 1
    assert len(selection.plan.hidden) == 15


def test_fast_dev_run_works():
    made, _, _, _, _ = static_fit(*STATIC[0][:1], {}, fast_dev_run=True)
    assert made.global_step == 1


@pytest.mark.parametrize("settings", [{"max_steps": 20}, {"max_epochs": -1}])
def test_a_run_that_is_not_counted_in_epochs_is_refused(settings):
    with pytest.raises(ConflictError, match="starts again for max_epochs, so the run must be counted in epochs"):
        static_fit("forget", {"static_epochs": 2}, **settings)


@pytest.mark.parametrize(
    "method, settings, message",
    [
        ("forget", {"static_epochs": 4}, "static_epochs=4 is not allowed; static_epochs must be at most max_epochs=3"),
        ("el2n", {"score_epochs": (2, 5)}, "score_epochs"),
        ("forget", {"static_epochs": 0}, "static_epochs=0"),
        ("forget", {"static_epochs": 1.5}, "static_epochs=1.5"),
        ("el2n", {"score_epochs": (3, 3)}, "first < end"),
        ("el2n", {"score_epochs": (1, 0.5)}, "score_epochs=\\(1, 0.5\\)"),
        ("el2n", {"score_epochs": 3}, "score_epochs=3"),
    ],
)
def test_a_bad_number_of_epochs_is_named(method, settings, message):
    with pytest.raises(ValueError, match=message):
        static_fit(method, settings)
