"""Which trainings a comparison is made of, and the folder that keeps them."""

import io
import json
import multiprocessing
import re
import time
from collections import Counter

import pytest
from filelock import FileLock

from kakurenbo_lightning.arena import runs
from kakurenbo_lightning.arena.compare import _with_bar
from kakurenbo_lightning.arena.runs import Comparison, Entry, Folder

ENTRIES = [Entry("kakurenbo", {"max_fraction": 0.3}), Entry("kakurenbo", {"max_fraction": 0.5}), Entry("infobatch")]
COST = {"baseline": 10.0, "random": 7.0, "kakurenbo": 8.0, "infobatch": 8.0}


def made(training):
    """A row as a training would make it: every method but the baseline leaves out 30 %."""
    method = training.entry.method
    share = 1.0 if method == "baseline" else 0.7
    cost = COST[method] * training.epochs / 10
    return {"score": 0.5, "cost": cost, "samples_trained": share * 1000 * training.epochs / 10, "seed": training.seed}


def test_controls_leave_out_as_much_and_take_as_long():
    comparison = Comparison(ENTRIES, [4], 10)
    alike, equal = comparison.controls(
        {"samples_trained": 826, "cost": 7.6, "seed": 4}, {"samples_trained": 1000, "cost": 10.0, "seed": 4}
    )
    assert alike.name == "random-max_fraction=0.17-epochs=10-seed=4"
    assert equal.name == "baseline-epochs=8-seed=4"


def test_a_method_that_trains_everything_has_the_baseline_as_its_control():
    comparison = Comparison(ENTRIES, [0], 10)
    alike, equal = comparison.controls(
        {"samples_trained": 1200, "cost": 30.0, "seed": 0}, {"samples_trained": 1000, "cost": 10.0, "seed": 0}
    )
    assert alike == comparison.baseline(0)
    assert equal.epochs == 30


def test_a_method_that_trains_next_to_nothing_has_a_control_too():
    comparison = Comparison(ENTRIES, [0], 10)
    alike, _ = comparison.controls(
        {"samples_trained": 1, "cost": 1.0, "seed": 0}, {"samples_trained": 1000, "cost": 10.0, "seed": 0}
    )
    assert alike.entry.settings == {"max_fraction": 0.99}


def test_a_seed_or_a_method_that_is_named_twice_counts_once():
    comparison = Comparison([*ENTRIES, ENTRIES[0]], [0, 1, 0], 10)
    assert comparison.seeds == (0, 1) and comparison.entries == tuple(ENTRIES)


@pytest.mark.parametrize(
    ("seeds", "epochs", "said"),
    [
        ([], 10, r"seeds=\[\] is not allowed; they must be one or more ints from 0 to 4294967295"),
        ([-1], 10, r"seeds=\[-1\] is not allowed"),
        (["a"], 10, r"seeds=\['a'\] is not allowed"),
        ([0], 0, "max_epochs=0 is not allowed; trainings are compared after whole epochs: an int >= 1"),
        ([0], -1, "max_epochs=-1 is not allowed"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(seeds, epochs, said):
    with pytest.raises(ValueError, match=said):
        Comparison(ENTRIES, seeds, epochs)


def test_a_setting_without_a_name_is_a_sentence():
    with pytest.raises(ValueError, match=r"kakurenbo:0\.5 cannot be read as METHOD:SETTING=VALUE.*: 0\.5 is no setting's name"):
        Entry.of("kakurenbo:0.5")


@pytest.mark.parametrize("text", ["", "[]", "3", '{"score": 0.5}'])
def test_a_file_that_is_no_row_is_named(tmp_path, text):
    folder = Folder(tmp_path, {})
    (tmp_path / "notes-seed=3.json").write_text(text)
    with pytest.raises(ValueError, match=r"notes-seed=3\.json does not hold the result of a training \(.+\)\. Remove it"):
        folder.rows()
    with pytest.raises(ValueError, match=r"notes-seed=3\.json is a file\. Name a folder\."):
        Folder(tmp_path / "notes-seed=3.json", {})


def test_names_of_files_differ_and_fit():
    lists = [list(range(200)), list(range(1, 201)), [1, 12], [11, 2]]
    names = {Comparison([], [0], 10).of(Entry("kakurenbo", {"protected": each}), 0).name for each in lists}
    assert len(names) == 4
    assert all(len(name) < 200 for name in names)


def test_each_training_is_done_once_and_methods_share_controls(tmp_path):
    comparison, done = Comparison(ENTRIES, range(2), 10), []

    def run(training):
        done.append(training.name)
        return made(training)

    rows = Folder(tmp_path, {"epochs": 10}).train(comparison, run)
    per_seed = {"baseline epochs=10", "baseline epochs=8", "random max_fraction=0.3", *(entry.name for entry in ENTRIES)}
    assert len(done) == len(set(done)) == len(rows) == 2 * len(per_seed)
    assert [name[-1] for name in done[:4]] == ["0", "0", "0", "0"]  # a seed is whole before the next one, as far as it can be
    Folder(tmp_path, {"epochs": 10}).train(comparison, pytest.fail)


def counts_of(text):
    """Trainings done and in all, as a bar showed them one after the other, each once."""
    return list(dict.fromkeys((int(done), int(total)) for done, total in re.findall(r"(\d+)/(\d+) ", text.getvalue())))


def shown(folder, comparison):
    text, done = io.StringIO(), []

    def run(training):
        done.append(training.name)
        return made(training)

    _with_bar(folder, comparison, run, {"unit": " training", "file": text, "mininterval": 0})
    return counts_of(text), done


def test_a_bar_has_a_total_that_ends_at_what_was_trained(tmp_path):
    counts, done = shown(Folder(tmp_path, {"epochs": 10}), Comparison(ENTRIES, range(2), 10))
    totals = [total for _, total in counts]
    assert totals == sorted(totals, reverse=True) and totals[0] == 2 * (1 + 3 * len(ENTRIES))
    assert counts[0][0] == 0 and counts[-1] == (len(done), len(done)) == (12, 12)


def test_a_bar_counts_only_what_the_call_trains_where_the_folder_has_more(tmp_path):
    """Trainings of another method are there, and the baselines that both share."""
    folder = Folder(tmp_path, {"epochs": 10})
    folder.train(Comparison(ENTRIES[2:], range(3), 10), made)
    counts, done = shown(folder, Comparison(ENTRIES[:1], range(3), 10))
    assert done == [f"kakurenbo-max_fraction=0.3-epochs=10-seed={seed}" for seed in range(3)]
    assert counts[0] == (0, 9) and counts[-1] == (3, 3), "until a method has trained, two controls may be needed of each"
    assert shown(folder, Comparison(ENTRIES[:1], range(3), 10)) == ([], [])


def test_an_interrupted_training_is_done_again(tmp_path):
    comparison = Comparison(ENTRIES[:1], [0], 10)

    def broken(training):
        if training.entry.method == "kakurenbo":
            raise KeyboardInterrupt
        return made(training)

    with pytest.raises(KeyboardInterrupt):
        Folder(tmp_path, {}).train(comparison, broken)
    assert list(Folder(tmp_path, {}).rows()) == ["baseline-epochs=10-seed=0"]
    assert len(Folder(tmp_path, {}).train(comparison, made)) == 4


def test_nothing_begins_after_the_end(tmp_path):
    assert Folder(tmp_path, {}).train(Comparison(ENTRIES, [0], 10), pytest.fail, until=time.monotonic() - 1) == {}


def test_another_comparison_is_refused(tmp_path):
    Folder(tmp_path, {"epochs": 10, "network": "small"})
    with pytest.raises(
        ValueError, match=r"folder=.* cannot be compared with these: epochs=15 \(there: 10\)\. Name another folder"
    ):
        Folder(tmp_path, {"epochs": 15, "network": "small"})


def test_a_bad_setting_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match=r"kakurenbo: max_fraction=1\.5 is not allowed"):
        Entry("kakurenbo", {"max_fraction": 1.5})


def _noted(training):
    with (training_log := _noted.folder / "log").open("a") as file:
        file.write(f"{training.name}\n")
    assert training_log.exists()
    return made(training)


def _share_of(folder, barrier):
    _noted.folder = folder
    runs.PATIENCE = 0.1  # this process is the test's own
    barrier.wait()
    Folder(folder, {}).train(Comparison(ENTRIES, range(3), 10), _noted)


def test_several_processes_train_each_training_once(tmp_path, monkeypatch):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_share_of, args=(tmp_path, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    done = Counter((tmp_path / "log").read_text().split("\n")[:-1])
    assert len(done) == 3 * 6
    assert set(done.values()) == {1}
    assert all(json.loads(path.read_text())["score"] == 0.5 for path in tmp_path.glob("*seed=*.json"))


def test_rows_of_another_folder_count_unless_they_are_there(tmp_path):
    comparison, common = Comparison(ENTRIES[:1], [0], 10), {"samples": 1000}
    there = Folder(tmp_path / "there", common)
    rows = there.train(comparison, made)
    here = Folder(tmp_path / "here", common)
    own = here.train(Comparison([], [0], 10), lambda training: made(training) | {"score": 0.25})
    here.take(rows.values(), common)
    assert here.rows() == rows | own and len(rows) == 4
    assert not list(comparison.missing(here.rows()))
    busy = "kakurenbo-max_fraction=0.3-epochs=10-seed=0"
    (tmp_path / "here" / f"{busy}.json").unlink()
    with FileLock(tmp_path / "here" / f"{busy}.lock"):
        here.take(rows.values(), common)
        assert busy not in here.rows(), "another process trains it"
    with pytest.raises(ValueError, match="samples=500 "):
        here.take(rows.values(), {"samples": 500})
