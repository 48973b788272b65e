"""Chosen samples that wait when a run is cut wait in the run that goes on, on however many ranks: none is lost, none trained twice."""

import functools
from collections import Counter

import pytest
import torch
from backprop_tester import waiting
from cuts import SaveAt, on_ranks
from method_tester import short_run

from kakurenbo_lightning import get_method
from recipes.benchmarks.fault_run import SAMPLES

EPOCH = 1  # in which runs are cut
METHODS = {
    "train": get_method("selective_backprop", history=93),
    "carry": get_method("selective_backprop", history=93, leftover="carry"),
    "katharopoulos": short_run("katharopoulos"),
}
LOADED = {1: 12, 2: 6}  # batches of an epoch, without the extra one


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """``before(name, ranks)``: the results of a run and its folder of checkpoints after each batch of :data:`EPOCH`; made once."""

    @functools.cache
    def get(name, ranks):
        folder = tmp_path_factory.mktemp(name)
        batches = range(LOADED[ranks] + METHODS[name].ends_short)
        saves = tuple(SaveAt(folder / f"{batch}.ckpt", "on_train_batch_end", EPOCH, batch) for batch in batches)
        return folder, on_ranks(folder, METHODS[name], ranks, epochs=3, callbacks=saves)

    return get


def trained(results, epoch, last=None):
    """The indices that the steps of all ranks trained in ``epoch``, up to batch ``last``."""
    steps = [batch for rank in results for n, batch in rank["trained"].get(epoch, {}).items() if last is None or n <= last]
    return torch.cat([torch.arange(0), *steps]).tolist()


def driven(path):
    """What the engine of each rank saved."""
    return torch.load(path, weights_only=True)["callbacks"]["SampleSelection"]["engines"]


def pooled(path):
    """The indices that wait, rank after rank."""
    return torch.cat([torch.arange(0), *(part["indices"] for rank in driven(path) for part in rank["pool"])]).tolist()


def undecided(path):
    """The indices that were looked at and are not chosen from yet."""
    parts = [part["samples"]["indices"] for rank in driven(path) for part in rank["candidates"]]
    return torch.cat([torch.arange(0), *parts]).tolist()


def assert_counts_add_up(counts, scored=SAMPLES):
    counts = {name.removeprefix("selection/"): value for name, value in counts.items()}
    assert counts["scored"] == scored
    assert counts["scored"] + counts["carried"] == counts["chosen_trained"] + counts["rejected"] + counts["pooled"]
    assert min(counts["rejected"], counts["pooled"]) >= 0


CUTS = [
    *((name, 2, 1, batch) for name in ("train", "carry") for batch in (2, 4, 5)),
    ("train", 2, 1, 6),
    *((name, 1, 2, batch) for name in ("train", "carry") for batch in (4, 8, 11)),
    ("train", 1, 2, 12),
]


@pytest.mark.slow_cases("5", "6", "8", "11", "12", "carry")
@pytest.mark.parametrize(("name", "old", "new", "cut"), CUTS, ids=str)
def test_waiting_samples_are_trained_by_other_ranks(before, tmp_path, name, old, new, cut):
    folder, first = before(name, old)
    path = folder / f"{cut}.ckpt"
    done, waits = trained(first, EPOCH, cut), pooled(path)
    assert len(set(waits)) == len(waits) and (waits or cut >= LOADED[old])
    end = SaveAt(tmp_path / "end.ckpt", "on_train_epoch_start", EPOCH + 1)
    after = on_ranks(tmp_path, METHODS[name], new, epochs=3, resume=path, callbacks=(end,))
    rest, left = trained(after, EPOCH), pooled(end.path)
    assert set(waits) <= set(rest + left), "none is lost"
    assert max(Counter(done + rest + left).values()) == 1, "none is trained twice"
    counts = after[0]["logged"][EPOCH]
    assert_counts_add_up(counts)
    assert counts["selection/chosen_trained"] == counts["selection/trained"] == len(done) + len(rest)
    assert counts["selection/pooled"] == len(left)
    assert_counts_add_up(after[0]["logged"][EPOCH + 1])
    assert after[0]["logged"][EPOCH + 1]["selection/carried"] == len(left)
    assert all(rank["logged"] == after[0]["logged"] or not rank["logged"] for rank in after)


@pytest.mark.slow_cases("0", "10", "3")
@pytest.mark.parametrize(("old", "new", "cut"), [(2, 1, 0), (2, 1, 1), (2, 1, 3), (1, 2, 0), (1, 2, 4), (1, 2, 10)], ids=str)
def test_candidates_are_chosen_from_by_other_ranks(before, tmp_path, old, new, cut):
    folder, first = before("katharopoulos", old)
    path = folder / f"{cut}.ckpt"
    assert len(undecided(path)) == len(set(undecided(path))) == (cut % 3 + 1) % 3 * 8 * old
    after = on_ranks(tmp_path, METHODS["katharopoulos"], new, epochs=3, resume=path)
    counts = after[0]["logged"][EPOCH]
    assert_counts_add_up(counts)
    assert counts["selection/pooled"] == 0
    assert counts["selection/trained"] == len(trained(first, EPOCH, cut)) + len(trained(after, EPOCH))
    assert_counts_add_up(after[0]["logged"][EPOCH + 1])


def test_runs_are_cut_while_both_ranks_wait(before):
    """Else the tests above show less."""
    folder, _ = before("train", 2)
    state = torch.load(folder / "2.ckpt", weights_only=True)["callbacks"]["SampleSelection"]
    assert min(waiting(state)) > 0
