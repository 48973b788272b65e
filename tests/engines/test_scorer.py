"""A scorer that is trained on every n-th batch alone, on what is chosen of it: proxy masks."""

import math
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from cuts import SaveAt
from helpers import Net, Points, fit, loader
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from proxies import BATCH, EPOCHS, SAMPLES, STEPS, Proxy, by_step, proxy_fit
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks.fault_record import Kill
from recipes.benchmarks.fault_run import differences
from recipes.benchmarks.fault_run import train as restless
from recipes.benchmarks.faults import Training, newest

# --- the algorithm, by hand


def by_hand(batches, every, keep=0.5, pool=False, warmup=1):
    """Proxy masks in plain PyTorch: the module and the scorer after it.

    Args:
        batches: by epoch, the rows of each loaded batch.
        every: the scorer is trained on each so-many-th of them.
        keep: share of a batch that is chosen.
        pool: chosen rows wait until they fill a batch.
        warmup: epochs that train everything.
    """
    points, net, small, at = Points(SAMPLES), Net(dropout=0.0), Proxy(), count()
    optimizer, own = net.configure_optimizers(), small.configure_optimizers()
    schedule = CosineAnnealingLR(own, EPOCHS * STEPS)

    def step(module, its_optimizer, rows):
        its_optimizer.zero_grad()
        F.cross_entropy(module.network(points.x[rows]), points.y[rows]).backward()
        its_optimizer.step()

    for epoch, loaded in enumerate(batches):
        waiting = []
        for rows in loaded:
            chosen = rows
            if epoch >= warmup:
                small.network.eval()
                with torch.no_grad():
                    losses = F.cross_entropy(small.network(points.x[rows]), points.y[rows], reduction="none")
                small.network.train()
                best = losses.argsort(descending=True, stable=True)[: max(1 if pool else 2, int(keep * len(rows)))]
                chosen = [rows[place] for place in best.tolist()]
            waiting += chosen
            if epoch < warmup or not pool or len(waiting) >= BATCH:
                step(net, optimizer, waiting[:BATCH])
                waiting = waiting[BATCH:]
            if next(at) % every == 0:
                step(small, own, chosen)
            schedule.step()
        if pool:
            schedule.step()  # a batch more, for what waits
        if len(waiting) >= 2:
            step(net, optimizer, waiting)
    return net, small


class Loaded(Callback):
    """The rows of each loaded batch, by epoch; not of the one after the last, which is there for what waits."""

    def __init__(self):
        self.batches = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.batches.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx < STEPS:
            self.batches[-1].append(batch[2].tolist())


@pytest.mark.parametrize("pool", [False, True])
def test_both_networks_are_those_of_a_loop_by_hand(pool):
    loaded, small = Loaded(), Proxy(by_step(lambda optimizer: CosineAnnealingLR(optimizer, EPOCHS * STEPS)))
    _, selection, _, net = proxy_fit(small, loaded, selection={"pool": pool})
    assert [len(batches) for batches in loaded.batches] == [STEPS] * EPOCHS
    hand, its_small = by_hand(loaded.batches, every=3, pool=pool)
    for module, expected in ((net, hand), (small, its_small)):
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=1e-6)
    assert len(small.trained) == 11 and all(len(rows) <= 4 for rows in small.trained[3:])
    assert selection.totals.samples_trained == SAMPLES + (EPOCHS - 1) * (7 * 4 + 2)


def test_what_is_chosen_does_not_depend_on_the_module():
    """So choosing while the module trains is the same as a run of the scorer before, whose masks are played back."""
    chosen = []
    for module in (Net(dropout=0.0), Net(rate=0.01, dropout=0.5)):
        trained = Rows()
        _, _, small, _ = proxy_fit(None, trained, module=module)
        chosen.append((trained.rows, small.trained, small.state_dict()))
    (rows, of_small, weights), (others, its, same) = chosen
    assert rows == others and of_small == its
    assert all(torch.equal(value, same[name]) for name, value in weights.items())


class Rows(Callback):
    """The rows that the module trains."""

    def __init__(self):
        self.rows = []

    def on_train_start(self, trainer, pl_module):
        step = pl_module.training_step

        def watched(batch, batch_idx):
            self.rows.append(batch[2].tolist())
            return step(batch, batch_idx)

        pl_module.training_step = watched


def test_each_nth_loaded_batch_trains_the_scorer_across_epochs_and_the_warm_up_whole():
    _, _, small, _ = proxy_fit(every=5, selection={"warmup_epochs": 2})
    assert [len(rows) for rows in small.trained] == [8, 8, 8, 5, 4, 4, 4]
    _, _, often, _ = proxy_fit(every=1)
    assert len(often.trained) == STEPS * EPOCHS


def test_without_the_setting_the_scorer_is_trained_on_all_that_the_module_trains():
    rows = Rows()
    _, _, small, _ = proxy_fit(None, rows, every=None, selection={"pool": True})
    assert small.trained == rows.rows


@pytest.mark.parametrize("method", ["katharopoulos", "sb_fixed", "stale_sb"])
def test_every_method_of_the_family_trains_its_scorer_about_every_nth_batch(method):
    own = {"katharopoulos": {"threshold": 0.0}, "sb_fixed": {"start": 0.0, "end": 1.0}, "stale_sb": {"staleness": 2}}
    small = Proxy()
    selection = SampleSelection(method, scorer=small, train_scorer_every=4, check_attribution=False, **own[method])
    loaded = Loaded()
    fit(Net(dropout=0.0), loader(SAMPLES), selection, loaded, max_epochs=EPOCHS)
    expected = sum(map(len, loaded.batches)) / 4
    assert expected - 2 <= len(small.trained) <= expected + 2


# --- its schedule

SCHEDULES = {
    "steps": by_step(lambda optimizer: MultiStepLR(optimizer, [5, 20], gamma=0.5)),
    "cosine": by_step(lambda optimizer: CosineAnnealingLR(optimizer, EPOCHS * STEPS)),
    "warm": by_step(lambda own: SequentialLR(own, [LinearLR(own, 0.1, total_iters=6), CosineAnnealingLR(own, 26)], [6])),
    "function": by_step(lambda optimizer: LambdaLR(optimizer, lambda step: 1 - step / 40)),
    "one cycle": by_step(lambda optimizer: OneCycleLR(optimizer, 0.3, total_steps=EPOCHS * STEPS + 1)),
    "epochs": lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.5**epoch),
    "every second epoch": lambda own: {"scheduler": LambdaLR(own, lambda step: 0.5**step), "frequency": 2},
}


@pytest.mark.parametrize(
    "name, rates",
    [
        ("function", [0.2 * (1 - batch / 40) for batch in range(0, 32, 3)]),
        ("epochs", [0.2 * 0.5 ** (batch // 8) for batch in range(0, 32, 3)]),
        ("every second epoch", [0.2 * 0.5 ** (batch // 16) for batch in range(0, 32, 3)]),
    ],
)
def test_a_schedule_moves_by_loaded_batches_or_by_epochs(name, rates):
    _, _, small, _ = proxy_fit(Proxy(SCHEDULES[name]))
    assert small.rates == pytest.approx(rates)


@pytest.mark.parametrize("pool", [False, True])
def test_a_schedule_may_be_as_long_as_the_trainer_expects_the_run_to_be(pool):
    lengths = []

    class Decaying(Proxy):
        def configure_optimizers(self):
            lengths.append(self.trainer.estimated_stepping_batches)
            self.schedule = by_step(lambda optimizer: CosineAnnealingLR(optimizer, lengths[0]))
            return super().configure_optimizers()

    _, _, small, _ = proxy_fit(Decaying(), selection={"pool": pool})
    assert lengths == [EPOCHS * (STEPS + pool)] and small._trainer is None
    assert small.rates[-1] == pytest.approx(0.2 * (1 + math.cos(math.pi * (30 + 3 * pool) / lengths[0])) / 2)


@pytest.mark.slow_cases("function", "one cycle", "every second epoch", "cosine", "steps")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_any_kind_resumes_exactly(tmp_path, name):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=13, save_top_k=-1, filename="{step}")
    _, _, small, net = proxy_fit(Proxy(SCHEDULES[name]), saving, enable_checkpointing=True)
    for step in (13, 26):
        _, _, its, other = proxy_fit(Proxy(SCHEDULES[name]), ckpt_path=tmp_path / f"step={step}.ckpt", seed=9)
        assert its.rates == small.rates[-len(its.rates) :] and 0 < len(its.rates) < len(small.rates)
        for one, resumed in ((small, its), (net, other)):
            assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("batch_size", [4, 16])
@pytest.mark.parametrize(
    "hook", ["on_train_batch_end", pytest.param("on_train_epoch_end", marks=pytest.mark.slow)], ids=["in mid-epoch", "epoch end"]
)
def test_a_schedule_ends_with_a_training_that_goes_on_in_other_batches(tmp_path, hook, batch_size):
    """As it does on other ranks. A OneCycle fails beyond its end."""
    save, small = SaveAt(tmp_path / "cut.ckpt", hook, 1, 3), OneCycle()
    proxy_fit(small, save)
    _, _, its, _ = proxy_fit(OneCycle(), data=loader(SAMPLES, batch_size), ckpt_path=save.path)
    assert small.position == its.position == (EPOCHS * STEPS, EPOCHS * STEPS)


def test_a_schedule_keeps_pace_with_shorter_epochs():
    small = OneCycle()
    selection = SampleSelection("stale_sb", staleness=2, beta=3, pool=False, scorer=small, check_attribution=False)
    loaded = Loaded()
    fit(Net(dropout=0.0), loader(SAMPLES), selection, loaded, max_epochs=EPOCHS)
    assert min(map(len, loaded.batches)) < STEPS
    assert small.position == (EPOCHS * STEPS, EPOCHS * STEPS)


def test_a_schedule_begins_where_the_selection_is_forgotten_within_an_epoch(tmp_path):
    """And the checkpoint that is saved then can be resumed."""
    first, save = (
        SaveAt(tmp_path / "without.ckpt", "on_train_batch_end", 1, 3),
        SaveAt(tmp_path / "cut.ckpt", "on_train_epoch_end", 2),
    )
    fit(Net(dropout=0.0), loader(SAMPLES), first, max_epochs=EPOCHS)
    forgetting = {"on_mismatch": "reset"}
    for path in (first.path, save.path):
        _, _, small, _ = proxy_fit(OneCycle(), save, selection=forgetting, ckpt_path=path)
        assert small.position == (3 * STEPS, EPOCHS * STEPS)


class OneCycle(Proxy):
    """By a schedule as long as the Trainer expects the training to be."""

    def configure_optimizers(self):
        total = int(self.trainer.estimated_stepping_batches)
        self.schedule = by_step(lambda optimizer: OneCycleLR(optimizer, 0.3, total_steps=total))
        made = super().configure_optimizers()
        self._one_cycle = made["lr_scheduler"]["scheduler"]
        return made

    @property
    def position(self):
        return self._one_cycle.last_epoch, self._one_cycle.total_steps


# --- killed and resumed


@pytest.mark.slow_cases("on_after_backward", "on_before_optimizer_step", "on_validation_end")  # each has one beside it
@pytest.mark.parametrize(
    "hook, batch",
    [
        ("on_train_batch_start", 3),
        ("training_step", 3),
        ("on_after_backward", 5),
        ("on_before_optimizer_step", 3),
        ("optimizer_step", 5),
        ("on_train_batch_end", 5),
        ("on_validation_end", 0),
        ("on_train_epoch_end", 0),
    ],
)
def test_saved_anywhere_in_an_epoch_a_run_resumes_exactly(tmp_path, hook, batch):
    save = SaveAt(tmp_path / "user.ckpt", hook, 2, batch)
    whole = restless(tmp_path, "selective_backprop", callbacks=(save,), proxy=True)
    resumed = restless(tmp_path, "selective_backprop", seed=9, resume=save.path, proxy=True)
    assert save.saved and differences(whole, resumed) == []


@pytest.mark.slow
def test_cut_at_any_step_and_resumed_equals_uncut(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False)
    whole = restless(tmp_path, "selective_backprop", callbacks=(saving,), proxy=True)
    files = sorted(tmp_path.glob("*.ckpt"), key=lambda file: int(file.stem))
    assert len(files) >= 15
    for file in files:
        assert differences(whole, restless(tmp_path, "selective_backprop", seed=9, resume=file, proxy=True)) == [], file


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["inside a step", "save:after backward"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_in_mid_epoch_and_resumed_it_ends_as_if_nothing_had_been(tmp_path, world_size, moment):
    killed = Training(tmp_path / "killed", "selective_backprop", world_size, every=2)
    whole = Training(tmp_path / "whole", "selective_backprop", world_size).finish("whole", proxy=True)
    killed.die(Kill(moment, 16 if world_size == 2 else 30, rank=world_size - 1), proxy=True)
    resumed = killed.finish("resumed", proxy=True, resume=newest(killed.folder), seed=9)
    assert resumed[0]["resumed"]["epoch"] >= 1
    for rank in range(world_size):
        assert differences(whole[rank], resumed[rank]) == []
