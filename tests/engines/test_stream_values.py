"""How old the values are that a stream draws by: what workers draw ahead, where values come from, and who looks at them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, Points, loader
from streamed import (
    BATCH,
    CLASSES,
    EPOCHS,
    METHODS,
    SAMPLES,
    STEPS,
    ToldNet,
    assert_same_weights,
    dense_table,
    observed,
    shares,
    stream_fit,
    workers,
)
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning.methods import PLB

# ---- how stale draws are


@pytest.mark.slow_cases("1")
@pytest.mark.parametrize(("count", "prefetch"), [(0, None), (1, 2), (2, 2), (2, 4)])
def test_staleness_is_what_workers_draw_ahead_and_is_logged(count, prefetch):
    ahead = count * (prefetch or 0)
    _, _, draws, _ = stream_fit(PLB(epoch_length=20), None, loader(SAMPLES, **workers(count, prefetch)))
    for epoch in range(EPOCHS):
        assert draws.staleness(epoch) == [min(number, ahead) for number in range(20)]
        assert draws.logged[epoch]["largest_staleness"] == ahead
        assert draws.logged[epoch]["staleness"] == pytest.approx(np.mean(draws.staleness(epoch)))


@pytest.mark.slow_cases("1", "4")
@pytest.mark.parametrize(("bound", "real"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 4), (100, 8)])
def test_staleness_is_bounded_and_the_users_loader_untouched(bound, real):
    train = loader(SAMPLES, **workers(2, 4))
    before = dict(vars(train))
    made, _, draws, _ = stream_fit(PLB(epoch_length=20, max_staleness=bound), None, train, max_epochs=2)
    assert max(draws.staleness(1)) == draws.logged[1]["largest_staleness"] == real <= bound
    assert vars(train) == before
    assert made.train_dataloader is not train and type(made.train_dataloader) is DataLoader


def test_a_bound_of_zero_leaves_nothing_of_the_workers_settings():
    train = loader(SAMPLES, timeout=30, worker_init_fn=print, **workers(2, 2))
    made, _, draws, _ = stream_fit(PLB(max_staleness=0), None, train, max_epochs=2)
    assert made.train_dataloader.num_workers == 0
    assert draws.staleness(1) == [0] * STEPS


# ---- where the start values come from


class Short(Dataset):
    """Points whose last ones no epoch of whole batches shows in the given order."""

    def __init__(self):
        self.points = Points(SAMPLES)

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return self.points[index]


def scored(net):
    return sorted(int(i) for _, batch, _ in net.looked for i in batch[2])


def test_without_pretraining_all_are_looked_at_once():
    _, selection, _, net = stream_fit(PLB())
    assert scored(net) == list(range(SAMPLES))
    assert selection.totals.samples_refreshed == SAMPLES


@pytest.mark.parametrize("name", METHODS)
def test_pretraining_epochs_are_ordinary_and_their_losses_start_the_stream(name):
    method = CLASSES[name](pretrain_epochs=2)
    _, selection, draws, net = stream_fit(method, max_epochs=4)
    for epoch in range(2):
        trained = sorted(index for batch in draws.batches[epoch].values() for index in batch)
        assert trained == list(range(SAMPLES)) and epoch not in draws.tables
        assert "staleness" not in draws.logged[epoch]
    assert not net.looked and selection.totals.samples_refreshed == 0
    start = np.ones(SAMPLES)
    for epoch, batch, logits in net.seen:
        if epoch == 1 and name != "owc":
            start[batch[2].numpy()] = observed(name, logits, batch[1])
    start = np.tanh(start) if name == "nlb" else start
    steps = [(batch[2].tolist(), observed(name, logits, batch[1])) for epoch, batch, logits in net.seen if epoch >= 2]
    np.testing.assert_allclose(shares(draws.tables[3]), shares(dense_table(name, start, steps)), rtol=2e-5, atol=1e-7)


def test_after_pretraining_only_those_nobody_saw_are_looked_at():
    train = DataLoader(Short(), BATCH, drop_last=True)  # not shuffled: the last 5 never come
    _, selection, _, net = stream_fit(PLB(pretrain_epochs=1), None, train)
    assert scored(net) == list(range(56, SAMPLES))
    assert selection.statistics.measured.all()


def test_a_start_pass_looks_at_all_even_after_pretraining():
    _, selection, draws, net = stream_fit(PLB(pretrain_epochs=1, start_pass=True, epoch_length=1), max_epochs=2)
    assert scored(net) == list(range(SAMPLES)) and selection.totals.samples_refreshed == SAMPLES
    losses = torch.empty(SAMPLES)
    for _, batch, logits in net.looked:
        losses[batch[2]] = F.cross_entropy(logits, batch[1], reduction="none")
    unseen = [i for i in range(SAMPLES) if i not in draws.batches[1][0]]
    assert torch.equal(draws.tables[1][unseen], losses[unseen])


def test_the_stream_draws_by_the_start_values_not_by_chance():
    """Samples 0 to 9 are a thousand times as hard as the others."""
    told = torch.where(torch.arange(SAMPLES) < 10, 1000.0, 1.0)
    _, _, draws, _ = stream_fit(PLB(epoch_length=1), ToldNet(told), max_epochs=1)
    assert max(draws.batches[0][0]) < 10


# ---- looking at the stalest, and how far values are from the real ones


def test_the_stalest_are_looked_at_and_the_table_gets_their_new_values():
    def told(index, epoch):
        return 1.0 + index / 100 + epoch

    method = PLB(refresh_share=0.2, epoch_length=2)  # 15 of 61 are looked at for 16 trained
    looks = []

    class Looks(ToldNet):
        def training_step(self, batch, batch_idx):
            if not self.training:
                looks.append((self.trainer.current_epoch, batch[2].tolist()))
            return super().training_step(batch, batch_idx)

    _, selection, draws, _ = stream_fit(method, Looks(told), max_epochs=5)
    seen = dict.fromkeys(range(SAMPLES), 0)
    values = {index: 1.0 + index / 100 for index in range(SAMPLES)}
    counts = []
    for epoch in range(5):
        if epoch:
            rows = sorted(index for at, batch in looks if at == epoch for index in batch)
            counts.append(len(rows))
            assert max(seen[index] for index in rows) <= min(seen[i] for i in range(SAMPLES) if i not in rows)
            for index in rows:
                seen[index], values[index] = epoch - 1, 1.0 + index / 100 + epoch
        for batch in draws.batches[epoch].values():
            for index in batch:
                seen[index], values[index] = epoch, 1.0 + index / 100 + epoch
        expected = torch.tensor([values[index] for index in range(SAMPLES)])
        torch.testing.assert_close(draws.tables[epoch], expected)
    assert len(set(counts)) == 1 and counts[0] > 0
    assert selection.totals.samples_refreshed == SAMPLES + sum(counts)


@pytest.mark.quick("plb", "owc")
@pytest.mark.parametrize(("name", "count"), [("plb", 0), ("plb", 2), ("owc", 0), ("lb", 0), ("nlb", 0), ("peb", 0)])
def test_diagnosing_changes_no_training(name, count):
    train = {"train": loader(SAMPLES, **workers(count, 2))}
    method = CLASSES[name]
    _, _, plain, net = stream_fit(method(), Net(), **train)
    train = {"train": loader(SAMPLES, **workers(count, 2))}
    _, selection, draws, diagnosed = stream_fit(method(diagnose=20), Net(), **train)
    assert draws.batches == plain.batches
    assert_same_weights(net, diagnosed)
    assert torch.equal(draws.tables[EPOCHS - 1], plain.tables[EPOCHS - 1])
    assert "distribution_distance" not in plain.logged[0]
    for epoch in range(EPOCHS):
        assert 0 <= draws.logged[epoch]["distribution_distance"] <= 1
        assert 0 <= draws.logged[epoch]["ordered_share"] <= 1
    assert selection.totals.samples_refreshed == SAMPLES * method.scores_first + 20 * EPOCHS


def test_fresh_values_are_at_no_distance_and_turned_ones_are_ordered_wrongly():
    def turning(index, epoch):
        return 1.0 + (index if epoch < 1 else SAMPLES - index)

    method = PLB(diagnose=SAMPLES, epoch_length=1)
    _, _, draws, _ = stream_fit(method, ToldNet(turning), max_epochs=2)
    assert draws.logged[0]["distribution_distance"] == pytest.approx(0, abs=1e-12)
    assert draws.logged[0]["ordered_share"] == 1
    assert draws.logged[1]["ordered_share"] < 0.3  # those few that were drawn are right
    before, real = shares(draws.tables[0]), shares(turning(np.arange(SAMPLES), 1))
    assert draws.logged[1]["distribution_distance"] == pytest.approx(abs(before - real).sum() / 2, abs=1e-6)


def test_diagnosing_values_that_are_all_zero_logs_a_number():
    def zero_later(index, epoch):
        return torch.where(torch.tensor(epoch == 0), 1.0, 0.0).expand(len(index))

    _, _, draws, _ = stream_fit(PLB(diagnose=10), ToldNet(zero_later), max_epochs=3)
    assert all(math.isfinite(draws.logged[epoch]["distribution_distance"]) for epoch in range(3))
