"""Every logger knows the settings of its run, and runs of one process are runs of their own."""

import json

import pytest
import yaml
from kakurenbo_recipes.train import run
from recipe_runs import TINY, kakurenbo_train


@pytest.mark.parametrize(
    ("words", "name", "group"),
    [
        (["F=0.2", "tau=0.6", "seed=3"], "kakurenbo-F0.2-tau0.6-seed3", "kakurenbo-F0.2-tau0.6"),
        (["method=random"], "random-F0.3-seed0", "random-F0.3"),
        (["method=plb", "seed=1"], "plb-seed1", "plb"),
    ],
)
def test_a_run_is_named_by_method_f_tau_and_seed(compose, words, name, group):
    logger = compose("logger=wandb", *words).logger.wandb
    assert (logger.name, logger.group) == (name, group)


def test_the_settings_are_given_to_every_logger(compose, tmp_path):
    own = ["logger.csv.version=csv", "logger.tensorboard.version=board"]
    run(compose(*TINY, "logger=many", *own, "trainer.max_epochs=1", "F=0.25", "seed=5"))
    for version in ("csv", "board"):
        settings = yaml.safe_load((tmp_path / "kakurenbo" / version / "hparams.yaml").read_text())
        assert (settings["F"], settings["method"]["max_fraction"], settings["seed"]) == (0.25, 0.25, 5)
        assert settings["data"]["subset"] == 96 and settings["trainer"]["default_root_dir"] == str(tmp_path)


def pieces(data, block=32768, header=7):
    """The records of a file of W&B: LevelDB's log after a header, where a record goes on in the next block until its last piece."""
    place, record = header, b""
    while place + header <= len(data):
        left = block - place % block
        if left < header:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def records(folder):
    """What each run of Weights & Biases that was written offline below a folder holds: its name, group, settings and exit status."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for path in folder.rglob("run-*.wandb"):
        kept = {"history": 0, "settings": {}}
        for piece in pieces(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(piece)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                kept |= {"id": record.run.run_id, "group": record.run.run_group, "name": record.run.display_name}
            if kind == "config":
                kept["settings"] |= {item.key: json.loads(item.value_json) for item in record.config.update}
            kept["history"] += kind == "history"
            if kind == "exit":
                kept["exit"] = record.exit.exit_code
        found[kept["name"]] = kept
    return found


def check_records(folder, names):
    found = records(folder)
    assert sorted(found) == sorted(names) and len({each["id"] for each in found.values()}) == len(names)
    assert all(each["exit"] == 0 and each["history"] > 0 for each in found.values())
    return found


@pytest.mark.slow
def test_compared_methods_are_runs_of_their_own_for_weights_and_biases(compose, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(compose(*TINY, "logger=wandb", "compare=[baseline,random]", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"))
    wandb.teardown()  # waits until its own process has written the end of each run
    found = check_records(tmp_path, ["baseline-seed0", "random-F0.3-seed0"])
    assert found["random-F0.3-seed0"]["group"] == "random-F0.3"
    assert [found[name]["settings"]["method"]["method"] for name in sorted(found)] == ["baseline", "random"]


@pytest.mark.slow
def test_runs_of_a_sweep_are_runs_of_their_own_for_weights_and_biases(tmp_path):
    words = ["-m", *TINY, "logger=wandb", "method=random", "seed=0,1", "trainer.log_every_n_steps=1"]
    kakurenbo_train(*words, cwd=tmp_path, WANDB_MODE="offline")
    found = check_records(tmp_path, ["random-F0.3-seed0", "random-F0.3-seed1"])
    assert {each["group"] for each in found.values()} == {"random-F0.3"}
