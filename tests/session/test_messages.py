"""What cannot work is said by name, at the latest on the first batch; what cannot act is said once; and nothing is said raw."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, Points, fit, loader
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, default_collate

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import ConflictError

SAMPLES = 61


class Steps(Callback):
    """Counts the steps that were made."""

    def __init__(self):
        self.count = 0

    def on_train_batch_end(self, *args):
        self.count += 1


def refused_after(steps, match, selection, *, module=None, train=None, error=ConflictError, **settings):
    """The fit is refused when so many steps are made."""
    counter = Steps()
    with pytest.raises(error, match=match):
        fit(module or Net(), loader(SAMPLES) if train is None else train, selection, counter, **settings)
    assert counter.count == steps


# --- batches: said on the first one, long before samples are chosen


class Own(Net):
    """Reads batches with attributes or keys ``x`` and ``y``; keeps their class and the gradients of another loss out of the way."""

    def __init__(self, read):
        super().__init__(dropout=0.0)
        self.read, self.kinds = read, set()

    def training_step(self, batch, batch_idx):
        self.kinds.add(type(batch).__name__)
        x, y = self.read(batch)
        return F.cross_entropy(self.network(x), y)


Pair = namedtuple("Pair", "x y note")


@dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor
    note: str = "all"


def encoding(x, y, note):
    from transformers import BatchEncoding

    return BatchEncoding({"x": x, "y": y, "note": note})


KINDS = {
    "Pair": (Pair, lambda batch: (batch.x, batch.y)),
    "Record": (Record, lambda batch: (batch.x, batch.y)),
    "BatchEncoding": (encoding, lambda batch: (batch["x"], batch["y"])),
}


def own_fit(kind, *callbacks, method="selective_backprop", **settings):
    make, read = KINDS[kind] if kind else (lambda x, y, note: (x, y), lambda batch: batch)
    module = Own(read)

    def collate(samples):
        x, y, _ = default_collate(samples)
        return make(x, y, "all")

    selection = SampleSelection(method)
    fit(module, DataLoader(Points(SAMPLES), 8, shuffle=True, collate_fn=collate), selection, *callbacks, **settings)
    return selection, module


@pytest.mark.parametrize("method", ["selective_backprop", "katharopoulos"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_own_classes_train_as_tuples_do(kind, method):
    if kind == "BatchEncoding":
        pytest.importorskip("transformers")
    usual, plain = own_fit(None, method=method)
    selection, module = own_fit(kind, method=method)
    assert module.kinds == {kind}, "the step never gets anything else"
    assert torch.equal(selection.statistics.loss, usual.statistics.loss)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["Pair", "Record"])
def test_a_run_on_batches_of_own_classes_resumes_exactly_with_samples_waiting(kind, tmp_path):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    _, whole = own_fit(kind, keep, enable_checkpointing=True)
    waited = 0
    for path in sorted(tmp_path.iterdir(), key=lambda path: int(path.stem.partition("=")[2]))[8::3]:
        state = torch.load(path, weights_only=True)["callbacks"]["SampleSelection"]  # nothing of the user's is in it
        waited += any(engine["pool"] for engine in state["engines"])
        _, resumed = own_fit(kind, ckpt_path=path, seed=9)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (path.name, name)
        assert resumed.kinds == {kind}
    assert waited


class Graphs:
    """As PyTorch Geometric's batches: an object of its own."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device, **_):
        return Graphs(self.x.to(device), self.y.to(device))


def test_graphs_are_refused_on_the_first_batch_with_methods_that_take_them():
    def collate(samples):
        x, y, _ = default_collate(samples)
        return Graphs(x, y)

    train = DataLoader(Points(SAMPLES), 8, shuffle=True, collate_fn=collate)
    for method in ("selective_backprop", "sb_fixed"):
        match = r"the batch holds a Graphs: .* convert it in collate_fn, or use a method .* kakurenbo, infobatch or plb"
        refused_after(0, match, SampleSelection(method), module=Own(KINDS["Pair"][1]), train=train, error=TypeError)
    for method in ("kakurenbo", "infobatch", "plb"):
        fit(Own(KINDS["Pair"][1]), train, SampleSelection(method), max_epochs=3)


class Sentences(Points):
    """Samples of different lengths."""

    def __getitem__(self, index):
        return self.x[index].repeat(1 + index % 3), self.y[index], index


def padded(samples):
    longest = max(len(x) for x, _, _ in samples)
    x = torch.stack([F.pad(x, (0, longest - len(x))) for x, _, _ in samples])
    return x, torch.tensor([y for _, y, _ in samples]), torch.tensor([index for _, _, index in samples])


def test_batches_padded_to_their_own_longest_sample_are_refused_in_epoch_0():
    class Reading(Net):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0][:, :6]), batch[1])

    match = r"batch\[0\] has samples of shape \[(6|12|18)\] in this batch and of \[(6|12|18)\] in the first: .* collate_fn .* sb_fixed"
    train = DataLoader(Sentences(SAMPLES), 2, shuffle=False, collate_fn=padded)  # lengths 2, 3, 2: the second differs
    refused_after(1, match, SampleSelection("selective_backprop", warmup_epochs=3), module=Reading(), train=train)
    refused_after(1, match, SampleSelection("katharopoulos"), module=Reading(), train=train)
    for method in ("sb_fixed", "kakurenbo"):  # they join nothing
        fit(Reading(), DataLoader(Sentences(SAMPLES), 4, shuffle=True, collate_fn=padded), SampleSelection(method))


def test_a_tensor_without_one_row_per_sample_is_refused_on_the_first_batch():
    def collate(samples):
        return [*default_collate(samples), torch.ones(3)]

    train = DataLoader(Points(SAMPLES), 8, shuffle=True, collate_fn=collate)
    match = r"batch\[3\] is a tensor of shape \[3\] in a batch of 8 samples: .* one row per sample .* kakurenbo, infobatch or plb"
    refused_after(0, match, SampleSelection("selective_backprop", warmup_epochs=3), train=train)


def test_a_lower_resolution_of_what_is_no_image_is_refused_on_the_first_batch():
    selection = SampleSelection("selective_backprop", scale=0.5, warmup_epochs=3)
    refused_after(0, r"scale=0.5: .* no float images .* use scale=1", selection)
