"""Hiding by key on two ranks: both know what either saw, hide the same, and end together."""

import pytest
import torch
from histories import History, Sighting
from key_cases import METHODS, as_tensors
from keyed import COUNT, EPOCHS, keyed_run
from method_tester import ROWS
from records import assert_same_bits
from references import expected

from kakurenbo_lightning import Epoch


def hidden_of(plan):
    return set(plan["keys"][plan["weights"] == 0].tolist())


@pytest.mark.slow_cases("keys_random", "keys_forget_online")
@pytest.mark.parametrize("ranks", [f"keys_{name}" for name in METHODS], indirect=True)
def test_ranks_hide_the_same_and_train_the_rest_apart(ranks):
    assert ranks[0]["hidden"] > 0
    for epoch in range(EPOCHS):
        one, other = (rank["plans"][epoch] for rank in ranks)
        assert torch.equal(one["keys"], other["keys"]) and torch.equal(one["weights"], other["weights"])
        columns = [as_tensors(rank["known"][epoch]) for rank in ranks]
        assert all(torch.equal(columns[0][name], columns[1][name]) for name in columns[0])
        trained = [key for rank in ranks for key in rank["trained"][epoch]]
        assert len(trained) == len(set(trained)) and not set(trained) & hidden_of(one)
        assert set(ranks[0]["known"][epoch]["keys"].tolist()) <= set(range(COUNT))
    assert_same_bits(ranks[0]["weights"], ranks[1]["weights"])
    shares = [set(ranks[0]["trained"][epoch]) for epoch in range(2)]
    assert shares[0] - shares[1] and shares[1] - shares[0]  # a key is now read by one rank, now by the other


@pytest.mark.parametrize("ranks", ["keys_kakurenbo"], indirect=True)
def test_what_either_rank_measured_decides(ranks):
    seen, row = {}, ROWS["kakurenbo"]
    for epoch in range(1, EPOCHS):
        columns = ranks[0]["known"][epoch]
        for place, key in enumerate(columns["keys"].tolist()):
            when, loss, sure, right = (columns[name][place].item() for name in ("epoch_seen", "loss", "confidence", "correct"))
            if key in ranks[0]["trained"][epoch - 1] + ranks[1]["trained"][epoch - 1]:
                assert when == epoch - 1
                seen[key] = (Sighting(when, loss, sure, right, 0.0),)
        keys = sorted(seen)
        assert keys == columns["keys"].tolist()
        fresh = [seen[key] if seen[key][0].epoch >= epoch - 3 else () for key in keys]
        chosen = expected(row.reference, METHODS["kakurenbo"], History(tuple(fresh), (0,) * len(keys)), Epoch(epoch, EPOCHS, 3))
        assert hidden_of(ranks[0]["plans"][epoch]) == {keys[place] for place in chosen.hidden}


@pytest.mark.parametrize("ranks", ["keys_resume_middle", "keys_resume_ended"], indirect=True)
def test_ranks_resume_exactly(ranks):
    for rank in ranks:
        for other in (rank["plain"], rank["resumed"]):
            assert other["global_step"] == rank["uncut"]["global_step"]
            assert other["hidden"] == rank["uncut"]["hidden"]
            assert_same_bits(other["weights"], rank["uncut"]["weights"])
            for epoch in range(3, EPOCHS):
                assert other["trained"][epoch] == rank["uncut"]["trained"][epoch]


@pytest.mark.parametrize("ranks", ["keys_resume_ended"], indirect=True)
def test_one_rank_goes_on_with_what_two_have_saved(ranks):
    _, selection, seen, _ = keyed_run(METHODS["kakurenbo"], ckpt_path=ranks[0]["path"])
    assert set(seen.plans[3].hidden.tolist()) == hidden_of(ranks[0]["uncut"]["plans"][3])
    assert sorted(seen.indices(3)) == sorted(set(range(COUNT)) - set(seen.plans[3].hidden.tolist()))
    assert len(selection.statistics) == COUNT


@pytest.mark.parametrize("ranks", ["keys_uneven"], indirect=True)
def test_an_epoch_ends_with_the_shortest_stream(ranks):
    for epoch in range(EPOCHS):
        sizes = [-(-len(rank["trained"][epoch]) // 8) for rank in ranks]
        assert sizes[0] == sizes[1] > 0
    said = [text for text in ranks[0]["warnings"] if "those of other ranks had more" in text]
    assert len(said) == 1 and "what an epoch leaves out by key" in said[0]


@pytest.mark.parametrize("ranks", ["keys_bare", "keys_same", "keys_unfiltered"], indirect=True)
def test_what_is_wrong_on_one_rank_is_an_error_on_every_rank(ranks, request):
    errors = [rank["error"] for rank in ranks]
    case = request.node.callspec.params["ranks"]
    if case == "keys_same":
        assert all("samples that were trained since the last epoch" in error for error in errors)
        return
    assert errors[0].endswith("of rank 1 has no valid keys; its own error says why")
    assert ("has no field 3" if case == "keys_bare" else "to be left out of epoch 1, and have come all the same") in errors[1]
