"""What a `RunRecorder` leaves in a folder is what really happened, also when the training is cut and resumed."""

import itertools
import json
import math

import lightning as L
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from cuts import SaveAt
from helpers import Net, Points, fit, loader
from method_tester import short_run
from recorded import EPOCHS, SAMPLES, Files, LoggingNet, Witness, record, run_json

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import RunRecorder
from kakurenbo_lightning.record.schema import FORMAT, LOSS_EDGES, SAMPLE_COLUMNS

METHODS = ("kakurenbo", "infobatch", "forget", "selective_backprop", "stale_sb", "plb", "iswr", "baseline")

# --- the files against an independent count


@pytest.fixture(scope="module", params=METHODS)
def recorded(request, tmp_path_factory):
    folder, witness = tmp_path_factory.mktemp("run") / request.param, Witness()
    selection, _ = record(folder, request.param, witness, check_val_every_n_epoch=2)
    return selection, witness, Files(folder)


def test_every_sample_has_its_counts(recorded):
    selection, witness, files = recorded
    frame = files.frame
    files.assert_seen_by(witness)
    assert frame["index"].tolist() == list(range(SAMPLES))
    assert frame["times_trained"].sum() == selection.totals.samples_trained
    for name in ("loss", "confidence", "epoch_seen"):
        assert np.array_equal(frame[name], getattr(selection.statistics, name), equal_nan=name in ("loss", "confidence"))
    known = frame["epoch_seen"] >= 0
    assert known.any() and frame["correct"].notna().equals(known)
    assert np.array_equal(frame["correct"][known].astype(bool), selection.statistics.correct[torch.from_numpy(known.to_numpy())])
    assert frame["target"].tolist() == Points(SAMPLES).y.tolist()
    assert files.samples.schema.metadata[b"epochs"] == str(len(files.epochs)).encode()
    types = [str(kind).replace("float", "float32").replace("double", "float64") for kind in files.samples.schema.types]
    assert dict(zip(files.samples.column_names, types, strict=True)).items() >= SAMPLE_COLUMNS.items()


class Regression(Net):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.network(batch[0])[:, 0], batch[1].float())


def test_of_a_regression_nothing_is_said_to_be_right_or_wrong(tmp_path):
    selection = SampleSelection("infobatch")
    fit(Regression(), loader(), selection, RunRecorder(selection, tmp_path), max_epochs=2)
    samples = pq.read_table(tmp_path / "samples.parquet")
    assert samples["correct"].null_count == 64 and samples["loss"].null_count == 0
    assert samples["average_margin"].to_pandas().isna().all() and samples["average_loss"].to_pandas().notna().all()
    assert samples["times_forgotten"].to_pandas().eq(0).all()
    assert pq.read_table(tmp_path / "selection.parquet").to_pandas()["threshold"].isna().all()


def test_every_epoch_has_its_counts_and_seconds(recorded):
    selection, witness, files = recorded
    rows, totals = files.epochs, selection.totals
    assert rows["epoch"].tolist() == sorted(witness.logged)
    assert rows["samples_hidden"].tolist() == [len(witness.hidden[epoch]) for epoch in rows["epoch"]]
    assert rows["samples_refreshed"].tolist() == [witness.refreshed[epoch] for epoch in rows["epoch"]]
    assert rows["samples_scored"].tolist() == [witness.scored[epoch] for epoch in rows["epoch"]]
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


class Hiding(LoggingNet):
    """Logs metrics under short names that are ours elsewhere."""

    def training_step(self, batch, batch_idx):
        self.log_dict({"hidden": float(batch_idx), "lr": 5.0}, on_step=False, on_epoch=True, prog_bar=True)
        return super().training_step(batch, batch_idx)


def test_a_metric_of_the_users_may_be_called_hidden(tmp_path):
    _, made = record(tmp_path, module=Hiding(), max_epochs=2)
    assert made.callback_metrics["hidden"] > 1
    assert Files(tmp_path).epochs["hidden"].iloc[-1] == made.callback_metrics["hidden"]


def test_rows_hold_the_losses_and_the_threshold_of_hiding(recorded):
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


def test_run_json_describes_the_run(recorded):
    selection, _, files = recorded
    run, method = files.run, selection.method
    assert (run["format"], run["status"], run["error"], run["name"]) == (FORMAT, "finished", None, method.name)
    assert (run["method"], run["family"], run["seed"], run["num_samples"]) == (method.name, method.family, 1, SAMPLES)
    assert run["epochs"] == run["max_epochs"] == len(files.epochs)
    assert run["totals"]["samples_trained"] == selection.totals.samples_trained
    assert (
        run["totals"] == selection.totals.as_dict() and min(run["totals"][f"{name}_seconds"] for name in ("step", "steady")) > 0
    )
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
    # after a step's forward pass, or after its batch was scored, the resumed run is another one (see the README)
    if moment != "forward is done" and (method, moment) != ("selective_backprop", "batch start")
]


@pytest.mark.slow_cases("infobatch", "forget", "iswr", "selective_backprop", "validation end", "last batch", "epoch start")
@pytest.mark.parametrize(("cut", "moment"), CUTS, indirect=["cut"])
def test_cut_and_resumed_leaves_the_files_of_the_uncut_run(cut, moment):
    _, folder, whole = cut
    assert {"SampleSelection", "RunRecorder"} <= torch.load(folder / f"{moment}.ckpt", weights_only=True)["callbacks"].keys()
    files = resumed(cut, moment)
    pd.testing.assert_frame_equal(files.frame, whole.frame)
    assert files.samples.schema.equals(whole.samples.schema, check_metadata=True)
    assert files.run["totals"]["samples_trained"] == whole.run["totals"]["samples_trained"]
    actual, expected = files.without_seconds(), whole.without_seconds()
    # Lightning resumes no epoch's averages, and no validation that was pending
    if moment not in ("epoch start", "end of the run"):
        row = len(expected) - 1 if moment == "last batch of the run" else 2
        names = [name for name in expected if "/" in name]
        for frame in (actual, expected):
            frame.loc[row, names] = math.nan
    pd.testing.assert_frame_equal(actual, expected, check_like=True)


@pytest.mark.parametrize("cut", ["kakurenbo", "forget"], indirect=True)
def test_a_step_that_is_repeated_counts_once(cut):
    assert resumed(cut, "forward is done").counts() == cut[2].counts()


def test_a_resumed_run_knows_its_beginning_and_all_its_seconds(tmp_path):
    _, made = record(tmp_path / "first", max_epochs=2)
    made.save_checkpoint(tmp_path / "run.ckpt")
    record(tmp_path / "again", max_epochs=3, fit={"ckpt_path": tmp_path / "run.ckpt"})
    first, again = run_json(tmp_path / "first"), run_json(tmp_path / "again")
    assert again["started"] == first["started"] and again["fit_seconds"] > first["fit_seconds"] > 0
    assert again["fingerprint"] == first["fingerprint"] is not None


def test_a_checkpoint_with_the_names_of_format_1_is_resumed(tmp_path):
    old_names = {"samples_scored": "samples_looked", "score_seconds": "look_seconds", "scored": "looked"}
    record(tmp_path / "whole", "selective_backprop", SaveAt(tmp_path / "new.ckpt", "on_train_epoch_end", 2))
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    rows = checkpoint["callbacks"]["RunRecorder"]["rows"]
    rows["rows"] = [{old_names.get(name, name): value for name, value in row.items()} for row in rows["rows"]]
    rows["before"] = {old_names.get(name, name): value for name, value in rows["before"].items()}
    assert "looked" in rows["rows"][-1] and "look_seconds" in rows["before"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    for name in ("new", "old"):
        record(tmp_path / name, "selective_backprop", fit={"ckpt_path": tmp_path / f"{name}.ckpt"})
    new, old = Files(tmp_path / "new").without_seconds(), Files(tmp_path / "old").without_seconds()
    pd.testing.assert_frame_equal(old, new)
    assert old["samples_scored"].gt(0).any() and "looked" not in old


class EpochValues(L.Callback):
    """Copies what the selection knows of the samples when each epoch is over; comes after it."""

    def __init__(self):
        self.known = []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch:
            self.keep(trainer)

    def on_fit_end(self, trainer, pl_module):
        self.keep(trainer)

    def keep(self, trainer):
        of = trainer.callbacks[0].statistics
        columns = (of.loss, of.confidence, of.correct & of.judged, of.epoch_seen)
        self.known.append([column.clone().tolist() for column in columns])


@pytest.mark.parametrize("method", ["kakurenbo", "plb"])
def test_figures_over_the_epochs_are_those_of_a_plain_loop(tmp_path, method):
    values = EpochValues()
    record(tmp_path, method, values)
    frame = Files(tmp_path).frame
    for index in range(SAMPLES):
        measured = [[column[index] for column in known] for epoch, known in enumerate(values.known) if known[3][index] == epoch]
        label = [math.log(most if right else min(math.exp(-loss), most, 1 - most)) for loss, most, right, _ in measured]
        other = [math.log(max(1e-7, min(most, 1 - most) if right else most)) for _, most, right, _ in measured]
        pairs = itertools.pairwise(measured)
        row = frame.loc[index]
        assert row["times_measured"] == len(measured)
        assert row["times_forgotten"] == sum(before[2] and not after[2] for before, after in pairs)
        for name, found in (
            ("average_loss", [one[0] for one in measured]),
            ("average_label_confidence", np.exp(label)),
            ("average_margin", [one - most for one, most in zip(label, other, strict=True)]),
        ):
            assert row[name] == pytest.approx(np.mean(found) if measured else math.nan, abs=1e-4, nan_ok=True)
    assert frame["times_measured"].max() == len(values.known) and frame["times_forgotten"].any()


def test_a_checkpoint_from_before_there_were_figures_begins_them_where_it_goes_on(tmp_path):
    record(tmp_path / "whole", "baseline", SaveAt(tmp_path / "new.ckpt", "on_train_epoch_end", 2))
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    del checkpoint["callbacks"]["RunRecorder"]["counts"]["figures"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    record(tmp_path / "old", "baseline", fit={"ckpt_path": tmp_path / "old.ckpt"})
    whole, old = Files(tmp_path / "whole").frame, Files(tmp_path / "old").frame
    assert whole["times_measured"].eq(EPOCHS).all() and old["times_measured"].eq(EPOCHS - 2).all()
    assert old["times_trained"].equals(whole["times_trained"])
