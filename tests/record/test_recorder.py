"""What a `RunRecorder` leaves in a folder is what really happened, also in runs that are cut and resumed."""

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from cuts import SaveAt
from helpers import Net, Points, loader, trainer
from lightning.pytorch.callbacks import Callback
from method_tester import short_run
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record.files import LOSS_EDGES
from kakurenbo_lightning.record.recorder import RunRecorder

EPOCHS, SAMPLES = 5, 61
METHODS = ("kakurenbo", "infobatch", "forget", "selective_backprop", "stale_sb", "plb", "iswr", "baseline")


class LoggingNet(Net):
    """Logs in training, in validation and at the end of an epoch, and knows what it is given.

    Attributes:
        last: indices of the last step that trains.
        scored: indices of each batch without gradient.
    """

    def __init__(self):
        super().__init__(dropout=0.0)
        self.last, self.looked = None, []

    def training_step(self, batch, batch_idx):
        if torch.is_grad_enabled() and self.training:
            self.last = batch[2].tolist()
        elif not torch.is_grad_enabled():
            self.looked += batch[2].tolist()
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def on_train_epoch_end(self):
        self.log("train/late", float(self.trainer.current_epoch))

    def validation_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        self.log("val/loss", F.cross_entropy(logits, batch[1]))
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean())


class Witness(Callback):
    """Writes down by epoch what was trained, hidden, looked at and logged; comes after the selection."""

    def __init__(self):
        self.trained, self.hidden, self.logged, self.known = defaultdict(list), {}, {}, {}
        self.refreshed, self.looked = {}, {}

    def on_train_epoch_start(self, trainer, pl_module):
        selection, epoch = trainer.callbacks[0], trainer.current_epoch
        self.hidden[epoch] = selection.plan.hidden.tolist()
        statistics = selection.statistics
        self.known[epoch] = [column.clone().cpu() for column in (statistics.loss, statistics.correct)]
        self.refreshed[epoch], pl_module.looked = len(pl_module.looked), []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained[trainer.current_epoch] += pl_module.last or []
        pl_module.last = None

    def on_train_epoch_end(self, trainer, pl_module):
        epoch = trainer.current_epoch
        self.looked[epoch], pl_module.looked = len(pl_module.looked), []
        self.logged[epoch] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    @property
    def times_trained(self):
        return counted(self.trained)

    @property
    def times_hidden(self):
        return counted(self.hidden)

    @property
    def last_change(self):
        changes, now = [-1] * SAMPLES, set()
        for epoch, hidden in self.hidden.items():
            for index in set(hidden) ^ now:
                changes[index] = epoch
            now = set(hidden)
        return changes


def counted(epochs):
    """How often each index comes in lists by epoch."""
    times = Counter(index for epoch in epochs.values() for index in epoch)
    return [times[index] for index in range(SAMPLES)]


class Files:
    """What a folder holds."""

    def __init__(self, folder):
        self.run = json.loads((folder / "run.json").read_text())
        self.rows, self.samples = (pq.read_table(folder / f"{name}.parquet") for name in ("selection", "samples"))
        self.epochs, self.frame = self.rows.to_pandas(), self.samples.to_pandas()

    def without_seconds(self):
        """Rows but for what differs from run to run."""
        return self.epochs[[name for name in self.epochs if not name.endswith("seconds")]]


def record(folder, method="kakurenbo", *callbacks, module=None, data=None, fit=None, recorder=None, **settings):
    """Train with a recorder and return the selection, the Trainer and the recorder."""
    selection = SampleSelection(short_run(method, SAMPLES) if isinstance(method, str) else method, seed=1)
    written = RunRecorder(selection, folder, **{"every_n_epochs": 2, **(recorder or {})})
    made = trainer(selection, written, *callbacks, **{"max_epochs": EPOCHS, **settings})
    torch.manual_seed(0)
    train = DataLoader(Points(SAMPLES), 8, shuffle=True) if data is None else data
    made.fit(module or LoggingNet(), train, loader(24, shuffle=False), **(fit or {}))
    return selection, made, written


# --- the files against an independent count


@pytest.fixture(scope="module", params=METHODS)
def recorded(request, tmp_path_factory):
    folder, witness = tmp_path_factory.mktemp("run") / request.param, Witness()
    selection, _, _ = record(folder, request.param, witness, check_val_every_n_epoch=2)
    return selection, witness, Files(folder)


def test_every_sample_has_its_counts(recorded):
    selection, witness, files = recorded
    frame = files.frame
    assert frame["index"].tolist() == list(range(SAMPLES))
    assert frame["times_trained"].tolist() == witness.times_trained
    assert frame["times_trained"].sum() == selection.totals.samples_trained
    assert frame["times_hidden"].tolist() == witness.times_hidden
    assert frame["last_change"].tolist() == witness.last_change
    for name in ("loss", "confidence", "correct", "epoch_seen"):
        assert np.array_equal(frame[name], getattr(selection.statistics, name), equal_nan=name in ("loss", "confidence"))
    assert frame["target"].tolist() == Points(SAMPLES).y.tolist()
    assert files.samples.schema.metadata[b"epochs"] == str(len(files.epochs)).encode()
    types = [str(kind) for kind in files.samples.schema.types[:9]]
    assert types == ["int64", "float", "float", "bool", "int32", "int16", "int32", "int32", "int16"]


def test_every_epoch_has_its_counts_and_seconds(recorded):
    selection, witness, files = recorded
    rows, totals = files.epochs, selection.totals
    assert rows["epoch"].tolist() == sorted(witness.logged)
    assert rows["samples_trained"].tolist() == [len(witness.trained[epoch]) for epoch in rows["epoch"]]
    assert rows["samples_hidden"].tolist() == [len(witness.hidden[epoch]) for epoch in rows["epoch"]]
    assert rows["samples_refreshed"].tolist() == [witness.refreshed[epoch] for epoch in rows["epoch"]]
    assert rows["samples_scored"].tolist() == [witness.looked[epoch] for epoch in rows["epoch"]]
    for count in ("trained", "hidden", "refreshed", "scored", "rejected"):
        name = f"samples_{count}"
        assert rows[name].sum() == getattr(totals, name)
        assert str(rows[name].dtype) == "int64"
    for phase in ("train", "refresh", "select", "score", "forward", "backward", "data"):
        assert rows[f"{phase}_seconds"].sum() == pytest.approx(getattr(totals, f"{phase}_seconds"))
    spent = totals.train_seconds + totals.refresh_seconds + totals.select_seconds
    assert rows["elapsed_seconds"].iloc[-1] == pytest.approx(spent) == files.run["seconds"]
    assert rows["elapsed_seconds"].is_monotonic_increasing


def test_rows_hold_what_was_logged_and_nothing_where_nothing_was(recorded):
    _, witness, files = recorded
    for row in files.epochs.to_dict("records"):
        logged = witness.logged[row["epoch"]]
        for name in logged:
            if name.startswith("selection/"):
                assert row[name.removeprefix("selection/")] == pytest.approx(logged[name], rel=1e-6)
        assert row["train/loss"] == logged["train/loss"]
        assert row["train/late"] == row["epoch"], "the module logs it after the callbacks"
        if row["epoch"] % 2:
            assert row["val/loss"] == logged["val/loss"] and row["val/accuracy"] == logged["val/accuracy"]
        else:
            assert math.isnan(row["val/loss"]) and math.isnan(row["val/accuracy"])
    assert (files.run["metric"], files.run["score"]) == ("val/accuracy", files.epochs["val/accuracy"].dropna().iloc[-1])


def test_rows_hold_what_was_known_of_the_losses(recorded):
    selection, witness, files = recorded
    edges = json.loads(files.rows.schema.metadata[b"loss_edges"])
    assert edges == LOSS_EDGES.tolist()
    for row in files.epochs.to_dict("records"):
        loss, correct = witness.known[row["epoch"]]
        finite = loss[loss.isfinite()].double().numpy()
        expected, _ = np.histogram(finite.clip(edges[0], edges[-1]), edges)
        assert row["loss_histogram"].tolist() == expected.tolist()
        hidden = [index for index in witness.hidden[row["epoch"]] if correct[index]]
        assert row["threshold"] == loss[hidden].max() if hidden else math.isnan(row["threshold"])
    if selection.method.name == "kakurenbo":
        assert files.epochs["threshold"].notna().sum() > 2


def test_the_run_is_told(recorded):
    selection, _, files = recorded
    run = files.run
    assert (run["format"], run["status"], run["error"], run["name"]) == (1, "finished", None, selection.method.name)
    assert (run["method"], run["family"], run["seed"], run["num_samples"]) == (
        selection.method.name, selection.method.family, 1, SAMPLES,
    )  # fmt: skip
    assert run["epochs"] == run["max_epochs"] == len(files.epochs)
    assert run["totals"]["samples_trained"] == selection.totals.samples_trained
    assert run["totals"]["saved_seconds"] == selection.totals.saved_seconds
    assert run["started"] <= run["ended"] and run["fit_seconds"] > 0
    assert {"python", "torch", "lightning", "kakurenbo-lightning"} == run["versions"].keys()
    assert {"processor", "cores", "device", "threads"} == run["machine"].keys()


# --- cut and resumed


MOMENTS = {
    "epoch start": ("on_train_epoch_start", 2, 0),
    "batch start": ("on_train_batch_start", 2, 2),
    "forward is done": ("on_before_backward", 2, 2),
    "batch end": ("on_train_batch_end", 2, 2),
    "last batch": ("on_train_batch_end", 2, -1),
    "validation end": ("on_validation_end", 2, 0),
    "epoch end": ("on_train_epoch_end", 2, 0),
    "last batch of the run": ("on_train_batch_end", EPOCHS - 1, -1),
    "end of the run": ("on_train_end", EPOCHS, 0),
}


def moments(folder, last_epoch):
    """A callback per moment that saves a checkpoint there."""
    shift = last_epoch - EPOCHS + 1  # static methods
    return [
        SaveAt(folder / f"{name}.ckpt", hook, epoch + (shift if epoch > 2 else 0), batch)
        for name, (hook, epoch, batch) in MOMENTS.items()
    ]


@pytest.fixture(scope="module")
def cut(request, tmp_path_factory):
    """A run with a checkpoint at each moment."""
    folder = tmp_path_factory.mktemp("cut")
    last = EPOCHS - 1 + short_run(request.param, SAMPLES).scoring_epochs(EPOCHS)
    record(folder / "whole", request.param, *moments(folder, last))
    return request.param, folder, Files(folder / "whole")


def resumed(cut, moment, **settings):
    """The files of a run that goes on from the checkpoint of a moment."""
    method, folder, _ = cut
    again = folder / moment.replace(" ", "_")
    record(again, method, fit={"ckpt_path": folder / f"{moment}.ckpt"}, **settings)
    return Files(again)


CUTS = [
    (method, moment)
    for method in ("kakurenbo", "infobatch", "forget", "selective_backprop", "plb", "iswr")
    for moment in MOMENTS
    # after a step's forward pass, or after it was looked at, the resumed run is another one (see the README)
    if moment != "forward is done" and (method, moment) != ("selective_backprop", "batch start")
]


@pytest.mark.parametrize(("cut", "moment"), CUTS, indirect=["cut"])
def test_cut_and_resumed_leaves_the_files_of_the_uncut_run(cut, moment):
    _, folder, whole = cut
    assert {"SampleSelection", "RunRecorder"} <= torch.load(folder / f"{moment}.ckpt", weights_only=True)["callbacks"].keys()
    files = resumed(cut, moment)
    pd.testing.assert_frame_equal(files.frame, whole.frame)
    assert files.samples.schema.equals(whole.samples.schema, check_metadata=True)
    assert files.run["totals"]["samples_trained"] == whole.run["totals"]["samples_trained"]
    actual, expected = files.without_seconds(), whole.without_seconds()
    if moment not in (
        "epoch start",
        "end of the run",
    ):  # Lightning resumes no epoch's averages, and no validation that was pending
        row = len(expected) - 1 if moment == "last batch of the run" else 2
        names = [name for name in expected if "/" in name]
        for frame in (actual, expected):
            frame.loc[row, names] = math.nan
    pd.testing.assert_frame_equal(actual, expected, check_like=True)


@pytest.mark.parametrize("cut", ["kakurenbo", "forget"], indirect=True)
def test_a_step_that_is_made_again_counts_once(cut):
    files = resumed(cut, "forward is done")
    for name in ("times_trained", "times_hidden", "last_change"):
        assert files.frame[name].tolist() == cut[2].frame[name].tolist()
