"""Presets and habits of `kakurenbo-train`: trainers, debug, a test at the end, types, help, and one run for each folder."""

import json
import re
from pathlib import Path
from string import Template

import lightning as L
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from kakurenbo_recipes import train
from kakurenbo_recipes.config_check import check_config
from kakurenbo_recipes.models import CifarResNet, load_network
from kakurenbo_recipes.run_folder import STARTED, OneRun
from kakurenbo_recipes.schema import TrainSchema, names_of
from kakurenbo_recipes.train import run, small
from omegaconf import OmegaConf
from recipe_runs import CONFIGS, TINY, composed, kakurenbo_train
from torch.torch_version import TorchVersion

import kakurenbo_lightning


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("cpu", {"accelerator": "cpu", "devices": 1, "strategy": "auto"}),
        ("gpu", {"accelerator": "gpu", "devices": 1, "strategy": "auto"}),
        ("ddp", {"accelerator": "auto", "devices": 2, "strategy": "ddp"}),
        (
            "fsdp2",
            {
                "accelerator": "gpu",
                "devices": 2,
                "strategy": {
                    "_target_": "lightning.pytorch.strategies.ModelParallelStrategy",
                    "data_parallel_size": "${trainer.devices}",
                    "tensor_parallel_size": 1,
                    "save_distributed_checkpoint": False,
                },
            },
        ),
    ],
)
def test_a_preset_of_the_trainer_changes_the_devices_alone(preset, expected):
    words = [[], [f"trainer={preset}"]]
    plain, found = (OmegaConf.to_container(composed("experiment=sb_cifar10", *each).trainer, resolve=False) for each in words)
    assert found == plain | expected and found["max_epochs"] == 200 and found["fast_dev_run"] is False


def test_a_fast_run_trains_one_batch(compose, tmp_path):
    (result,) = run(compose(*TINY, "trainer=cpu", "trainer.fast_dev_run=true", "callbacks=best_checkpoint"))
    assert result.totals["samples_trained"] == 8 and not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "precision", ["64-true", *(pytest.param(name, marks=pytest.mark.slow) for name in ("64", "16-true", "bf16-true", "16-mixed"))]
)
def test_any_precision_trains_and_mappings_are_pythons(compose, precision):
    timer = ["+callbacks.timer._target_=lightning.pytorch.callbacks.Timer", "+callbacks.timer.duration={hours:1}"]
    words = ["trainer.max_time={hours:1}", "optimizer=adamw", *timer, "trainer.max_epochs=1"]
    (result,) = run(compose(*TINY, "method=baseline", f"trainer.precision={precision}", *words))
    assert result.totals["samples_trained"] == 96


# ---- debug


@pytest.mark.quick("cifar10", "deepcam", "fractal", "parquet_large")
@pytest.mark.parametrize("data", sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml")))
def test_debug_takes_small_data_in_place_of_any(compose, data):
    deepcam = ["task=segmentation", "model=deeplab"] if data == "deepcam" else []
    cfg = small(compose(f"data={data}", *deepcam, "debug=true", "data.batch_size=16"))
    check_config(cfg, names_of(TrainSchema))
    made = instantiate(cfg.data)
    assert type(made).__name__ == ("GeneratedDeepCam" if deepcam else "GeneratedImages")
    assert (cfg.trainer.max_epochs, cfg.data.batch_size) == (3, 16)
    assert deepcam or made.size == (224 if data in ("imagenet", "fractal_folder", "parquet_large") else 32)


def test_debug_runs_an_experiment_without_a_small_of_its_own(compose):
    results = run(compose("experiment=quickstart", "debug=true", "trainer=cpu", "trainer.max_epochs=1", "model.width=4"))
    assert [result.totals["samples_trained"] for result in results] == [256, 256]


# ---- a test at the end


def test_the_best_checkpoint_is_tested_at_the_end(compose, tmp_path, monkeypatch):
    words = ["test=true", "callbacks=best_checkpoint", "data.held_out=0.25", "callbacks.best_checkpoint.monitor=val/loss"]
    seen, test = [], L.Trainer.test
    monkeypatch.setattr(L.Trainer, "test", lambda self, *model, **how: (seen.append(how), test(self, *model, **how))[1])
    (result,) = run(compose(*TINY, "method=baseline", *words, "callbacks.best_checkpoint.mode=min"))
    (best,) = tmp_path.rglob("best-epoch*.ckpt")
    assert seen[0]["ckpt_path"] == str(best)
    assert 0 <= result.test_score <= 1 and result.as_dict()["test_score"] == result.test_score
    assert (tmp_path / "baseline" / "metrics.csv").read_text().splitlines()[0].count("test/accuracy") == 1


def test_a_test_without_a_best_checkpoint_is_of_the_last_epoch(compose, capsys):
    (result,) = run(compose(*TINY, "method=baseline", "test=true", "trainer.enable_checkpointing=false"))
    assert result.test_score == result.score, "without held-out images those of the validation are tested"
    (other,) = run(compose(*TINY, "method=baseline", "trainer.enable_checkpointing=false", "record=none"))
    assert other.test_score is None


@pytest.mark.slow
@pytest.mark.skipif(TorchVersion(torch.__version__) < (2, 13), reason="over gloo FSDP2 added gradients up: pytorch issue 162338")
def test_two_ranks_train_sharded_parameters_and_leave_a_file_that_goes_on(tmp_path):
    words = [*TINY, "trainer=fsdp2", "trainer.accelerator=cpu", "method=random", "F=0.25", "hydra.run.dir=run"]
    kakurenbo_train(*words, cwd=tmp_path)
    file = tmp_path / "run/random/checkpoints/last.ckpt"
    assert "tensors taken over" in load_network(CifarResNet(width=4), str(file)), "whole tensors, not shards"
    kakurenbo_train(*words, "trainer.max_epochs=3", "ckpt_path=last", cwd=tmp_path)
    (result,) = json.loads((tmp_path / "run/results.json").read_text())
    assert result["totals"]["samples_trained"] == 3 * 72
    assert torch.load(file, weights_only=True)["epoch"] == 2


@pytest.mark.slow
def test_two_ranks_test_the_best_checkpoint(tmp_path):
    words = ["trainer=ddp", "trainer.accelerator=cpu", "callbacks=best_checkpoint", "test=true", "data.held_out=0.25", "F=0.25"]
    kakurenbo_train(*TINY, *words, "method=random", cwd=tmp_path)
    (path,) = tmp_path.rglob("results.json")
    (result,) = json.loads(path.read_text())
    assert 0 <= result["test_score"] <= 1
    assert result["totals"]["samples_trained"] == 2 * 56  # 22 of 96 are held out, by classes, and 18 of the others hidden


def test_it_is_said_when_the_test_images_chose_the_best_epoch(compose):
    with pytest.warns(UserWarning, match=r"the test images themselves chose the best epoch. Add data\.held_out=0\.1"):
        run(compose(*TINY, "method=baseline", "test=true", "callbacks=best_checkpoint", "trainer.max_epochs=1"))


# ---- types


@pytest.mark.parametrize(
    "word", ["seed=1.5", "seed=true", "debug=maybe", "F=abc", "lr_batch_size=a", "test=maybe", "weights=[a]"]
)
def test_a_wrong_type_is_refused_when_composed(compose, word):
    with pytest.raises(ConfigCompositionException, match=re.escape(word)):
        compose(word)


def test_the_words_of_yaml_are_true_and_false(compose):
    cfg = compose("debug=no", "test=yes", "seed=7", "F=0")
    assert (cfg.debug, cfg.test, cfg.seed, cfg.F) == (False, True, 7, 0.0)


# ---- one run for each folder


def started(folder, monkeypatch, *words, mode="run", typed=True):
    """What the callback makes of a run that begins in a folder: its folder."""
    monkeypatch.setenv(STARTED, "now")
    written = str(folder) if typed else f"{folder}/${{oc.env:{STARTED}}}"
    ckpt_path = next((word.partition("=")[2] for word in words), None)
    overrides = {"overrides": {"hydra": [f"hydra.{mode}.dir={folder}"] if typed else []}}
    cfg = OmegaConf.create({"hydra": {mode: {"dir": written}, **overrides}, "ckpt_path": ckpt_path})
    getattr(OneRun(), f"on_{'multi' if mode == 'sweep' else ''}run_start")(cfg)
    return Path(cfg.hydra[mode].dir)


@pytest.mark.parametrize("left", ["results.json", "baseline/run.json", "baseline/metrics.csv", "kakurenbo/checkpoints/last.ckpt"])
def test_a_second_run_into_a_folder_is_refused(tmp_path, monkeypatch, left):
    path = tmp_path / "0" / left
    path.parent.mkdir(parents=True)
    path.touch()
    message = r"hydra\.(run|sweep)\.dir='.*' is not possible: it must be a folder that holds no run yet. .* ckpt_path=last"
    with pytest.raises(SystemExit, match=message):
        started(tmp_path / "0", monkeypatch)
    with pytest.raises(SystemExit, match=message):
        started(tmp_path, monkeypatch, mode="sweep")
    assert started(tmp_path / "0", monkeypatch, "ckpt_path=last") == tmp_path / "0"
    for variable in ("LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):  # another rank; a job that was started again
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            assert started(tmp_path / "0", patch) == tmp_path / "0"


def test_runs_of_the_same_second_get_a_number(tmp_path, monkeypatch):
    folders = [started(tmp_path, monkeypatch, typed=False) for _ in range(3)]
    assert [folder.name for folder in folders] == ["now", "now-2", "now-3"] and all(folder.is_dir() for folder in folders)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SystemExit, match=r"hydra\.run\.dir='.*file.*' is not possible: it must be a folder that can be made"):
            started(folder, monkeypatch)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(SystemExit, match="it must be a folder that can be written to"):
        started(tmp_path / "other", monkeypatch)


@pytest.mark.slow
def test_a_second_run_leaves_the_first_one_as_it_is(tmp_path):
    words = [*TINY, "hydra.run.dir=run", "trainer.max_epochs=1"]
    kakurenbo_train(*words, "seed=1", cwd=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = kakurenbo_train(*words, "seed=2", cwd=tmp_path, fails=True)
    assert "hydra.run.dir='run' is not possible" in said and "Traceback" not in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    kakurenbo_train(*words, "trainer.max_epochs=2", "ckpt_path=last", cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "results.json").read_text())[0]["method"] == "kakurenbo"


# ---- help


def test_the_resolved_settings_are_shown_without_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["kakurenbo-train", "--cfg", "job", "--resolve"])
    train.main()
    assert OmegaConf.create(capsys.readouterr().out).logger.csv.version == "" and not list(tmp_path.iterdir())


def test_the_version_is_ours(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kakurenbo-train", "--version"])
    train.main()
    assert capsys.readouterr().out.startswith(f"kakurenbo-train {kakurenbo_lightning.__version__} (Hydra 1.")


def test_the_help_lists_the_groups_of_the_config_folder(compose):
    compose()
    text = HydraConfig.get().help.template
    options = text.split("Change any value")[0]
    own = ("tuned", "method")  # chosen by others; made from the methods that are installed
    for folder in {path.parent for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in own}:
        assert re.search(rf"^  {folder.name} ", options, re.MULTILINE), folder.name
        assert [path.stem for path in folder.glob("*.yaml") if not re.search(rf"\b{path.stem}\b", options)] == []
    raw = OmegaConf.to_container(HydraConfig.get().help, resolve=False)["template"]
    assert all(f"${{options_of:{name}}}" in raw for name in ("data", "model", "trainer", "callbacks", "logger", "experiment"))
    assert max(map(len, text.splitlines())) < 160
    shown = Template(text).substitute(APP_CONFIG_GROUPS="", CONFIG="")  # as Hydra makes the help of it
    assert "--hydra-help" in shown and 'eval "$(kakurenbo-train -sc install=bash)"' in shown
