"""Nothing of a command line is dropped: callbacks and loggers add up, and what nothing reads is refused with what was meant."""

import csv
import re
from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from kakurenbo_recipes.config_check import check_config, fits
from kakurenbo_recipes.schema import TrainSchema, names_of
from kakurenbo_recipes.train import fit, run
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from recipe_runs import CONFIGS, TINY, composed, composing, kakurenbo_train

ES = "+callbacks.es._target_=lightning.pytorch.callbacks.EarlyStopping"
CLI = " kakurenbo-train --cfg job lists the settings."


class Ended(Callback):
    """Notes the epoch that each fit ended with."""

    epochs: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, note: str) -> None:
        self.note = note

    def on_fit_end(self, trainer, pl_module):
        self.epochs.append((self.note, trainer.current_epoch))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What changes the config of a run without words as Hydra would, in a hundredth of the time."""
    with composing("train", tmp_path_factory.mktemp("run")) as compose_with:
        plain = OmegaConf.to_container(compose_with(), resolve=True)

    def changed(*words):
        cfg = OmegaConf.create(plain)
        for override in OverridesParser.create().parse_overrides(list(words)):
            group, _, key = override.key_or_group.rpartition(".")
            if override.is_delete():
                (OmegaConf.select(cfg, group) if group else cfg).pop(key)
            else:
                OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=True)
        return cfg

    return changed


def check(cfg):
    check_config(cfg, names_of(TrainSchema))


# ---- callbacks and loggers


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_options_of_a_group_add_up(group):
    options = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml") if path.stem not in ("none", "many"))
    cfg = composed(f"{group}=[{','.join(options)}]")
    assert sorted(cfg[group]) == options and all("_target_" in node for node in cfg[group].values())
    assert composed(f"{group}=none")[group] == {}
    assert list(composed("logger=many").logger) == ["csv", "tensorboard"]


def test_callbacks_and_loggers_reach_the_trainer(compose, tmp_path, monkeypatch):
    monkeypatch.setattr(Ended, "epochs", [])
    words = ["callbacks=[early_stopping,lr_monitor,best_checkpoint]", "callbacks.early_stopping.patience=1", "logger=many"]
    own = [f"+callbacks.own._target_={Ended.__module__}.Ended", "+callbacks.own.note=mine", "+callbacks.out=null"]
    cfg = compose(*TINY, *words, *own, "method=baseline", "callbacks.early_stopping.min_delta=2", "trainer.max_epochs=5")
    check(cfg)
    result = fit(cfg, instantiate(cfg.data))
    assert Ended.epochs == [("mine", 2)] and result.totals["samples_trained"] == 2 * 96
    with open(tmp_path / "baseline" / "metrics.csv") as file:
        assert next(float(row["lr-SGD"]) for row in csv.DictReader(file) if row["lr-SGD"]) == pytest.approx(0.1)
    assert list((tmp_path / "baseline").glob("events.out.tfevents.*"))
    names = {path.name for path in (tmp_path / "baseline" / "checkpoints").iterdir()}
    assert "last.ckpt" in names and [name for name in names if re.fullmatch(r"best-epoch[01]\.ckpt", name)]


def test_the_monitored_metric_is_that_of_the_task(compose):
    assert compose("callbacks=early_stopping").callbacks.early_stopping.monitor == "val/accuracy"
    assert compose("callbacks=best_checkpoint", "task=segmentation").callbacks.best_checkpoint.monitor == "val/iou"


# ---- what nothing reads

WRONG = [
    (["+optimiser.lr=0.5"], "optimiser.lr=0.5 is not possible: nothing reads it. Did you mean optimizer.lr?" + CLI),
    (["++tua=0.5"], "tua=0.5 is not possible: nothing reads it. Did you mean tau?" + CLI),
    (["+lr=0.4"], "lr=0.4 is not possible: nothing reads it. Did you mean optimizer.lr?"),
    (["+methd=baseline"], "methd='baseline' is not possible: nothing reads it. Did you mean method?"),
    (["+zzz=1"], "zzz=1 is not possible: nothing reads it." + CLI),
    (["++method.tua=0.5"], "method.tua=0.5 is not possible: method=kakurenbo takes no tua. Did you mean method.tau?"),
    (["+method.sede=3"], "Did you mean method.seed? kakurenbo-train --cfg job --package method lists the settings."),
    (["+optimizer.lrr=1"], "optimizer.lrr=1 is not possible: torch.optim.SGD takes no lrr. Did you mean optimizer.lr?"),
    (["+data.btach_size=5"], "Digits takes no btach_size. Did you mean data.batch_size?"),
    (["+data.download=true"], "Digits takes no download."),
    (["+model.options.img_size=32"], "model.options.img_size=32 is not possible: kakurenbo_recipes.models.CifarResNet takes no options."),
    (["+trainer.max_tim=1"], "lightning.Trainer takes no max_tim. Did you mean trainer.max_time?"),
    ([ES, "+callbacks.es.monitro=a"], "EarlyStopping takes no monitro. Did you mean callbacks.es.monitor?"),
    ([ES.replace("Stopping", "Stoping")], "has no attribute 'EarlyStoping'. Write the whole path of a class"),
    (["+callbacks.es.monitor=a"], "callbacks.es={'monitor': 'a'} is not possible: it must be a node with a _target_, under a name."),
    (["+logger._target_=a.B"], "Write +logger.NAME._target_=package.Class for one of your own, or choose logger=[csv,tensorboard]."),
    (["+trainer.callbacks=[a]"], "trainer.callbacks=['a'] is not possible: the program gives it. Write callbacks=[early_stopping,lr_"),
    (["++trainer.logger=true"], "trainer.logger=True is not possible: the program gives it. Write logger=[csv,tensorboard]"),
    (["+model.num_classes=7"], "model.num_classes=7 is not possible: the program gives it. The data say how many there are."),
    (["small={}", "+small.modl.depth=1"], "nothing reads it. Did you mean small.model.depth?"),
]  # fmt: skip
TYPES = [
    (
        "trainer.max_epochs=abc",
        "trainer.max_epochs='abc' is not possible: it must be an int or null. Leave it out for the default; --help shows it.",
    ),
    ("trainer.max_epochs=1.5", "trainer.max_epochs=1.5"),
    ("trainer.accumulate_grad_batches=true", "trainer.accumulate_grad_batches=True is not possible: it must be an int."),
    ("optimizer.lr=abc", "optimizer.lr='abc' is not possible: it must be a number."),
    ("optimizer.lr=nan", "optimizer.lr=nan is not possible: it must be a finite number."),
    ("optimizer.momentum=no", "optimizer.momentum='no'"),
    ("trainer.precision=17", "trainer.precision=17 is not possible: it must be one of 64, 32, 16"),
    (
        "data.batch_size=abc",
        "data.batch_size='abc' is not possible: it must be an int. Leave it out for the default; --help shows it.",
    ),
    ("schedule.milestones=1", "schedule.milestones=1 is not possible: it must be null or a list, each a number."),
    ("schedule.milestones=[a]", "schedule.milestones=['a'] is not possible"),
    ("~seed", "seed is missing, and the program reads it. Leave ~seed out, or write seed=VALUE;"),
    ("~optimizer", "optimizer is missing"),
    ("~trainer.enable_checkpointing", "trainer.enable_checkpointing is missing, and the program reads it."),
    ("seed=???", "seed is missing"),
    ("+trainer.max_time=???", "trainer.max_time is missing, and has no default. Write trainer.max_time=VALUE."),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[words[-1] for words, _ in WRONG])
def test_a_key_that_nothing_reads_is_refused_with_the_one_that_was_meant(base, words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check(base(*words))


@pytest.mark.parametrize(("word", "message"), TYPES, ids=[word for word, _ in TYPES])
def test_a_value_of_another_type_or_none_is_refused(base, word, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check(base(word))


@pytest.mark.parametrize(
    "words",
    [
        ["+optimizer.foreach=true", "+trainer.max_time=00:00:10:00", "+method.seed=3", "+data.resize=16"],
        ["~model", "model={_target_:kakurenbo_recipes.models.timm_network, name:resnet18}", "+model.options.img_size=32"],
        ["+width=8", "model.width=${width}"],
        [ES, "+callbacks.es.monitor=val/loss"],
        ["+logger.mine._target_=lightning.pytorch.loggers.CSVLogger", "+logger.mine.save_dir=a", "~logger.csv"],
        ["+callbacks.t={_target_:lightning.pytorch.callbacks.Timer,duration:{_target_:datetime.timedelta,minutes:10}}"],
        ["logger.csv.name=7"],
        ["~trainer.max_steps", "record={}", "trainer.devices=auto", "trainer.devices=[0]", "optimizer.lr=1"],
    ],
    ids=lambda words: words[0],
)
def test_what_is_read_is_taken(base, words):
    check(base(*words))


def test_an_experiment_of_the_users_may_have_helper_keys_but_no_typos(tmp_path):
    (tmp_path / "experiment").mkdir()
    helped, typo = (tmp_path / "experiment" / f"{name}.yaml" for name in ("helped", "typo"))
    helped.write_text("# @package _global_\nsize: 4\nmodel: {width: '${size}'}\n")
    typo.write_text("# @package _global_\nsede: 4\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    with composing("train", tmp_path) as compose_with:
        cfg = compose_with(search, "experiment=helped")
        check(cfg)
        assert cfg.model.width == 4
        with pytest.raises(ValueError, match=r"sede=4 is not possible: nothing reads it\. Did you mean seed\?"):
            check(compose_with(search, "experiment=typo"))


def test_settings_of_what_is_off_are_refused(compose):
    with pytest.raises(ValueError, match=r"small\.tau=0\.1 is not possible: it must be left out without debug=true"):
        run(compose("experiment=sb_svhn", "+small.tau=0.1"))
    with pytest.raises(ValueError, match=r"checkpoint\.save_top_k=3 .* left out with trainer\.enable_checkpointing=false"):
        run(compose("checkpoint.save_top_k=3", "trainer.enable_checkpointing=false"))


@pytest.mark.slow
def test_a_typo_ends_the_program_before_it_trains(tmp_path):
    said = kakurenbo_train("++optimiser.lr=0.5", cwd=tmp_path, fails=True)
    assert "Did you mean optimizer.lr?" in said
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        ("abc", float | torch.Tensor, False),
        ("abc", int | None, False),
        (None, int | None, True),
        ([1], list[int] | str, True),
        ([1, "a"], Sequence[int], False),
        (1, Sequence[float] | None, False),
        ([0.9], tuple[float, float], False),
        ([0.9, 1], tuple[float | torch.Tensor, float | torch.Tensor], True),
        ([1, "a"], tuple[int, str], True),
        ([1, 2, 3], tuple[int, ...], True),
        ("abc", bytes, None),
        ({}, dict[str, int], True),
        (3, type, None),
        ("00:10", torch.device | int, None),
    ],
)
def test_a_value_fits_a_type_or_only_its_reader_knows(value, kind, expected):
    assert fits(value, kind) is expected
