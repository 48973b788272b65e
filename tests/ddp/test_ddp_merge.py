"""Statistics and shares of four ranks in a plain process group, without a Trainer."""

import pytest
import torch

from kakurenbo_lightning import SampleStatistics


@pytest.mark.parametrize("ranks", ["merge"], indirect=True)
def test_merged_rows_are_those_of_one_process_to_the_bit(ranks):
    """NaN with its payload, infinities, -0.0 and denormals included; rows nobody saw again keep what they held."""
    for rank in ranks:
        assert len(rank["after"]) == len(rank["alone"]) == 6
        for merged, alone in zip(rank["after"], rank["alone"], strict=True):
            for name in alone:
                assert torch.equal(merged[name], alone[name]), name


@pytest.mark.parametrize("ranks", ["merge"], indirect=True)
def test_merging_twice_changes_nothing(ranks):
    for rank in ranks:
        before, again = rank["after"][1:3]
        assert all(torch.equal(before[name], again[name]) for name in before)


@pytest.mark.parametrize("ranks", ["merge"], indirect=True)
def test_rows_nobody_saw_stay_unmeasured(ranks):
    untouched = SampleStatistics(3).state_dict()
    for rank in ranks:
        for name, column in untouched.items():
            found = rank["after"][-1][name][-3:]
            assert torch.equal(found, column.view(torch.int32) if column.is_floating_point() else column)


@pytest.mark.parametrize("ranks", ["deal"], indirect=True)
def test_shares_dealt_by_separate_processes_cover_everything_once(ranks):
    for number, (count, batch, drop_last) in enumerate(ranks[0]["deals"]):
        shares = [rank["shares"][number] for rank in ranks]
        assert len({len(share) for share in shares}) == 1
        dealt = torch.cat([torch.arange(0), *(step for share in shares for step in share)])
        assert len(dealt) == len(dealt.unique()) == (count // (4 * batch) * 4 * batch if drop_last else count)
        for step in zip(*shares, strict=True):
            assert max(map(len, step)) - min(map(len, step)) <= 1
