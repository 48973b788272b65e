"""Features used together: a run that is cut equals the uncut one, and on other ranks nothing is lost, done twice or goes past its end."""

from dataclasses import replace

import pytest
import torch
from combined import COMBINATIONS, differing, on_ranks, train
from cuts import SaveAt

from recipes.benchmarks.fault_run import SAMPLES, equal

LAST = -1
CUTS = {"early": (1, 2), "last batch": (2, LAST), "guarded": (3, 1), "after it": (4, 1), "last epoch": (5, 0)}
SHARDED = {
    name: use for name, use in COMBINATIONS.items() if not use.scorer and use.method != "weighted"
}  # each epoch is a fixed set


def saves(folder, cuts=CUTS):
    return tuple(SaveAt(folder / f"{cut}.ckpt", "on_train_batch_end", *at) for cut, at in cuts.items())


def assert_resumes_exactly(folder, use, cuts):
    callbacks = saves(folder, cuts)
    whole = train(folder, use, callbacks=callbacks)
    for save in callbacks:
        assert differing(whole, train(folder, use, resume=save.path, seed=9)) == [], save.path.stem
    return whole


def test_save_guard_and_balance_together_resume_exactly(tmp_path):
    whole = assert_resumes_exactly(tmp_path, "kakurenbo save guard rcap", {"guarded": CUTS["guarded"]})
    assert [len(whole["plans"][epoch]["hidden"]) > 0 for epoch in range(6)] == [False, True, True, False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("nan", [False, True], ids=["finite", "one loss is NaN"])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_cut_and_resumed_equals_uncut(tmp_path, name, nan):
    assert_resumes_exactly(tmp_path, replace(COMBINATIONS[name], nan=nan), CUTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINATIONS)
def test_two_ranks_cut_and_resumed_equal_uncut(tmp_path, name):
    callbacks = saves(tmp_path, {cut: CUTS[cut] for cut in ("early", "last batch", "guarded")})
    whole = on_ranks(tmp_path, name, 2, callbacks=callbacks)
    for save in callbacks:
        resumed = on_ranks(tmp_path / "resumed", name, 2, resume=save.path, seed=9)
        assert [differing(whole[rank], resumed[rank]) for rank in (0, 1)] == [[], []], save.path.stem


def trained(results, epoch, last=None):
    """The indices that all ranks trained in ``epoch``, up to batch ``last``."""
    steps = [batch for rank in results for n, batch in rank["trained"].get(epoch, {}).items() if last is None or n <= last]
    return torch.cat([torch.arange(0), *steps]).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["early", "guarded"])
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_other_ranks_go_on_and_those_after_them(tmp_path, name, first, then, cut):
    epoch, batch = CUTS[cut]
    save, again = SaveAt(tmp_path / "cut.ckpt", "on_train_batch_end", epoch, batch), (epoch, batch + 2)
    before = on_ranks(tmp_path / "a", name, first, callbacks=(save,))
    second = SaveAt(tmp_path / "again.ckpt", "on_train_batch_end", *again)
    other = on_ranks(tmp_path / "b", name, then, resume=save.path, callbacks=(second,), seed=9)
    back = on_ranks(tmp_path / "c", name, first, resume=second.path, seed=8) if second.path.exists() else other
    for results in (other, back):
        for rank in results[1:]:
            assert all(equal(rank[part], results[0][part]) for part in ("plans", "statistics", "control", "schedules"))
        ends = [(each["last_epoch"], each["total_steps"]) for each in results[0]["schedules"]] + results[0]["scorer_schedules"]
        assert all(last == total for last, total in ends)
    if name in SHARDED:
        done = trained(before, epoch, batch) + trained(other, epoch, batch + 2 if back is not other else None)
        done += trained(back, epoch) if back is not other else []
        assert sorted(done) == sorted(set(range(SAMPLES)) - set(before[0]["plans"][epoch]["hidden"].tolist()))
