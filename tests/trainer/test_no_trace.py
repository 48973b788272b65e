"""Scoring changes nothing: not the refresh pass, and not the observation of training steps."""

import gc
import random
import warnings
import weakref
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import SureNet, fit, loader
from torchmetrics import CatMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from kakurenbo_lightning import Choice, HideMethod, SampleSelection, get_method
from kakurenbo_lightning.trainer import module_state
from kakurenbo_lightning.trainer.module_state import ModuleState

EPOCHS = 4


@dataclass(frozen=True)
class Alternating(HideMethod):
    """A user's own method: hides the even samples in epoch 1, the odd ones in epoch 2, and so on."""

    refresh_mode: str | None = "eval"

    name = "alternating"
    summary = "hides every other sample"
    reads = ("loss", "confidence", "correct")

    def choose(self, statistics, epoch):
        mask = torch.zeros(len(statistics), dtype=torch.bool)
        if epoch.index:
            mask[epoch.index % 2 :: 2] = True
        return Choice(mask)


class Traced(SureNet):
    """Draws random numbers of every kind in its step, logs, keeps metrics, and has a frozen BatchNorm."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.BatchNorm1d(6)
        self.accuracy, self.mean, self.all = MulticlassAccuracy(3), MeanMetric(), CatMetric()

    def on_train_epoch_start(self):
        self.frozen.eval()

    def training_step(self, batch, batch_idx):
        noise = random.random() + np.random.rand() + torch.rand(1)
        logits = self.network(self.frozen(batch[0]) + 0.01 * noise)
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True, on_step=False)
        values = super().training_step(batch, batch_idx)
        self.mean.update(values["sample_loss"].detach())
        self.all.update(values["sample_loss"].detach())
        self.log("mean", self.mean)
        self.log_dict({"loss": values["loss"].detach()}, on_epoch=True, on_step=True)
        return {**values, "loss": values["loss"] + F.cross_entropy(logits, batch[1])}


def torchmetrics_of(module):
    return {name: metric for name, metric in module.named_modules() if hasattr(metric, "metric_state")}


def snapshot(trainer, module):
    """Everything of the run that a forward pass could change."""
    optimizer = trainer.optimizers[0].state_dict()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    metrics = {name: metric.metric_state for name, metric in torchmetrics_of(module).items()}
    return {
        "weights": {name: state[name] for name, _ in module.named_parameters()},
        "buffers": {name: state[name] for name, _ in module.named_buffers()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "optimizer": [{k: v.clone() for k, v in s.items() if torch.is_tensor(v)} for s in optimizer["state"].values()],
        "rates": [group["lr"] for group in optimizer["param_groups"]],
        "flags": {name: part.training for name, part in module.named_modules()},
        "metric states": {
            name: {key: list(value) if isinstance(value, list) else value.clone() for key, value in state.items()}
            for name, state in metrics.items()
        },
        "metric counts": {name: metric.update_count for name, metric in torchmetrics_of(module).items()},
        "logged": {name: float(v) for name, v in trainer.callback_metrics.items() if not name.startswith("selection/")},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": list(random.getstate()[1]),
        "modes": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")],
    }


class Snapshots(pl.Callback):
    """Snapshots at the start of each epoch, just after the refresh pass, and after the last batch of each."""

    def __init__(self):
        self.taken = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.taken.append(snapshot(trainer, pl_module))

    def on_train_epoch_end(self, trainer, pl_module):
        self.taken.append(snapshot(trainer, pl_module))


def traced_run(mode, **loader_settings):
    """Snapshots of a run that hides the same samples with any ``mode`` of the refresh pass."""
    random.seed(3)
    np.random.seed(3)
    selection, snapshots = SampleSelection(Alternating(mode)), Snapshots()
    fit(Traced(), loader(**loader_settings), selection, snapshots, max_epochs=EPOCHS)
    assert selection.totals.samples_hidden == 32 * (EPOCHS - 1)
    assert selection.totals.samples_refreshed == (32 * (EPOCHS - 2) if mode else 0)
    return snapshots.taken


@pytest.fixture(scope="module")
def runs():
    """Snapshots by mode of the refresh pass; ``None`` makes no pass."""
    return {mode: traced_run(mode) for mode in (None, "eval", "train")}


def assert_same(one, other):
    assert len(one) == len(other) == 2 * EPOCHS
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


EVERYTHING = [
    "weights",
    "buffers",
    "gradients",
    "optimizer",
    "rates",
    "flags",
    "metric states",
    "metric counts",
    "logged",
    "torch",
    "numpy",
    "python",
    "modes",
]


@pytest.mark.parametrize("what", EVERYTHING)
def test_the_refresh_pass_changes_nothing_of(runs, what):
    assert runs[None][0].keys() == set(EVERYTHING)
    assert_same([taken[what] for taken in runs["eval"]], [taken[what] for taken in runs[None]])


@pytest.mark.parametrize("what", [what for what in EVERYTHING if what != "buffers"])
def test_a_pass_in_train_mode_changes_nothing_of(runs, what):
    assert_same([taken[what] for taken in runs["train"]], [taken[what] for taken in runs[None]])


def test_a_pass_in_train_mode_updates_batch_norm_and_leaves_a_frozen_one():
    plain, train = traced_run(None), traced_run("train")
    for name in ("network.1.running_mean", "network.1.running_var", "network.1.num_batches_tracked"):
        assert not torch.equal(train[-1]["buffers"][name], plain[-1]["buffers"][name])
    # two passes of four batches, and the step runs the network twice
    assert train[-1]["buffers"]["network.1.num_batches_tracked"] == plain[-1]["buffers"]["network.1.num_batches_tracked"] + 16
    assert torch.equal(train[-1]["buffers"]["frozen.running_mean"], plain[-1]["buffers"]["frozen.running_mean"])


def test_the_refresh_pass_with_workers_takes_no_random_number(runs):
    with_pass, without = traced_run("eval", num_workers=2), traced_run(None, num_workers=2)
    for what in ("weights", "torch", "numpy", "python"):
        assert_same([taken[what] for taken in with_pass], [taken[what] for taken in without])


def test_the_snapshots_would_show_a_change(runs):
    first, last = runs[None][0], runs[None][-1]
    for what in ("weights", "buffers", "gradients", "optimizer", "flags", "metric states", "logged", "torch", "numpy", "python"):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(first[what], last[what], rtol=0, atol=0)


# --- what a step changes beside its metrics


class Queueing(SureNet):
    """Keeps counts and queues in buffers, as momentum contrast and running prototypes do: all of them tell what was trained."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("queue", torch.full((16,), -1), persistent=False)
        self.register_buffer("replaced", torch.zeros(1))
        self.register_buffer("grown", torch.zeros(0, dtype=torch.int64))
        self.network[0].register_buffer("inner", torch.zeros((), dtype=torch.int64))
        self.register_buffer("made", None)

    def enqueue(self, indices):
        self.count += len(indices)
        self.queue.copy_(torch.cat([self.queue, indices])[-16:])
        self.replaced = self.replaced + len(indices)
        self.grown = torch.cat([self.grown, indices])
        self.network[0].inner.add_(len(indices))
        self.made = indices.clone()

    def training_step(self, batch, batch_idx):
        self.enqueue(batch[2])
        return super().training_step(batch, batch_idx)


class QueueingOutputs(Queueing):
    """Its buffers are moved by ``sample_outputs``, and by the step."""

    def training_step(self, batch, batch_idx):
        self.enqueue(batch[2])
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def sample_outputs(self, batch):
        self.enqueue(torch.full((8,), 1000))
        loss = F.cross_entropy(self.network(batch[0]), batch[1], reduction="none")
        return {"sample_loss": loss, "confidence": torch.ones_like(loss), "correct": loss < 1e9}


class Steps(pl.Callback):
    """The indices that each step trained, in order."""

    def __init__(self):
        self.trained = []

    def on_train_start(self, trainer, pl_module):
        self.selection = next(c for c in trainer.callbacks if isinstance(c, SampleSelection))
        self.selection.session.on_trained = lambda indices: self.trained.append(indices.clone())


@pytest.mark.parametrize(
    "method",
    [
        Alternating("eval"),
        Alternating("train"),
        get_method("selective_backprop", warmup_epochs=1),
        get_method("selective_backprop", warmup_epochs=1, inference_mode=True),
        get_method("plb", refresh_share=0.2),
    ],
    ids=["refresh", "refresh in train mode", "backprop", "backprop in inference mode", "draw"],
)
@pytest.mark.slow_cases("Queueing")
@pytest.mark.parametrize("kind", [Queueing, QueueingOutputs])
def test_buffers_hold_what_was_trained_and_nothing_of_scoring_passes(method, kind):
    module, steps, selection = kind(), Steps(), SampleSelection(method)
    fit(module, loader(), selection, steps, max_epochs=EPOCHS)
    trained = torch.cat(steps.trained)
    assert len(trained) < EPOCHS * 64 or method.family == "draw"
    assert torch.equal(module.grown, trained)
    assert module.count == module.replaced == module.network[0].inner == len(trained)
    assert torch.equal(module.queue, trained[-16:])
    assert torch.equal(module.made, steps.trained[-1])
    assert not any(buffer.is_inference() for buffer in module.buffers())


def test_only_buffers_that_have_moved_are_copied_once_it_is_known_which(monkeypatch):
    module, kept = Queueing(), ModuleState()
    parts, clone, copied = list(module.modules()), torch.Tensor.clone, []

    def counting(tensor, *args, **kwargs):
        copied.append(tensor)
        return clone(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "clone", counting)
    numbers = []
    for thorough in (False, False, True):
        copied.clear()
        with kept.kept(module, parts, thorough=thorough, but_norms=False):
            numbers.append(len(copied))
            module.count += 1
        assert module.count == 0
    assert numbers == [8, 1, 8], "4 and inner, and 3 of BatchNorm, but for the one that is None"


def test_the_copy_of_a_large_buffer_puts_it_back_too(monkeypatch):
    monkeypatch.setattr(module_state, "LARGE", 0)
    module, kept = Queueing(), ModuleState()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for _ in range(2):
        with kept.kept(module, list(module.modules()), thorough=False, but_norms=False):
            module.enqueue(torch.arange(5))
        assert module.made is None
        torch.testing.assert_close(dict(module.named_buffers()), before, rtol=0, atol=0)


def test_a_module_whose_buffers_moved_can_be_freed():
    module, kept = Queueing(), ModuleState()
    with kept.kept(module, list(module.modules()), thorough=False, but_norms=False):
        module.count += 1
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


def test_a_buffer_that_moves_later_is_named_and_put_back_from_then_on():
    module, kept = Queueing(), ModuleState()
    moved = []
    for number in range(4):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with kept.kept(module, list(module.modules()), thorough=False, but_norms=False):
                if number >= 1:
                    module.count += 1
                if number >= 2:
                    module.network[0].inner += 1
        moved.append(
            (int(module.count), int(module.network[0].inner), [str(warning.message).split(" of ")[0] for warning in warned])
        )
    said = "a scoring pass changed"
    assert moved == [(0, 0, []), (1, 0, [f"{said} count"]), (1, 1, [f"{said} network.0.inner"]), (1, 1, [])]


class Attributes(Queueing):
    """Keeps in plain attributes what no scoring pass should add to, and changes a parameter."""

    def __init__(self):
        super().__init__()
        self.steps, self.seen, self.by_class = 0, [], {"first": []}
        self.meter = Meter()
        self.own = torch.Generator()
        self.array, self.quiet = np.zeros(3), [1, 2]
        self.network[0].calls = 0
        self.teacher = torch.nn.Linear(6, 3)
        self.teacher.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        self.steps += 1
        self.seen.append(len(batch[1]))
        self.by_class["first"].append(0)
        self.meter.total += 1
        self.array += 1
        self.network[0].calls += 1
        torch.rand(1, generator=self.own)
        self.teacher.weight.data.mul_(0.9)
        self.accuracy_of_last = 1.0
        return super().training_step(batch, batch_idx)


class Meter:
    total = 0


def test_what_a_scoring_pass_changes_and_does_not_put_back_is_named_once():
    with pytest.warns(UserWarning, match="a scoring pass changed") as warned:
        fit(Attributes(), loader(), SampleSelection(Alternating("eval")), max_epochs=EPOCHS)
    texts = [str(warning.message) for warning in warned if "a scoring pass changed" in str(warning.message)]
    named = []
    for text in texts:
        names, _, rest = text.removeprefix("a scoring pass changed ").partition(" of Attributes")
        named.append(sorted(names.split(", ")))
        assert "`if self.trainer.training:`" in rest
        assert "on_train_batch_end" in rest
    # the step that is run again to verify its values puts back the other ones
    assert named == [["array", "meter", "own"], ["by_class", "network.0.calls", "seen", "steps", "teacher.weight"]]


def test_running_the_first_step_again_moves_no_teacher():
    class Following(SureNet):
        def __init__(self):
            super().__init__()
            self.teacher = torch.nn.Linear(6, 3)
            self.teacher.requires_grad_(False)

        def training_step(self, batch, batch_idx):
            self.teacher.weight.data.mul_(0.5)
            return super().training_step(batch, batch_idx)

    module = Following()
    before = module.teacher.weight.clone()
    fit(module, loader(16), SampleSelection("infobatch"), max_epochs=1)
    assert torch.equal(module.teacher.weight, before * 0.5**2), "two steps of 8 samples"


def test_what_is_changed_under_the_advice_that_is_given_is_what_was_trained():
    class Guarded(Attributes):
        def training_step(self, batch, batch_idx):
            if self.trainer.training:
                return super().training_step(batch, batch_idx)
            return SureNet.training_step(self, batch, batch_idx)

    module = Guarded()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fit(module, loader(), SampleSelection(Alternating("eval")), max_epochs=EPOCHS)
    assert not [warning for warning in warned if "a scoring pass changed" in str(warning.message)]
    assert sum(module.seen) == module.count == 64 + 3 * 32
