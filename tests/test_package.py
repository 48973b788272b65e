"""The wheel: what it holds, and that its recipe finds the configs without the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def run(*command, cwd, environment=None):
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel once, with the hatchling that is installed."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=REPOSITORY)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_every_config(names):
    configs = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert configs
    assert {f"kakurenbo_lightning/{config}" for config in configs} <= names


@pytest.mark.parametrize("package", ["kakurenbo_lightning", "recipes/kakurenbo_recipes"])
def test_the_wheel_holds_every_module_and_method_card(names, package):
    files = [path for suffix in ("*.py", "*.md", "py.typed") for path in (REPOSITORY / package).rglob(suffix)]
    placed = {path.relative_to((REPOSITORY / package).parent).as_posix() for path in files}
    plugins = "kakurenbo_lightning/hydra_support/plugins/"  # Hydra finds them in the namespace hydra_plugins alone
    assert {name.removeprefix(plugins) for name in placed} <= names


def test_the_wheel_is_typed_and_holds_nothing_else(names):
    assert "kakurenbo_lightning/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"kakurenbo_lightning", "kakurenbo_recipes", "hydra_plugins"}


def test_the_wheel_names_script_licence_and_core_dependencies(wheel):
    archive = zipfile.ZipFile(wheel)
    info = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
    assert "kakurenbo-train = kakurenbo_recipes.train:main" in archive.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in archive.namelist()
    metadata = archive.read(f"{info}/METADATA").decode().splitlines()
    core = [line.split(": ")[1] for line in metadata if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert sorted(core) == ["hydra-core", "lightning>=2.5", "omegaconf", "torch>=2.6", "torchmetrics"]


def test_the_installed_wheel_finds_its_configs(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    program = "import kakurenbo_recipes.train; print(kakurenbo_recipes.train.config_dir())"
    found = run(sys.executable, "-c", program, cwd=tmp_path, environment=environment)
    assert Path(found.strip()) == tmp_path / "site" / "kakurenbo_lightning" / "configs"
    printed = run(sys.executable, "-m", "kakurenbo_recipes.train", "--help", cwd=tmp_path, environment=environment)
    assert "  method      how samples are chosen" in printed
