"""The batch engine and the rest of Lightning: real steps are counted, and what cannot work together is refused."""

import pytest
import torch
import torch.nn.functional as F
from driven import EPOCHS, Trained, sb_fit
from helpers import Net, Spy, fit, loader
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError, OutputsError
from kakurenbo_lightning.methods.backprop.katharopoulos import Katharopoulos
from kakurenbo_lightning.methods.backprop.selective_backprop import SelectiveBackprop, StaleSB

# ---- Lightning's bookkeeping


def test_lightning_counts_real_steps(tmp_path):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    schedule = lambda optimizer, module: {"scheduler": StepLR(optimizer, 1000), "interval": "step"}  # noqa: E731
    selection, trained = SampleSelection(SelectiveBackprop(), align_schedules=False), Trained()
    net = Net(dropout=0.0, schedule=schedule)
    made = fit(net, loader(61), selection, trained, keep, val=loader(16), max_epochs=EPOCHS, enable_checkpointing=True)
    steps = sum(map(len, trained.batches.values()))
    assert made.global_step == steps < EPOCHS * 8
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == steps
    assert sorted(int(path.stem.split("=")[1]) for path in tmp_path.glob("*.ckpt")) == list(range(5, steps + 1, 5))


def test_an_aligned_schedule_ends_with_the_last_epoch():
    def one_cycle(optimizer, module):
        steps = int(module.trainer.estimated_stepping_batches)
        return {"scheduler": OneCycleLR(optimizer, 0.3, total_steps=steps), "interval": "step"}

    made, _, _, _ = sb_fit(SelectiveBackprop(), Net(schedule=one_cycle))
    scheduler = made.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == scheduler.total_steps == EPOCHS * 9


def test_a_scaler_counts_real_steps_only():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=10_000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    made, _, trained, net = sb_fit(SelectiveBackprop(), plugins=[plugin])
    steps = sum(map(len, trained.batches.values()))
    assert made.global_step == scaler._get_growth_tracker() == steps
    assert all(value.isfinite().all() for value in net.state_dict().values())


def test_validation_runs_and_batches_are_all_loaded():
    selection = SampleSelection(SelectiveBackprop())
    spy = Spy(selection)
    fit(Net(), loader(61), selection, spy, val=loader(16), max_epochs=EPOCHS)
    assert [len(spy.validations[epoch]) for epoch in range(EPOCHS)] == [1] * EPOCHS
    assert spy.steps == [9] * EPOCHS  # eight batches, and one sample for the short step


# ---- with the rest of Lightning


def test_the_lr_finder_sees_whole_batches_and_real_steps():
    class Tuned(Net):
        def __init__(self):
            super().__init__()
            self.lr = 0.1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    finder = LearningRateFinder(num_training_steps=12)
    _, _, trained, _ = sb_fit(SelectiveBackprop(), Tuned(), None, finder)
    assert len(finder.optimal_lr.results["loss"]) >= 10
    assert sorted(trained.indices(0)) == list(range(61))


def test_validation_in_an_epoch_is_no_waiting_for_data():
    class Slow(Net):
        def validation_step(self, batch, batch_idx):
            for _ in range(300):
                super().training_step(batch, batch_idx)

    _, selection, _, _ = sb_fit(SelectiveBackprop(), Slow(), max_epochs=3, val_check_interval=0.25)
    assert selection.totals.data_seconds < selection.totals.train_seconds


def test_a_limit_that_cuts_off_the_short_step_is_told():
    with pytest.warns(UserWarning, match="limit_train_batches=0.75.* cuts off the step that trains what is left"):
        _, _, trained, _ = sb_fit(SelectiveBackprop(), limit_train_batches=0.75)
    for counts in trained.counts.values():
        assert counts["scored"] + counts["carried"] == counts["chosen_trained"] + counts["rejected"] + counts["pooled"]


def test_weights_that_cannot_be_applied_are_told_at_once():
    class WithFunction(Net):
        def sample_outputs(self, batch):
            logits = self.network(batch[0])
            return {"sample_loss": F.cross_entropy(logits, batch[1], reduction="none"), "logits": logits, "target": batch[1]}

    with pytest.raises(OutputsError, match="loss weights: they cannot enter"):
        sb_fit(Katharopoulos(warmup_epochs=2), WithFunction(), max_epochs=1)


def test_the_history_of_stale_sb_is_of_what_was_looked_at():
    _, selection, _, _ = sb_fit(StaleSB(staleness=3), max_epochs=3)
    assert len(selection.session.engine.memory["history"]) == 61


# ---- what cannot work is refused


@pytest.mark.parametrize("how", ["step", "hook"])
def test_a_batch_changed_in_place_is_refused(how):
    class InPlace(Net):
        def training_step(self, batch, batch_idx):
            if how == "step":
                batch[0].sub_(1.0)
            return super().training_step(batch, batch_idx)

        def on_train_batch_start(self, batch, batch_idx):
            if how == "hook":
                batch[0].add_(1.0)

    with pytest.raises(ConflictError, match="changed in place after selective_backprop scored it"):
        sb_fit(SelectiveBackprop(), InPlace())


def test_a_schedule_of_accumulation_is_refused():
    with pytest.raises(ConflictError, match="GradientAccumulationScheduler: selective_backprop waits"):
        sb_fit(SelectiveBackprop(), None, None, GradientAccumulationScheduler({1: 2}))


def test_accumulation_and_manual_optimization_are_refused():
    with pytest.raises(ConflictError, match=r"accumulate_grad_batches=2\): selective_backprop waits until"):
        sb_fit(SelectiveBackprop(), accumulate_grad_batches=2)

    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ConflictError, match="automatic_optimization=False: selective_backprop decides"):
        sb_fit(SelectiveBackprop(), Manual())
