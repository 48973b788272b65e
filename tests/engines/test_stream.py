"""A stream draws while training goes: each step trains the batch the engine knows, and its losses decide what is drawn next."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, Points, fit, loader
from lightning.pytorch.callbacks import Callback
from streamed import (
    BATCH,
    CLASSES,
    EPOCHS,
    METHODS,
    SAMPLES,
    STEPS,
    Draws,
    LogitsNet,
    ToldNet,
    assert_same_weights,
    dense_table,
    observed,
    shares,
    stream_fit,
    workers,
)

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.core.random import stream_generator
from kakurenbo_lightning.core.sum_tree import SumTree
from kakurenbo_lightning.methods import LB, NLB, PLB

# ---- each batch is the one that was drawn


@pytest.mark.parametrize(
    ("method", "count", "prefetch"),
    [
        *((PLB(), count, prefetch) for count, prefetch in [(0, None), (1, 2), (1, 4), (2, 2), (2, 4)]),
        *((PLB(pretrain_epochs=1, refresh_share=0.2), count, prefetch) for count, prefetch in [(0, None), (2, 2)]),
    ],
    ids=str,
)
def test_each_step_trains_the_batch_the_driver_knows(method, count, prefetch):
    _, _, draws, net = stream_fit(method, None, loader(SAMPLES, **workers(count, prefetch)))
    data = Points(SAMPLES)
    for epoch in range(method.pretrain_epochs, EPOCHS):
        known = {number: drawn.indices.tolist() for number, drawn in draws.known[epoch].items()}
        assert known == draws.batches[epoch]
        assert list(known) == list(range(STEPS)) and {len(batch) for batch in known.values()} == {BATCH}
    for _, (x, y, index), _ in net.seen:
        assert torch.equal(x, data.x[index]) and torch.equal(y, data.y[index])


@pytest.mark.parametrize("drop_last", [False, True])
def test_all_batches_are_full_whatever_the_loader_drops(drop_last):
    _, selection, draws, _ = stream_fit(PLB(), None, loader(SAMPLES, drop_last=drop_last))
    assert all(len(batch) == BATCH for batches in draws.batches.values() for batch in batches.values())
    assert [len(batches) for batches in draws.batches.values()] == [STEPS] * EPOCHS
    assert selection.totals.samples_trained == EPOCHS * STEPS * BATCH


def test_a_data_set_smaller_than_a_batch_is_drawn_from():
    _, _, draws, _ = stream_fit(PLB(), None, loader(3))
    assert all(len(batches) == 1 and len(batches[0]) == BATCH for batches in draws.batches.values())


def test_epochs_batches_and_seeds_draw_differently_and_the_same_seed_alike():
    one, again = (stream_fit(PLB())[2].batches for _ in range(2))
    assert one == again
    other = SampleSelection("plb", seed=5)
    seen = LogitsNet()
    fit(seen, loader(SAMPLES), other, max_epochs=EPOCHS)
    batches = [tuple(batch) for epoch in one.values() for batch in epoch.values()]
    assert len(set(batches)) == len(batches)
    assert not set(batches) & {tuple(batch[2].tolist()) for _, batch, _ in seen.seen}


# ---- the loop, written out


def by_hand(net, data, scored, ahead=0, epochs=EPOCHS, steps=STEPS, min_value=1e-6):
    """PLB in plain PyTorch: the values are a NumPy array; ``ahead`` batches are drawn before one is trained."""
    optimizer, values, trained = net.configure_optimizers(), np.empty(len(data), np.float32), []
    net.eval()
    for batch in scored:
        values[batch] = F.cross_entropy(net.network(data.x[batch]), data.y[batch], reduction="none").detach().numpy()
    net.train()
    values = np.maximum(values, np.float32(min_value * values.astype(np.float64).mean()))
    for epoch in range(epochs):
        queue, drawn = [], 0
        for number in range(steps):
            while drawn <= min(number + ahead, steps - 1):
                table = SumTree(torch.from_numpy(values.copy()))
                queue.append(table.draw(BATCH, stream_generator(0, epoch, f"draw:{drawn}:0")))
                drawn += 1
            batch = queue.pop(0)
            optimizer.zero_grad()
            logits = net.network(data.x[batch])
            F.cross_entropy(logits, data.y[batch]).backward()
            optimizer.step()
            floor = min_value * values.astype(np.float64).mean()
            for index, loss in zip(batch, F.cross_entropy(logits.detach(), data.y[batch], reduction="none"), strict=True):
                values[index] = max(float(loss), floor)
            trained.append(batch.tolist())
    return trained, values


@pytest.mark.parametrize(("count", "prefetch"), [(0, None), (1, 2), (2, 2)])
def test_it_is_the_loop_written_out_to_the_bit(count, prefetch):
    _, _, draws, net = stream_fit("plb", None, loader(SAMPLES, **workers(count, prefetch)), val=loader(16, shuffle=False))
    looked = [batch[2] for _, batch, _ in net.looked]
    twin = LogitsNet()
    trained, values = by_hand(twin, Points(SAMPLES), looked, ahead=count * (prefetch or 0))
    assert [batch for epoch in draws.batches.values() for batch in epoch.values()] == trained
    assert_same_weights(twin, net)
    assert np.array_equal(draws.tables[EPOCHS - 1].numpy(), values)


# ---- the table


def start_values(name, net, count=SAMPLES):
    """From the forward-only pass before the stream."""
    values = np.ones(count)
    if name != "owc":
        for _, batch, logits in net.looked:
            values[batch[2].numpy()] = observed(name, logits, batch[1])
    return np.tanh(values) if name == "nlb" else values


@pytest.mark.parametrize("name", METHODS)
def test_after_each_epoch_the_table_is_that_of_a_dense_replay(name):
    _, _, draws, net = stream_fit(name)
    assert len(net.looked) == (0 if name == "owc" else STEPS)
    steps = {epoch: [] for epoch in range(EPOCHS)}
    for epoch, batch, logits in net.seen:
        steps[epoch].append((batch[2].tolist(), observed(name, logits, batch[1])))
    so_far = []
    for epoch in range(EPOCHS):
        so_far += steps[epoch]
        expected = dense_table(name, start_values(name, net), so_far)
        np.testing.assert_allclose(shares(draws.tables[epoch]), shares(expected), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize(("name", "column"), [("plb", "loss"), ("peb", "entropy")])
def test_values_are_the_last_observed_ones(name, column, count):
    net = LogitsNet(rate=0.01)  # no loss falls below min_value
    _, selection, draws, _ = stream_fit(name, net, loader(SAMPLES, **workers(count, 2)))
    statistics, table = selection.statistics.state_dict(), draws.tables[EPOCHS - 1]
    assert torch.equal(statistics[column], table)
    last = {int(i): epoch for epoch, batch, _ in net.seen for i in batch[2]}
    assert statistics["epoch_seen"].tolist() == [last.get(i, 0) for i in range(SAMPLES)]


def test_of_a_sample_drawn_twice_the_last_one_counts():
    """Two rows of one sample differ here: the told loss counts the rows."""

    class Counting(ToldNet):
        rows = 0

        def training_step(self, batch, batch_idx):
            self.told = torch.zeros(SAMPLES)
            outputs = super().training_step(batch, batch_idx)
            if self.training:
                outputs["sample_loss"] = torch.arange(self.rows, self.rows + len(batch[2])) + 100.0
                self.rows += len(batch[2])
            else:
                outputs["sample_loss"] = torch.full((len(batch[2]),), 100.0)
            return outputs

    _, selection, draws, _ = stream_fit(PLB(epoch_length=20), Counting(None))
    expected, row, twice = {}, 0, 0
    for batches in draws.batches.values():
        for batch in batches.values():
            twice += len(batch) - len(set(batch))
            for index in batch:
                expected[index] = 100.0 + row
                row += 1
    assert twice > 20
    table = [expected.get(index, 100.0) for index in range(SAMPLES)]
    assert draws.tables[EPOCHS - 1].tolist() == selection.statistics.loss.tolist() == table


def test_draws_follow_the_values():
    """1,920 draws by fixed values; Pearson's chi-square with 60 degrees of freedom is above 119 with probability 1e-5."""
    told = torch.linspace(0.2, 4, SAMPLES)
    _, _, draws, _ = stream_fit(PLB(epoch_length=240), ToldNet(told), max_epochs=1)
    found = Counter(index for batch in draws.batches[0].values() for index in batch)
    expected = 240 * BATCH * shares(told.numpy())
    assert sum((found[i] - expected[i]) ** 2 / expected[i] for i in range(SAMPLES)) < 119


@pytest.mark.filterwarnings("ignore:.*samples have a NaN or infinite loss")
def test_a_nan_loss_is_not_written_warned_of_once_and_counted():
    told = torch.rand(SAMPLES, generator=torch.Generator().manual_seed(0)) + 0.5

    def nan_later(index, epoch):
        return torch.where((index % 5 == 0) & (epoch > 0), float("nan"), told[index])

    with pytest.warns(UserWarning, match="plb: a NaN or infinite value was observed") as warned:
        _, _, draws, _ = stream_fit(PLB(epoch_length=30), ToldNet(nan_later), max_epochs=4)
    assert sum("plb: a NaN" in str(w.message) for w in warned) == 1
    for epoch in range(4):
        assert draws.tables[epoch].tolist() == told.tolist()
        drawn = [index for batch in draws.batches[epoch].values() for index in batch]
        assert draws.logged[epoch]["not_written"] == (sum(index % 5 == 0 for index in drawn) if epoch else 0)


@pytest.mark.parametrize("method", [PLB(), PLB(temperature=0.5, mix=0.1), LB(), NLB()], ids=lambda m: repr(m)[:12])
def test_losses_that_all_become_zero_stop_nothing(method):
    """A network that has learnt everything by heart: cross-entropy in float32 is 0 exactly."""

    def zero_later(index, epoch):
        return torch.where(torch.tensor(epoch == 0), 1.0 + index / 100, torch.zeros(()))

    _, _, draws, _ = stream_fit(method, ToldNet(zero_later), loader(16), max_epochs=40)
    for table in draws.tables.values():
        assert table.isfinite().all() and (table > 0).all()
    drawn = {index for batches in draws.batches.values() for batch in batches.values() for index in batch}
    assert drawn == set(range(16))


def test_a_cap_of_zero_stops_nothing():
    """More than half of the samples have a loss of exactly 0, and the median is the cap."""

    def mostly_zero(index, epoch):
        return torch.where((index % 4 == 0) | torch.tensor(epoch == 0), 1.0 + index / 100, torch.zeros(()))

    _, _, draws, _ = stream_fit(PLB(cap_quantile=0.5, epoch_length=30), ToldNet(mostly_zero), max_epochs=4)
    assert all(table.isfinite().all() and (table > 0).all() for table in draws.tables.values())


@pytest.mark.parametrize("method", [PLB(), LB()], ids=lambda method: method.name)
@pytest.mark.parametrize("huge", [1e20, 3e38])
def test_huge_losses_leave_the_table_finite(method, huge):
    """A training that diverges; it may come back."""

    def diverging(index, epoch):
        return torch.where(torch.tensor(epoch == 1), huge, 1.0 + index / 100)

    _, _, draws, _ = stream_fit(method, ToldNet(diverging), max_epochs=4)
    for table in draws.tables.values():
        assert table.isfinite().all() and (table > 0).all()
        assert np.isfinite(shares(table)).all()


def test_a_cap_holds_the_hardest_at_the_quantile_of_the_epoch():
    told = torch.arange(1.0, SAMPLES + 1)
    method = PLB(cap_quantile=0.5, epoch_length=40)
    _, _, draws, _ = stream_fit(method, ToldNet(told))
    place = int(0.5 * SAMPLES)
    assert draws.tables[EPOCHS - 1].tolist() == told.clamp(max=float(told[place])).tolist()


# ---- unbiased


def gradient_by_hand(net, batch, weights):
    """Gradients of the weighted mean loss of one batch."""
    twin = LogitsNet()
    twin.load_state_dict(net)
    data = Points(SAMPLES)
    losses = F.cross_entropy(twin.network(data.x[batch]), data.y[batch], reduction="none")
    (losses * weights).mean().backward()
    return [parameter.grad for parameter in twin.parameters()]


class Returning(Net):
    """Returns its per-sample values."""

    def training_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        loss = F.cross_entropy(logits, batch[1], reduction="none")
        return {"loss": loss.mean(), "sample_loss": loss, "logits": logits, "target": batch[1]}


@pytest.mark.parametrize(
    ("name", "way", "count"),
    [*((name, LogitsNet, 0) for name in METHODS), ("plb", LogitsNet, 2), ("plb", Returning, 0), ("owc", Returning, 2)],
)
def test_unbiased_gradients_are_weighed_by_the_probability_of_the_draw(name, way, count):
    """The weight is 1 / (N p) with the p of the moment of the draw, also when the table has changed since."""
    method = CLASSES[name](unbiased=True, mix=0.2)
    net, before, after = way(dropout=0.0), [], []
    tables = []

    class Gradient(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before.append({key: value.clone() for key, value in pl_module.state_dict().items()})
            if trainer.current_epoch == 0:
                tables.append(shares(draws_of[0].engine.tree.values))

        def on_after_backward(self, trainer, pl_module):
            after.append([parameter.grad.clone() for parameter in pl_module.parameters()])

    selection = SampleSelection(method)
    draws = Draws(selection)
    draws_of = [draws]
    fit(net, loader(SAMPLES, **workers(count, 2)), selection, draws, Gradient(), max_epochs=2)
    step = 0
    for epoch in range(2):
        for drawn in draws.known[epoch].values():
            assert drawn.weights.min() > 0 and drawn.weights.max() <= 5 + 1e-5  # 1 / mix
            if epoch == 0:
                p = 0.8 * tables[drawn.written] + 0.2 / SAMPLES
                torch.testing.assert_close(
                    drawn.weights.double(), torch.from_numpy(1 / (SAMPLES * p))[drawn.indices], rtol=1e-5, atol=0
                )
            wanted = gradient_by_hand(before[step], drawn.indices, drawn.weights)
            for mine, hand in zip(after[step], wanted, strict=True):
                torch.testing.assert_close(mine, hand, rtol=1e-4, atol=1e-6)
            step += 1
    weights = torch.cat([drawn.weights for drawn in draws.known[1].values()])
    assert weights.std() > 0.01, "else the test shows nothing"
