"""The recipe: models, configs, the program `kakurenbo-train`, and its table."""

import dataclasses
import json
import re
from itertools import groupby, zip_longest
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from kakurenbo_recipes.config_check import check_config
from kakurenbo_recipes.data import Digits
from kakurenbo_recipes.models import CifarResNet, ImageClassifier, WideResNet, load_network, timm_network
from kakurenbo_recipes.schema import TrainSchema, names_of
from kakurenbo_recipes.settings import made_method
from kakurenbo_recipes.train import config_dir, fit, made, run, with_method
from omegaconf import OmegaConf
from recipe_runs import TINY, composing, kakurenbo_train
from torch.nn import functional as F

import kakurenbo_lightning
from kakurenbo_lightning.report import make_groups, read_runs
from kakurenbo_lightning.report.curves import overview
from kakurenbo_lightning.session.control import Control
from kakurenbo_lightning.session.totals import Totals

CONFIGS = Path(config_dir())
METHODS = list(kakurenbo_lightning.available_methods())
OPTIONS = sorted(
    {f"{path.parent.name}={path.stem}" for path in CONFIGS.glob("*/*.yaml")} | {f"method={name}" for name in METHODS}
)


def together(options):
    """Options of different groups in one command line, each once; those that choose options of other groups are alone."""
    alone = [[option] for option in options if option.partition("=")[0] in ("experiment", "sweep")]
    others = [option for option in options if [option] not in alone]
    groups = [list(group) for _, group in groupby(others, key=lambda option: option.partition("=")[0])]
    return alone + [[option for option in row if option is not None] for row in zip_longest(*groups)]


# ---- models


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_the_resnet_has_the_depth_asked_for(depth):
    network = CifarResNet(depth=depth, width=4, num_classes=7)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear) or getattr(m, "kernel_size", 0) == (3, 3)]
    assert len(layers) == depth
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("depth", "width", "millions"), [(28, 10, 36.479), (16, 8, 10.961)])
def test_wide_networks_have_the_published_number_of_parameters(depth, width, millions):
    with torch.device("meta"):
        network = WideResNet(depth, width)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 3) == millions


def test_a_wide_network_maps_images_to_logits_and_drops_features_only_in_training():
    network, images = WideResNet(10, 1, dropout=0.5, num_classes=7), torch.randn(2, 3, 32, 32)
    assert network(images).shape == (2, 7)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_options_reach_timm():
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2}
    network = timm_network("deit_tiny_patch16_224", 7, options=options)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7) and len(network.blocks) == 2


def saved_network(path, network):
    torch.save({"state_dict": {f"network.{name}": value for name, value in network.state_dict().items()}}, path)
    return str(path)


@pytest.mark.parametrize("classes", [10, 3])
def test_fine_tuning_begins_with_a_checkpoints_network_and_a_last_layer_of_its_own(tmp_path, classes):
    before, after = CifarResNet(width=4, num_classes=10), CifarResNet(width=4, num_classes=classes)
    own = after[-1].weight.clone()
    said = load_network(after, saved_network(tmp_path / "run.ckpt", before))
    kept = [name for name in before.state_dict() if classes == 10 or not name.startswith(f"{len(before) - 1}.")]
    assert all(torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in kept)
    assert torch.equal(after[-1].weight, own) == (classes == 3)
    assert f"{len(kept)} of {len(before.state_dict())} tensors" in said and ("begins from nothing" in said) == (classes == 3)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = saved_network(tmp_path / "run.ckpt", CifarResNet(width=4))
    for other in (CifarResNet(width=8), CifarResNet(depth=14, width=4)):
        with pytest.raises(ValueError, match=r"weights=.*run\.ckpt.* is not possible: .* same network, which differs in"):
            load_network(other, path)
    torch.save(CifarResNet(width=4).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"weights=.*plain\.pt.* is not possible: .* with a state_dict"):
        load_network(CifarResNet(width=4), str(tmp_path / "plain.pt"))
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "plain.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"weights=.*cut\.ckpt.* cannot be read: .* truncated"):
        load_network(CifarResNet(width=4), str(tmp_path / "cut.ckpt"))
    with pytest.raises(FileNotFoundError, match=r"weights='nowhere\.ckpt' is not a file"):
        load_network(CifarResNet(width=4), "nowhere.ckpt")


def test_the_training_step_is_the_plain_one():
    model = ImageClassifier(CifarResNet(width=4), torch.optim.SGD, num_classes=10)
    model.log = lambda *arguments, **settings: None
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    loss = model.eval().training_step((images, labels), 0)
    assert torch.equal(loss, F.cross_entropy(model(images), labels))


def test_the_cosine_schedule_ends_at_zero_with_the_last_step(tmp_path):
    data = Digits(size=8, subset=40, batch_size=16, crop_padding=1, drop_last=False)
    model = ImageClassifier(CifarResNet(width=4), lambda parameters: torch.optim.SGD(parameters, lr=0.1), 10)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 6
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


# ---- configs


@pytest.mark.parametrize("options", together(OPTIONS), ids=" ".join)
def test_every_option_of_every_group_can_be_made_and_a_method_has_the_defaults_of_the_code(compose, options, tmp_path):
    needs_gpu = {"trainer=gpu", "trainer=fsdp2"} & set(options)
    cfg = compose(*options, *(("trainer.accelerator=cpu", "trainer.strategy=auto") if needs_gpu else ()))
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    check_config(cfg, names_of(TrainSchema))
    assert isinstance(instantiate(cfg.method), kakurenbo_lightning.SampleSelection)
    assert isinstance(instantiate(cfg.data), L.LightningDataModule)
    network = instantiate(cfg.model, num_classes=10)
    assert isinstance(instantiate(cfg.optimizer)(network.parameters()), torch.optim.Optimizer)
    trainer = instantiate(cfg.trainer)(logger=made(cfg.logger) or False, callbacks=made(cfg.callbacks))
    assert Path(trainer.default_root_dir) == tmp_path
    for name in (option.removeprefix("method=") for option in options if option.startswith("method=")):
        settings = OmegaConf.to_container(cfg.method, resolve=True)
        name, preset = ("kakurenbo", "fast") if name == "kakurenbo_fast" else (name, None)
        assert settings.pop("_target_") == "kakurenbo_lightning.SampleSelection"
        assert settings.pop("method") == name
        settings.pop("_convert_", None)
        assert (settings.pop("save", None), settings.pop("guard", None)) == (None, None)
        assert (settings.pop("values", "sample_loss"), settings.pop("bls_alpha", 0.7)) == ("sample_loss", 0.7)
        defaults = dataclasses.asdict(kakurenbo_lightning.get_method(name, preset=preset))
        assert settings == {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}


def test_every_method_is_an_option(compose):
    assert set(GlobalHydra.instance().config_loader().get_group_options("method")) == {*METHODS, "kakurenbo_fast"}
    assert {path.stem for path in (CONFIGS / "method").glob("*.yaml")} < {*METHODS, "kakurenbo_fast"}


@pytest.mark.parametrize("wrong", ["method.tua=0.5", "method.tau=high", "method.fractions=[a]", "method.milestones=0.5"])
def test_a_wrong_name_or_type_of_a_setting_is_refused_when_composed(compose, wrong):
    with pytest.raises(ConfigCompositionException, match=wrong.split("=")[0]):
        compose("method=kakurenbo", wrong)


def test_f_and_tau_reach_the_method(compose):
    method = compose("F=0.11", "tau=0.22").method
    assert (method.max_fraction, method.tau) == (0.11, 0.22)


def test_save_stands_where_f_stands_and_the_guard_reaches_the_callback(compose):
    cfg = compose("save=0.2", "guard=metric", "guard.max_drop=0.1", "tau=0.22")
    selection = made_method(cfg.method, cfg.save, cfg.guard)
    assert selection.method == kakurenbo_lightning.get_method("kakurenbo", tau=0.22)
    monitor = {"monitor": "val/accuracy", "max_drop": 0.1, "reference": "own", "mode": "max", "epochs": 1}
    control = Control(selection.method, kakurenbo_lightning.Saving(0.2), kakurenbo_lightning.SelectionGuard(**monitor), Totals())
    trainer = L.Trainer(callbacks=[selection], accelerator="cpu", logger=False, enable_checkpointing=False)
    selection.setup(trainer, ImageClassifier(CifarResNet(width=4), torch.optim.SGD, 10), "fit")
    assert selection.session.control.settings() == control.settings()
    assert made_method(compose("method=seta").method, save=0.2).session is None  # one of a comparison that has no share


def test_a_run_saves_what_the_command_line_asks_for(compose, tmp_path):
    cfg = compose(*TINY, "save=0.1", "tau=0", "guard=metric", "guard.max_drop=1", "trainer.max_epochs=4", "logger=none")
    (result,) = run(cfg)
    info = json.loads((tmp_path / "kakurenbo" / "run.json").read_text())
    assert info["settings"]["save"]["share"] == 0.1 and info["settings"]["guard"]["monitor"] == "val/accuracy"
    assert result.totals["samples_hidden"] > 0


def test_a_compared_method_replaces_the_chosen_one_and_leaves_its_overrides(compose):
    cfg = compose("method=kakurenbo", "method.drop_top=0.02", "F=0.2")
    assert with_method(cfg, "kakurenbo").method.drop_top == 0.02
    assert OmegaConf.to_container(with_method(cfg, "random").method, resolve=True)["max_fraction"] == 0.2
    assert cfg.method.method == "kakurenbo"


def test_options_of_one_method_are_not_compared_in_one_folder(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "halved.yaml").write_text("defaults: [/kakurenbo/method@_here_: random, _self_]\nmax_fraction: 0.5\n")
    with composing("train", tmp_path, f"hydra.searchpath=[file://{tmp_path}]", *TINY) as compose_with:
        cfg = compose_with("method=halved", "compare=[random,halved]")
        assert [with_method(cfg, name).method.max_fraction for name in ("random", "halved")] == [0.3, 0.5]
        with pytest.raises(
            ValueError, match=r"They are options of random, which names the folder\. Try -m method=random,halved\."
        ):
            run(cfg)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compare=baseline"], "compare='baseline' is not possible: it must be null or a list of methods"),
        (["compare=[]"], "compare=[] is not possible"),
        (["compare=[foo]"], "compare=['foo'] is not possible: it must be a list of methods out of baseline, el2n, forget"),
        (["compare=[baseline,stale_bs]"], "Did you mean stale_sb?"),
        (["compare=[baseline]", "ckpt_path=x.ckpt"], "ckpt_path='x.ckpt' is not possible: it must be null"),
    ],
)
def test_a_wrong_comparison_is_refused(compose, overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(compose(*overrides))


# ---- the program


def test_one_fit_returns_accuracy_and_totals(compose, tmp_path):
    cfg = compose(*TINY, "method=random", "F=0.25")
    result = fit(cfg, instantiate(cfg.data))
    assert result.method == "random"
    assert 0 <= result.score <= 1
    assert result.totals["samples_trained"] + result.totals["samples_hidden"] == 2 * 96
    assert result.hidden_share == 0.25
    assert (tmp_path / "random" / "metrics.csv").is_file()


def test_a_comparison_runs_each_method_on_the_same_images(compose):
    results = run(compose(*TINY, "compare=[baseline,kakurenbo]", "logger=none", "trainer.enable_checkpointing=false"))
    assert [result.method for result in results] == ["baseline", "kakurenbo"]
    assert results[0].totals["samples_trained"] == 2 * 96
    assert results[0].hidden_share == 0


def test_the_same_seed_gives_the_same_accuracy(compose):
    cfg = compose(*TINY, "method=random", "logger=none", "trainer.enable_checkpointing=false")
    first, second = (fit(cfg, instantiate(cfg.data)) for _ in range(2))
    assert first.score == second.score


def test_quickstart_leaves_results_that_can_be_reported(tmp_path):
    printed = kakurenbo_train("experiment=quickstart", *TINY, "hydra.run.dir=run", cwd=tmp_path)
    assert "baseline" in printed
    assert "ideal" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [result["method"] for result in results] == ["baseline", "kakurenbo"]
    assert {"accuracy", "seconds", "hidden_share", "totals"} <= set(results[0])
    runs, problems = read_runs([tmp_path / "run"])
    assert not problems and len(overview(make_groups(runs))[0].png) > 5000


@pytest.mark.slow
def test_two_ranks_share_one_run_folder_and_one_of_them_reports(tmp_path):
    ddp = ["trainer.devices=2", "trainer.strategy=ddp"]
    printed = kakurenbo_train(*TINY, *ddp, "compare=[baseline,random]", "F=0.25", cwd=tmp_path)
    assert printed.count("results: ") == 1
    (path,) = tmp_path.glob("outputs/*/*/results.json")
    assert len(list(tmp_path.glob("outputs/*/*"))) == 1
    baseline, random = json.loads(path.read_text())
    assert baseline["totals"]["samples_trained"] == 2 * 96
    assert random["totals"]["samples_trained"] == 2 * 72


@pytest.mark.slow
def test_a_sweep_of_two_ranks_leaves_one_folder_per_job(tmp_path):
    ddp = ["trainer.devices=2", "trainer.strategy=ddp"]
    kakurenbo_train("-m", *TINY, *ddp, "method=kakurenbo,baseline", "F=0.2,0.3", cwd=tmp_path)
    assert len(list(tmp_path.glob("multirun/*/*"))) == 1
    assert len(list(tmp_path.glob("multirun/*/*/*/results.json"))) == 4


def test_help_lists_the_groups_and_two_line_examples(tmp_path):
    printed = kakurenbo_train("--help", cwd=tmp_path)
    assert "  method      how samples are chosen" in printed
    assert [name for name in METHODS if not re.search(rf"\b{name}\b", printed.split("\n  data  ")[0])] == []
    assert "kakurenbo-train experiment=quickstart" in printed
