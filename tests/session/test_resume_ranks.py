"""Runs of several real ranks, cut and resumed: on as many ranks exactly, on another number with nothing lost or done twice."""

import functools
import itertools

import pytest
import torch
from backprop_tester import ROWS
from cuts import SaveAt, on_ranks
from helpers import ONE_OF_A_KIND
from method_tester import LATE, assert_exercised, short_run

from kakurenbo_lightning import EpochPlan, available_methods
from kakurenbo_lightning.session.checkpoint import from_state
from recipes.benchmarks.fault_run import SAMPLES, differences, equal

LAST = -1


# the epoch, and the batch that was the last
CUTS = {"mid-epoch": (1, 1), "later": (1, 3), "last-batch": (1, LAST), "after-restart": (2, 1)}
STATIC = [name for name in available_methods() if short_run(name).scoring_epochs(4)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """``whole(method)``: a run on two ranks that nothing interrupted, and the folder of its checkpoints; made once."""

    @functools.cache
    def get(method):
        folder = tmp_path_factory.mktemp(method)
        saves = tuple(SaveAt(folder / f"{cut}.ckpt", "on_train_batch_end", *at) for cut, at in CUTS.items())
        end = SaveAt(folder / "end.ckpt", "on_train_epoch_end", 0)
        return folder, on_ranks(folder, short_run(method, SAMPLES), 2, callbacks=(*saves, end))

    return get


def saved(path):
    """What the selection saved."""
    return torch.load(path, weights_only=True)["callbacks"]["SampleSelection"]


def plan_in(path):
    """The plan that a checkpoint holds."""
    plan = from_state(saved(path)).epoch.plan
    return plan if isinstance(plan, EpochPlan) else EpochPlan.everything(SAMPLES)  # any sample may be drawn


@pytest.mark.quick(*ONE_OF_A_KIND)
@pytest.mark.slow_cases("forget", "last")  # forget is cut after its restart below
@pytest.mark.parametrize("method", available_methods())
@pytest.mark.parametrize("cut", ["mid-epoch", "last-batch"])
def test_two_ranks_cut_and_resumed_equal_uncut(whole, tmp_path, method, cut):
    """Static methods are cut before their restart, and at it."""
    assert short_run(method).scoring_epochs(4) == (2 if method in STATIC else 0)
    assert_resumed_equals_uncut(whole, tmp_path, method, cut, hides=method not in (*STATIC, *LATE))


@pytest.mark.slow
@pytest.mark.parametrize("method", LATE)
def test_two_ranks_cut_where_a_late_method_hides_and_resumed_equal_uncut(tmp_path, method):
    save = SaveAt(tmp_path / "late.ckpt", "on_train_batch_end", 5, 1)
    expected = on_ranks(tmp_path / "whole", short_run(method, SAMPLES), 2, epochs=7, callbacks=(save,))
    assert_exercised(method, [plan_in(save.path)], [expected[0]["logged"][5]])
    resumed = on_ranks(tmp_path, short_run(method, SAMPLES), 2, epochs=7, seed=99, resume=save.path)
    assert [differences(expected[rank], resumed[rank]) for rank in (0, 1)] == [[], []]


@pytest.mark.slow_cases("el2n")
@pytest.mark.parametrize("method", [*STATIC, "stale_sb"])
def test_two_ranks_cut_after_a_restart_or_stale_epoch_and_resumed_equal_uncut(whole, tmp_path, method):
    assert_resumed_equals_uncut(whole, tmp_path, method, "after-restart")


@pytest.mark.quick("selective_backprop", "rho_loss")
@pytest.mark.parametrize("method", ROWS)
def test_two_ranks_that_look_look_with_what_the_checkpoint_holds(whole, tmp_path, method):
    """Ranks that looked with BatchNorm statistics of their own would go on with those of rank 0."""
    assert_resumed_equals_uncut(whole, tmp_path, method, "later")


def assert_resumed_equals_uncut(whole, tmp_path, method, cut, hides=True):
    folder, expected = whole(method)
    path, (epoch, batch) = folder / f"{cut}.ckpt", CUTS[cut]
    if hides:
        assert_exercised(method, [plan_in(path)], [expected[0]["logged"][epoch]])
    resumed = on_ranks(tmp_path, short_run(method, SAMPLES), 2, seed=99, resume=path)
    for rank in (0, 1):
        assert differences(expected[rank], resumed[rank]) == []
    left = 0 if batch == LAST else len(expected[0]["batches"][epoch]) - 1 - batch
    assert len(resumed[0]["batches"].get(epoch, ())) == left


def trained(results, epoch, batches=slice(None)):
    """The indices that all ranks trained in ``epoch``, in no order."""
    mine = [[batch for _, batch in sorted(rank["batches"].get(epoch, {}).items())][batches] for rank in results]
    return torch.cat([torch.arange(0), *(batch for rank in mine for batch in rank)]).tolist()


def kept(results, epoch):
    """The indices that the plan of ``epoch`` trains; it is the same on every rank."""
    assert all(equal(rank["plans"][epoch], results[0]["plans"][epoch]) for rank in results)
    hidden = results[0]["plans"][epoch]["hidden"].tolist()
    return sorted(set(range(SAMPLES)) - set(hidden))


def end_of_schedule(results):
    """Where OneCycle stands: it was made for the steps of the ranks that began, and must end with the run."""
    (schedule,) = results[0]["schedules"]
    return schedule["last_epoch"], schedule["total_steps"]


def assert_every_kept_sample_is_trained_once(results, epochs):
    for epoch in epochs:
        assert sorted(trained(results, epoch)) == kept(results, epoch)


@pytest.mark.quick("kakurenbo")
@pytest.mark.parametrize("method", ["kakurenbo", "random"])
def test_two_ranks_become_three_become_one_between_epochs(whole, tmp_path, method):
    folder, on_two = whole(method)
    end = SaveAt(tmp_path / "end.ckpt", "on_train_epoch_end", 1)
    on_three = on_ranks(tmp_path, short_run(method), 3, resume=folder / "end.ckpt", callbacks=(end,))
    assert equal(on_three[0]["plans"][1], on_two[0]["plans"][1]), "what is chosen does not depend on the ranks"
    assert len(on_three[0]["batches"][1]) < len(on_two[0]["batches"][1])
    (on_one,) = on_ranks(tmp_path, short_run(method), 1, resume=end.path, batch_size=5)
    for results, epochs in ((on_three, (1, 2, 3)), ([on_one], (2, 3))):
        assert sorted(results[0]["batches"]) == list(epochs)
        assert_every_kept_sample_is_trained_once(results, epochs)
        assert any(len(results[0]["plans"][epoch]["hidden"]) > 5 for epoch in epochs)
    assert end_of_schedule([on_one]) == end_of_schedule(on_three) == end_of_schedule(on_two)
    totals = on_one["totals"]
    assert totals["samples_trained"] + totals["samples_hidden"] == 4 * SAMPLES
    assert totals["samples_trained"] == len(kept(on_two, 0)) + len(kept(on_three, 1)) + sum(
        len(kept([on_one], e)) for e in (2, 3)
    )


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 8), (3, 8), (1, 3)])
def test_other_ranks_within_an_epoch_train_what_is_left(whole, tmp_path, ranks, batch_size):
    folder, before = whole("kakurenbo")
    after = on_ranks(tmp_path, short_run("kakurenbo"), ranks, resume=folder / "mid-epoch.ckpt", batch_size=batch_size)
    done, rest = trained(before, 1, slice(2)), trained(after, 1)
    assert len(done) == 2 * 2 * 8 and rest
    assert sorted(done + rest) == kept(before, 1) == kept(after, 1)
    assert min(after[0]["batches"][1]) == 2, "batches are counted on"
    assert end_of_schedule(after) == end_of_schedule(before)
    assert_every_kept_sample_is_trained_once(after, (2, 3))
    assert after[0]["totals"]["samples_trained"] + after[0]["totals"]["samples_hidden"] == 4 * SAMPLES


def test_one_rank_becomes_two_becomes_three_within_one_epoch(tmp_path):
    first, second = (SaveAt(tmp_path / f"{batch}.ckpt", "on_train_batch_end", 1, batch) for batch in (0, 1))
    on_one = on_ranks(tmp_path, "random", 1, callbacks=(first,))
    on_two = on_ranks(tmp_path, "random", 2, resume=first.path, callbacks=(second,))
    on_three = on_ranks(tmp_path, "random", 3, resume=second.path)
    parts = trained(on_one, 1, slice(1)), trained(on_two, 1, slice(1)), trained(on_three, 1)
    assert [len(part) for part in parts[:2]] == [8, 16]
    assert sorted(itertools.chain(*parts)) == kept(on_three, 1) == kept(on_one, 1)
    assert_every_kept_sample_is_trained_once(on_three, (2, 3))
    assert on_three[0]["totals"]["samples_trained"] + on_three[0]["totals"]["samples_hidden"] == 4 * SAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("method", STATIC)
def test_a_schedule_over_two_three_one_and_two_ranks_ends_where_it_should(whole, tmp_path, method):
    """Of a training that starts again; the schedule once took 63 of its 62 steps."""
    _, expected = whole(method)
    cuts = [SaveAt(tmp_path / f"{number}.ckpt", "on_train_batch_end", *at) for number, at in enumerate([(0, 2), (2, 1), (3, 3)])]
    on_ranks(tmp_path, short_run(method), 2, callbacks=(cuts[0],))
    on_ranks(tmp_path, short_run(method), 3, resume=cuts[0].path, callbacks=(cuts[1],))
    on_ranks(tmp_path, short_run(method), 1, resume=cuts[1].path, callbacks=(cuts[2],))
    after = on_ranks(tmp_path, short_run(method), 2, resume=cuts[2].path)
    last, steps = end_of_schedule(after)
    assert (last, steps) == end_of_schedule(expected)
    assert last == steps
