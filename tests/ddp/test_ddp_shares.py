"""Statistics of which each of two ranks has a share: what is trained is to the bit what replicated ones train."""

import pytest
import torch
from records import assert_same_bits

from recipes.benchmarks.fault_run import differences

METHODS = ("kakurenbo", "random", "infobatch", "orderdp", "ies", "forget", "forget_online", "el2n", "baseline")
SLOW = [*(f"share_{name}" for name in METHODS if name != "infobatch"), "share_resume_last", "share_group_four"]


def comparable(result, share=None):
    """A run's result without what the two kinds name differently; of replicated statistics the rows of rank ``share`` of two."""
    plans = {epoch: {name: plan[name] for name in ("hidden", "lr_factor")} for epoch, plan in result["plans"].items()}
    rows = result["statistics"]
    if share is not None:
        rows = {name: column[share::2].clone() for name, column in rows.items()}
    logged = {
        epoch: {name: value for name, value in metrics.items() if not name.endswith("seconds")}
        for epoch, metrics in result["logged"].items()
    }
    return {**result, "plans": plans, "statistics": rows, "logged": logged}


@pytest.mark.slow_cases(*SLOW)
@pytest.mark.parametrize("ranks", [f"share_{name}" for name in METHODS], indirect=True)
def test_a_run_is_that_of_replicated_statistics(ranks):
    """Plans, batches, weights of the network, totals and what is logged."""
    for rank, found in enumerate(ranks):
        assert differences(comparable(found["replicated"], rank), comparable(found["sharded"])) == []
        assert len(found["sharded"]["plans"]) >= 4


@pytest.mark.slow_cases(*SLOW)
@pytest.mark.parametrize("ranks", ["share_resume_mid", "share_resume_last"], indirect=True)
def test_a_checkpoint_is_that_of_replicated_statistics(ranks):
    """Rank 0 saves the rows of all samples in the same format, and a run of either kind goes on from either."""
    replicated, sharded = (ranks[0]["states"][kind] for kind in ("replicated", "sharded"))
    assert replicated.keys() == sharded.keys()
    assert_same_bits(sharded["statistics"], replicated["statistics"])
    assert torch.equal(sharded["plan"]["hidden"], replicated["plan"]["hidden"]) and len(sharded["plan"]["hidden"])
    assert (sharded["settings"], sharded["seed"], sharded["done"]) == (
        replicated["settings"],
        replicated["seed"],
        replicated["done"],
    )
    for rank, found in enumerate(ranks):
        whole = found["whole"]
        assert differences(comparable(whole["replicated"], rank), comparable(whole["sharded"])) == []
        for way, result in found["resumed"].items():
            kept = way.endswith("replicated")
            expected = comparable(found["whole"]["replicated"], None if kept else rank)
            assert differences(expected, comparable(result)) == [], way


@pytest.mark.slow_cases(*SLOW)
@pytest.mark.parametrize("ranks", ["share_group", "share_group_four"], indirect=True)
def test_ranks_put_their_shares_together(ranks):
    """Through gloo, without a Trainer: on two ranks and on four."""
    rows = torch.arange(101)
    losses = ((rows % 10) / 3 + 1).sort().values
    for number, rank in enumerate(ranks):
        assert rank["kth"] == [losses[k - 1].item() for k in (1, 50, 101)]
        assert len(rank["drawn"]) == 40 and torch.equal(rank["drawn"], ranks[0]["drawn"])
        assert rank["exchanged"] == [[number] * other for other in range(len(ranks))]
        assert (not rank["rows"]) == (number > 0) and rank["sent"] > 0
    found = ranks[0]["rows"]
    assert torch.equal(found["loss"], (rows % 10) / 3 + 1) and torch.equal(found["correct"], rows % 3 == 0)
    assert torch.equal(found["confidence"], 1 / (rows + 1.0)) and (found["epoch_seen"] == 1).all()


@pytest.mark.parametrize("ranks", ["share_refused"], indirect=True)
def test_what_every_rank_would_have_to_know_is_refused(ranks):
    for rank in ranks:
        assert "statistics='sharded') is not allowed with a RunRecorder, which reads the statistics of all samples" in str(
            rank["recorder"]
        )
        assert "the sampler of the train loader yields 20 of 45 samples, of which every rank would have the list" in str(
            rank["sampler"]
        )
