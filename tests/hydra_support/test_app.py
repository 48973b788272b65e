"""Methods in a user's own Hydra app, outside the repository, with the editable install and with the wheel."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from installed import REPOSITORY, beside, built_wheel, editable_paths, install, run

from kakurenbo_lightning.cli import report

THIRD = REPOSITORY / "tests" / "methods" / "plugin"
TEMPLATE = Path(__file__).with_name("template")
PAGE = REPOSITORY / "docs" / "hydra.md"
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
    print("other", instantiate(cfg.other).method)
    print("from", sys.modules["hydra_plugins.kakurenbo_methods"].__file__)


main()
"""
CONFIG = """
defaults:
  - kakurenbo/method@other: kakurenbo
  - kakurenbo/method@callbacks.selection: random
  - _self_
"""
OTHER = """
import sys

import hydra


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg):
    print("method", cfg.get("method"), sorted({"torch", "lightning", "kakurenbo_lightning"} & sys.modules.keys()))


main()
"""


LEAKS = """
import sys

import hydra
from hydra.core.global_hydra import GlobalHydra

with hydra.initialize(config_path="conf", version_base="1.3"):
    hydra.compose("config", overrides=["+kakurenbo/method@selection=plb"])
    options = GlobalHydra.instance().config_loader().get_group_options
    print("found:", {group: options(group) for group in sys.argv[1:-1] if options(group)})
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


def trained(script, *arguments, site):
    """What a script that trains prints."""
    return beside(site, script, *arguments, "hydra.output_subdir=null", cwd=script.parent)


def started(program, *arguments, site, fails=False):
    """What a script prints that starts with nothing imported."""
    done = run(sys.executable, program, *arguments, "hydra.output_subdir=null", cwd=program.parent, site=site, fails=fails)
    return done.stdout + done.stderr


@pytest.mark.slow_cases("editable")
def test_an_app_has_every_method_without_code(site, tmp_path):
    program = app(tmp_path, APP, config=CONFIG)
    chosen = ["kakurenbo/method@other=mean_loss", "other.pool=0.4", "other.protected=[1,2]"]
    changed = [*chosen, "callbacks.selection.max_fraction=0.25"]
    printed = trained(program, *changed, site=site)
    assert "hidden 20 RandomHiding(start_epoch=0," in printed
    assert "max_fraction=0.25)" in printed
    assert "other MeanLoss(" in printed and "protected=(1, 2)" in printed and "pool=0.4" in printed
    (plugin,) = (Path(line.split()[1]) for line in printed.splitlines() if line.startswith("from "))
    assert any(plugin == folder / "hydra_plugins" / "kakurenbo_methods.py" for folder in site)


@pytest.mark.slow_cases("editable")
def test_a_wrong_method_is_answered_with_those_there_are(site, tmp_path):
    program = app(tmp_path, OTHER, config=CONFIG)
    printed = started(program, "kakurenbo/method@other=plbb", site=site, fails=True)
    assert "Could not find 'kakurenbo/method/plbb'" in printed
    assert {"plb", "mean_loss", "kakurenbo"} <= set(printed.split())
    assert "provider=kakurenbo-lightning, path=kakurenbo://kakurenbo/method" in printed


@pytest.mark.slow_cases("editable")
def test_no_other_group_of_ours_is_ever_found(site, tmp_path):
    """Whatever the program `kakurenbo-train` has; not even under a name that the app has no group for."""
    groups = [path.name for path in (REPOSITORY / "configs").iterdir() if path.is_dir()]
    assert {"data", "model", "trainer", "method"} <= set(groups)
    program = app(tmp_path, LEAKS, config="defaults: [_self_]\n", data__own="a: 1\n")
    assert "found: {'data': ['own']}" in started(program, *groups, site=site)
    started(app(tmp_path / "named", OTHER, config="defaults: [{method: kakurenbo}]\n"), site=site, fails=True)


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


@pytest.mark.slow
def test_an_app_may_ask_for_the_short_name_and_put_its_own_options_beside_ours(site, tmp_path):
    files = {
        "config": "defaults: [{method: mine}]\nhydra: {searchpath: ['kakurenbo://']}\n",
        "method__mine": "defaults: [/kakurenbo/method@_here_: kakurenbo, _self_]\ntau: 0.6\n",
    }
    program = app(tmp_path, OTHER, **files)
    printed = started(program, "-m", "method=mine,plb,mean_loss", "hydra.sweep.dir=.", site=site)
    lines = [line for line in printed.splitlines() if line.startswith("method")]
    assert ["'method': 'kakurenbo'" in lines[0] and "'tau': 0.6" in lines[0], "'plb'" in lines[1], "'mean_loss'" in lines[2]]
    assert "'tua' not in 'kakurenbo'" in started(program, "method.tua=1", site=site, fails=True)


# --- an app in the shape of lightning-hydra-template, to which a user adds what docs/hydra.md shows


def shown():
    """The lines that the page shows for ``configs/callbacks/kakurenbo.yaml``."""
    (block,) = re.findall(
        r"^`configs/callbacks/kakurenbo\.yaml`\n\n```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return block


def template(folder):
    """The app with these lines; its program."""
    shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True)
    (folder / "configs" / "callbacks" / "kakurenbo.yaml").write_text(shown())
    return folder / "src" / "train.py"


def test_five_lines_are_all_that_is_needed():
    assert len(shown().splitlines()) == 5


@pytest.mark.slow_cases("editable")
def test_the_lines_of_readme_add_the_callback_to_an_app_of_that_shape(site, tmp_path):
    program = template(tmp_path)
    changed = ["callbacks=kakurenbo", "logger=many_loggers", "callbacks.selection.tau=0.6"]
    printed = trained(program, *changed, f"hydra.run.dir={tmp_path}/run", site=site)
    (selection, hidden) = re.search(r"^selection (.*) (\d+)$", printed, re.MULTILINE).groups()
    assert "Kakurenbo(" in selection and "max_fraction=0.3, tau=0.6" in selection and int(hidden) > 0
    files = {path.name.partition(".")[0] for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"metrics", "events", "last", "hparams"} <= files


@pytest.mark.slow
def test_such_an_app_sweeps_over_methods_and_resumes(site, tmp_path):
    program = template(tmp_path)
    chosen = "+kakurenbo/method@callbacks.selection"  # no line of YAML at all
    later = "callbacks.selection.start_epoch=1"
    printed = trained(program, "-m", f"{chosen}=baseline,random", f"++{later}", f"hydra.sweep.dir={tmp_path}/sweep", site=site)
    assert re.findall(r"^selection (\w+)\(.* (\d+)$", printed, re.MULTILINE) == [("Baseline", "0"), ("RandomHiding", "24")]
    resumed = [f"{chosen}=random", later, "trainer.max_epochs=4", f"ckpt_path={tmp_path}/sweep/1/checkpoints/last.ckpt"]
    printed = trained(program, *resumed, f"hydra.run.dir={tmp_path}/resumed", site=site)
    assert re.findall(r"^selection (\w+)\(.* (\d+)$", printed, re.MULTILINE) == [("RandomHiding", "36")]


@pytest.mark.slow
@pytest.mark.timeout(900)  # five processes that train
def test_such_an_app_sweeps_over_settings_beside_a_baseline_and_reports(site, tmp_path):
    program = template(tmp_path)
    (recorder,) = re.findall(r"^```yaml\n(recorder:\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    without = re.sub(r"^selection: {.*\n", "", shown(), flags=re.MULTILINE).replace(
        "@selection: kakurenbo", "@selection: baseline"
    )
    for name, lines in {"kakurenbo": shown(), "baseline": without}.items():
        (tmp_path / "configs" / "callbacks" / f"{name}.yaml").write_text(lines + recorder)
    swept = ["callbacks.selection.max_fraction=0.2,0.4", "callbacks.selection.tau=0.3,0.6"]
    started(program, "-m", "callbacks=kakurenbo", *swept, f"hydra.sweep.dir={tmp_path}/runs", site=site)
    started(program, "callbacks=baseline", f"hydra.run.dir={tmp_path}/runs/baseline", site=site)
    report.main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")])
    table = (tmp_path / "report" / "comparison.md").read_text()
    assert table.count("| kakurenbo, max_fraction=0.") == 4 and table.count("| baseline ") == 1
    assert (tmp_path / "report" / "f_tau.png").is_file()


@pytest.mark.slow
def test_an_experiment_of_such_an_app_chooses_another_method(site, tmp_path):
    program = template(tmp_path)
    lines = "- {override /callbacks: kakurenbo}\n  - {override /kakurenbo/method@callbacks.selection: random}"
    text = f"# @package _global_\ndefaults:\n  {lines}\n  - _self_\ncallbacks: {{selection: {{max_fraction: 0.5}}}}\n"
    (tmp_path / "configs" / "experiment" / "half.yaml").write_text(text)
    (tmp_path / "configs" / "callbacks" / "kakurenbo.yaml").write_text(shown().rpartition("selection:")[0])
    printed = trained(program, "experiment=half", f"hydra.run.dir={tmp_path}/run", site=site)
    assert "RandomHiding(" in printed and "max_fraction=0.5" in printed
    (tmp_path / "configs" / "callbacks" / "kakurenbo.yaml").write_text(shown())
    assert "Key 'tau' not in 'random'" in started(program, "experiment=half", site=site, fails=True)
