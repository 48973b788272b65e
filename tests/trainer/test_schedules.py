"""Learning rates: the factor lives only inside ``optimizer.step``, and step schedules end where a full run ends them."""

from types import SimpleNamespace

import pytest
import torch
from helpers import GROWING, Net, Spy, SureNet, before_update, fit, hide_then_grow, loader
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim import lr_scheduler as schedulers

from kakurenbo_lightning import SampleSelection

EPOCHS = len(GROWING)
FACTORS = [1.0, 2.0, 2.0, 4 / 3, 1.0]  # 1 / (1 - hidden share) of hide_then_grow with SureNet


def per_step(make, **config):
    """A ``schedule`` for :class:`Net` that Lightning steps after each optimizer step."""
    return lambda optimizer, module: {"scheduler": make(optimizer, module), "interval": "step", **config}


def per_epoch(make, **config):
    """A ``schedule`` for :class:`Net` that Lightning steps after each epoch."""
    return lambda optimizer, module: {"scheduler": make(optimizer, module), "interval": "epoch", **config}


def total(module):
    return module.trainer.estimated_stepping_batches


def one_cycle(optimizer, module):
    return schedulers.OneCycleLR(optimizer, max_lr=0.2, total_steps=total(module))


def cosine(optimizer, module):
    return schedulers.CosineAnnealingLR(optimizer, T_max=total(module))


def sequential(optimizer, module):
    warmup = schedulers.LinearLR(optimizer, 0.1, total_iters=5)
    decay = schedulers.CosineAnnealingLR(optimizer, T_max=total(module) - 5)
    return schedulers.SequentialLR(optimizer, [warmup, decay], milestones=[5])


def step(optimizer, module):
    return schedulers.StepLR(optimizer, 3, 0.9)


def restarts(optimizer, module):
    return schedulers.CosineAnnealingWarmRestarts(optimizer, 7)


def inverse(optimizer, module):
    return schedulers.LambdaLR(optimizer, lambda k: 1 / (1 + k))


def plateau(optimizer, module):
    return schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)


STEPPED = [one_cycle, cosine, sequential, step, restarts, inverse]
SCHEDULES = [
    *(pytest.param(per_step(make), id=f"{make.__name__} per step") for make in STEPPED),
    *(pytest.param(per_epoch(make), id=f"{make.__name__} per epoch") for make in (step, inverse)),
    pytest.param(per_epoch(plateau, monitor="constant"), id="plateau per epoch"),
    pytest.param(per_step(plateau, monitor="constant"), id="plateau per step"),
]


class Constant(SureNet):
    """Logs a metric that never improves, so that a plateau is reached at once."""

    def training_step(self, batch, batch_idx):
        self.log("constant", 1.0)
        return super().training_step(batch, batch_idx)


def run(schedule, selection=None, *callbacks, module=Constant, **settings):
    """Train with a schedule, with or without a selection; returns the spy, the Trainer and the module."""
    spy, net = Spy(selection), module(dropout=0.0, schedule=schedule)
    with_selection = [] if selection is None else [selection]
    made = fit(net, loader(), *with_selection, *callbacks, spy, **{"max_epochs": EPOCHS, **settings})
    return spy, made, net


# --- the factor


@pytest.mark.quick("one_cycle per step", "step per epoch", "plateau per epoch", "plateau per step")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("align", [False, True])
def test_each_step_uses_the_scheduled_rate_times_the_factor(schedule, align):
    spy, _, _ = run(schedule, hide_then_grow(align_schedules=align))
    assert spy.steps == GROWING
    for epoch, factor in enumerate(FACTORS):
        assert spy.rates[epoch] == [rate * factor for rate in spy.base_rates[epoch]]


@pytest.mark.parametrize("tensor", [False, True])
def test_the_weights_really_move_by_the_scaled_rate(tensor):
    class Watched(SureNet):
        moves = 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=torch.tensor(0.1) if tensor else 0.1, foreach=False)

        def on_before_optimizer_step(self, optimizer):
            self.before = [p.detach().clone() for p in self.parameters()]

        def on_train_batch_end(self, outputs, batch, batch_idx):
            rate = 0.1 * FACTORS[self.trainer.current_epoch]
            for before, after in zip(self.before, self.parameters(), strict=True):
                torch.testing.assert_close(after, before - rate * after.grad)
                self.moves += not torch.equal(after, before)

    module = Watched()
    fit(module, loader(), hide_then_grow(), max_epochs=EPOCHS)
    assert module.moves > sum(GROWING)


def test_every_parameter_group_is_scaled_and_put_back():
    class Groups(SureNet):
        def configure_optimizers(self):
            first, *rest = self.parameters()
            return torch.optim.AdamW([{"params": [first], "lr": 0.01}, {"params": rest}], lr=0.003)

    inside = []

    class GroupSpy(Spy):
        def _seen_step(self, trainer):
            def see(optimizer):
                inside.append((trainer.current_epoch, [group["lr"] for group in optimizer.param_groups]))

            return before_update(see)

    selection = hide_then_grow()
    made = fit(Groups(), loader(), selection, GroupSpy(selection), max_epochs=EPOCHS)
    assert inside == [(epoch, [0.01 * f, 0.003 * f]) for epoch, f in enumerate(FACTORS) for _ in range(GROWING[epoch])]
    assert [group["lr"] for group in made.optimizers[0].param_groups] == [0.01, 0.003]


def test_a_tensor_rate_is_scaled_in_place():
    rate = torch.tensor(0.1)

    class Tensor(SureNet):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=rate, foreach=False)

    selection = hide_then_grow()
    spy = Spy(selection)
    made = fit(Tensor(), loader(), selection, spy, max_epochs=EPOCHS)
    assert made.optimizers[0].param_groups[0]["lr"] is rate
    assert rate == torch.tensor(0.1)
    for epoch, factor in enumerate(FACTORS):
        assert spy.rates[epoch] == [float(torch.tensor(0.1) * factor)] * GROWING[epoch]


def test_the_training_step_sees_its_own_rate_and_may_set_it():
    class Setting(SureNet):
        def training_step(self, batch, batch_idx):
            group = self.trainer.optimizers[0].param_groups[0]
            if torch.is_grad_enabled():
                seen.append(group["lr"])
                group["lr"] = 0.01 * (self.trainer.current_epoch + 1)
            return super().training_step(batch, batch_idx)

    seen, selection = [], hide_then_grow()
    spy = Spy(selection)
    made = fit(Setting(), loader(), selection, spy, max_epochs=EPOCHS)
    own = [0.01 * (epoch + 1) for epoch, steps in enumerate(GROWING) for _ in range(steps)]
    assert seen == [0.1, *own[:-1]], "what was set in the step before, unscaled"
    assert made.optimizers[0].param_groups[0]["lr"] == own[-1]
    for epoch, factor in enumerate(FACTORS):
        assert spy.rates[epoch] == [0.01 * (epoch + 1) * factor] * GROWING[epoch]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_the_step_leaves_the_base_rate(tmp_path, error):
    class FailingSGD(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            if self.param_groups[0]["lr"] == 0.2:
                raise error("as planned")

    class Failing(SureNet):
        def configure_optimizers(self):
            return FailingSGD(self.parameters(), lr=0.1)

    module, selection = Failing(), hide_then_grow()
    keep = OnExceptionCheckpoint(tmp_path)
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        fit(module, loader(), keep, selection, max_epochs=EPOCHS, enable_checkpointing=True)
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0.1
    (path,) = tmp_path.glob("*.ckpt")
    assert torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1


def test_the_optimizer_is_let_go_after_the_run():
    class Kept(SureNet):
        def configure_optimizers(self):
            self.kept = super().configure_optimizers()
            return self.kept

    module = Kept()
    fit(module, loader(), hide_then_grow(), max_epochs=2)  # ends with a factor of 2
    seen = []
    module.kept.register_step_pre_hook(lambda optimizer, args, kwargs: seen.append(optimizer.param_groups[0]["lr"]))
    module.kept.step()
    assert seen == [0.1]


# --- the schedule's position


def saved_states(folder, schedule, selection):
    """Scheduler and optimizer rates in the checkpoint of each epoch."""
    keep = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    run(schedule, selection, keep, enable_checkpointing=True)
    loaded = [torch.load(folder / f"epoch={epoch}.ckpt", weights_only=True) for epoch in range(EPOCHS)]
    return [(state["lr_schedulers"], state["optimizer_states"][0]["param_groups"][0]["lr"]) for state in loaded]


@pytest.mark.quick("one_cycle per step", "step per epoch", "plateau per epoch")
@pytest.mark.parametrize("schedule", [p for p in SCHEDULES if p.id != "plateau per step"])
def test_at_each_epochs_end_the_schedule_stands_where_a_full_epoch_leaves_it(tmp_path, schedule):
    plain = saved_states(tmp_path / "plain", schedule, None)
    hiding = saved_states(tmp_path / "hiding", schedule, hide_then_grow())
    assert hiding == plain


@pytest.mark.slow_cases("cosine")
@pytest.mark.parametrize(
    ("make", "frequency", "accumulate"),
    [
        (one_cycle, 1, 1),
        (cosine, 1, 1),
        (sequential, 1, 1),
        (one_cycle, 1, 3),
        (cosine, 1, 3),
        (one_cycle, 2, 1),
        (one_cycle, 3, 1),
        (one_cycle, 5, 1),  # more than the shortest epoch has batches
        (one_cycle, 2, 3),
    ],
)
def test_a_schedule_over_the_whole_run_ends_as_it_would_without_hiding(make, frequency, accumulate):
    schedule = per_step(make, frequency=frequency)
    _, plain, _ = run(schedule, accumulate_grad_batches=accumulate)
    spy, hiding, _ = run(schedule, hide_then_grow(), accumulate_grad_batches=accumulate)
    assert spy.steps == GROWING
    ends = [made.lr_scheduler_configs[0].scheduler for made in (plain, hiding)]
    assert ends[0].last_epoch == ends[1].last_epoch
    assert ends[0].get_last_lr() == ends[1].get_last_lr()


def test_within_an_epoch_the_schedule_advances_evenly():
    positions = []

    class Watched(SureNet):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            positions.append(self.lr_schedulers().last_epoch)

    run(per_step(one_cycle), hide_then_grow(), module=Watched)
    ends = [8 * epoch for epoch in range(EPOCHS)]
    after = [[round((k + 1) * 7 / (n - 1)) for k in range(n - 1)] + [8] for n in GROWING]
    assert positions == [start + place for start, places in zip(ends, after, strict=True) for place in places]


@pytest.mark.parametrize("max_epochs", [2, EPOCHS], ids=["a shortened epoch", "a full epoch"])
def test_the_last_step_uses_the_last_rate_of_the_schedule(max_epochs):
    plain, _, _ = run(per_step(one_cycle), None, max_epochs=max_epochs)
    spy, _, _ = run(per_step(one_cycle), hide_then_grow(), max_epochs=max_epochs)
    assert plain.rates[max_epochs - 1][-1] == pytest.approx(0.2 / 25 / 1e4)
    assert spy.rates[max_epochs - 1][-1] == pytest.approx(FACTORS[max_epochs - 1] * 0.2 / 25 / 1e4)


def test_align_schedules_off_leaves_schedules_alone():
    _, made, _ = run(per_step(one_cycle), hide_then_grow(align_schedules=False))
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == sum(GROWING)


def test_epoch_schedules_step_once_per_epoch():
    _, made, _ = run(per_epoch(step), hide_then_grow())
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == EPOCHS


@pytest.mark.parametrize("max_epochs", [-1, EPOCHS, 2 * EPOCHS])
def test_a_schedule_built_for_max_steps_is_not_overrun(max_epochs):
    def exactly(optimizer, module):
        return schedulers.OneCycleLR(optimizer, max_lr=0.2, total_steps=28)

    _, made, _ = run(per_step(exactly), hide_then_grow(), max_steps=28, max_epochs=max_epochs)
    assert made.global_step == made.lr_scheduler_configs[0].scheduler.last_epoch == 28


def test_max_steps_beyond_the_run_changes_nothing():
    spy, made, _ = run(per_step(one_cycle), hide_then_grow(), max_steps=1000)
    assert spy.steps == GROWING
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == 8 * EPOCHS


def test_limit_train_batches_counts_in_what_a_full_epoch_is():
    _, plain, _ = run(per_step(one_cycle), limit_train_batches=0.5)
    _, hiding, _ = run(per_step(one_cycle), hide_then_grow(), limit_train_batches=0.5)
    ends = [made.lr_scheduler_configs[0].scheduler.last_epoch for made in (plain, hiding)]
    assert ends == [4 * EPOCHS] * 2


def test_extra_steps_go_through_the_modules_own_lr_scheduler_step():
    class Own(SureNet):
        steps = 0

        def lr_scheduler_step(self, scheduler, metric):
            self.steps += 1
            scheduler.step()

    _, _, module = run(per_step(one_cycle), hide_then_grow(), module=Own)
    assert module.steps == 8 * EPOCHS


def test_a_module_that_steps_by_its_own_counter_is_left_alone():
    class Counter(SureNet):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step(self.trainer.global_step)

    spy, made, _ = run(per_step(restarts), hide_then_grow(), module=Counter)
    assert spy.steps == GROWING
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == sum(GROWING)


def test_random_hiding_is_aligned_and_not_scaled():
    spy, made, _ = run(per_step(one_cycle), SampleSelection("random", max_fraction=0.5), module=Net)
    assert spy.steps == [4] * EPOCHS
    assert spy.rates == spy.base_rates
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == 8 * EPOCHS


@pytest.mark.parametrize("position", [10, 14, 17])
def test_a_run_resumed_within_an_epoch_uses_the_same_rates(tmp_path, position):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, made, _ = run(per_step(one_cycle), hide_then_grow(), keep, enable_checkpointing=True)
    path = tmp_path / f"step={position}.ckpt"
    rest, resumed, _ = run(per_step(one_cycle), hide_then_grow(), ckpt_path=path)
    rates, again = [[rate for epoch in range(EPOCHS) for rate in spy.rates[epoch]] for spy in (whole, rest)]
    assert again == rates[position:]
    assert resumed.lr_scheduler_configs[0].scheduler.last_epoch == made.lr_scheduler_configs[0].scheduler.last_epoch


@pytest.mark.slow_cases("cosine", "5")
@pytest.mark.parametrize("make", [one_cycle, cosine])
@pytest.mark.parametrize(("before", "after", "accumulate"), [(16, 8, 1), (8, 16, 1), (16, 5, 1), (16, 8, 2), (16, 16, 2)])
def test_after_resharding_what_is_left_of_the_way_is_spread_over_the_steps_that_are_left(
    tmp_path, make, before, after, accumulate
):
    """One cycle once ended in "Tried to step 101 times", and a cosine went on past its end without a word."""

    def train(batch_size, *callbacks, **settings):
        spy, rates = Spy(), LearningRateMonitor()
        net = SureNet(dropout=0.0, schedule=per_step(make))
        logger = CSVLogger(tmp_path / f"log {batch_size}", name="", version="")
        made = fit(
            net, loader(320, batch_size), SampleSelection("random", max_fraction=0.4, seed=0), *callbacks, spy, rates,
            max_epochs=5, logger=logger, log_every_n_steps=1, **settings,
        )  # fmt: skip
        return made, spy

    full = 320 // before
    stop = 2 * full * 3 // 5 + full * 3 // 10  # in the middle of the third epoch, of which each hides two fifths
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, _ = train(before, keep, enable_checkpointing=True)
    made, spy = train(after, ckpt_path=tmp_path / f"step={stop}.ckpt", accumulate_grad_batches=accumulate)
    (scheduler,), (end,) = ([config.scheduler for config in trained.lr_scheduler_configs] for trained in (made, whole))
    assert scheduler.last_epoch == end.last_epoch == 5 * full
    assert scheduler.get_last_lr() == end.get_last_lr()
    assert spy.base_rates[4][-1] == pytest.approx(make_alone(make, 5 * full)[-1]), "the last step has the schedule's last rate"
    rows = (tmp_path / f"log {after}" / "metrics.csv").read_text().splitlines()
    monitored = sum(bool(row.split(",")[rows[0].split(",").index("lr-SGD")]) for row in rows[1:])
    assert monitored == sum(spy.steps), "every batch is monitored"


def make_alone(make, steps):
    """The rates of a schedule of so many steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer, SimpleNamespace(trainer=SimpleNamespace(estimated_stepping_batches=steps)))
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates
