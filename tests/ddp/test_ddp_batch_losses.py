"""Losses over a batch on two ranks: a sample goes by the loss of the batch that its own rank made of it."""

import numpy as np
import pytest
import torch
from records import assert_same_bits, epochs

one = pytest.mark.parametrize("ranks", ["batch_losses"], indirect=True)


@one
def test_scores_are_those_of_each_ranks_own_batches(ranks):
    ranks = [rank["whole"] for rank in ranks]
    expected = np.zeros(45, dtype=np.float32)
    for rank in ranks:  # a sample is trained by one rank in an epoch, so epochs come in order
        rank["steps"] = iter(rank["losses"])
    for records in epochs(ranks):
        for rank, record in zip(ranks, records, strict=True):
            for rows in record["trained"]:
                loss = np.float32(next(rank["steps"]))
                for i in rows.tolist():
                    expected[i] = np.float32(0.7) * expected[i] + np.float32(1 - 0.7) * loss
    for rank in ranks:
        np.testing.assert_allclose(rank["known"]["loss"], expected, rtol=1e-6)
    assert_same_bits(ranks[0]["known"], ranks[1]["known"])


@one
def test_ranks_plan_alike_and_hide_something(ranks):
    for mine, other in epochs([rank["whole"] for rank in ranks]):
        assert mine["checksum"] == other["checksum"] and torch.equal(mine["hidden"], other["hidden"])
    assert ranks[0]["whole"]["totals"]["samples_hidden"] > 10


@one
def test_a_resumed_run_has_the_same_scores_to_the_bit(ranks):
    for rank in ranks:
        assert_same_bits(rank["whole"]["known"], rank["resumed"]["known"])
        assert_same_bits(rank["whole"]["weights"], rank["resumed"]["weights"])
