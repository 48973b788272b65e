"""Methods in a user's own Hydra app, outside the repository, with the editable install and with the wheel."""

import sys
from pathlib import Path

import pytest
from installed import REPOSITORY, built_wheel, editable_paths, install, run

THIRD = REPOSITORY / "tests" / "methods" / "plugin"
APP = """
import sys

import hydra
import lightning as L
import torch
from hydra.utils import instantiate
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg):
    x = torch.randn(40, 4)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10)
    callbacks = [instantiate(each) for each in cfg.callbacks.values()]
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, **off).fit(Classifier(), loader)
    print("hidden", callbacks[0].totals.samples_hidden, callbacks[0].method)
    print("method", instantiate(cfg.method).method)
    print("from", sys.modules["hydra_plugins.kakurenbo_methods"].__file__)


main()
"""
CONFIG = """
defaults:
  - method: kakurenbo
  - kakurenbo/method@callbacks.selection: random
  - _self_
"""
OTHER = """
import sys

import hydra


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg):
    print("method", cfg.method, sorted({"torch", "lightning", "kakurenbo_lightning"} & sys.modules.keys()))


main()
"""


def app(folder, program, **files):
    """Write a program and its configs, whose names have "__" for a folder's slash; the program."""
    for name, text in files.items():
        path = folder / "conf" / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "app.py").write_text(program)
    return folder / "app.py"


@pytest.fixture(scope="module", params=["editable", "wheel"])
def site(request, tmp_path_factory):
    """What is on the path of an app: this repository, or its wheel; and a package with a method of its own."""
    folder = tmp_path_factory.mktemp("site")
    if request.param == "editable":
        install(THIRD, into=folder, cwd=folder)
        return [*editable_paths(), folder]
    wheel = built_wheel(tmp_path_factory.mktemp("dist"))
    install(wheel, THIRD, into=folder, cwd=folder)
    return [folder]


def started(program, *arguments, site, fails=False):
    done = run(sys.executable, program, *arguments, "hydra.output_subdir=null", cwd=program.parent, site=site, fails=fails)
    return done.stdout + done.stderr


@pytest.mark.slow_cases("editable")
def test_an_app_has_every_method_without_code(site, tmp_path):
    program = app(tmp_path, APP, config=CONFIG)
    changed = ["method=mean_loss", "method.pool=0.4", "method.protected=[1,2]", "callbacks.selection.max_fraction=0.25"]
    printed = started(program, *changed, site=site)
    assert "hidden 20 RandomHiding(start_epoch=0," in printed
    assert "max_fraction=0.25)" in printed
    assert "method MeanLoss(" in printed and "protected=(1, 2)" in printed and "pool=0.4" in printed
    (plugin,) = (Path(line.split()[1]) for line in printed.splitlines() if line.startswith("from "))
    assert any(plugin == folder / "hydra_plugins" / "kakurenbo_methods.py" for folder in site)


@pytest.mark.slow_cases("editable")
def test_a_wrong_method_is_answered_with_those_there_are(site, tmp_path):
    program = app(tmp_path, OTHER, config=CONFIG)
    printed = started(program, "method=plbb", site=site, fails=True)
    assert "Could not find 'method/plbb'" in printed
    assert {"plb", "mean_loss", "kakurenbo"} <= set(printed.split())
    assert "digits" not in printed and "provider=kakurenbo-lightning, path=kakurenbo://" in printed
    assert "Could not override 'data'" in started(program, "data=digits", site=site, fails=True)


@pytest.mark.slow_cases("editable")
def test_an_app_that_means_something_else_by_method_is_left_alone(site, tmp_path):
    program = app(tmp_path, OTHER, config="method: sgd\n")
    assert "method adam []" in started(program, "method=adam", site=site)
    printed = started(program, "--help", site=site)
    assert "method: sgd" in printed and "kakurenbo" not in printed


@pytest.mark.slow_cases("editable")
def test_an_app_with_a_group_of_that_name_keeps_it_to_itself(site, tmp_path):
    option = "# @package _global_\nmethod: {}\n"
    files = {"config": "defaults: [{method: a}]\n", "method__a": option.format("a"), "method__b": option.format("b")}
    program = app(tmp_path, OTHER, **files)
    assert "method b []" in started(program, "method=b", site=site)
    printed = started(program, "-m", "method=glob(*)", "hydra.sweep.dir=.", site=site)
    assert [line for line in printed.splitlines() if line.startswith("method")] == ["method a []", "method b []"]
    printed = started(program, "method=plb", site=site, fails=True)
    assert "Available options in 'method':\n\ta\n\tb\n" in printed


@pytest.mark.slow_cases("editable")
def test_an_app_may_put_its_own_options_beside_ours(site, tmp_path):
    files = {
        "config": "defaults: [{method: mine}]\n",
        "method__mine": "defaults: [/kakurenbo/method@_here_: kakurenbo, _self_]\ntau: 0.6\n",
    }
    program = app(tmp_path, OTHER, **files)
    printed = started(program, "-m", "method=mine,plb,mean_loss", "hydra.sweep.dir=.", site=site)
    lines = [line for line in printed.splitlines() if line.startswith("method")]
    assert ["'method': 'kakurenbo'" in lines[0] and "'tau': 0.6" in lines[0], "'plb'" in lines[1], "'mean_loss'" in lines[2]]
    assert "'tua' not in 'kakurenbo'" in started(program, "method.tua=1", site=site, fails=True)
