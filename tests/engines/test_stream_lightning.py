"""A stream beside what a Trainer can do: lengths, schedules, accumulation, validation, tuning, modules that do odd things."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import FEATURES, Net, Points, fit, loader, trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from streamed import BATCH, EPOCHS, SAMPLES, Draws, LogitsNet, ToldNet, assert_same_weights, shares, stream_fit
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError, OutputsError
from kakurenbo_lightning.methods import ISWR, LB, NLB, OWC, PEB, PLB

STEPS = 8


def one_cycle(optimizer, module):
    steps = int(module.trainer.estimated_stepping_batches)
    return {"scheduler": OneCycleLR(optimizer, 0.3, total_steps=steps), "interval": "step"}


# ---- lengths, counters, schedules


class Progress(Callback):
    """What Lightning says of each epoch."""

    def __init__(self):
        self.lengths, self.steps, self.validations = {}, {}, {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.lengths[trainer.current_epoch] = trainer.num_training_batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps[trainer.current_epoch] = (batch_idx + 1, trainer.global_step)
        assert trainer.is_last_batch == (batch_idx + 1 == trainer.num_training_batches)

    def on_validation_start(self, trainer, pl_module):
        self.validations.setdefault(trainer.current_epoch, []).append(self.steps[trainer.current_epoch][0])


@pytest.mark.parametrize(
    ("length", "pretrain", "workers"),
    [*((length, pretrain, 0) for length in (None, 5, 13) for pretrain in (0, 2)), (5, 0, 2), (13, 2, 2)],
)
def test_epochs_are_as_long_as_told_and_everything_knows(length, pretrain, workers):
    method = PLB(epoch_length=length, pretrain_epochs=pretrain)
    train = loader(SAMPLES, num_workers=workers, persistent_workers=workers > 0)
    progress = Progress()
    net = LogitsNet(schedule=one_cycle)
    made, selection, draws, _ = stream_fit(method, net, train, progress, val=loader(16, shuffle=False), max_epochs=4)
    lengths = [STEPS if epoch < pretrain else method.epoch_length or STEPS for epoch in range(4)]
    assert list(progress.lengths.values()) == lengths
    assert [len(batches) for batches in draws.batches.values()] == lengths
    assert progress.steps == {epoch: (length, sum(lengths[: epoch + 1])) for epoch, length in enumerate(lengths)}
    assert progress.validations == {epoch: [length] for epoch, length in enumerate(lengths)}
    assert made.global_step == sum(lengths)
    trained = sum(SAMPLES if epoch < pretrain else length * BATCH for epoch, length in enumerate(lengths))
    assert selection.totals.samples_trained == trained
    (config,) = made.lr_scheduler_configs
    assert config.scheduler.last_epoch == config.scheduler.total_steps, "the schedule ends with the run"


def test_a_schedule_lowers_the_rate_evenly_over_shorter_epochs():
    rates = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    stream_fit(PLB(epoch_length=4), LogitsNet(schedule=one_cycle), None, Rates())
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, expected = OneCycleLR(optimizer, 0.3, total_steps=STEPS * EPOCHS), []
    used = [round(k * (STEPS - 1) / 3) for k in range(4)]  # of each epoch, from its first rate to its last
    for step in range(STEPS * EPOCHS):
        expected += [optimizer.param_groups[0]["lr"]] if step % STEPS in used else []
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("limit", [3, 0.5])
@pytest.mark.filterwarnings("ignore:.*limit_train_batches")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_limit_cuts_epochs_and_what_was_drawn_beyond_is_drawn_anew(limit, workers):
    train = loader(SAMPLES, num_workers=workers, persistent_workers=workers > 0)
    net = LogitsNet(schedule=one_cycle)
    made, selection, draws, _ = stream_fit(PLB(epoch_length=6), net, train, limit_train_batches=limit)
    assert [list(batches) for batches in draws.batches.values()] == [[0, 1, 2]] * EPOCHS
    for epoch, batches in draws.batches.items():
        assert batches == {number: drawn.indices.tolist() for number, drawn in draws.known[epoch].items()}
        assert [drawn.written for drawn in draws.known[epoch].values()] == ([0, 0, 0] if workers else [0, 1, 2])
    assert len({tuple(batch) for batches in draws.batches.values() for batch in batches.values()}) == 3 * EPOCHS
    assert selection.totals.samples_trained == 3 * BATCH * EPOCHS
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == made.lr_scheduler_configs[0].scheduler.total_steps


def test_max_steps_ends_within_an_epoch():
    made, selection, draws, _ = stream_fit(PLB(epoch_length=10), max_steps=13, max_epochs=-1)
    assert [len(batches) for batches in draws.batches.values()] == [10, 3]
    assert (made.global_step, selection.totals.samples_trained) == (13, 13 * BATCH)


@pytest.mark.parametrize("interval", [0.5, 3])
def test_validation_within_an_epoch_changes_nothing(interval):
    progress = Progress()
    _, _, plain, one = stream_fit(PLB(epoch_length=10), Net())
    _, _, draws, other = stream_fit(
        PLB(epoch_length=10), Net(), None, progress, val=loader(16, shuffle=False), val_check_interval=interval
    )
    assert progress.validations == {epoch: [5, 10] if interval == 0.5 else [3, 6, 9] for epoch in range(EPOCHS)}
    assert draws.batches == plain.batches
    assert_same_weights(one, other)


@pytest.mark.filterwarnings("ignore:.*reload_dataloaders")
@pytest.mark.slow_cases("pretrained")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", [PLB(), PLB(pretrain_epochs=2, epoch_length=11)], ids=["plain", "pretrained"])
def test_loaders_that_are_made_anew_change_nothing(method, workers):
    class Loading(LogitsNet):
        def train_dataloader(self):
            return loader(SAMPLES, num_workers=workers, persistent_workers=workers > 0)

    def run(**settings):
        net, selection = Loading(), SampleSelection(method)
        draws = Draws(selection)
        fit(net, None, selection, draws, max_epochs=4, **settings)
        return draws, net

    plain, one = run()
    draws, other = run(reload_dataloaders_every_n_epochs=1)
    assert draws.batches == plain.batches
    assert_same_weights(one, other)


def test_a_second_fit_goes_on_with_the_table():
    made, selection, draws, net = stream_fit(PLB(), LogitsNet(momentum=0.0), max_epochs=2)  # the optimizer is a new one
    made.fit_loop.max_epochs = 4
    made.fit(net, loader(SAMPLES))
    _, _, whole, twin = stream_fit(PLB(), LogitsNet(momentum=0.0), max_epochs=4)
    assert draws.batches == whole.batches
    assert_same_weights(twin, net)
    assert selection.totals.samples_refreshed == SAMPLES, "one start pass"


def test_fast_dev_run_and_barebones_run():
    made, selection, _, _ = stream_fit(PLB(pretrain_epochs=0), fast_dev_run=True)
    assert made.global_step == 1 and selection.totals.samples_trained == BATCH
    selection = SampleSelection(PLB(refresh_share=0.1, diagnose=5))
    bare = trainer(selection, max_epochs=3, barebones=True, enable_checkpointing=None)
    bare.fit(Net(), loader(SAMPLES))
    assert selection.totals.samples_trained == 3 * STEPS * BATCH


@pytest.mark.parametrize("name", ["owc", "lb", "nlb", "plb", "peb", "iswr"])
def test_bf16_runs_and_the_table_is_float32(name):
    _, selection, _, _ = stream_or_plan(name, precision="bf16-mixed")
    loss, seen = selection.statistics.loss, selection.statistics.measured
    assert loss.dtype == torch.float32 and loss[seen].isfinite().all() and (seen.all() or name == "owc")


def stream_or_plan(name, **settings):
    """Any method of the family; those that plan epochs have no engine to ask."""
    if name != "iswr":
        return stream_fit(name, **settings)
    selection, net = SampleSelection(ISWR()), LogitsNet()
    made = fit(net, loader(SAMPLES), selection, max_epochs=EPOCHS, **settings)
    return made, selection, None, net


def test_true_double_precision_runs():
    _, _, draws, _ = stream_fit(PLB(unbiased=True), precision="64-true")
    assert draws.tables[EPOCHS - 1].dtype == torch.float32


# ---- optimization


class Weighing(LogitsNet):
    """The gradient is by hand: of the drawn batches since the last step, each weighed."""

    def on_train_start(self):
        self.steps = []

    def on_before_optimizer_step(self, optimizer):
        self.steps.append([parameter.grad.clone() for parameter in self.parameters()])


@pytest.mark.parametrize("scheduler", [False, True])
def test_accumulated_gradients_are_the_mean_over_batches(scheduler):
    net = Weighing(momentum=0.0)
    net.network = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 3))
    initial = {key: value.clone() for key, value in net.state_dict().items()}
    extra = (GradientAccumulationScheduler({0: 2}),) if scheduler else ()
    settings = {} if scheduler else {"accumulate_grad_batches": 2}
    made, _, draws, _ = stream_fit(PLB(unbiased=True, mix=0.1, epoch_length=5), net, None, *extra, max_epochs=2, **settings)
    assert made.global_step == 6 == len(net.steps)
    data, twin = Points(SAMPLES), LogitsNet(momentum=0.0)
    twin.network = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 3))
    twin.load_state_dict(initial)
    optimizer, step = torch.optim.SGD(twin.parameters(), lr=0.1), 0
    for epoch in range(2):
        assert draws.staleness(epoch) == [0] * 5, "values are written after every batch, not every step"
        for number, drawn in draws.known[epoch].items():
            losses = F.cross_entropy(twin.network(data.x[drawn.indices]), data.y[drawn.indices], reduction="none")
            ((losses * drawn.weights).mean() / 2).backward()
            if number % 2 or number == 4:
                for mine, hand in zip(net.steps[step], twin.parameters(), strict=True):
                    torch.testing.assert_close(mine, hand.grad, rtol=1e-4, atol=1e-6)
                optimizer.step()
                optimizer.zero_grad()
                step += 1


class Manual(Net):
    """Steps its optimizer itself."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.manual_backward(loss)
        optimizer.step()
        return loss

    def sample_outputs(self, batch):
        logits = self.network(batch[0])
        return {"sample_loss": F.cross_entropy(logits, batch[1], reduction="none"), "logits": logits, "target": batch[1]}


class ManualWithoutFunction(Manual):
    sample_outputs = None


@pytest.mark.parametrize("name", ["owc", "lb", "nlb", "plb", "peb"])
def test_manual_optimization_streams_too(name):
    _, selection, draws, _ = stream_fit(name, Manual())
    assert [len(batches) for batches in draws.batches.values()] == [STEPS] * EPOCHS
    assert selection.statistics.measured.any() and draws.tables[EPOCHS - 1].std() > 0
    assert max(draws.staleness(1)) == 0


def test_manual_optimization_needs_no_function_where_nothing_is_looked_at():
    _, _, draws, _ = stream_fit(OWC(), ManualWithoutFunction())
    assert [len(batches) for batches in draws.batches.values()] == [STEPS] * EPOCHS


@pytest.mark.parametrize("method", [PLB(unbiased=True), OWC(unbiased=True), ISWR(unbiased=True)], ids=lambda m: m.name)
def test_manual_optimization_is_refused_with_weights(method):
    with pytest.raises(ConflictError, match=rf"automatic_optimization=False: the loss weights of {method.name}.*unbiased=False"):
        fit(Manual(), loader(SAMPLES), SampleSelection(method))


def test_manual_optimization_without_a_function_is_refused_where_a_pass_is_needed():
    with pytest.raises(ConflictError, match=r"automatic_optimization=False: plb .* sample_outputs\(batch\)"):
        fit(ManualWithoutFunction(), loader(SAMPLES), SampleSelection("plb"))


def test_an_optimizer_that_runs_the_step_more_than_once_writes_the_last_losses():
    class Repeating(LogitsNet):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=3)

    _, selection, draws, net = stream_fit(PLB(), Repeating())
    assert len(net.seen) > EPOCHS * STEPS
    assert torch.equal(draws.tables[EPOCHS - 1], selection.statistics.loss)
    assert [drawn.written for drawn in draws.known[1].values()] == list(range(STEPS))


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_step_that_returns_nothing_trains_nothing_and_writes_nothing():
    class Skipping(LogitsNet):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if self.training and batch_idx % 3 == 1 else loss

    _, selection, draws, net = stream_fit(PLB(), Skipping(), max_epochs=2)
    values = torch.empty(SAMPLES)
    for _, batch, logits in net.looked:
        values[batch[2]] = F.cross_entropy(logits, batch[1], reduction="none")
    for step, (_, batch, logits) in enumerate(net.seen):
        if step % STEPS % 3 != 1:
            values[batch[2]] = F.cross_entropy(logits, batch[1], reduction="none")
    assert torch.equal(draws.tables[1], values)
    assert torch.equal(selection.statistics.loss, values)


# ---- modules and data


class Regression(Net):
    """Predicts one number: there is nothing to be right or wrong about."""

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.network(batch[0])[:, 0], batch[1].float())


@pytest.mark.parametrize("method", [PLB(), LB(), NLB(), PLB(unbiased=True, mix=0.1), ISWR()], ids=lambda m: repr(m)[:14])
def test_a_regression_is_drawn_by_its_loss(method):
    selection = SampleSelection(method)
    fit(Regression(), loader(SAMPLES), selection, max_epochs=EPOCHS)
    assert selection.statistics.loss.isfinite().all()


@pytest.mark.parametrize(("method", "what"), [(PEB(), "entropy"), (OWC(), "correct")], ids=["peb", "owc"])
def test_a_regression_that_lacks_what_is_drawn_by_is_told_so(method, what):
    with pytest.raises(OutputsError, match=f"the method reads {what}.*A regression has none.*plb"):
        fit(Regression(), loader(SAMPLES), SampleSelection(method))


def test_entropy_that_the_module_returns_is_drawn_by():
    class Returning(Net):
        def training_step(self, batch, batch_idx):
            loss = F.mse_loss(self.network(batch[0])[:, 0], batch[1].float(), reduction="none")
            return {"loss": loss.mean(), "sample_loss": loss, "entropy": 1.0 + batch[2]}

    _, _, draws, _ = stream_fit(PEB(), Returning())
    assert draws.tables[EPOCHS - 1].tolist() == [1.0 + index for index in range(SAMPLES)]


def test_wrap_is_refused():
    class Wrapping(LogitsNet):
        def train_dataloader(self):
            return self.trainer.callbacks[0].wrap(loader(SAMPLES))

    with pytest.raises(ConflictError, match=r"selection.wrap\(...\) cannot .*draw while training.* plb"):
        fit(Wrapping(), None, SampleSelection("plb"))


def test_other_loaders_are_refused_as_for_every_method():
    odd = DataLoader(Points(SAMPLES), BATCH, shuffle=True)
    odd.in_order = False
    with pytest.raises(ConflictError, match="in_order"):
        fit(Net(), odd, SampleSelection("plb"))


def test_the_sampler_tells_which_samples_a_step_trained():
    """``SelectionSampler.step`` is public: a user's callback asks it after the step."""
    told, trained = [], []

    class Asking(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            told.append(trainer.train_dataloader.sampler.step(batch_idx).tolist())
            trained.append(batch[2].tolist())

    _, _, draws, net = stream_fit(PLB(), None, None, Asking())
    assert told == trained
    _, _, plain, twin = stream_fit(PLB())
    assert draws.batches == plain.batches
    assert_same_weights(twin, net)


def test_a_run_that_begins_within_a_plain_one_looks_first(tmp_path):
    """The checkpoint has no selection: nobody has seen any sample, so all are looked at."""
    made = fit(LogitsNet(), loader(SAMPLES), max_epochs=2)
    made.save_checkpoint(tmp_path / "plain.ckpt")
    told = torch.where(torch.arange(SAMPLES) < 10, 1000.0, 1.0)
    selection = SampleSelection(PLB())
    draws = Draws(selection)
    fit(ToldNet(told), loader(SAMPLES), selection, draws, max_epochs=3, ckpt_path=tmp_path / "plain.ckpt")
    assert selection.totals.samples_refreshed == SAMPLES
    drawn = [index for batch in draws.batches[2].values() for index in batch]
    assert sum(index < 10 for index in drawn) > 0.95 * len(drawn)


# ---- what is logged


def test_what_is_logged_is_what_happened():
    _, selection, draws, _ = stream_fit(PLB(epoch_length=6))
    for epoch in range(EPOCHS):
        p = shares(draws.tables[epoch])
        assert draws.logged[epoch]["effective_share"] == pytest.approx(1 / (SAMPLES * (p**2).sum()))
        assert draws.logged[epoch]["not_written"] == 0
        assert draws.logged[epoch]["hidden_fraction"] == 0
    assert selection.totals.samples_hidden == 0
    assert "drawn by probability" in selection.totals.summary("draw")
    assert math.isfinite(selection.totals.train_seconds)
