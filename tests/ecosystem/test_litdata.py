"""litdata's StreamingDataLoader, on a folder of chunks that the test makes."""

import pytest
import torch
from cuts import SaveAt
from driven import Trained
from helpers import Net, Points, fit
from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import Cache

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


def run(folder, *callbacks, workers=0, ckpt_path=None, method="selective_backprop"):
    train = StreamingDataLoader(StreamingDataset(folder, shuffle=True, seed=1), batch_size=BATCH, num_workers=workers)
    selection, seen, net = SampleSelection(method, seed=3), Seen(), RowsNet(dropout=0.0)
    made = fit(net, train, selection, seen, *callbacks, ckpt_path=ckpt_path, max_epochs=3)
    return made, selection, seen, net


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_chunks_is_trained_from(folder, workers):
    _, selection, seen, _ = run(folder, workers=workers)
    assert sorted(seen.indices(0)) == list(range(COUNT))
    assert selection.totals.samples_scored == 2 * COUNT
    assert 0 < selection.totals.samples_rejected < 2 * COUNT


@pytest.mark.parametrize("cut", [("on_train_batch_end", 1, 3), ("on_train_batch_end", 1, 7), ("on_train_epoch_end", 1)])
def test_a_cut_run_resumes_exactly(folder, cut, tmp_path):
    uncut = run(folder, SaveAt(tmp_path / "cut.ckpt", *cut))
    resumed = run(folder, ckpt_path=tmp_path / "cut.ckpt")
    assert resumed[2].indices(2) == uncut[2].indices(2)
    states = [made[3].state_dict().values() for made in (resumed, uncut)]
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
