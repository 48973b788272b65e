"""What stands above the method is equal on all ranks: the share that is to save time, and the guard."""

import pytest
import torch
from records import assert_same_bits, epochs


@pytest.mark.parametrize("ranks", ["saved"], indirect=True)
def test_ranks_that_measured_other_times_choose_the_same(ranks):
    saving = [rank["control"]["saving"] for rank in ranks]
    assert saving[0] == saving[1] and 0 < saving[0]["forward"] < 1
    for number, records in enumerate(epochs(ranks)):
        assert torch.equal(records[0]["hidden"], records[1]["hidden"]) and bool(len(records[0]["hidden"])) == (number > 0)
    assert_same_bits(ranks[0]["weights"], ranks[1]["weights"])


@pytest.mark.parametrize("ranks", ["guarded"], indirect=True)
def test_the_value_of_rank_0_counts_on_all(ranks):
    hides = [[len(record["hidden"]) > 0 for record in records] for records in epochs(ranks)]
    assert hides == [[False] * 2, [True] * 2, [False] * 2, [True] * 2, [True] * 2]
    assert ranks[0]["control"] == ranks[1]["control"] and ranks[0]["control"]["guard"]["held"] == 1


@pytest.mark.parametrize("ranks", ["guard_misses"], indirect=True)
def test_a_value_that_is_missing_is_named_on_every_rank(ranks):
    for rank in ranks:
        assert "the validation logged no such value; it logged nothing" in rank["error"]


@pytest.mark.parametrize("ranks", ["resume_control"], indirect=True)
def test_a_resumed_run_goes_on_with_both(ranks):
    for rank in ranks:
        whole, resumed = rank["whole"], rank["resumed"]
        assert resumed["control"] == whole["control"] and not len(whole["epochs"][2]["hidden"])
        for epoch in range(3, 6):  # those that began after resuming
            assert torch.equal(resumed["epochs"][epoch]["hidden"], whole["epochs"][epoch]["hidden"])
        assert len(whole["epochs"][3]["hidden"])
        assert_same_bits(resumed["weights"], whole["weights"])
