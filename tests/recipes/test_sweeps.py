"""Grids and launchers as a user starts them, and two machines of a torchrun training."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
from kakurenbo_recipes.arena_sweep import check_arena, every_method, write_picture
from omegaconf import OmegaConf
from processes import PATHS, REPOSITORY, program
from recipe_runs import composed

from kakurenbo_lightning.arena.runs import Comparison, Entry
from recipes.benchmarks.forked import free_port

TINY = ["trainer.max_epochs=1", "data.size=8", "data.subset=64", "model.width=4", "trainer.accelerator=cpu"]


@pytest.mark.parametrize(
    ("sweep", "params"),
    [
        ("methods", {"method": "baseline,kakurenbo,random", "seed": "0,1,2"}),
        ("f_tau", {"F": "0.1,0.2,0.3,0.4", "tau": "0.5,0.7,0.9"}),
        ("draws", {"method": "owc,lb,nlb,plb,peb", "method.diagnose": "1000"}),
    ],
)
def test_a_grid_has_its_values(sweep, params):
    hydra = composed(f"sweep={sweep}").hydra
    assert hydra.sweeper.params == params and hydra.mode.name == "MULTIRUN"


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        pytest.param(["sweep=methods", "method=baseline,random", "seed=3"], ["baseline", "random"], marks=pytest.mark.slow),
        (["sweep=f_tau", "F=0.2,0.4", "tau=0.7"], ["kakurenbo", "kakurenbo"]),
        pytest.param(["sweep=draws", "method=owc,peb", "method.diagnose=9"], ["owc", "peb"], marks=pytest.mark.slow),
    ],
)
def test_a_grid_runs(tmp_path, words, runs):
    program("kakurenbo_recipes.train", *words, *TINY, cwd=tmp_path)
    assert [json.loads(path.read_text())[0]["method"] for path in sorted(tmp_path.rglob("results.json"))] == runs


ARENA = ["sweep=arena", "method=random", "seed=0", "trainer.max_epochs=2", *TINY[1:], "record=none"]


@pytest.mark.slow
def test_an_arena_has_every_control_goes_on_where_it_was_killed_and_gives_the_same_scores(tmp_path):
    said = program("kakurenbo_recipes.train", *ARENA, cwd=tmp_path)
    folder = tmp_path / "outputs" / "arena"
    files = {path: path.read_text() for path in folder.glob("*seed=0.json")}
    names = [path.stem for path in files]
    assert {"baseline-epochs=2-seed=0", "random-epochs=2-seed=0"} < set(names) and any("max_fraction" in name for name in names)
    assert "not resolved" in said and "to equal time" in said
    assert "picture: outputs/arena/arena.png" in said
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("arena.png", "arena-dark.png"))
    lost = folder / "random-epochs=2-seed=0.json"
    lost.unlink()  # its folder is there still, as a kill leaves it
    program("kakurenbo_recipes.train", *ARENA, cwd=tmp_path)
    assert json.loads(lost.read_text())["score"] == json.loads(files[lost])["score"]
    assert all(path.read_text() == text for path, text in files.items() if path != lost)
    said = program("kakurenbo_recipes.train", *ARENA, "optimizer.lr=0.5", cwd=tmp_path, fails=True)
    assert "holds trainings that cannot be compared with these: settings=" in said and "Traceback" not in said


@pytest.mark.parametrize("score", [0.9, math.nan])
def test_an_arena_has_a_picture_unless_every_training_diverged(tmp_path, score):
    comparison = Comparison([Entry("random")], [0], 2)
    figures = {"metric": "accuracy", "score": score, "cost": 1.0, "samples_trained": 100, "epochs": 2, "seed": 0}
    rows = {
        training.name: {"method": training.entry.method, "settings": {}, **figures}
        for training in (comparison.baseline(0), comparison.of(Entry("random"), 0))
    }
    target = write_picture(comparison, rows, tmp_path / "arena.png", "Data digits, model resnet8, 2 epochs")
    assert target == (tmp_path / "arena.png" if math.isfinite(score) else None)
    assert {path.name for path in tmp_path.iterdir()} == ({"arena.png", "arena-dark.png"} if target else set())


@pytest.mark.slow_cases("kakurenbos", "cannot be read as METHOD:SETTING=VALUE", "0.5 is no setting's name")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["F=0.1,0.2"], "F='0.1,0.2' is not possible: it must be one value with sweep=arena, but for method and seed"),
        (["method=kakurenbos"], "kakurenbos"),
        (["hydra.sweeper.variants=['kakurenbo:max_fraction=2']"], "max_fraction=2 is not allowed"),
        (["hydra.sweeper.variants=['kakurenbo:{']"], "cannot be read as METHOD:SETTING=VALUE"),
        (["hydra.sweeper.variants=['kakurenbo:0.5']"], "0.5 is no setting's name"),
    ],
)
def test_what_an_arena_cannot_compare_is_one_sentence(tmp_path, words, said):
    printed = program("kakurenbo_recipes.train", "sweep=arena", *TINY, *words, cwd=tmp_path, fails=True)
    assert said in printed and "Traceback" not in printed


@pytest.fixture(scope="module")
def arena():
    """The config of an arena."""
    return composed("sweep=arena", "method=random")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trainer.max_steps=3", "trainer.max_steps=3 is not possible: it must be -1 with sweep=arena"),
        ("trainer.check_val_every_n_epoch=2", "trainer.check_val_every_n_epoch=2 is not possible: it must be 1 with"),
        ("trainer.fast_dev_run=true", "trainer.fast_dev_run=True is not possible: it must be false with"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0 is not possible: it must be above 0 with"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0 is not possible: it must be an int >= 1 with"),
        ("save=0.3", "save=0.3 is not possible: it must be null with"),
        ("guard=metric", "is not possible: it must be null with"),
    ],
)
def test_settings_that_would_make_an_arena_unfair_are_refused_first(arena, word, said):
    check_arena(arena)
    with pytest.raises(ValueError, match=re.escape(said)):
        check_arena(OmegaConf.merge(arena, OmegaConf.from_dotlist([word])))


def test_tasks_and_nodes_of_a_job_are_those_of_the_trainer(monkeypatch):
    monkeypatch.setenv("KAKURENBO_STARTED", "today/now")
    launcher = composed("launcher=submitit_slurm", "trainer.devices=4", "++trainer.num_nodes=2").hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 4, 4)
    assert launcher.setup == ["export KAKURENBO_STARTED=today/now"]
    alone = composed("launcher=submitit_slurm", "sweep=methods").hydra
    assert (alone.launcher.nodes, alone.launcher.tasks_per_node, alone.mode.name) == (1, 1, "MULTIRUN")


def test_a_job_script_of_slurm_is_made_from_the_settings(monkeypatch):
    from submitit.slurm.slurm import _make_sbatch_string

    monkeypatch.setenv("KAKURENBO_STARTED", "today/now")
    launcher = OmegaConf.to_container(composed("launcher=submitit_slurm", "trainer.devices=4").hydra.launcher, resolve=True)
    known = {"partition", "account", "qos", "nodes", "gpus_per_node", "cpus_per_task", "signal_delay_s", "array_parallelism"}
    known |= {"additional_parameters", "setup"}
    renamed = {"ntasks_per_node": launcher["tasks_per_node"], "time": launcher["timeout_min"]}
    script = _make_sbatch_string(command="run", folder="logs", **renamed, **{name: launcher[name] for name in known})
    lines = ["--ntasks-per-node=4", "--nodes=1", "--gpus-per-node=4", "--cpus-per-task=8", "--time=1440", "--signal=USR2@120"]
    assert all(f"#SBATCH {line}" in script for line in lines) and "\nexport KAKURENBO_STARTED=today/now\n" in script


@pytest.mark.slow
def test_each_run_is_a_process_of_its_own_under_submitit(tmp_path):
    program("kakurenbo_recipes.train", "launcher=submitit_local", *TINY, "seed=0,1", cwd=tmp_path)
    assert sorted(path.parent.name for path in tmp_path.rglob("results.json")) == ["0", "1"]
    assert len({path.name.split("_")[0] for path in tmp_path.rglob("*_result.pkl")}) == 2


@pytest.mark.slow
def test_two_machines_train_together(tmp_path):
    known = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": PATHS, "PYTHON": sys.executable}
    known |= {
        "RUN": "first",
        "NODES": "2",
        "GPUS": "1",
        "MAIN": "127.0.0.1",
        "PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    script = REPOSITORY / "recipes" / "examples" / "torchrun.sh"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
    words = ["bash", script, *TINY, "F=0.3", "data.subset=65"]
    machines = [subprocess.Popen(words, env={**known, "NODE_RANK": str(rank)}, **pipes) for rank in (0, 1)]
    try:
        said = [machine.communicate(timeout=240)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(said)
    assert "MEMBER: 1/2" in said[0] and "MEMBER: 2/2" in said[1]
    (path,) = tmp_path.rglob("results.json")
    assert path.parent == tmp_path / "outputs" / "first"
    assert json.loads(path.read_text())[0]["totals"]["samples_trained"] == 65


@pytest.mark.parametrize("missing", ["RUN", "GPUS", "NODES", "NODE_RANK", "MAIN"])
def test_the_torchrun_example_names_what_it_lacks_and_is_short(missing):
    script = REPOSITORY / "recipes" / "examples" / "torchrun.sh"
    known = {"RUN": "first", "NODES": "2", "NODE_RANK": "0", "GPUS": "1", "MAIN": "127.0.0.1"}
    known.pop(missing)
    done = subprocess.run(["bash", script], env={"PATH": os.environ["PATH"], **known}, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and f"{missing}: is " in done.stderr
    assert len(script.read_text().splitlines()) < 60


def test_methods_that_need_more_than_a_name_are_said_to_be_left_out(capsys):
    names = every_method()
    assert "kakurenbo" in names and not {"weighted", "rho_loss"} & set(names)
    assert (
        "Every method but rho_loss (irreducible losses or a trained module) and weighted (your weights)"
        in capsys.readouterr().out
    )
