"""Searches by Optuna, launchers and grids as a user starts them, and two machines of a torchrun training."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hydra
import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra_plugins.kakurenbo_optuna import in_a_row, search_space
from kakurenbo_recipes.train import config_dir
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from processes import PATHS, REPOSITORY, program

TINY = ["trainer.max_epochs=1", "data.size=8", "data.subset=64", "model.width=4", "trainer.accelerator=cpu"]
APP = """
defaults:
  - _self_
  - override hydra/sweeper: kakurenbo_optuna
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
x: 0.0
kind: round
hydra:
  mode: MULTIRUN
  sweep: {dir: sweep}
"""


@pytest.fixture
def search(tmp_path, monkeypatch):
    """`search(*overrides, score=...)`: one start of a search over a small program in `tmp_path`; gives the settings that ran."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def start(*overrides, score=lambda cfg: -((cfg.x - 0.3) ** 2)):
        ran = []

        def app(cfg):
            ran.append((cfg.x, cfg.kind))
            return score(cfg)

        monkeypatch.setattr(sys, "argv", ["app", *overrides])
        hydra.main(config_path=str(tmp_path / "conf"), config_name="app", version_base="1.3")(app)()
        return ran

    return start


def stored(path="sweep/study.journal", name="search"):
    return optuna.load_study(
        study_name=name, storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    )


# ---- the search space


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("x=interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("x=interval(0,2)", FloatDistribution(0, 2)),
        ("x=int(interval(1,8))", IntDistribution(1, 8)),
        ("x=tag(log,interval(0.001,0.1))", FloatDistribution(0.001, 0.1, log=True)),
        ("x=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("x=range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("x=range(3,0,-1)", IntDistribution(1, 3)),
        ("x=range(0.0,1.0,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("x=choice(0.5,0.7)", CategoricalDistribution([0.5, 0.7])),
        ("x=kakurenbo,random", CategoricalDistribution(["kakurenbo", "random"])),
        ("x=choice([1,2],[3])", CategoricalDistribution(["[1,2]", "[3]"])),
        ("x=null,true,'a,b'", CategoricalDistribution(["null", True, "'a,b'"])),
    ],
)
def test_a_sweep_in_hydras_words_is_a_distribution_of_optuna(said, expected):
    assert search_space([said]) == ({"x": expected}, {})


def test_other_overrides_stay_as_they_are_and_the_last_of_a_setting_counts():
    space, fixed = search_space(
        ["F=interval(0.1,0.5)", "tau=0.5,0.7", "data.root='a b'", "~data.held_out", "+x=1", "F=0.3", "tau=0.1,0.9"]
    )
    assert space == {"tau": CategoricalDistribution([0.1, 0.9])}
    assert list(fixed.values()) == ["data.root='a b'", "~data.held_out", "+x=1", "F=0.3"]


@pytest.mark.parametrize("said", ["x=interval(2,1)", "x=interval(1,1)", "x=tag(log,interval(0,1))", "x=range(2,1)"])
def test_a_space_without_values_is_named(said):
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.params\.x='x=.* is not possible"):
        search_space([said])


# ---- the search


def test_a_search_finds_the_best_and_says_where(search):
    ran = search("x=interval(0,1)", "kind=choice(round,square)", "hydra.sweeper.n_trials=30")
    found = OmegaConf.load("sweep/optimization_results.yaml")
    assert len(set(ran)) == 30 and {kind for _, kind in ran} == {"round", "square"}
    assert abs(found.best_params.x - 0.3) < 0.05 and found.best_value == max(-((x - 0.3) ** 2) for x, _ in ran)
    best = OmegaConf.load(Path(found.best_folder, ".hydra", "config.yaml"))
    assert best == found.best_params


def test_the_same_seed_is_the_same_search(search):
    first, same, other = (
        search("x=interval(0,1)", "hydra.sweeper.n_trials=4", "hydra.sweeper.storage=null", f"hydra.sweeper.sampler.seed={seed}")
        for seed in (0, 0, 1)
    )
    assert first == same != other


def test_a_killed_search_goes_on_without_drawing_anything_twice(search):
    def killed(cfg):
        if Path("sweep/2").is_dir():
            raise KeyboardInterrupt
        return cfg.x

    with pytest.raises(KeyboardInterrupt):
        search("x=interval(0,1)", "hydra.sweeper.n_trials=6", score=killed)
    before = [trial.params["x"] for trial in stored().trials if trial.state.is_finished()]
    again = ["hydra.sweep.dir=again", "hydra.sweeper.storage=sweep/study.journal"]
    ran = search("x=interval(0,1)", "hydra.sweeper.n_trials=6", *again)
    assert len(before) == 2 and len(ran) == 4
    assert len({*before, *(x for x, _ in ran)}) == 6
    assert search("x=interval(0,1)", "hydra.sweeper.n_trials=6", *again) == [], "it has all of its runs"


def folders_and_settings(trials):
    """The folder of each run, and what it was run with, as the study and as the folder say."""
    for trial in trials:
        folder = Path(trial.user_attrs["folder"])
        yield folder.name, trial.number, OmegaConf.load(folder / ".hydra" / "config.yaml").x == trial.params["x"]


def test_a_search_that_goes_on_in_its_folder_overwrites_nothing(search):
    search("x=interval(0,1)", "hydra.sweeper.n_trials=1")
    kept = Path("sweep/0/.hydra/config.yaml").read_text()
    search("x=interval(0,1)", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2")
    assert Path("sweep/0/.hydra/config.yaml").read_text() == kept
    assert list(folders_and_settings(stored().trials)) == [(str(number), number, True) for number in range(4)]
    found = OmegaConf.load("sweep/optimization_results.yaml")
    assert OmegaConf.load(Path(found.best_folder, ".hydra", "config.yaml")).x == found.best_params.x


OTHER_MACHINE = """
import hydra
@hydra.main(config_path="conf", config_name="app", version_base="1.3")
def app(cfg):
    return cfg.x
app()
"""


def test_two_machines_of_one_search_have_folders_of_their_own(search, tmp_path):
    """While the first run of one process is going on, another process does three."""
    (tmp_path / "other.py").write_text(OTHER_MACHINE)
    others = []

    def score(cfg):
        if not others:
            words = ["x=interval(0,1)", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=9"]
            others.append(subprocess.run([sys.executable, "other.py", *words], cwd=tmp_path, capture_output=True, text=True))
        return cfg.x

    ran = search("x=interval(0,1)", "hydra.sweeper.n_trials=6", score=score)
    assert others[0].returncode == 0, others[0].stderr
    assert len(ran) == 3 and [trial.params["x"] for trial in stored().trials[1:4]] != [x for x, _ in ran]
    assert list(folders_and_settings(stored().trials)) == [(str(number), number, True) for number in range(6)]


def test_runs_chosen_at_once_keep_their_numbers_when_another_machine_has_taken_some():
    trials = [SimpleNamespace(number=number) for number in (3, 4, 6, 9, 10)]
    assert [[trial.number for trial in group] for group in in_a_row(trials)] == [[3, 4], [6], [9, 10]]


def test_a_study_of_other_settings_is_refused(search):
    search("x=interval(0,1)", "hydra.sweeper.n_trials=1")
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.storage='sweep/study.journal' .*'kind=square'.*study_name"):
        search("x=interval(0,1)", "kind=square")
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.direction='minimize' .* maximize, as in the study"):
        search("x=interval(0,1)", "hydra.sweeper.direction=minimize")
    assert len(search("x=interval(0,1)", "kind=square", "hydra.sweeper.study_name=squares", "hydra.sweeper.n_trials=2")) == 2


def test_a_database_holds_the_study_and_runs_may_be_asked_for_in_batches(search):
    ran = search(
        "x=interval(0,1)", "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2", "hydra.sweeper.storage=sqlite:///search.db"
    )
    assert len(ran) == len(set(ran)) == 5 and sorted(path.name for path in Path("sweep").glob("?")) == list("01234")
    assert len(optuna.load_study(study_name="search", storage="sqlite:///search.db").trials) == 5


def test_a_failed_run_stops_the_search_unless_some_may_fail(search):
    def fragile(cfg):
        return 1 / 0 if cfg.x > 0.5 else cfg.x

    with pytest.raises(ZeroDivisionError):
        search("x=interval(0,1)", score=fragile)
    ran = search("x=interval(0,1)", "hydra.sweeper.max_failure_rate=1", "hydra.sweeper.study_name=other", score=fragile)
    assert len(ran) == 20 and any(x > 0.5 for x, _ in ran)
    assert OmegaConf.load("sweep/optimization_results.yaml").best_value <= 0.5


@pytest.mark.parametrize("score", [None, float("nan"), "good"])
def test_a_run_without_a_score_stops_the_search(search, score):
    with pytest.raises(ValueError, match=r"in place of a score.*trainer\.limit_val_batches"):
        search("x=interval(0,1)", score=lambda cfg: score)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("n_trials=0", "n_trials=0 is not possible: it must be an int >= 1"),
        ("n_jobs=0", "n_jobs=0"),
        ("direction=up", "direction=.*up.* is not possible: it must be maximize or minimize"),
        ("max_failure_rate=2", "max_failure_rate=2"),
    ],
)
def test_a_wrong_setting_is_named(search, setting, message):
    with pytest.raises(InstantiationException, match=rf"hydra\.sweeper\.{message}"):
        search("x=interval(0,1)", f"hydra.sweeper.{setting}")


def test_nothing_to_search_over_is_said(search):
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.params=\{\} is not possible.*F=interval"):
        search("x=0.1")


def test_without_optuna_the_install_command_is_said(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r'pip install "kakurenbo-lightning\[sweeps\]"'):
        search("x=interval(0,1)")


# ---- the sweeps of kakurenbo-train


def test_a_search_of_three_runs_validates_on_held_out_images(tmp_path):
    said = program("kakurenbo_recipes.train", "sweep=optuna", *TINY, "hydra.sweeper.n_trials=3", cwd=tmp_path)
    assert len(list(tmp_path.rglob("results.json"))) == 3
    assert said.count("trained 54 samples") == 3 and "best of 3 runs" in said
    (found,) = tmp_path.rglob("optimization_results.yaml")
    assert OmegaConf.load(found).best_params.keys() == {"F", "tau"}


@pytest.mark.slow
def test_the_grid_of_methods_and_seeds_runs(tmp_path):
    program("kakurenbo_recipes.train", "sweep=methods", *TINY, "method=baseline,random", "seed=3", cwd=tmp_path)
    results = [json.loads(path.read_text())[0]["method"] for path in sorted(tmp_path.rglob("results.json"))]
    assert results == ["baseline", "random"]


def composed(*overrides):
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("train", overrides=list(overrides), return_hydra_config=True)


def test_methods_and_seeds_are_a_grid():
    sweep = composed("sweep=methods").hydra
    assert sweep.sweeper.params == {"method": "baseline,kakurenbo,random", "seed": "0,1,2"} and sweep.mode.name == "MULTIRUN"


@pytest.mark.parametrize("data", sorted(path.stem for path in Path(config_dir(), "data").glob("*.yaml")))
def test_held_out_images_choose_with_any_data(data):
    assert composed("sweep=optuna", f"data={data}").data.held_out == 0.1


def test_held_out_images_choose_unless_the_data_has_none():
    assert "held_out" not in composed("sweep=optuna", "~data.held_out").data


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
    settings = {name: launcher[name] for name in known} | {
        "ntasks_per_node": launcher["tasks_per_node"],
        "time": launcher["timeout_min"],
    }
    script = _make_sbatch_string(command="run", folder="logs", **settings)
    for line in (
        "--ntasks-per-node=4",
        "--nodes=1",
        "--gpus-per-node=4",
        "--cpus-per-task=8",
        "--time=1440",
        "--signal=USR2@120",
    ):
        assert f"#SBATCH {line}" in script
    assert "\nexport KAKURENBO_STARTED=today/now\n" in script


@pytest.mark.slow
def test_each_run_is_a_process_of_its_own_under_submitit(tmp_path):
    program("kakurenbo_recipes.train", "launcher=submitit_local", *TINY, "seed=0,1", cwd=tmp_path)
    assert sorted(path.parent.name for path in tmp_path.rglob("results.json")) == ["0", "1"]
    assert len({path.name.split("_")[0] for path in tmp_path.rglob("*_result.pkl")}) == 2


@pytest.mark.slow
def test_two_machines_train_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": PATHS, "PYTHON": sys.executable}
    known |= {"RUN": "first", "NODES": "2", "GPUS": "1", "MAIN": "127.0.0.1", "PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    script = REPOSITORY / "recipes" / "examples" / "torchrun.sh"
    machines = [
        subprocess.Popen(
            ["bash", script, *TINY, "F=0.3", "data.subset=65"],
            cwd=tmp_path,
            env={**known, "NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
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
