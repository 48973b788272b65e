"""The papers' experiments by name, as `debug=true` runs them, and what they are made of."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from kakurenbo_recipes.generated import GeneratedImages
from kakurenbo_recipes.schedules import schedule
from kakurenbo_recipes.train import config_dir, scaled_rate, small
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import OmegaConf
from PIL import Image
from processes import program
from recipe_runs import composed, set_up

EXPERIMENTS = sorted(path.stem for path in Path(config_dir(), "experiment").glob("*.yaml"))
PAPERS = [name for name in EXPERIMENTS if name != "quickstart"]
SOME = ("imagenet_resnet50", "sb_cifar10", "emnist_streaming", "deepcam")


@pytest.mark.parametrize("name", PAPERS)
def test_an_experiment_composes_and_its_method_and_network_can_be_made(name):
    cfg = composed(f"experiment={name}")
    selection = instantiate(cfg.method)
    selection.method.check_run(cfg.trainer.max_epochs, 50_000)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in instantiate(cfg.model, num_classes=10).parameters()) > 1e5 / 2
    assert cfg.small is not None, "debug=true needs `small`"


@pytest.mark.slow  # that a command line with an experiment trains is shown by the quickstart of test_train.py
@pytest.mark.parametrize("name", PAPERS)
def test_an_experiment_runs_in_small(tmp_path, name):
    said = program("kakurenbo_recipes.train", f"experiment={name}", "debug=true", "trainer.accelerator=cpu", cwd=tmp_path)
    (path,) = tmp_path.rglob("results.json")
    (result,) = json.loads(path.read_text())
    assert result["score"] is not None and math.isfinite(result["score"]) and result[result["metric"]] == result["score"]
    assert "SampleSelection:" in said


def test_the_learning_rate_is_in_proportion_to_the_samples_of_a_step():
    cfg = composed("experiment=cifar100_wrn28_10")
    assert math.isclose(scaled_rate(cfg, world_size=32), 0.8)
    assert math.isclose(scaled_rate(cfg, world_size=1), 0.025)
    cfg.trainer.accumulate_grad_batches = 4
    assert math.isclose(scaled_rate(cfg, world_size=1), 0.1)
    assert scaled_rate(composed(), world_size=8) == 0.1


@pytest.mark.quick("kakurenbo")
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in PAPERS])
@pytest.mark.parametrize("method", ["baseline", "random", "infobatch", "kakurenbo", "selective_backprop", "plb"])
def test_every_method_can_be_trained_with_the_settings_of_an_experiment(name, method):
    cfg = composed(f"experiment={name}", f"method={method}")
    assert instantiate(cfg.method).method.name == method
    assert instantiate(small_of(f"experiment={name}", f"method={method}", "debug=true").method).method.name == method


# From the authors' code: KAKURENBO (TruongThaoNguyen/kakurenbo: ImageNet/pytorch_cifar100_WRN-28-10.py, models/wideresidual.py,
# pytorch_imagenet_resnet50.py, scripts/resnet50/resnet50_32_optim_v2.sh, VisualAtom/scripts/pretrain_deit_tiny_fdb3k_kakurenbo.sh),
# Selective-Backprop (angelajiang/SelectiveBackprop: examples/train.py) and Cutout (uoguelph-mlrg/Cutout: train.py)
PUBLISHED = {
    "cifar100_wrn28_10": {
        "optimizer.nesterov": False, "optimizer.weight_decay": 5e-4, "model.dropout": 0.5, "schedule.gamma": 0.2,
        "schedule.milestones": [60, 120, 160], "method.milestones": [60, 120, 160], "method.warmup_epochs": 1,
        "trainer.max_epochs": 200, "lr_batch_size": 1024, "optimizer.lr": 0.8,
    },
    "imagenet_resnet50": {
        "optimizer.nesterov": False, "optimizer.weight_decay": 5e-5, "schedule.milestones": [30, 60, 80], "method.warmup_epochs": 5,
        "schedule.warmup_epochs": 5, "trainer.max_epochs": 90, "method.milestones": [30, 60, 80], "optimizer.lr": 0.4,
    },
    "imagenet_resnet50_600": {
        "task.label_smoothing": 0.1, "data.size": 176, "data.eval_size": 224, "data.eval_resize": 232, "optimizer.lr": 3.52,
        "optimizer.weight_decay": 1e-5, "trainer.max_epochs": 600, "method.milestones": [200, 400], "lr_batch_size": 2048,
    },
    "imagenet_efficientnet_b3": {"model.name": "efficientnet_b3", "method.milestones": [30, 60, 80], "method.warmup_epochs": 5},
    "fractal3k_deit_tiny": {
        "F": 0.2, "task.label_smoothing": 0.1, "schedule.warmup_epochs": 0.85, "schedule.final_factor": 0.01, "lr_batch_size": 512,
        "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.05, "method.warmup_epochs": 5, "data.mean": [0.5] * 3, "trainer.max_epochs": 80,
    },
    "deepcam": {"method.drop_top": 0.02},
    "sb_cifar10": {"data.cutout": 16, "schedule.gamma": 0.2, "schedule.milestones": [60, 120, 160], "optimizer.lr": 0.1},
    "sb_cifar100": {"data.cutout": 8, "schedule.gamma": 0.2, "schedule.milestones": [60, 120, 160], "optimizer.lr": 0.1},
    "sb_svhn": {"data.cutout": 20, "schedule.gamma": 0.1, "schedule.milestones": [80, 120], "optimizer.lr": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_experiment_has_the_published_settings(name):
    cfg = composed(f"experiment={name}")
    assert {key: OmegaConf.select(cfg, key) for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", ["fractal3k_deit_tiny", "imagenet_resnet50_600"])
def test_a_training_transform_gives_images_of_the_size_asked_for(name):
    cfg = composed(f"experiment={name}", "data.size=96")
    transform = instantiate(cfg.data.train_transform)
    image = transform(Image.fromarray(np.random.default_rng(0).integers(0, 256, (140, 180, 3), dtype=np.uint8)))
    assert image.shape == (3, 96, 96) and image.dtype == torch.float32


def small_of(*overrides):
    """What `debug=true` makes of these words of a command line."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        try:
            return small(compose("train", overrides=list(overrides)))
        finally:
            HydraConfig.instance().cfg = None


def test_debug_takes_other_data_and_changes_the_rest():
    cfg = small_of("experiment=sb_cifar100", "debug=true")
    assert cfg.data._target_ == "kakurenbo_recipes.generated.GeneratedImages" and "root" not in cfg.data
    assert cfg.model.depth == 10 and cfg.model.dropout == 0.3
    assert cfg.trainer.max_epochs == 3 and cfg.trainer.devices == 1


def test_what_is_typed_stays_with_debug(capsys):
    words = [
        "trainer.max_epochs=1",
        "tau=0.9",
        "method.warmup_epochs=2",
        "model.depth=16",
        "data.label_noise=0.5",
        "data.held_out=0.1",
    ]
    cfg = small_of("experiment=cifar100_wrn28_10", "debug=true", *words, "data.root=elsewhere")
    assert (cfg.trainer.max_epochs, cfg.method.tau, cfg.method.warmup_epochs, cfg.model.depth) == (1, 0.9, 2, 16)
    assert (cfg.data.label_noise, cfg.data.held_out) == (0.5, 0.1) and "root" not in cfg.data
    assert instantiate(cfg.data).held_out == 0.1
    assert "data.root are of the experiment's own data" in capsys.readouterr().out


@pytest.mark.slow
def test_f_or_tau_that_changes_nothing_is_refused(tmp_path):
    said = program("kakurenbo_recipes.train", "method=plb", "F=0.9", cwd=tmp_path, fails=True)
    assert "F=0.9 is not possible: it must be left out: method=plb has none. Try method=kakurenbo." in said
    tiny = ["trainer.max_epochs=1", "data.subset=64", "model.width=4", "trainer.accelerator=cpu"]
    said = program("kakurenbo_recipes.train", "-m", "method=random", "tau=0.1,0.9", *tiny, cwd=tmp_path)
    assert "method=random has no tau, so runs of the sweep are equal" in said


@pytest.mark.slow
def test_compared_methods_have_the_settings_an_experiment_gives_them(tmp_path):
    words = [
        "experiment=cifar100_wrn28_10",
        "compare=[baseline,kakurenbo]",
        "method=baseline",
        "debug=true",
        "trainer.max_epochs=2",
    ]
    program("kakurenbo_recipes.train", *words, "trainer.accelerator=cpu", cwd=tmp_path)
    runs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("run.json")}
    assert runs["kakurenbo"]["settings"]["milestones"] == [1, 2, 3] and runs["baseline"]["status"] == "finished"


# ---- schedules


def rates(steps, max_epochs, **settings):
    optimizer = torch.optim.SGD(BoringModel().parameters(), lr=1.0)
    asked = {"max_epochs": max_epochs, "estimated_stepping_batches": steps, "num_training_batches": steps // max_epochs}
    made, found = schedule(optimizer, SimpleNamespace(accumulate_grad_batches=1, **asked), **settings), []
    assert made["interval"] == "step"
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made["scheduler"].step()
    return [*found, optimizer.param_groups[0]["lr"]]


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(1 + math.cos(math.pi * step / 40)) / 2 for step in range(41)]),
        ({"final_factor": 0.1}, [0.1 + 0.9 * (1 + math.cos(math.pi * step / 40)) / 2 for step in range(41)]),
        ({"milestones": [2, 6], "gamma": 0.2}, [1.0] * 10 + [0.2] * 20 + [0.04] * 11),
        (
            {"milestones": [2, 6], "gamma": 0.2, "warmup_epochs": 1, "warmup_factor": 0.1},
            [0.1, 0.28, 0.46, 0.64, 0.82, 1.0] + [1.0] * 4 + [0.2] * 20 + [0.04] * 11,
        ),
    ],
    ids=["cosine", "cosine to a tenth", "milestones in epochs", "a warm-up that milestones count"],
)
def test_a_schedule_has_the_rate_asked_for_at_each_step(settings, expected):
    assert torch.allclose(torch.tensor(rates(40, 8, **settings)), torch.tensor(expected), atol=1e-6)


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_a_warm_up_is_followed_by_a_cosine_to_zero():
    found = rates(40, 8, warmup_epochs=2)
    assert abs(found[10] - 1.0) < 1e-6 and found[-1] < 1e-6 and found == sorted(found[:11]) + sorted(found[11:], reverse=True)


# ---- generated images


def test_generated_images_have_the_shapes_asked_for_and_can_be_learnt():
    data, same = set_up(*(GeneratedImages(num_classes=5, samples=40, size=16) for _ in range(2)))
    assert data.train_images.images.shape == (40, 3, 16, 16) and len(data.test_images) == 10
    assert torch.equal(data.train_images.images, same.train_images.images)
    means = torch.stack([data.train_images.images[data.train_images.labels == c].float().mean(0) for c in range(5)])
    distances = torch.cdist(data.test_images.images.float().flatten(1), means.flatten(1))
    assert (distances.argmin(1) == data.test_images.labels).all()
