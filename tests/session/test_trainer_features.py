"""Trainer features beside a selection: accumulation, precision, compilation, manual optimization, callbacks."""

import csv

import pytest
import torch
import torch.nn.functional as F
from helpers import GROWING, Net, Spy, SureNet, assert_trained_as_planned, before_update, fit, hide_then_grow, loader, watched_fit
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError

EPOCHS = len(GROWING)


# --- optimization


def test_gradient_accumulation_steps_once_per_group_and_at_the_end_of_each_epoch():
    spy, _, made = watched_fit(SureNet(), accumulate_grad_batches=3)
    assert_trained_as_planned(spy)
    assert [len(spy.rates[epoch]) for epoch in range(EPOCHS)] == [-(-batches // 3) for batches in GROWING]
    assert made.global_step == sum(-(-batches // 3) for batches in GROWING)


def test_accumulation_that_changes_during_the_run():
    spy, _, _ = watched_fit(None, None, None, GradientAccumulationScheduler({0: 1, 2: 4}))
    assert spy.steps == GROWING
    assert [len(spy.rates[epoch]) for epoch in range(EPOCHS)] == [8, 4, 1, 2, 2]


def test_bfloat16_mixed_precision_keeps_float32_statistics():
    spy, selection, _ = watched_fit(Net(), precision="bf16-mixed")
    assert_trained_as_planned(spy)
    assert selection.statistics.loss.dtype == selection.statistics.confidence.dtype == torch.float32
    assert selection.statistics.loss.isfinite().all()


def test_true_double_precision_works():
    spy, selection, _ = watched_fit(SureNet(), precision="64-true")
    assert_trained_as_planned(spy)
    assert selection.statistics.loss.dtype == torch.float32


def test_gradient_clipping_and_anomaly_detection_work():
    spy, _, _ = watched_fit(Net(), gradient_clip_val=0.5, detect_anomaly=True)
    assert_trained_as_planned(spy)


def test_a_module_without_an_optimizer_is_observed():
    class Idle(SureNet):
        def configure_optimizers(self):
            return None

    spy, selection, _ = watched_fit(Idle())
    assert_trained_as_planned(spy)
    assert selection.statistics.measured.all()


@pytest.mark.parametrize("defaults", [{}, {"lr": None}], ids=["no rate", "rate None"])
def test_an_optimizer_that_has_no_rate_is_left_alone(defaults):
    class Rateless(torch.optim.Optimizer):
        """Knows its own step size, as Adafactor does."""

        def __init__(self, parameters):
            super().__init__(parameters, defaults)

        def step(self, closure=None):
            return closure()

    class Module(SureNet):
        def configure_optimizers(self):
            return Rateless(self.parameters())

    selection = hide_then_grow()
    made = fit(Module(), loader(), selection, max_epochs=EPOCHS)
    assert selection.totals.samples_hidden == 80
    assert made.optimizers[0].param_groups[0].get("lr") is None


class ManualNet(Net):
    """Steps its optimizer itself; on odd batches not at all."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.manual_backward(loss)
        if batch_idx % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss


class ManualNetWithOutputs(ManualNet):
    def sample_outputs(self, batch):
        logits = self.network(batch[0])
        return {"sample_loss": F.cross_entropy(logits, batch[1], reduction="none"), "logits": logits, "target": batch[1]}


def test_manual_optimization_with_sample_outputs_hides_and_scales_the_rate():
    spy, _, _ = watched_fit(ManualNetWithOutputs())
    assert_trained_as_planned(spy)
    for epoch, hidden in spy.hidden.items():
        assert spy.rates[epoch] == [0.1 * (1 / (1 - len(hidden) / 64))] * -(-spy.steps[epoch] // 2)


def test_manual_optimization_takes_sample_outputs_given_to_the_callback():
    module = ManualNet()
    spy, _, _ = watched_fit(
        module, selection=hide_then_grow(sample_outputs=lambda batch: ManualNetWithOutputs.sample_outputs(module, batch))
    )
    assert_trained_as_planned(spy)


def test_manual_optimization_without_sample_outputs_is_refused():
    with pytest.raises(ConflictError, match=r"automatic_optimization=False: kakurenbo .* sample_outputs\(batch\)"):
        watched_fit(ManualNet())


@pytest.mark.parametrize("method", ["random", "baseline"])
def test_manual_optimization_needs_no_sample_outputs_where_nothing_is_refreshed(method):
    spy, selection, _ = watched_fit(ManualNet(), selection=SampleSelection(method))
    assert [len(spy.trained(epoch)) for epoch in range(EPOCHS)] == [64 - (19 if method == "random" else 0)] * EPOCHS
    assert selection.statistics.measured.any()


def test_a_step_that_skips_a_batch_leaves_its_statistics():
    class Skipping(SureNet):
        def training_step(self, batch, batch_idx):
            return None if self.trainer.current_epoch == 4 and batch_idx == 2 else super().training_step(batch, batch_idx)

    spy, selection, _ = watched_fit(Skipping())
    skipped = spy.batches[4][2]
    expected = [3 if index in skipped else 4 for index in range(64)]
    assert selection.statistics.epoch_seen.tolist() == expected


# --- compilation


def test_a_compiled_network_trains_as_planned():
    module = Net(dropout=0.0)
    module.network = torch.compile(module.network, backend="eager")
    compiled, _, _ = watched_fit(module)
    assert_trained_as_planned(compiled)
    plain, _, _ = watched_fit(Net(dropout=0.0))
    assert compiled.batches == plain.batches


def test_a_compiled_module_trains_as_planned():
    compiled, _, _ = watched_fit(torch.compile(Net(dropout=0.0), backend="eager"))
    assert_trained_as_planned(compiled)
    plain, _, _ = watched_fit(Net(dropout=0.0))
    assert compiled.batches == plain.batches


def test_a_compiled_criterion_is_seen_or_refused():
    class Compiled(Net):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.loss = torch.compile(lambda x, y: F.cross_entropy(self.network(x), y), backend="eager")

        def training_step(self, batch, batch_idx):
            return self.loss(batch[0], batch[1])

    spy, selection, _ = watched_fit(Compiled())
    assert_trained_as_planned(spy)
    assert selection.statistics.loss.isfinite().all()


# --- Lightning's callbacks


def test_stochastic_weight_averaging_keeps_its_extra_epoch():
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SureNet(), loader(), selection, StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2), spy, max_epochs=EPOCHS)
    assert spy.steps == [*GROWING, 8]  # the last one only brings BatchNorm up to date


def test_an_exponential_moving_average_of_the_weights_works():
    average = getattr(callbacks, "EMAWeightAveraging", None)
    if average is None:
        pytest.skip("EMAWeightAveraging is new in Lightning 2.6")
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SureNet(), loader(), selection, average(), spy, val=loader(16, shuffle=False), max_epochs=EPOCHS)
    assert_trained_as_planned(spy)


def test_a_parameter_group_added_during_the_run_is_scaled_from_then_on():
    class Unfreeze(BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.network[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 2:
                self.unfreeze_and_add_param_group(pl_module.network[0], optimizer, lr=0.01)

    class Frozen(SureNet):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    selection, seen = hide_then_grow(), []

    class Rates(Spy):
        def _seen_step(self, trainer):
            return before_update(lambda optimizer: seen.append([group["lr"] for group in optimizer.param_groups]))

    made = fit(Frozen(), loader(), selection, Unfreeze(), Rates(selection), max_epochs=EPOCHS)
    factors = [1.0, 2.0, 2.0, 4 / 3, 1.0]
    expected = [[0.1 * f] if epoch < 2 else [0.1 * f, 0.01 * f] for epoch, f in enumerate(factors)]
    assert seen == [rates for rates, n in zip(expected, GROWING, strict=True) for _ in range(n)]
    assert [group["lr"] for group in made.optimizers[0].param_groups] == [0.1, 0.01]


def test_early_stopping_stops_after_the_epoch_it_decides_in():
    stop = EarlyStopping("val_loss", patience=0, min_delta=10.0)  # no epoch improves by 10
    selection = hide_then_grow()
    spy = Spy(selection)
    fit(SureNet(), loader(), selection, stop, spy, val=loader(shuffle=False), max_epochs=EPOCHS)
    assert spy.steps == GROWING[:2]
    assert stop.stopped_epoch == 1


def test_early_stopping_in_the_middle_of_a_shortened_epoch():
    class Stop(SureNet):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = self.trainer.current_epoch == 1 and batch_idx == 1

    spy, selection, _ = watched_fit(Stop())
    assert spy.steps == [8, 2]
    assert selection.totals.samples_trained == 64 + 16


def test_model_checkpoint_keeps_the_best_of_every_epoch(tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    selection = hide_then_grow()
    fit(SureNet(), loader(), selection, keep, val=loader(shuffle=False), max_epochs=EPOCHS, enable_checkpointing=True)
    saved = [torch.load(path, weights_only=True) for path in tmp_path.glob("*.ckpt")]
    assert sorted(state["epoch"] for state in saved) == list(range(EPOCHS))
    totals = [sum(GROWING[: epoch + 1]) for epoch in range(EPOCHS)]
    assert sorted(state["global_step"] for state in saved) == totals


def test_model_checkpoint_every_n_steps_counts_real_steps(tmp_path):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    fit(SureNet(), loader(), hide_then_grow(), keep, max_epochs=EPOCHS, enable_checkpointing=True)
    assert sorted(path.stem for path in tmp_path.glob("*.ckpt")) == sorted(
        f"step={step}" for step in range(5, sum(GROWING) + 1, 5)
    )


def read_metrics(folder):
    """The rows of CSVLogger's file."""
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_the_rate_monitor_shows_the_base_rate_and_the_selection_the_real_one(tmp_path):
    selection, monitor = hide_then_grow(), LearningRateMonitor(logging_interval="step")
    spy = Spy(selection)
    logger = CSVLogger(tmp_path, name="", version="")
    fit(SureNet(), loader(), selection, monitor, spy, logger=logger, max_epochs=EPOCHS, log_every_n_steps=1)
    rows = read_metrics(tmp_path)
    assert {float(row["lr-SGD"]) for row in rows if row["lr-SGD"]} == {0.1}
    logged = [float(row["selection/lr"]) for row in rows if row["selection/lr"]]
    assert logged == pytest.approx([spy.rates[epoch][0] for epoch in range(EPOCHS)])
    assert len(set(logged)) == 3


def test_what_is_logged_is_what_happened(tmp_path):
    selection = hide_then_grow()
    spy = Spy(selection)
    logger = CSVLogger(tmp_path, name="", version="")
    fit(SureNet(), loader(), selection, spy, logger=logger, max_epochs=EPOCHS, log_every_n_steps=1)
    rows = [row for row in read_metrics(tmp_path) if row["selection/hidden_fraction"]]
    hidden = [len(spy.hidden[epoch]) for epoch in range(EPOCHS)]
    assert [float(row["selection/hidden_fraction"]) for row in rows] == [n / 64 for n in hidden]
    assert [float(row["selection/candidates"]) for row in rows] == hidden
    assert [float(row["selection/moved_back"]) for row in rows] == [0] * EPOCHS
    assert [float(row["selection/lr_factor"]) for row in rows] == pytest.approx([1 / (1 - n / 64) for n in hidden])
    assert all(float(row[f"selection/{name}_seconds"]) >= 0 for row in rows for name in ("refresh", "select"))
    assert selection.totals.samples_trained == 8 * sum(GROWING)
    assert selection.totals.samples_hidden == sum(hidden)
    assert selection.totals.samples_refreshed == sum(hidden)  # nothing is hidden in the last epoch
