"""Small runs of the program `kakurenbo-train`, composed in this process or started in one of their own."""

from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from kakurenbo_recipes.train import config_dir
from omegaconf import open_dict
from processes import program

CONFIGS = Path(config_dir())
# seconds rather than minutes: 96 images of 8 x 8 pixels, 2 epochs, on the CPU
TINY = [
    *("data.size=8", "data.subset=96", "data.batch_size=8", "data.drop_last=false", "data.crop_padding=1", "model.width=4"),
    *("trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
]


@contextmanager
def composing(config, folder, *always):
    """Gives what composes the config as the program would, with the run's folder at `folder`."""
    HydraConfig.instance().cfg = None

    def compose_with(*overrides):
        words = [*always, *overrides]
        HydraConfig.instance().cfg = None
        cfg = hydra.compose(config, overrides=[*words, f"hydra.runtime.output_dir={folder}"], return_hydra_config=True)
        HydraConfig.instance().set_config(deepcopy(cfg))  # not composed again, which takes ten times as long
        with open_dict(cfg):
            del cfg.hydra
        return cfg

    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield compose_with
    HydraConfig.instance().cfg = None


@pytest.fixture
def compose(tmp_path):
    """Compose the config of `kakurenbo-train`."""
    with composing("train", tmp_path) as compose_with:
        yield compose_with


def composed(*overrides, config="train"):
    """Compose the config without a run, with Hydra's own settings under `hydra`."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(config, overrides=list(overrides), return_hydra_config=True)


def set_up(*data):
    """Set data modules up for a fit, and return the one, or all of them."""
    for each in data:
        each.setup("fit")
    return data[0] if len(data) == 1 else data


def kakurenbo_train(*arguments, cwd, **options):
    """Run the program in a process of its own and return what it printed."""
    return program("kakurenbo_recipes.train", *arguments, cwd=cwd, **options)
