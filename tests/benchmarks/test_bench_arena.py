"""The arena: every method beside its two controls, in a folder that a killed command goes on in."""

import json

import pytest
import torch
from bench_helpers import tiny_cifar
from kakurenbo_recipes.arena_sweep import NEED_MORE

from kakurenbo_lightning import available_methods
from kakurenbo_lightning.arena.runs import Entry
from recipes.benchmarks import arena, tasks

SHADES = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


def words(folder, **options):
    """A command line on sixteen images."""
    if not (folder / "train.parquet").exists():
        tiny_cifar(folder, colours=SHADES)
    given = {"samples": 16, "batch-size": 4, "seeds": 1, "epochs": 3, **options}
    places = [f"--data-root={folder}", f"--json={folder / 'result.json'}", f"--folder={folder / 'arena'}"]
    return [*places, *(f"--{name}={value}" for name, value in given.items()), "--methods", "random:max_fraction=0.5"]


def test_a_killed_arena_goes_on_and_gives_the_same_accuracies(tmp_path, capsys):
    first = arena.main(words(tmp_path))
    files = {path: path.read_text() for path in (tmp_path / "arena").glob("*seed=*.json")}
    assert [one.name for one in first] == ["baseline", "random max_fraction=0.5"]
    assert first[1].trained.values == (0.5,)
    lost = next(path for path in files if path.name.startswith("random"))
    lost.unlink()
    again = arena.main(words(tmp_path))
    assert json.loads(lost.read_text())["score"] == json.loads(files[lost])["score"]
    assert [one.score for one in again] == [one.score for one in first]
    kept = {path: path.read_text() for path in files if path != lost}
    assert kept == {path: text for path, text in files.items() if path != lost}
    written = json.loads((tmp_path / "result.json").read_text())
    assert {row["method"] for row in written["rows"]} == {"baseline", "random"}
    assert written["standings"][0]["gain"] == {"mean": None, "std": None, "interval": [None, None]}  # NaN is no JSON
    elsewhere = [f"--rows={tmp_path / 'result.json'}", f"--folder={tmp_path / 'elsewhere'}", f"--plot={tmp_path / 'arena.png'}"]
    assert [one.score for one in arena.main([*words(tmp_path), *elsewhere, "--table"])] == [one.score for one in first]
    assert (tmp_path / "arena.png").is_file() and (tmp_path / "arena-dark.png").is_file()
    assert "random max_fraction=0.5" in capsys.readouterr().out


def test_the_table_of_an_unfinished_arena_says_so(tmp_path, capsys):
    found = arena.main([*words(tmp_path), "--table"])
    assert [one.score.values for one in found] == [(), ()]
    assert "2 trainings or more are missing: run the command again" in capsys.readouterr().out


def test_methods_are_read_with_their_settings():
    assert arena.entry("kakurenbo:max_fraction=0.5,fractions=[1.0],milestones=[]") == Entry(
        "kakurenbo", {"max_fraction": 0.5, "fractions": [1.0], "milestones": []}
    )
    for name, texts in arena.SETS.items():
        assert all(arena.entry(text).method for text in texts), name


def test_the_wide_set_is_every_method_that_runs_by_its_name_alone():
    methods = {arena.entry(text).method for text in arena.SETS["wide"]}
    assert methods == set(available_methods()) - {"baseline", "random"} - set(NEED_MORE)  # both are controls


@pytest.mark.parametrize(
    ("text", "said"), [("kakurenbo:max_fraction=2", "max_fraction=2 is not allowed"), ("kakurenbos", "kakurenbos")]
)
def test_a_bad_method_is_refused_by_the_parser(tmp_path, capsys, text, said):
    with pytest.raises(SystemExit):
        arena.main([*words(tmp_path), "--methods", text])
    assert said in capsys.readouterr().err


def test_text_is_tested_on_whole_files(tmp_path):
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    for number, letter in enumerate(alphabet):
        (tmp_path / f"{number}.py").write_text(f"  {letter * 100}\n\n" * 7)
    made = list(tasks.pieces(tmp_path))
    letters = [
        {chr(byte) for tested, piece in made if tested is part for byte in piece.tolist()} - {"\n"} for part in (False, True)
    ]
    assert letters[0] | letters[1] == set(alphabet) and not letters[0] & letters[1] and 2 <= len(letters[1]) <= 9
    assert all(piece.dtype == torch.int64 and len(piece) == tasks.LENGTH for _, piece in made)
    assert len(made) == 26 * 5  # 706 bytes without indents


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text", "fractals"])
def test_an_arena_of_a_task_without_files(tmp_path, task):
    given = [
        "--samples=200",
        "--batch-size=50",
        "--epochs=2",
        "--seeds=1",
        "--network=narrow",
        "--methods",
        "random:max_fraction=0.5",
    ]
    found = arena.main([f"--task={task}", f"--folder={tmp_path}", f"--json={tmp_path / 'result.json'}", *given])
    assert [one.trained.values for one in found] == [(1.0,), (0.5,)]
    assert all(0 <= one.score.values[0] <= 1 for one in found)


def test_cifar10_needs_its_files(capsys):
    with pytest.raises(SystemExit, match="--data-root is missing"):
        arena.main(["--methods", "random"])


def test_more_fractals_than_can_be_made_are_refused_before_any_is_made(tmp_path):
    with pytest.raises(SystemExit, match=r"--samples 50000 is not possible: of ten kinds there are at most 8,333 fractals"):
        arena.main(["--task=fractals", "--samples=50000", f"--folder={tmp_path}", "--methods", "random"])
    assert not list(tmp_path.rglob("*.npy"))
    settings = tasks.TASKS["fractals"].defaults
    assert settings["samples"] * 6 / 5 <= 10 * tasks.MOST_FRACTALS
