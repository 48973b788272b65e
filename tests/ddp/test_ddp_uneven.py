"""Counts that ranks cannot share evenly, and what else is special to one kind of run."""

from itertools import pairwise

import pytest
import torch
from fits import CODE, CodedNet, fit
from records import epochs, trained

from kakurenbo_lightning.methods import Kakurenbo


def one(name):
    return pytest.mark.parametrize("ranks", [name], indirect=True)


@one("uneven")
def test_forced_hidden_counts_leave_every_kind_of_tail(ranks):
    hidden = [len(records[0]["hidden"]) for records in epochs(ranks)]
    assert hidden == [0, 1, 2, 3, 4, 5, 6, 0, 28, 32, 35, 5]
    assert {(37 - count) % 8 for count in hidden} == {0, 1, 2, 3, 4, 5, 7}


@one("uneven")
def test_the_tail_is_dealt_evenly_and_a_small_one_shared_with_the_step_before(ranks):
    for records in epochs(ranks):
        steps = [[len(batch) for batch in step] for step in zip(*(r["trained"] for r in records), strict=True)]
        assert all(sizes == [4, 4] for sizes in steps[:-2])
        assert all(max(sizes) - min(sizes) <= 1 for sizes in steps)
        assert all(sum(sizes) >= 4 for sizes in steps) or len(steps) == 1


@one("uneven")
def test_refresh_gives_every_rank_equally_many_batches_and_sees_all_hidden(ranks):
    counts = set()
    for before, after in pairwise(epochs(ranks)):
        hidden = before[0]["hidden"]
        looked = [[look["indices"] for look in record["scored"]] for record in after]
        assert len(looked[0]) == len(looked[1]) == -(-len(hidden) // 8)
        assert [len(batch) for batch in looked[0]] == [len(batch) for batch in looked[1]]
        seen = torch.cat([hidden[:0], *looked[0], *looked[1]])
        assert torch.equal(seen.unique(), hidden)
        assert len(seen) == len(hidden) + len(hidden) % 2  # one duplicate evens an odd number out
        counts.add(len(hidden))
    assert counts == {0, 1, 2, 3, 4, 5, 6, 28, 32, 35}


@pytest.mark.parametrize("ranks", ["kakurenbo", "workers", "accumulate", "bf16"], indirect=True)
def test_refresh_sees_exactly_the_hidden(ranks):
    seen = 0
    for before, after in pairwise(epochs(ranks)):
        looked = torch.cat([torch.arange(0), *(look["indices"] for record in after for look in record["scored"])])
        assert torch.equal(looked.unique(), before[0]["hidden"])
        seen += len(looked)
    assert seen > 10


@one("drop_last")
def test_drop_last_drops_less_than_a_step(ranks):
    dropped = 0
    for records in epochs(ranks):
        assert all(len(batch) == 4 for record in records for batch in record["trained"])
        seen = trained(records)
        assert len(seen) == len(seen.unique()) == len(records[0]["planned"]) // 8 * 8
        dropped += len(records[0]["planned"]) - len(seen)
    assert dropped > 0


@one("returned")
def test_returned_values_land_in_the_rows_of_their_samples(ranks):
    for records in list(epochs(ranks))[1:]:
        for record in records:
            index = torch.arange(45)
            assert torch.equal(record["statistics"]["confidence"], index / CODE)
            assert torch.equal(record["statistics"]["correct"], index % 2 == 0)


@one("norm")  # it does not validate: validation would make the buffers equal
def test_refresh_runs_with_rank_zeros_buffers_on_all_ranks(ranks):
    for before, after in pairwise(epochs(ranks)):
        mean = "network.1.running_mean"
        assert not torch.equal(before[0]["buffers"][mean], before[1]["buffers"][mean])
        for record in after:
            assert record["scored"]
            for look in record["scored"]:
                assert all(torch.equal(look["buffers"][name], value) for name, value in before[0]["buffers"].items())


@one("accumulate")
def test_accumulation_steps_on_the_last_batch_too(ranks):
    assert ranks[0]["global_step"] == sum(-(-len(records[0]["trained"]) // 3) for records in epochs(ranks))


@one("bf16")
def test_values_are_finite_in_mixed_precision(ranks):
    for records in list(epochs(ranks))[1:]:
        assert records[0]["statistics"]["loss"].isfinite().all()


@one("sure")
def test_two_ranks_are_one_process_with_twice_the_batch(ranks):
    method = Kakurenbo(max_fraction=0.25, tau=0.5)
    alone = fit(method, CodedNet(sure=True), count=48, batch_size=8, max_epochs=5)
    assert alone["totals"]["samples_trained"] == ranks[0]["totals"]["samples_trained"] == 48 + 36 + 39 + 41 + 44
    for (record, *_), other in zip(epochs(ranks), alone["epochs"].values(), strict=True):
        assert torch.equal(record["hidden"], other["hidden"])
        assert len(record["trained"]) == len(other["trained"])
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(ranks[0]["weights"][name], weight, rtol=0, atol=1e-12)


@one("impure")
def test_ranks_that_choose_differently_all_say_so(ranks):
    for rank in ranks:
        assert "RuntimeError: impure chose differently on different ranks for epoch 1" in rank["error"]


@one("impure_rate")
def test_ranks_that_would_step_differently_all_say_so(ranks):
    for rank in ranks:
        assert "RuntimeError: impure chose differently on different ranks for epoch 1" in rank["error"]


@one("own_order")
def test_ranks_whose_samplers_list_an_epoch_differently_all_say_so(ranks):
    """Else a sample is trained by two ranks, and what they recorded of it is added up."""
    for rank in ranks:
        assert "ConflictError: the train loader's sampler lists epoch 0 in another order on other ranks" in rank["error"]


@one("too_few")
def test_fewer_samples_than_ranks_are_refused_on_all_ranks(ranks):
    for rank in ranks:
        assert "ValueError: epoch 1 has 1 samples to train for 2 ranks" in rank["error"]


@pytest.mark.parametrize("ranks", ["kakurenbo", "baseline", "uneven"], indirect=True)
def test_our_logging_does_not_warn(ranks):
    assert not [text for rank in ranks for text in rank["warnings"] if "selection/" in text]
