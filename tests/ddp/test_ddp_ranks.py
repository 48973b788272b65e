"""Processes that are one data-parallel rank together, as those of a tensor-parallel group."""

import pytest

MEET = pytest.mark.parametrize("ranks", ["meet_four"], indirect=True)


@MEET
def test_the_first_process_of_a_rank_records_for_it(ranks):
    assert [rank["is_recorder"] for rank in ranks] == [True, False, True, False]
    for rank in ranks:
        assert rank["recorders"] == rank["gathered"] == rank["tensors"] == [0, 2]
        assert rank["sum"] == 1 + 3


@MEET
def test_processes_of_a_rank_take_its_recorders_values(ranks):
    assert [rank["agreed"] for rank in ranks] == [[0.5], [0.5], [2.5], [2.5]]
    assert [rank["agreed_bool"] for rank in ranks] == [[False], [False], [True], [True]]


@MEET
def test_where_every_process_is_a_rank_all_record(ranks):
    for rank in ranks:
        assert rank["alone"] == [True, [0, 1, 2, 3], 1 + 2 + 3 + 4, True]


@MEET
def test_processes_of_different_meshes_or_data_all_say_so(ranks):
    for rank in ranks:
        size, share, data = rank["wrong"]
        assert "ConflictError: the processes have different data-parallel meshes" in size and "1 of 2, 1 of 4)" in size
        assert (
            "ConflictError: the processes have different data-parallel meshes" in share
            and "0 of 2, 0 of 2, 0 of 2, 1 of 2" in share
        )
        assert "ConflictError: the ranks hold different train data sets" in data
