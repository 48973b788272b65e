"""A scorer that is trained on every n-th batch alone, on what is chosen of it: proxy masks."""

import math
import random
from itertools import count

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuts import SaveAt
from helpers import CLASSES, FEATURES, Net, Points, fit, loader
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError
from recipes.benchmarks.fault_record import Kill
from recipes.benchmarks.fault_run import differences
from recipes.benchmarks.fault_run import train as restless
from recipes.benchmarks.faults import Training, newest

EPOCHS, SAMPLES, BATCH = 4, 61, 8
STEPS = 8


class Proxy(pl.LightningModule):
    """A small classifier with BatchNorm; writes down what it is trained on, and by which rate.

    Args:
        schedule: ``schedule(optimizer)``, or ``None``.
        dropout: probability.
    """

    def __init__(self, schedule=None, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.network = nn.Sequential(
                nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4, CLASSES)
            )
        self.schedule = schedule
        self.trained, self.rates = [], []

    def training_step(self, batch, batch_idx):
        if torch.is_grad_enabled() and self.network[0].weight.requires_grad and self.network.training:
            self.trained.append(batch[2].tolist())
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
        optimizer.register_step_pre_hook(lambda optimizer, *_: self.rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer if self.schedule is None else {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}


def by_step(schedule):
    """A schedule of interval "step"."""
    return lambda optimizer: {"scheduler": schedule(optimizer), "interval": "step"}


def proxy_fit(scorer=None, *callbacks, module=None, every=3, data=None, selection=None, **settings):
    """Train and return the Trainer, the selection, the scorer and the module."""
    scorer = scorer or Proxy()
    options = {"score": "topk", "keep": 0.5, "pool": False, **(selection or {})}
    chosen = SampleSelection(
        "selective_backprop", scorer=scorer, train_scorer_every=every, seed=0, check_attribution=False, **options
    )
    module = module or Net(dropout=0.0)
    made = fit(module, data or loader(SAMPLES), chosen, *callbacks, **{"max_epochs": EPOCHS, **settings})
    return made, chosen, scorer, module


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


@pytest.mark.slow_cases("function", "one cycle", "every second epoch", "cosine")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_any_kind_resumes_exactly(tmp_path, name):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=13, save_top_k=-1, filename="{step}")
    _, _, small, net = proxy_fit(Proxy(SCHEDULES[name]), saving, enable_checkpointing=True)
    for step in (13, 26):
        _, _, its, other = proxy_fit(Proxy(SCHEDULES[name]), ckpt_path=tmp_path / f"step={step}.ckpt", seed=9)
        assert its.rates == small.rates[-len(its.rates) :] and 0 < len(its.rates) < len(small.rates)
        for one, resumed in ((small, its), (net, other)):
            assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in one.state_dict().items())


# --- killed and resumed


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


# --- the module is trained as it would be without a scorer


def test_random_numbers_of_the_scorer_are_none_of_the_training():
    class Drawing(Proxy):
        def training_step(self, batch, batch_idx):
            random.random()
            np.random.rand()
            torch.rand(3)
            return super().training_step(batch, batch_idx)

    found = []
    for scorer in (Proxy(), Drawing()):
        _, _, _, net = proxy_fit(scorer, module=Net(dropout=0.5))
        found.append((net.state_dict(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()))
    for value, other in zip(*(weights.values() for weights, *_ in found), strict=True):
        assert torch.equal(value, other)
    assert torch.equal(found[0][3], found[1][3])


def test_dropout_of_the_scorer_differs_from_batch_to_batch_and_is_the_same_in_a_second_run():
    kept = []

    class Watched(Proxy):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.training and torch.is_grad_enabled() and loss.requires_grad:
                kept.append(F.dropout(torch.ones(64), 0.5).tolist())
            return loss

    _, _, small, _ = proxy_fit(Watched(dropout=0.5))
    first, number = list(kept), len(small.trained)
    _, _, again, _ = proxy_fit(Watched(dropout=0.5), seed=9)
    assert len({tuple(mask) for mask in first[-number:]}) == number
    assert kept[len(first) :] == first and again.trained == small.trained


def test_the_optimizer_of_the_module_has_the_modules_parameters_alone():
    made, _, small, net = proxy_fit()
    held = {id(parameter) for group in made.optimizers[0].param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in net.parameters()}
    assert len(made.optimizers) == 1 and len(made.lr_scheduler_configs) == 0
    assert made.global_step == STEPS * EPOCHS and small._trainer is None


@pytest.mark.parametrize(
    "precision, dtype", [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_a_scorer_has_the_precision_of_the_trainer_and_trains_in_full_where_it_is_mixed(precision, dtype):
    seen = set()

    class Watched(Proxy):
        def training_step(self, batch, batch_idx):
            logits = self.network(batch[0])
            seen.add((torch.is_grad_enabled() and logits.requires_grad and self.training, logits.dtype))
            return F.cross_entropy(logits, batch[1])

    before = Proxy().state_dict()
    _, _, small, _ = proxy_fit(Watched(), precision=precision)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert (True, dtype) in seen and (False, torch.bfloat16 if precision == "bf16-mixed" else dtype) in seen
    assert not torch.equal(small.network[0].weight.float(), before["network.0.weight"])


def test_an_optimizer_that_repeats_the_step_trains_the_scorer_once_for_it():
    class Repeating(Net):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=3)

    _, _, small, _ = proxy_fit(module=Repeating(dropout=0.0))
    assert len(small.trained) == 11


def test_a_step_with_a_scorer_waits_for_nothing_that_a_step_without_does_not():
    """On a GPU ``.item()`` and its like wait; here they are counted, by the operation that all of them end in."""

    class Quiet(Proxy):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0]), batch[1])

    counted = {}
    for name, every in (("every batch", 1), ("none", 1000)):
        waits = Waits()
        proxy_fit(Quiet(), waits, every=every)
        counted[name] = waits.counted[1:]
    assert counted["every batch"] == counted["none"]


class Waits(Callback):
    """How often an epoch read a number from a tensor."""

    def __init__(self):
        self.counted, self._now = [], 0

    def on_train_start(self, trainer, pl_module):
        item, tolist, truth = torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__
        self._patched = (item, tolist, truth)

        def counting(function):
            def call(*args):
                self._now += 1
                return function(*args)

            return call

        torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__ = map(counting, self._patched)

    def on_train_epoch_end(self, trainer, pl_module):
        self.counted.append(self._now)
        self._now = 0

    def on_train_end(self, trainer, pl_module):
        torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__ = self._patched


# --- what is refused, and what is not


def test_a_scorer_without_an_optimizer_scores_and_is_never_trained():
    class Frozen(Proxy):
        def configure_optimizers(self):
            return None

    before = Frozen().state_dict()
    for every in (None, 2):
        if every is None:
            _, selection, small, _ = proxy_fit(Frozen(), every=every)
        else:
            with pytest.warns(UserWarning, match="train_scorer_every=2 changes nothing: scorer=Frozen has no optimizer"):
                _, selection, small, _ = proxy_fit(Frozen(), every=every)
        assert small.trained == [] and selection.totals.samples_rejected > 0
        assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_a_step_that_returns_nothing_does_not_train_the_scorer():
    class Picky(Proxy):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if torch.is_grad_enabled() and loss.requires_grad and len(batch[0]) == BATCH else loss

    _, _, small, _ = proxy_fit(Picky(), every=1)
    assert len(small.rates) == STEPS * EPOCHS and len(small.trained) > 8


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"train_scorer_every": 4}, "train_scorer_every=4 is not allowed without a scorer, .* add scorer=..., or leave"),
        ({"train_scorer_every": 0, "scorer": Proxy()}, "train_scorer_every=0 is not allowed"),
        ({"keep": 0.5}, "keep=0.5 is not allowed; keep must be None with score='loss'"),
        ({"keep": 0.0, "score": "topk"}, "keep=0.0 is not allowed"),
    ],
)
def test_a_setting_that_cannot_act_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        SampleSelection("selective_backprop", **settings)


def test_a_scorer_that_optimizes_by_itself_is_refused():
    scorer = Proxy()
    scorer.automatic_optimization = False
    with pytest.raises(ValueError, match="scorer=Proxy has automatic_optimization=False, which is not allowed"):
        SampleSelection("selective_backprop", scorer=scorer)


def test_a_schedule_that_goes_by_a_metric_is_refused():
    def plateau(optimizer):
        return {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"}

    with pytest.raises(ConflictError, match="scorer=Proxy: its ReduceLROnPlateau has nothing to go by"):
        proxy_fit(Proxy(plateau))


def test_a_scorer_that_shares_parameters_with_the_module_is_refused():
    class Both(Net):
        def __init__(self, small):
            super().__init__(dropout=0.0)
            self.small = small

    scorer = Proxy()
    with pytest.raises(ConflictError, match="scorer=Proxy shares parameters with the module that is trained"):
        proxy_fit(scorer, module=Both(scorer))
