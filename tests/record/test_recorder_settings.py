"""Settings of a `RunRecorder`, and what it writes of odd values."""

import re
import sys
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import Net, SureNet, hide_then_grow, loader, trainer
from lightning.pytorch.callbacks import Callback
from recorded import EPOCHS, Files, LoggingNet, record, run_json

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.errors import MissingExtraError
from kakurenbo_lightning.record import RunRecorder
from kakurenbo_lightning.record.machine import typed_command, without_secrets


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs=0 is not allowed; every_n_epochs must be an int >= 1"),
        ({"every_n_epochs": True}, "every_n_epochs=True is not allowed"),
        ({"to_loggers": "yes"}, "to_loggers='yes' is not allowed; to_loggers must be true or false"),
        ({"selection": "kakurenbo"}, "selection='kakurenbo' is not allowed; selection must be a SampleSelection or None"),
        ({"folder": None}, "folder=None is not allowed; folder must be the path of a folder of this run alone"),
        ({"folder": ""}, "folder='' is not allowed"),
        ({"folder": 3}, "folder=3 is not allowed"),
    ],
)
def test_settings_that_are_not_possible_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(f"RunRecorder: {message}")):
        RunRecorder(**{"selection": SampleSelection("kakurenbo"), "folder": "nowhere", **settings})


def test_without_pyarrow_the_extra_is_named_at_construction(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r'^RunRecorder needs pyarrow: pip install "kakurenbo-lightning\[report\]"$'):
        RunRecorder(SampleSelection("kakurenbo"), "nowhere")


def test_without_a_selection_it_records_the_one_of_the_trainer(tmp_path):
    """As in a config, where each callback is made by itself."""
    written = [RunRecorder(folder=tmp_path / name) for name in ("first", "second")]
    seen = []
    for recorder, method in zip(written, ("baseline", "random"), strict=True):
        seen.append(SampleSelection(method))
        trainer(seen[-1], recorder, max_epochs=2).fit(Net(), loader())
        assert recorder.selection is seen[-1]
    trainer(selection := SampleSelection("infobatch"), written[0], max_epochs=2).fit(Net(), loader())  # a new Trainer has another
    assert written[0].selection is selection
    assert [run_json(tmp_path / name)["method"] for name in ("first", "second")] == ["infobatch", "random"]
    assert pq.read_table(tmp_path / "second" / "selection.parquet").num_rows == 2


@pytest.mark.parametrize("order", ["above", "none"])
def test_a_recorder_without_a_selection_stands_below_one(tmp_path, order):
    written = RunRecorder(folder=tmp_path / "run")
    callbacks = {"above": [written, SampleSelection("random")], "none": [written]}[order]
    with pytest.raises(ValueError, match=r"callbacks=\['RunRecorder'.*write the recorder below the selection"):
        trainer(*callbacks).fit(Net(), loader())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("order", ["other way round", "none", "another"])
def test_the_recorder_comes_after_its_selection(tmp_path, order):
    selection = SampleSelection("kakurenbo")
    written = RunRecorder(selection, tmp_path / "run")
    callbacks = {
        "other way round": [written, selection],
        "none": [written],
        "another": [SampleSelection("kakurenbo"), written],
    }[order]
    with pytest.raises(ValueError, match=r"callbacks=\[.*'RunRecorder'.*Write callbacks=\[selection, RunRecorder\(selection, "):
        trainer(*callbacks).fit(Net(), loader())
    assert not (tmp_path / "run").exists()


def test_samples_are_written_every_few_epochs(tmp_path):
    seen = []

    class Check(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            path = tmp_path / "samples.parquet"
            seen.append(pq.read_schema(path).metadata[b"epochs"].decode() if path.exists() else None)

    record(tmp_path, "kakurenbo", Check(), recorder={"every_n_epochs": 2})
    assert seen[:2] == [None, None] and set(seen[2:4]) <= {None, "2"} and seen[4] in (None, "2", "4")
    assert Files(tmp_path).samples.schema.metadata[b"epochs"] == b"5"


def test_a_metric_that_validation_does_not_log_is_named(tmp_path):
    with pytest.warns(UserWarning, match=r"RunRecorder\(metric='val_accc'\): validation does not log it.* it logs .*val"):
        record(tmp_path, recorder={"metric": "val_accc"}, max_epochs=2)


def test_secrets_are_not_written_down(monkeypatch):
    words = ["/bin/kakurenbo-train", "storage=mysql://me:word@host/db", "logger.api_key=abc", "seed=1"]
    monkeypatch.setattr(sys, "orig_argv", words)
    assert typed_command() == "kakurenbo-train storage=mysql://HIDDEN@host/db logger.api_key=HIDDEN seed=1"
    config = {"logger": {"api_key": "abc", "name": "key"}, "list": ["http://a:b@c"], "tokens": 3, "none": None}
    assert without_secrets(config) == {**config, "logger": {"api_key": "HIDDEN", "name": "key"}, "list": ["http://HIDDEN@c"]}


@pytest.mark.parametrize(
    "name",
    [
        *("authorization", "Authorization", "credentials", "credential", "access_key_id", "aws_access_key_id", "accessKeyId"),
        *("apiKey", "client_secret", "DB_PASSWORD", "passphrase", "wandb.api-key", "auth_token"),
    ],
)
def test_what_is_secret_by_its_name_is_not_written_down(name, monkeypatch):
    parts = {"user": "me", "list": ["word"], "count": 3, "none": None}
    hidden = {"user": "HIDDEN", "list": ["HIDDEN"], "count": 3, "none": None}
    config = {"top": {name: "word", "named": parts}, name: parts}
    assert without_secrets(config) == {"top": {name: "HIDDEN", "named": parts}, name: hidden}
    words = [
        "run",
        f"logger.{name}=word",
        f"--{name}=word",
        f"--{name}",
        "word",
        "--epochs",
        "3",
        f"+headers={{{name}:word,a:b}}",
    ]
    monkeypatch.setattr(sys, "orig_argv", words)
    command = typed_command()
    assert "word" not in command and command.count("HIDDEN") == 4
    assert "--epochs 3" in command and "a:b}" in command


def test_a_bearer_token_is_not_written_down_wherever_it_stands():
    config = {"curl": "-H 'Authorization: Bearer abc.def-1' http://me:word@host", "model": {"key_dim": "64", "tokenizer": "bert"}}
    expected = "-H 'Authorization: Bearer HIDDEN' http://HIDDEN@host"
    assert without_secrets(config) == {**config, "curl": expected}


def test_an_error_with_an_address_is_written_without_its_password(tmp_path):
    class Broken(LoggingNet):
        def on_train_epoch_end(self):
            raise ConnectionError("no answer from mysql://me:word@host/db")

    with pytest.raises(ConnectionError):
        record(tmp_path, "kakurenbo", module=Broken())
    assert run_json(tmp_path)["error"] == "ConnectionError: no answer from mysql://HIDDEN@host/db"


def test_losses_that_are_not_finite_are_written_and_json_stays_json(tmp_path):
    class Bad(SureNet):
        def training_step(self, batch, batch_idx):
            outputs = super().training_step(batch, batch_idx)
            bad = torch.where(batch[2] == 7, torch.nan, outputs["sample_loss"])
            return {**outputs, "sample_loss": torch.where(batch[2] == 9, torch.inf, bad)}

        def validation_step(self, batch, batch_idx):
            self.log("val_acc", float("nan"))

    selection = hide_then_grow()
    with pytest.warns(UserWarning, match="2 of 64 samples"):
        trainer(selection, RunRecorder(selection, tmp_path), max_epochs=3).fit(Bad(), loader(), loader(16, shuffle=False))
    files = Files(tmp_path)
    assert (files.run["metric"], run_json(tmp_path)["score"]) == ("val_acc", None)
    assert np.isnan(files.frame["loss"][7]) and np.isinf(files.frame["loss"][9])
    assert [sum(row) for row in files.epochs["loss_histogram"]] == [0, 62, 62]
    assert files.epochs["nonfinite"].tolist() == [0, 2, 2]


def test_a_logged_metric_never_takes_the_place_of_a_column(tmp_path):
    class Named(LoggingNet):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            for name in ("epoch", "threshold", "lr", "samples_trained", "index"):
                self.log(name, -7.0)

    record(tmp_path, "kakurenbo", module=Named())
    rows = Files(tmp_path).epochs
    assert rows["epoch"].tolist() == list(range(EPOCHS)) and (rows["samples_trained"] > 0).all() and (rows["lr"] > 0).all()
    assert rows["index"].tolist() == [-7.0] * EPOCHS


def test_a_run_that_is_replaced_is_named_and_a_second_fit_or_a_resumed_run_is_none(tmp_path):
    message = "holds a run already, which this one replaces; give each run a folder of its own"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        _, made = record(tmp_path / "run", "kakurenbo", max_epochs=1)
        made.save_checkpoint(tmp_path / "at.ckpt")
        record(tmp_path / "run", "kakurenbo", max_epochs=2, fit={"ckpt_path": tmp_path / "at.ckpt"})
    assert not [each for each in warned if message in str(each.message)]
    with pytest.warns(UserWarning, match=message):
        record(tmp_path / "run", "random", max_epochs=1)
