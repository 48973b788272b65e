"""`kakurenbo-search`: what is searched over, and a search that is killed, joined, refused or fails."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from kakurenbo_recipes import search
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from processes import environment, program

TINY = ["trainer.max_epochs=1", "data.size=8", "data.subset=64", "model.width=4", "trainer.accelerator=cpu"]


@pytest.fixture
def searching(tmp_path, monkeypatch):
    """`searching(*words, score=...)` searches in `tmp_path` with a training that returns `score(settings)`, and gives those that ran."""
    monkeypatch.chdir(tmp_path)

    def start(*words, score=lambda settings: 1 - (float(settings["x"]) - 0.3) ** 2):
        ran = []

        def train(command):
            *settings, folder = command[3:]
            ran.append(dict(setting.split("=", 1) for setting in settings))
            path = Path(folder.removeprefix("hydra.run.dir=").strip("'"))
            path.mkdir(parents=True)
            try:
                (path / "results.json").write_text(json.dumps([{"score": score(ran[-1])}]))
            except ArithmeticError:
                return SimpleNamespace(returncode=1)
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr(subprocess, "run", train)
        search.main(list(words))
        return ran

    return start


def trials():
    journal = optuna.storages.journal.JournalFileBackend("search/study.journal")
    return optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(journal)).trials


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("x=interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("x=interval(0,2)", FloatDistribution(0, 2)),
        ("x=int(interval(1,8))", IntDistribution(1, 8)),
        ("x=tag(log,interval(0.001,0.1))", FloatDistribution(0.001, 0.1, log=True)),
        ("x=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("x=range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("x=range(3,0,-1)", IntDistribution(1, 3)),
        ("x=range(0.0,1.0,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("x=kakurenbo,random", CategoricalDistribution(["kakurenbo", "random"])),
        ("x=[1,2],[3],null,'a,b'", CategoricalDistribution(["[1,2]", "[3]", "null", "'a,b'"])),
    ],
)
def test_a_sweep_in_hydras_words_is_a_distribution_of_optuna(words, expected):
    assert search.search_space([words]) == ({"x": expected}, {})


def test_other_settings_stay_as_they_are_and_the_last_of_a_name_counts():
    words = [
        "F=interval(0.1,0.5)",
        "tau=0.5",
        "data.root='a b'",
        "data.held_out=0.1",
        "~data.held_out",
        "+x=1",
        "F=0.3",
        "+y=1,2",
    ]
    space, fixed = search.search_space([*words, "tau=0.1,0.9"])
    assert space == {"+y": CategoricalDistribution(["1", "2"]), "tau": CategoricalDistribution(["0.1", "0.9"])}
    assert list(fixed.values()) == ["data.root='a b'", "~data.held_out", "+x=1", "F=0.3"]


@pytest.mark.parametrize("words", ["x=interval(2,1)", "x=interval(1,1)", "x=tag(log,interval(0,1))", "x=range(2,1)", "x=0.1"])
def test_a_space_without_values_is_named(searching, words, capsys):
    with pytest.raises(SystemExit):
        searching(words)
    assert words in capsys.readouterr().err


def test_a_search_finds_the_best_on_held_out_images_and_says_where(searching, capsys):
    ran = searching("x=interval(0,1)", "kind=choice(round,square)", "--trials=30")
    best = json.loads(Path("search/best.json").read_text())
    scores = [json.loads(Path(f"search/{number}/results.json").read_text())[0]["score"] for number in range(30)]
    assert {settings["data.held_out"] for settings in ran} == {"0.1"} and len({settings["x"] for settings in ran}) == 30
    assert abs(best["settings"]["x"] - 0.3) < 0.05 and best["score"] == max(scores)
    assert best["folder"] == f"search/{scores.index(max(scores))}" and "30 runs" in capsys.readouterr().out


def test_the_same_seed_is_the_same_search(searching):
    first, same, other = (
        searching("x=interval(0,1)", "--trials=4", *more) for more in (["--folder=a"], ["--folder=b"], ["--seed=7"])
    )
    assert first == same != other


def test_a_killed_search_goes_on_without_drawing_anything_twice(searching):
    def killed(settings):
        if Path("search/2").is_dir():
            raise KeyboardInterrupt
        return 0.5

    with pytest.raises(KeyboardInterrupt):
        searching("x=interval(0,1)", "--trials=6", score=killed)
    assert len(searching("x=interval(0,1)", "--trials=6", "data.root=elsewhere")) == 4
    ended = [trial for trial in trials() if trial.state.is_finished()]
    assert [trial.number for trial in ended] == [0, 1, 3, 4, 5, 6] and len({trial.params["x"] for trial in trials()}) == 7
    assert searching("x=interval(0,1)", "--trials=6") == [], "it has all of its runs"


def test_several_processes_search_together(searching, tmp_path, monkeypatch):
    """While the first run of one search is going on, another one does three."""
    others = []

    def score(settings):
        if not others:
            others.append(True)
            others.extend(searching("x=interval(0,1)", "--trials=3"))
        return 0.5

    ran = searching("x=interval(0,1)", "--trials=6", score=score)
    mine = [trial.params["x"] for trial in trials() if str(trial.params["x"]) in {settings["x"] for settings in ran}]
    assert len(others) == 4 and len(trials()) == 6 and len({trial.params["x"] for trial in trials()}) == 6 and len(mine) < 6


def test_processes_that_ask_at_the_same_moment_draw_different_values(searching, monkeypatch):
    seeds, sampler = [], optuna.samplers.TPESampler

    def between(seed=None, **settings):
        """Another process asks for a trial while this one is about to."""
        if seed is not None:  # not that of a study that is opened
            if not seeds:
                search.open_study(Path("search"), {"data.held_out": search.HELD_OUT}).ask()
            seeds.append(seed)
        return sampler(seed=seed, **settings)

    monkeypatch.setattr(optuna.samplers, "TPESampler", between)
    searching("x=interval(0,1)", "--trials=3")
    assert seeds == [trial.number for trial in trials() if trial.state.is_finished()]


def test_a_search_is_by_the_score_of_one_method(searching, capsys):
    assert [settings["compare"] for settings in searching("x=interval(0,1)", "--trials=1")] == ["null"]
    with pytest.raises(SystemExit):
        searching("x=interval(0,1)", "compare=[baseline,random]")
    assert (
        "search='compare=[baseline,random]' is not possible: it must be for the score of one method." in capsys.readouterr().err
    )


@pytest.mark.parametrize("score", [lambda settings: 1 / 0, lambda settings: None], ids=["error", "no score"])
def test_a_failed_run_stops_the_search_unless_some_may_fail(searching, score, capsys):
    with pytest.raises(SystemExit, match=r"run 0 .*trainer\.limit_val_batches"):
        searching("x=interval(0,1)", score=score)
    words = ["x=interval(0,1)", "--trials=5", "--failures=3"]
    assert len(searching(*words, score=lambda settings: 0.5 if Path("search/3").is_dir() else score(settings))) == 4
    assert "failed" in capsys.readouterr().out and json.loads(Path("search/best.json").read_text())["score"] == 0.5


def test_a_search_with_other_settings_is_refused(searching, capsys):
    searching("x=interval(0,1)", "--trials=1")
    with pytest.raises(SystemExit):
        searching("x=interval(0,1)", "kind=square")
    assert "--folder='search' is not possible: it must be of a search with" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_trains(tmp_path):
    printed = program("kakurenbo_recipes.search", "F=interval(0.1,0.5)", *TINY, "--trials=2", cwd=tmp_path)
    assert "2 runs" in printed
    logs = [path.read_text() for path in tmp_path.rglob("kakurenbo-train.log")]
    assert len(logs) == 2 and all(re.search(r"trained +54 samples", log) for log in logs), "ten of 64 images are held out"
    assert {path.parent.name for path in tmp_path.rglob("results.json")} == {"0", "1"}


def test_without_optuna_the_install_command_is_named(tmp_path):
    code = "import sys; sys.modules['optuna'] = None; import kakurenbo_recipes.search"
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True)
    assert 'pip install "kakurenbo-lightning[sweeps]"' in done.stderr
