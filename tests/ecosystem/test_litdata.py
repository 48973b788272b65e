"""litdata's StreamingDataLoader, on a folder of chunks that the test makes."""

from types import SimpleNamespace

import pytest
import torch
from cuts import SaveAt
from driven import Trained
from held_out import held_out, losses_of, rho
from helpers import Net, Points, fit
from keyed import LineNet
from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import Cache
from torch.utils.data import DataLoader, IterableDataset

from kakurenbo_lightning import SampleSelection

COUNT, BATCH = 64, 8


class RowsNet(Net):
    """Takes litdata's dicts."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"], batch["number"]), batch_idx)


class Seen(Trained):
    """Trained samples by their number."""

    def indices(self, epoch):
        return [index for batch in self.batches.get(epoch, []) for index in batch["number"].tolist()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few chunks of points."""
    path, points = str(tmp_path_factory.mktemp("chunks")), Points(COUNT)
    cache = Cache(path, chunk_size=16)
    for number in range(COUNT):
        x, y, _ = points[number]
        cache[number] = {"x": x, "y": int(y), "number": number}
    cache.done()
    cache.merge()
    return path


def loader_of(folder, workers=0, shuffle=True):
    return StreamingDataLoader(StreamingDataset(folder, shuffle=shuffle, seed=1), batch_size=BATCH, num_workers=workers)


def run(folder, *callbacks, workers=0, ckpt_path=None, method="selective_backprop", train=None):
    train = loader_of(folder, workers) if train is None else train
    selection, seen, net = SampleSelection(method, seed=3), Seen(), RowsNet(dropout=0.0)
    made = fit(net, train, selection, seen, *callbacks, ckpt_path=ckpt_path, max_epochs=3)
    return made, selection, seen, net


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_chunks_is_trained_from(folder, workers):
    _, selection, seen, _ = run(folder, workers=workers)
    assert sorted(seen.indices(0)) == list(range(COUNT))
    assert selection.totals.samples_scored == 2 * COUNT
    assert 0 < selection.totals.samples_rejected < 2 * COUNT


@pytest.mark.parametrize("workers", [0, 2])
def test_rho_loss_chooses_by_a_model_what_it_chooses_from_a_list_by_a_table_of_its_losses(folder, workers, tmp_path):
    rows = [
        dict(zip(batch, row, strict=True))
        for batch in loader_of(folder, workers, False)
        for row in zip(*batch.values(), strict=True)
    ]
    x, y = (torch.stack([row[name] for row in rows]) for name in ("x", "y"))
    torch.save({"irreducible": losses_of(held_out(), SimpleNamespace(x=x, y=y))}, tmp_path / "table.pt")
    _, by_table, seen, net = run(folder, method=rho(tmp_path / "table.pt"), train=DataLoader(rows, BATCH))
    _, by_model, seen_of_chunks, net_of_chunks = run(
        folder, method=rho(held_out(RowsNet)), train=loader_of(folder, workers, False)
    )
    assert [seen_of_chunks.indices(epoch) for epoch in range(3)] == [seen.indices(epoch) for epoch in range(3)]
    assert by_model.totals.samples_rejected == by_table.totals.samples_rejected == 2 * COUNT // 2
    torch.testing.assert_close(net_of_chunks.state_dict(), net.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("cut", [("on_train_batch_end", 1, 3), ("on_train_batch_end", 1, 7), ("on_train_epoch_end", 1)])
def test_a_cut_run_resumes_exactly(folder, cut, tmp_path):
    uncut = run(folder, SaveAt(tmp_path / "cut.ckpt", *cut))
    resumed = run(folder, ckpt_path=tmp_path / "cut.ckpt")
    assert resumed[2].indices(2) == uncut[2].indices(2)
    states = [made[3].state_dict().values() for made in (resumed, uncut)]
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


class Kept(IterableDataset):
    """What an epoch leaves of a StreamingDataset, whose own loader would count what is hidden as still to come when it resumes."""

    def __init__(self, data, keep):
        self.data, self.keep = data, keep

    def set_epoch(self, epoch):
        self.data.set_epoch(epoch)

    def __iter__(self):
        return filter(self.keep, iter(self.data))


class Numbered(StreamingDataset):
    """Yields the number of a sample too, as docs/streams.md says."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "found": int(getattr(index, "index", index))}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_subclass_yields_the_number_of_a_sample(folder, workers):
    batches = list(StreamingDataLoader(Numbered(folder, shuffle=True, seed=1), batch_size=BATCH, num_workers=workers))
    numbers = torch.cat([batch["number"] for batch in batches])
    assert sorted(numbers.tolist()) == list(range(COUNT)) != numbers.tolist()
    assert torch.equal(torch.cat([batch["found"] for batch in batches]), numbers)


def keyed_run(folder, *callbacks, workers=0, ckpt_path=None):
    selection, seen, net = SampleSelection("random", seed=3, key="number"), Seen(), RowsNet(dropout=0.0)
    data = Kept(StreamingDataset(folder, shuffle=True, seed=1), selection.keep)
    net.network = LineNet().network  # without BatchNorm, which stops at a last batch of one sample
    train = DataLoader(data, BATCH, num_workers=workers)
    fit(net, train, selection, seen, *callbacks, ckpt_path=ckpt_path, max_epochs=4)
    return selection, seen, net


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_hidden_by_their_number(folder, workers):
    selection, seen, _ = keyed_run(folder, workers=workers)
    assert sorted(seen.indices(0)) == list(range(COUNT))
    assert sorted(seen.indices(3)) == sorted(set(range(COUNT)) - set(selection.plan.hidden.tolist()))
    assert selection.totals.samples_hidden == 3 * int(0.3 * COUNT)


def test_a_run_with_hidden_samples_resumes_exactly_at_the_end_of_an_epoch(folder, tmp_path):
    uncut = keyed_run(folder, SaveAt(tmp_path / "cut.ckpt", "on_train_epoch_end", 1))
    resumed = keyed_run(folder, ckpt_path=tmp_path / "cut.ckpt")
    assert [resumed[1].indices(epoch) for epoch in (2, 3)] == [uncut[1].indices(epoch) for epoch in (2, 3)]
    states = [made[2].state_dict().values() for made in (resumed, uncut)]
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
