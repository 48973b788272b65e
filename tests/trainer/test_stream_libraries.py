"""Streams of webdataset and Hugging Face datasets, read from real shards that the tests make."""

from types import SimpleNamespace

import datasets
import pytest
import torch
import webdataset as wds
from cuts import SaveAt
from driven import Trained
from held_out import held_out, losses_of, rho
from helpers import Net, Points, fit
from keyed import LineNet
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError

COUNT, SHARDS, BATCH = 64, 4, 8


class RowsNet(Net):
    """Takes tuples, and the dicts of Hugging Face."""

    def training_step(self, batch, batch_idx):
        parts = (batch["x"], batch["y"], batch["number"]) if isinstance(batch, dict) else batch
        return super().training_step(parts, batch_idx)


class Seen(Trained):
    """Trained samples by their number."""

    def indices(self, epoch):
        batches = self.batches.get(epoch, [])
        return [index for batch in batches for index in (batch["number"] if isinstance(batch, dict) else batch[2]).tolist()]


def run(train, *callbacks, method="selective_backprop", ckpt_path=None, **settings):
    selection, seen, net = SampleSelection(method, seed=3), Seen(), RowsNet(dropout=0.0)
    made = fit(net, train, selection, seen, *callbacks, ckpt_path=ckpt_path, **{"max_epochs": 3, **settings})
    return made, selection, seen, net


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A pattern of tar files of a few points each."""
    folder, points = tmp_path_factory.mktemp("shards"), Points(COUNT)
    for shard in range(SHARDS):
        with wds.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for number in range(shard, COUNT, SHARDS):
                x, y, _ = points[number]
                tar.write({"__key__": f"{number:03d}", "x.pth": x, "y.cls": int(y), "number.cls": number})
    return str(folder / f"{{0..{SHARDS - 1}}}.tar")


def web_loader(shards, workers=0, length=None, shuffle=0):
    data = wds.WebDataset(shards, shardshuffle=False, nodesplitter=wds.split_by_node).shuffle(shuffle, seed=1).decode()
    data = data.to_tuple("x.pth", "y.cls", "number.cls").batched(BATCH, collation_fn=default_collate)
    loader = wds.WebLoader(data, batch_size=None, num_workers=workers)
    return loader if length is None else loader.with_length(length)


@pytest.mark.parametrize("length", [None, COUNT // BATCH])
def test_a_web_loader_is_trained_from(shards, length):
    made, selection, seen, _ = run(web_loader(shards, length=length))
    assert sorted(seen.indices(0)) == list(range(COUNT))
    assert selection.totals.samples_scored == 2 * COUNT
    assert 0 < selection.totals.samples_rejected < 2 * COUNT
    assert made.num_training_batches == (float("inf") if length is None else length + 1)


def test_a_web_loader_with_workers_is_trained_from(shards):
    _, selection, seen, _ = run(web_loader(shards, workers=2, shuffle=16))
    assert sorted(seen.indices(0)) == list(range(COUNT))
    assert selection.totals.samples_scored == 2 * COUNT


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_rho_loss_chooses_from_shards_by_a_model_what_it_chooses_from_a_list_by_a_table_of_its_losses(shards, workers, tmp_path):
    x, y, number = (torch.cat(parts) for parts in zip(*web_loader(shards, workers), strict=True))
    torch.save({"irreducible": losses_of(held_out(), SimpleNamespace(x=x, y=y))}, tmp_path / "table.pt")
    rows = DataLoader(TensorDataset(x, y, number), BATCH)
    _, by_table, seen, net = run(rows, method=rho(tmp_path / "table.pt"))
    _, by_model, seen_of_shards, net_of_shards = run(web_loader(shards, workers), method=rho(held_out(RowsNet)))
    assert [seen_of_shards.indices(epoch) for epoch in range(3)] == [seen.indices(epoch) for epoch in range(3)]
    assert by_model.totals.samples_rejected == by_table.totals.samples_rejected == 2 * COUNT // 2
    torch.testing.assert_close(net_of_shards.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_samples_of_a_web_dataset_that_are_not_batched_are_refused(shards):
    data = wds.WebDataset(shards, shardshuffle=False).decode().to_tuple("y.cls", "number.cls")
    with pytest.raises(ConflictError, match="no tensor or list with one row per sample"):
        run(wds.WebLoader(data, batch_size=None))


def test_a_web_loader_cut_within_an_epoch_begins_it_again_and_says_so(shards, tmp_path):
    path = tmp_path / "cut.ckpt"
    run(web_loader(shards), SaveAt(path, "on_train_batch_end", 1, 3), method="baseline")
    with pytest.warns(UserWarning, match=r"WebLoader: nobody knows where it stood after 4 batches of epoch 1"):
        _, _, seen, _ = run(web_loader(shards), method="baseline", ckpt_path=path)
    assert sorted(seen.indices(1)) == list(range(COUNT))


def streaming():
    points = Points(COUNT)
    columns = {"x": points.x.tolist(), "y": points.y.tolist(), "number": list(range(COUNT))}
    data = datasets.Dataset.from_dict(columns).to_iterable_dataset(num_shards=SHARDS)
    return data.shuffle(seed=0, buffer_size=4).with_format("torch")


def test_a_streamed_data_set_of_hugging_face_is_shuffled_by_its_epoch():
    _, selection, seen, _ = run(DataLoader(streaming(), BATCH), method="baseline")
    assert [sorted(seen.indices(epoch)) for epoch in range(3)] == [list(range(COUNT))] * 3
    assert len({tuple(seen.indices(epoch)) for epoch in range(3)}) == 3
    assert selection.totals.samples_trained == 3 * COUNT


# ---- hidden by key


def rows_net():
    """Without BatchNorm, which stops at a last batch of one sample."""
    net = RowsNet(dropout=0.0)
    net.network = LineNet().network
    return net


def plan_of(selection):
    return set(selection.plan.hidden.tolist())


def keyed(method, key):
    return SampleSelection(method, seed=3, key=key)


@pytest.fixture
def decoded(monkeypatch):
    """How many samples were decoded."""
    count, decode = [], wds.autodecode.Decoder.decode

    def counted(self, sample):
        count.append(sample["__key__"])
        return decode(self, sample)

    monkeypatch.setattr(wds.autodecode.Decoder, "decode", counted)
    return count


@pytest.mark.parametrize("name", ["kakurenbo", "infobatch"])
def test_samples_of_a_web_dataset_are_left_out_before_they_are_decoded(shards, name, decoded):
    settings = {"tau": 0.3} if name == "kakurenbo" else {"end_fraction": 0.0}
    selection = SampleSelection(name, seed=3, key=("__url__", "__key__"), **settings)
    data = wds.WebDataset(shards, shardshuffle=False).select(selection.keep).shuffle(8, seed=1).decode()
    parts = data.map(lambda sample: {name.split(".")[0]: value for name, value in sample.items()})

    def collate(samples):
        return default_collate([{**sample, "__url__": str(sample["__url__"])} for sample in samples])

    loader = wds.WebLoader(parts.batched(BATCH, collation_fn=collate), batch_size=None, num_workers=0)
    hidden = []

    class Hidden(Seen):
        def on_train_epoch_start(self, trainer, pl_module):
            hidden.append(selection.plan.hidden_count)

    seen = Hidden()
    fit(rows_net(), loader, selection, seen, max_epochs=4)
    assert [len(seen.indices(epoch)) for epoch in range(4)] == [COUNT - count for count in hidden]
    assert len(decoded) == 4 * COUNT - sum(hidden) < 4 * COUNT
    assert selection.totals.samples_hidden == sum(hidden)


def test_workers_of_a_web_loader_leave_them_out(shards):
    selection = keyed("random", 2)
    data = wds.WebDataset(shards, shardshuffle=False).select(by_number(selection.keep)).decode()
    data = data.to_tuple("x.pth", "y.cls", "number.cls").batched(BATCH, collation_fn=default_collate)
    loader = wds.WebLoader(data, batch_size=None, num_workers=2, persistent_workers=True)
    seen = Seen()
    fit(rows_net(), loader, selection, seen, max_epochs=3)
    assert sorted(seen.indices(0)) == list(range(COUNT))
    assert sorted(seen.indices(2)) == sorted(set(range(COUNT)) - plan_of(selection))
    assert selection.totals.samples_hidden == 2 * int(0.3 * COUNT)


class by_number:
    """Asks for a raw sample by the number in its key; may be pickled."""

    def __init__(self, keep):
        self.keep = keep

    def __call__(self, sample):
        return self.keep(int(sample["__key__"]))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_samples_of_a_streamed_data_set_of_hugging_face_are_filtered(workers):
    selection, seen = keyed("kakurenbo", "number"), Seen()
    loader = DataLoader(streaming().filter(selection.keep), BATCH, num_workers=workers)
    fit(rows_net(), loader, selection, seen, max_epochs=3)
    assert sorted(seen.indices(0)) == list(range(COUNT))
    assert plan_of(selection)
    assert sorted(seen.indices(2)) == sorted(set(range(COUNT)) - plan_of(selection))


@pytest.mark.slow
def test_a_streamed_data_set_of_hugging_face_resumes_with_a_stateful_loader(tmp_path):
    """Its shuffle buffer is not in its state (its documentation says so), so it is read without one here."""

    def unshuffled():
        points = Points(COUNT)
        columns = {"x": points.x.tolist(), "y": points.y.tolist(), "number": list(range(COUNT))}
        data = datasets.Dataset.from_dict(columns).to_iterable_dataset(num_shards=SHARDS).with_format("torch")
        return StatefulDataLoader(data, batch_size=BATCH)

    path = tmp_path / "cut.ckpt"
    uncut = run(unshuffled(), SaveAt(path, "on_train_batch_end", 1, 3))
    resumed = run(unshuffled(), ckpt_path=path)
    states = [made[3].state_dict().values() for made in (resumed, uncut)]
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    assert resumed[2].indices(2) == uncut[2].indices(2)
