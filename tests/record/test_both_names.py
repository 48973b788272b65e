"""A `RunRecorder` writes the same under `lightning.pytorch` and under `pytorch_lightning`, and gives loggers of either what they show."""

import importlib

import pytest
from flavoured import EPOCHS, FLAVOURS, fit, make_net
from recorded import Files
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import RunRecorder


def test_a_recorder_is_a_callback_of_both_and_records_the_same(tmp_path):
    found = {}
    for name in FLAVOURS:
        pl, folder = importlib.import_module(name), tmp_path / name
        selection = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0)
        recorder = RunRecorder(selection, folder / "run", to_loggers=True)
        assert isinstance(recorder, pl.Callback)
        logger = pl.loggers.TensorBoardLogger(folder, name="board")
        fit(pl, selection, recorder, module=make_net(pl), logger=logger, log_every_n_steps=1)
        board = EventAccumulator(str(folder / "board" / "version_0"))
        board.Reload()
        found[name] = (Files(folder / "run"), set(board.Tags()["histograms"]))
    (one, histograms), (other, others) = found.values()
    assert histograms == others == {f"selection/{name}" for name in ("loss", "confidence", "times_trained", "times_hidden")}
    assert len(one.epochs) == EPOCHS and one.epochs["samples_hidden"].sum() > 0
    assert one.epochs["samples_hidden"].tolist() == other.epochs["samples_hidden"].tolist()
    assert one.frame["loss"].tolist() == pytest.approx(other.frame["loss"].tolist(), rel=0, abs=0, nan_ok=True)


@pytest.mark.quick("pytorch_lightning")
@pytest.mark.parametrize("name", FLAVOURS)
def test_a_wandb_logger_of_either_name_gets_histograms(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    pl = importlib.import_module(name)
    selection = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0)
    logger = pl.loggers.WandbLogger(save_dir=tmp_path, offline=True)
    logged = []
    inner = logger.experiment.log
    monkeypatch.setattr(
        logger.experiment, "log", lambda row, *args, **kwargs: (logged.append(set(row)), inner(row, *args, **kwargs))
    )
    fit(pl, selection, RunRecorder(selection, tmp_path / "run", to_loggers=True), module=make_net(pl), logger=logger)
    logger.experiment.finish()
    assert {"selection/loss", "selection/times_hidden"} <= set().union(*logged)
