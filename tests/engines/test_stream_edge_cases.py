"""Streams where something out of the way happens: silent manual steps, failed epochs, caps that rise, very uneven probabilities."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, Points, fit, loader
from lightning.pytorch.callbacks import Callback, LearningRateFinder
from shards import lone_adapter
from streamed import assert_same_weights
from torch.utils.data import DataLoader

from kakurenbo_lightning import Epoch, SampleSelection, SampleStatistics
from kakurenbo_lightning.core.plan import EpochPlan, StreamPlan
from kakurenbo_lightning.core.shard import Layout
from kakurenbo_lightning.engines.stream import StreamEngine
from kakurenbo_lightning.methods import ISWR, LB, NLB, OWC, PLB, Kakurenbo, SeTa, StreamMethod


class Manual(Net):
    """Steps its optimizer itself, and returns its loss."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(dropout=0.0)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.manual_backward(loss)
        optimizer.step()
        return loss


class Silent(Manual):
    """Returns nothing, as most do."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)


class SilentWithFunction(Silent):
    def sample_outputs(self, batch):
        logits = self.network(batch[0])
        return {"sample_loss": F.cross_entropy(logits, batch[1], reduction="none"), "logits": logits, "target": batch[1]}


@pytest.mark.parametrize(
    ("method", "silent"),
    [(OWC(), Silent), (PLB(), SilentWithFunction), (Kakurenbo(max_fraction=0.4, tau=0.0), SilentWithFunction), (SeTa(), Silent)],
    ids=["owc", "plb", "kakurenbo", "seta"],
)
def test_a_manual_step_that_returns_nothing_is_observed_as_one_that_returns_its_loss(method, silent):
    made = []
    for cls in (Manual, silent):
        module, selection = cls(), SampleSelection(method, seed=3)
        if cls is Manual and silent is SilentWithFunction:
            module.sample_outputs = SilentWithFunction.sample_outputs.__get__(module)
        fit(module, loader(61), selection, max_epochs=4)
        made.append((module, selection))
    (one, told), (other, unsaid) = made
    assert_same_weights(one, other)
    torch.testing.assert_close(told.statistics.loss, unsaid.statistics.loss, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(told.statistics.epoch_seen, unsaid.statistics.epoch_seen)
    assert (unsaid.statistics.epoch_seen == 3).sum() > 10


class FailsOnce(Callback):
    def __init__(self, epoch, step):
        self.at, self.failed = (epoch, step), False

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not self.failed and (trainer.current_epoch, batch_idx) == self.at:
            self.failed = True
            raise RuntimeError("out of the blue")


def test_an_epoch_that_failed_and_begins_again_is_drawn_anew():
    module, selection = Net(dropout=0.0), SampleSelection(PLB(), seed=3)
    with pytest.raises(RuntimeError, match="out of the blue"):
        fit(module, loader(61), selection, FailsOnce(1, 4), max_epochs=3)
    trainer = selection.session.adapter.trainer
    trainer.fit(module, loader(61))
    assert selection.session.state.metrics["staleness"] == 0 and selection.session.state.metrics["largest_staleness"] == 0


# ---- the engine by itself


def driven(method, losses):
    """A engine whose table starts with these losses."""
    statistics = SampleStatistics(len(losses), columns=method.columns, repeats=True)
    record(statistics, losses, 0)
    engine = StreamEngine(lone_adapter(), method, statistics)
    engine.prepare(Epoch(0, 9), StreamPlan(len(losses), len(losses)), torch.arange(0))
    return engine


def record(statistics, losses, epoch):
    statistics.record(torch.arange(len(losses)), {"loss": losses, "correct": losses < 1}, epoch)


def test_a_cap_that_rises_lets_values_rise():
    engine = driven(PLB(cap_quantile=0.5), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert engine.tree.values.tolist() == [1, 2, 3, 3, 3, 3]
    record(engine._statistics, torch.tensor([8.0, 9.0, 3.0, 4.0, 5.0, 6.0]), 0)
    engine.prepare(Epoch(1, 9), StreamPlan(6, 6), torch.arange(0))
    assert engine.tree.values.tolist() == [5, 5, 3, 4, 5, 5]


@pytest.mark.parametrize("method", [LB(), NLB()], ids=["lb", "nlb"])
def test_samples_that_are_not_drawn_keep_their_ratios_over_many_steps(method):
    """Against exact logarithms: each step multiplies the mass of the drawn ones a few hundred times."""
    total, hot = 1000, torch.arange(10).repeat(20)
    losses = torch.linspace(0.1, 3.0, total)
    engine = driven(method, losses)
    start = method.base(losses).double()
    logs = (start / start.sum()).log()
    drawn = method.base(torch.tensor([2.3])).double().log()
    for _ in range(100):
        engine._write(hot, torch.full((200,), 2.3))
        logs[:10] = drawn
        logs -= logs.logsumexp(0)
    values = engine.tree.values / engine.tree.total
    assert math.isclose(float(values[-1] / values[10]), float((logs[-1] - logs[10]).exp()), rel_tol=1e-6)
    assert math.isclose(float(values[10:].sum().log()), float(logs[10:].logsumexp(0)), rel_tol=1e-6)


def test_an_epoch_of_nothing_but_ordinary_ones_is_told():
    with pytest.warns(
        UserWarning, match=r"plb: pretrain_epochs=3 with max_epochs=2: every epoch is an ordinary one and nothing is drawn"
    ):
        fit(Net(), loader(61), SampleSelection(PLB(pretrain_epochs=3)), max_epochs=2)


def test_iswr_looks_at_what_the_first_epoch_left_out():
    selection = SampleSelection(ISWR(), seed=3)
    fit(Net(), DataLoader(Points(61), 8, shuffle=True, drop_last=True), selection, max_epochs=2)
    assert selection.totals.samples_refreshed == 5
    assert selection.statistics.measured.all()


def test_before_the_stream_starts_an_epoch_of_its_length_walks_through_the_data():
    placeholder = StreamPlan(61, 90).shard(Layout(8))
    batches = list(placeholder.batches())
    assert len(batches) == placeholder.steps == 12
    assert {index for batch in batches for index in batch} == set(range(61))


class Estimating(Net):
    """Makes Lightning build the loader early, and writes down what it trained."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.seen, self.rate = [], 0.1

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[2].tolist())
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def test_a_rate_finder_sees_all_samples_though_epochs_are_longer(tmp_path):
    module = Estimating()
    finder = LearningRateFinder(num_training_steps=8, attr_name="rate", update_attr=False, early_stop_threshold=None)
    fit(module, loader(61), SampleSelection(PLB(epoch_length=20)), finder, max_epochs=1, default_root_dir=tmp_path)
    assert len({index for batch in module.seen[:8] for index in batch}) > 55


def test_pretraining_epochs_are_ordinary_ones():
    seen = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(isinstance(selection.plan, EpochPlan))

    selection = SampleSelection(PLB(pretrain_epochs=2))
    fit(Net(), loader(61), selection, Watch(), max_epochs=4)
    assert seen == [True, True, False, False]


# ---- what a method of one's own may get wrong


def own(name, **attributes):
    """A streaming method that is not registered."""
    made = type(name, (StreamMethod,), {"name": name.lower(), "reads": ("loss",), **attributes})
    return dataclass(frozen=True)(made)


@pytest.mark.parametrize(
    "attributes", [{"observes": "foo"}, {"observes": "wrong"}, {"observes": "entropy", "reads": ("entropy",)}]
)
def test_a_method_that_observes_what_it_does_not_read_is_refused(attributes):
    with pytest.raises(ValueError, match=rf"mine: observes='{attributes['observes']}' is not allowed"):
        own("Mine", **attributes)()


def test_a_base_that_is_not_one_value_per_sample_is_named():
    method = own("Mine", base=lambda self, observed: observed.mean())()
    with pytest.raises(ValueError, match=r"mine: base\(observed\) returned the shape \[\] for \[61\]"):
        fit(Net(), loader(61), SampleSelection(method), max_epochs=1)


def test_a_stream_of_a_few_samples_is_told_once():
    with pytest.warns(UserWarning, match=r"lb: selection/effective_share is .*: the stream draws the same few samples") as told:
        fit(Net(), loader(400), SampleSelection(LB()), max_epochs=3)
    assert sum("effective_share" in str(warning.message) for warning in told) == 1
