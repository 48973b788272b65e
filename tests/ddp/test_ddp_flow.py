"""Iterable data on two ranks: as the same samples with an index, and an epoch that ends on every rank when one has no more."""

import pytest
from backprop_cases import EPOCHS
from records import assert_same_bits, epochs

SAME = ["flow_baseline", "flow_sb", "flow_sb_fixed", "flow_katharopoulos", "flow_rho_loss"]


@pytest.mark.slow_cases("flow_katharopoulos", "flow_sb_fixed")
@pytest.mark.parametrize("ranks", SAME, indirect=True)
def test_ranks_train_what_they_train_of_the_same_samples_with_an_index(ranks):
    for rank in ranks:
        assert_same_training(rank["flowing"], rank["indexed"])


def assert_same_training(one, other):
    assert one["global_step"] == other["global_step"]
    assert one["totals"] == other["totals"]
    assert_same_bits(one["weights"], other["weights"])
    for epoch in range(EPOCHS):
        mine, theirs = (made["epochs"][epoch] for made in (one, other))
        assert [batch.tolist() for batch in mine["trained"]] == [batch.tolist() for batch in theirs["trained"]]
        assert mine["counts"] == theirs["counts"]


@pytest.mark.parametrize("ranks", ["flow_rho_loss"], indirect=True)
def test_ranks_choose_by_a_model_what_they_choose_by_a_table_of_its_losses(ranks):
    for rank in ranks:
        assert_same_training(rank["by_table"], rank["indexed"])
        assert rank["indexed"]["totals"]["samples_rejected"] > 20


@pytest.mark.parametrize("ranks", ["flow_rho_loss"], indirect=True)
def test_a_model_that_differs_from_rank_to_rank_is_an_error_on_every_rank(ranks):
    assert all("irreducible=Small has other weights on each rank" in rank["error"] for rank in ranks)


@pytest.mark.parametrize("ranks", ["flow_uneven_baseline", "flow_uneven_sb", "flow_uneven_sized"], indirect=True)
def test_an_epoch_ends_on_every_rank_with_the_shortest_stream(ranks):
    """Of 41 and 22 samples in batches of 4 each rank trains six batches, the last one of the shorter with two samples."""
    for records in epochs(ranks):
        loaded = [[len(batch) for batch in record["loaded"]][:6] for record in records]
        assert sorted(map(sum, loaded)) == [22, 24]
        assert records[0]["steps"] == records[1]["steps"]
        assert_same_bits(records[0]["weights"], records[1]["weights"])
    assert ranks[0]["totals"] == ranks[1]["totals"]


@pytest.mark.parametrize("ranks", ["flow_uneven_baseline", "flow_uneven_sb"], indirect=True)
def test_what_longer_streams_lose_is_told_once(ranks):
    said = [text for text in ranks[0]["warnings"] if "ended after 6 batches" in text]
    assert len(said) == 1
    assert "train loader of rank 1 ended after 6 batches and those of other ranks had more" in said[0]


@pytest.mark.slow_cases("flow_resume_last", "flow_resume_ended")
@pytest.mark.parametrize("ranks", ["flow_resume_middle", "flow_resume_last", "flow_resume_ended"], indirect=True)
def test_each_rank_resumes_at_its_own_place(ranks):
    for rank in ranks:
        uncut, resumed = rank["uncut"], rank["resumed"]
        assert resumed["global_step"] == uncut["global_step"]
        assert resumed["totals"] == uncut["totals"]
        assert_same_bits(resumed["weights"], uncut["weights"])
        for epoch in range(2, EPOCHS):
            loaded = [[batch.tolist() for batch in made["epochs"][epoch]["loaded"]] for made in (resumed, uncut)]
            assert loaded[0] == loaded[1]
    places = [[batch.tolist() for batch in rank["resumed"]["epochs"][2]["loaded"]] for rank in ranks]
    assert places[0] != places[1]


@pytest.mark.parametrize("ranks", ["flow_empty"], indirect=True)
def test_a_rank_without_a_batch_is_an_error_on_every_rank(ranks):
    assert all("the train loader of rank 1 has no batch at all" in rank["error"] for rank in ranks)


@pytest.mark.parametrize("ranks", ["flow_half_sized"], indirect=True)
def test_a_length_that_one_rank_does_not_know_counts_for_none(ranks):
    for records in epochs(ranks):
        assert [len(record["loaded"]) for record in records] == [6, 6]


@pytest.mark.parametrize("ranks", ["flow_lying"], indirect=True)
def test_a_rank_that_has_less_than_it_says_ends_the_epoch(ranks):
    for records in epochs(ranks):
        assert [len(record["loaded"]) for record in records] == [3, 3]
    assert sum("had said that it has 6" in text for text in ranks[0]["warnings"]) == 1
