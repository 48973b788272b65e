"""Every command that a page shows is one: its program is there and takes its arguments; what trains is trained by other tests."""

import argparse
import importlib
import re
import shlex
from importlib.metadata import entry_points

import hydra
import pytest
from doc_pages import REPOSITORY, blocks, with_blocks
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from kakurenbo_recipes.config_check import check_config
from kakurenbo_recipes.schema import TrainSchema, names_of
from omegaconf import open_dict
from recipe_runs import CONFIGS

# started with these very words by tests/hydra_support/test_app.py, tests/test_lightning_cli.py, tests/methods/test_plugin.py and
# test_code_blocks.py
STARTED_ELSEWHERE = (
    "torchrun --nproc-per-node=2 train.py",
    "python src/train.py",
    "srun python train.py",
    "cd /shared/project/run-7",
    "'main=$(scontrol' show hostnames",
    "srun bash -c 'torchrun --nnodes 4",
    "python main.py fit",
    "python try_it.py",
    "pytest test_mean_loss.py",
)
OTHERS = ("pipx run pre-commit install",)
PLUGIN = "kakurenbo_lightning/methods/ADDING.md"  # its method is not installed here


class Parsed(Exception):
    """A program has understood its arguments."""


def commands(page):
    """Lists of words, a list for each command line of a page; comments are left out."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


COMMANDS = [(page, words) for page in with_blocks("sh") for words in commands(page)]


def cases(*programs):
    """The command lines that begin with one of the programs, without what is said twice."""
    found = {shlex.join(words): words for page, words in COMMANDS if kind_of(page, words) in programs}
    return [pytest.param(words, id=line[:60]) for line, words in found.items()]


def kind_of(page, words):
    """By which test below a command line is tried."""
    line = shlex.join(words)
    if page == PLUGIN or line.startswith(STARTED_ELSEWHERE):
        return "elsewhere"
    if line in OTHERS:
        return "others"
    while "=" in words[0]:  # of the environment
        words = words[1:]
    if words[0] in ("python", ".venv/bin/python") and words[1] == "-m":
        return "pytest" if words[2] == "pytest" else "hydra" if words[2].endswith(".irreducible") else "module"
    return {"kakurenbo-train": "hydra", "bash": "hydra"}.get(words[0], words[0])


SCRIPTS = [point.name for point in entry_points(group="console_scripts") if point.name.startswith("kakurenbo-")]


def test_every_command_is_tried_below():
    kinds = {kind_of(page, words) for page, words in COMMANDS}
    assert kinds <= {"elsewhere", "others", "pytest", "hydra", "module", "make", "pip", *SCRIPTS}
    assert {"hydra", "make", "pip", "kakurenbo-check", "kakurenbo-advise", "kakurenbo-report", "kakurenbo-search"} <= kinds


@pytest.mark.parametrize("words", cases("module", *SCRIPTS))
def test_a_program_takes_its_arguments(words, monkeypatch):
    """It is started in this process, up to where it has read them."""

    def ended(parse):
        def then_end(self, *arguments, **settings):
            parse(self, *arguments, **settings)
            raise Parsed

        return then_end

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, ended(getattr(argparse.ArgumentParser, name)))
    if words[0] == "python":
        main, arguments = importlib.import_module(words[2]).main, words[3:]
    else:
        (script,) = (point for point in entry_points(group="console_scripts") if point.name == words[0])
        module, arguments = script.module, words[1:]
        if module == "kakurenbo_recipes.scripts":  # which takes them from sys.argv
            module = {"kakurenbo-search": "kakurenbo_recipes.search", "kakurenbo-fractal": "kakurenbo_recipes.formula_images"}[
                words[0]
            ]
        main = importlib.import_module(module).main
    with pytest.raises(Parsed):
        main(arguments)


@pytest.fixture(scope="module")
def hydra_of_the_program():
    """Hydra with the configs of `kakurenbo-train`, begun once for all cases."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield
    HydraConfig.instance().cfg = None


@pytest.mark.usefixtures("hydra_of_the_program")
@pytest.mark.parametrize("words", cases("hydra"))
def test_settings_of_kakurenbo_train_are_real(words, tmp_path):
    """The config is composed and checked as the program does; of a sweep the first value of each setting."""
    if "bash" in words:
        start = words.index("bash")
        assert (REPOSITORY / words[start + 1]).is_file()
        words = words[start + 1 :]
    elif words[0] == "python":
        assert words[2:] == ["kakurenbo_recipes.irreducible"]  # without settings that could be wrong
        return
    parsed = OverridesParser.create().parse_overrides([word for word in words[1:] if word not in ("-m", "--help")])
    overrides = [f"hydra.runtime.output_dir={tmp_path}", *map(first_value, parsed)]
    HydraConfig.instance().cfg = None
    cfg = hydra.compose("train", overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    check_config(cfg, names_of(TrainSchema))


def first_value(override):
    """``key=value`` of what may be ``key=value,value``."""
    line = override.input_line
    return f"{line.partition('=')[0]}={next(override.sweep_string_iterator())}" if override.is_sweep_override() else line


@pytest.mark.parametrize("words", cases("make"))
def test_targets_of_make_are_there(words):
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(words[1:]) <= set(targets)


@pytest.mark.parametrize("words", cases("pip"))
def test_what_pip_installs_is_this_project_with_its_extras(words):
    assert words[:3] == ["pip", "install", "-e"] and len(words) == 4
    found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[3])
    extras = re.findall(r"^(\w+) = \[", (REPOSITORY / "pyproject.toml").read_text().partition("optional-dependencies]")[2], re.M)
    assert found and set((found[1] or "dev").split(",")) <= set(extras)


@pytest.mark.parametrize("words", cases("pytest"))
def test_paths_given_to_pytest_are_there(words):
    (path,) = (word for word in words if word.startswith("tests/"))
    assert (REPOSITORY / path).exists()
