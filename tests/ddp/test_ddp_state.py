"""Checkpoints of two ranks, and runs that go on from them."""

import pytest
import torch
from records import assert_same_bits, epochs

RESUMED = ["resume_epoch_end", "resume_mid_epoch", "resume_last_batch", "resume_returned", "resume_subset"]


@pytest.mark.parametrize("ranks", ["checkpoint"], indirect=True)
def test_a_checkpoint_within_an_epoch_holds_what_all_ranks_saw(ranks):
    lengths = [len(records[0]["trained"]) for records in epochs(ranks)]
    within = 0
    for name, state in ranks[0]["states"].items():
        step = int(name.removeprefix("step="))
        epoch, done = state["epoch"], step - sum(lengths[: state["epoch"]])
        assert state["step"] == done
        within += 0 < done < lengths[epoch]
        records = [rank["epochs"][epoch] for rank in ranks]
        assert torch.equal(state["plan"]["hidden"], records[0]["hidden"])
        seen = records[0]["statistics"]["epoch_seen"].clone()
        seen[torch.cat([batch for record in records for batch in record["trained"][:done]])] = epoch
        assert torch.equal(state["statistics"]["epoch_seen"], seen)
        assert torch.equal(state["statistics"]["loss"].isnan(), seen < 0)
    assert within >= 3


@pytest.mark.slow_cases("resume_returned", "resume_subset", "resume_last_batch")
@pytest.mark.parametrize("ranks", RESUMED, indirect=True)
def test_a_resumed_run_is_the_uninterrupted_one(ranks):
    for rank in ranks:
        whole, resumed = rank["whole"], rank["resumed"]
        assert sorted(resumed["epochs"])[-2:] == [2, 3]
        for epoch, record in resumed["epochs"].items():
            expected = whole["epochs"][epoch]
            done = len(expected["trained"]) - len(record["trained"])
            assert [batch.tolist() for batch in record["trained"]] == [batch.tolist() for batch in expected["trained"][done:]]
            if epoch > 1:  # it began after resuming
                assert done == 0 and len(record["validated"]) == len(expected["validated"])
                assert record["checksum"] == expected["checksum"]
                assert_same_bits(record["statistics"], expected["statistics"])
                parameters = {name: record["weights"][name] for name in record["weights"].keys() - record["buffers"].keys()}
                assert_same_bits(parameters, {name: expected["weights"][name] for name in parameters})
        assert_same_bits(resumed["weights"], whole["weights"])
        assert resumed["global_step"] == whole["global_step"]


@pytest.mark.slow_cases("resume_subset")
@pytest.mark.parametrize("ranks", ["resume_mid_epoch", "resume_subset"], indirect=True)
def test_an_interrupted_epoch_trains_only_its_rest(ranks):
    for rank in ranks:
        assert len(rank["resumed"]["epochs"][1]["trained"]) == len(rank["whole"]["epochs"][1]["trained"]) - 3


@pytest.mark.parametrize("ranks", ["resume_epoch_end", "resume_mid_epoch"], indirect=True)
def test_totals_go_on_after_resuming(ranks):
    for rank in ranks:
        for name in ("samples_trained", "samples_hidden", "samples_refreshed"):
            assert rank["resumed"]["totals"][name] == rank["whole"]["totals"][name], name
