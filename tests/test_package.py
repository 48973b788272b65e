"""The wheel: what it holds, and that its programs run without the repository, beside other packages and without an extra."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from kakurenbo_lightning.core import extras

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALLED_BY = importlib.metadata.packages_distributions()  # distributions by module


def run(*command, cwd, path=(), code=0):
    """Run a program with these folders on Python's path; what it printed."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(cwd),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, path)),
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def built(source, kind, folder):
    """The wheel or source distribution that hatchling makes of a folder."""
    run(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return next(path for path in folder.iterdir() if path.is_file())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built(REPOSITORY, "wheel", tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def names(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel installed, as a virtual environment would have it; its scripts are in bin."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--target", folder)
    run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=folder)
    return folder


# --- what it holds


def test_the_wheel_holds_every_config(names):
    configs = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert configs
    assert {f"kakurenbo_recipes/{config}" for config in configs} <= names


@pytest.mark.parametrize("package", ["kakurenbo_lightning", "recipes/kakurenbo_recipes"])
def test_the_wheel_holds_every_module_card_and_template(names, package):
    files = [path for suffix in ("*.py", "*.md", "*.html", "py.typed") for path in (REPOSITORY / package).rglob(suffix)]
    placed = {path.relative_to((REPOSITORY / package).parent).as_posix() for path in files}
    plugins = "kakurenbo_lightning/hydra_support/plugins/"  # Hydra finds them in the namespace hydra_plugins alone
    assert {name.removeprefix(plugins) for name in placed} <= names


def test_the_wheel_is_typed_and_holds_nothing_else(names):
    assert "kakurenbo_lightning/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"kakurenbo_lightning", "kakurenbo_recipes", "hydra_plugins"}


def test_the_source_distribution_builds_the_same_wheel(wheel, tmp_path):
    for name in ("sdist", "source", "wheel"):
        (tmp_path / name).mkdir()
    with tarfile.open(built(REPOSITORY, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    contents = [
        {info.filename: info.CRC for info in zipfile.ZipFile(path).infolist()}
        for path in (wheel, built(source, "wheel", tmp_path / "wheel"))
    ]
    assert contents[0] == contents[1]


def requirements(wheel, extra=None):
    """Names of what the wheel requires, for an extra alone or without any."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = [line.split(": ")[1] for line in archive.read(name).decode().splitlines() if line.startswith("Requires-Dist: ")]
    marked = [re.fullmatch(r"(.*?)(?:; extra == '(\w+)')?", line).groups() for line in lines]
    return sorted(requirement for requirement, wanted in marked if wanted == extra)


def test_the_wheel_names_licence_and_core_dependencies(wheel, names):
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert requirements(wheel) == ["hydra-core", "lightning>=2.5", "omegaconf", "torch>=2.6", "torchmetrics"]


def test_the_modules_of_an_extra_are_those_that_it_installs(wheel):
    core, report, recipes = (
        {re.split("[<>=]", name)[0] for name in requirements(wheel, extra)} for extra in (None, "report", "recipes")
    )
    assert report < recipes
    needed = [
        {name.lower() for module in modules for name in INSTALLED_BY[module]} for modules in (extras.REPORT, extras.RECIPES)
    ]
    assert needed == [report, recipes - core]


# --- its programs


def test_the_installed_recipe_finds_its_configs(site, tmp_path):
    program = "import kakurenbo_recipes.train; print(kakurenbo_recipes.train.config_dir())"
    found = run(sys.executable, "-c", program, cwd=tmp_path, path=[site])
    assert Path(found.strip()) == site / "kakurenbo_recipes" / "configs"
    printed = run(sys.executable, site / "bin" / "kakurenbo-train", "--help", cwd=tmp_path, path=[site])
    assert "  method      how samples are chosen" in printed


NEED_PIL = ["torchvision", "matplotlib"]  # so they cannot be there without it
HIDE = """\
import importlib.metadata
import sys

hidden, found = {distributions!r}, importlib.metadata.distribution


def distribution(name):
    if name.lower() in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)


importlib.metadata.distribution = distribution
sys.modules.update(dict.fromkeys({modules!r}))
"""


def without(modules, folder):
    """A folder that, first on the path, lets Python look as if the modules were not installed."""
    distributions = {name.lower() for module in modules for name in INSTALLED_BY[module]}
    (folder / "sitecustomize.py").write_text(HIDE.format(distributions=distributions, modules=tuple(modules)))
    return folder


@pytest.mark.parametrize(
    ("script", "missing", "extra"),
    [
        ("kakurenbo-report", ["pandas"], "report"),
        ("kakurenbo-report", ["pyarrow", "matplotlib"], "report"),
        ("kakurenbo-train", ["timm"], "recipes"),
        ("kakurenbo-fractal", ["PIL", *NEED_PIL], "recipes"),
    ],
)
def test_a_script_without_its_extra_names_it_in_one_sentence_and_ends_with_2(site, tmp_path, script, missing, extra):
    path = [without(missing, tmp_path), site]
    printed = run(sys.executable, site / "bin" / script, tmp_path, cwd=tmp_path, path=path, code=2)
    named = ", ".join(module for module in missing if module not in NEED_PIL or "PIL" not in missing)
    assert printed == f'{script} needs {named}: pip install "kakurenbo-lightning[{extra}]"\n'


@pytest.mark.parametrize(
    "script", ["kakurenbo-report", "kakurenbo-methods", "kakurenbo-inspect", "kakurenbo-check", "kakurenbo-advise"]
)
def test_scripts_show_their_help_without_any_extra(site, tmp_path, script):
    path = [without(extras.RECIPES, tmp_path), site]
    assert f"usage: {script}" in run(sys.executable, site / "bin" / script, "--help", cwd=tmp_path, path=path)


PROGRAM = """\
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

import recipes
from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import RunRecorder


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


selection = SampleSelection("random", max_fraction=0.5)
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = L.Trainer(max_epochs=2, accelerator="cpu", callbacks=[selection, RunRecorder(selection, "results/random")], **quiet)
trainer.fit(Net(), DataLoader(TensorDataset(torch.randn(32, 4), torch.arange(32) % 2), 8, shuffle=True))
print(recipes.NAME)
"""


@pytest.mark.slow
def test_a_project_with_a_package_named_recipes_records_and_reports(site, tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "__init__.py").write_text('NAME = "the recipes of the project"\n')
    (tmp_path / "program.py").write_text(PROGRAM)
    assert "the recipes of the project" in run(sys.executable, "program.py", cwd=tmp_path, path=[site])
    printed = run(sys.executable, site / "bin" / "kakurenbo-report", "results", "--format", "csv", cwd=tmp_path, path=[site])
    assert "random" in printed
