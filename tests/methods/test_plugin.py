"""A method of another package: ADDING.md shows it, tests/plugin holds it, and here it is installed and used."""

import re
import shutil
from pathlib import Path

import pytest
from installed import beside, editable_paths, install

from kakurenbo_lightning.cli.methods import ADDING

PLUGIN = Path(__file__).with_name("plugin")
FILES = sorted(
    path.relative_to(PLUGIN).as_posix() for path in PLUGIN.rglob("*") if path.is_file() and "cache" not in path.parent.name
)
BROKEN = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "kakurenbo-broken"
version = "0.1.0"

[project.entry-points."kakurenbo_lightning.methods"]
broken = "kakurenbo_broken"
"""


def shown(page):
    """File name -> text of the blocks that follow a line with a file's name."""
    return dict(re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL))


def printed_by(target, *arguments, cwd, site):
    """What a user's module or script prints who has this repository, and what is installed in ``site``."""
    return beside([*editable_paths(), site], target, *arguments, cwd=cwd)


def printed_by_code(code, cwd, site):
    (cwd / "code.py").write_text(code)
    return printed_by(cwd / "code.py", cwd=cwd, site=site)


def commands(page):
    """The lines of the ``sh`` blocks."""
    return [
        line for block in re.findall(r"^```sh\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder a reader of the page has: only what the page shows."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in shown(ADDING.read_text()).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def site(project, tmp_path_factory):
    """A folder with the package installed."""
    folder = tmp_path_factory.mktemp("site")
    install(project, into=folder, cwd=folder)
    return folder


def test_the_page_shows_the_very_files_of_the_package():
    assert {name: (PLUGIN / name).read_text() for name in FILES} == shown(ADDING.read_text())


def test_the_installed_method_is_listed_and_made(site, tmp_path):
    program = """
from kakurenbo_lightning import SampleSelection, available_methods, get_method
method = get_method("mean_loss", pool=0.2)
info = available_methods()["mean_loss"]
assert SampleSelection("mean_loss", pool=0.2).method == method
print(type(method).__module__, method.pool, info.bytes_per_sample, info.card.name)
"""
    printed = printed_by_code(program, tmp_path, site).splitlines()[-1].split()
    assert printed == ["kakurenbo_mean_loss", "0.2", "16", "kakurenbo_mean_loss.md"]


def test_the_commands_of_the_page_are_those_tried_here():
    assert commands(ADDING.read_text()) == [
        "pip install -e .",
        "python try_it.py",
        "kakurenbo-methods mean_loss",
        "pytest test_mean_loss.py",
        "kakurenbo-train method=mean_loss method.pool=0.4",
        "kakurenbo-train 'compare=[baseline,random,mean_loss]' F=0.3",
    ]


@pytest.mark.slow  # that its tests pass is fast
def test_the_page_trains(project, site):
    """200 samples, a pool of 100: epoch 0 hides none, the other two 50 each."""
    printed = printed_by(project / "try_it.py", cwd=project, site=site)
    assert "trained 500 samples, hid 100 (16.7%)" in printed
    assert "50 samples hidden in the last epoch" in printed


def test_the_card_of_the_package_is_printed(site, tmp_path):
    printed = printed_by("kakurenbo_lightning.cli.methods", "mean_loss", cwd=tmp_path, site=site)
    assert str(site / "kakurenbo_mean_loss.md") in printed
    assert "a random half of the `pool` N samples of lowest mean loss" in " ".join(printed.split())


def test_the_tests_of_the_page_pass(project, site):
    printed = printed_by("pytest", "-q", "-p", "no:cacheprovider", "test_mean_loss.py", cwd=project, site=site)
    assert re.search(r"^\d+ passed", printed, flags=re.MULTILINE)


@pytest.mark.slow
def test_the_recipe_has_the_method_as_an_option(project, site):
    tiny = ["data.size=8", "data.subset=96", "data.batch_size=8", "data.drop_last=false", "data.crop_padding=1", "model.width=4"]
    tiny += ["trainer.max_epochs=3", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    overrides = ["method=mean_loss", "method.pool=0.4", "method.start_epoch=1"]
    printed = printed_by("kakurenbo_recipes.train", *overrides, *tiny, cwd=project, site=site)
    assert "mean_loss(start_epoch=1, pool=0.4) hides" in printed
    tiny += ["compare=[random,mean_loss]", "trainer.max_epochs=1"]
    printed = printed_by("kakurenbo_recipes.train", *tiny, cwd=project, site=site)
    assert re.search(r"^\W*mean_loss\b", printed, flags=re.MULTILINE)


def test_a_package_that_cannot_be_imported_is_named_and_left_out(site, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyproject.toml").write_text(BROKEN)
    (tmp_path / "broken" / "kakurenbo_broken.py").write_text("import a_module_that_is_not_there\n")
    both = tmp_path / "both"
    shutil.copytree(site, both)
    install(tmp_path / "broken", into=both, cwd=tmp_path)
    program = """
from kakurenbo_lightning import available_methods, get_method
print(sorted(available_methods()), get_method("mean_loss").name, get_method("kakurenbo").name)
"""
    printed = printed_by_code(program, tmp_path, both)
    assert printed.count("the methods of kakurenbo-broken are left out") == 1
    assert "No module named 'a_module_that_is_not_there'" in printed
    said = printed.splitlines()[-1]
    assert said.endswith("mean_loss kakurenbo")
    assert "'broken'" not in said and "'baseline'" in said
