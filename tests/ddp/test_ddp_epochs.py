"""What holds for every run on two ranks, whatever the method, the loader and the Trainer are."""

import pytest
import torch
from cases import SUBSET
from fits import CodedNet, Net
from records import assert_same_bits, epochs, trained
from replay import replay

FITS = [
    "kakurenbo",
    "random",
    "baseline",
    "infobatch",
    "infobatch_returned",
    "random_unbiased",
    "random_cycle",
    "forget",
    "forget_online",
    "el2n",
    "el2n_score_pass",
    "seta",
    "orderdp",
    "ies",
    "rcap",
    "balanced",
    "uneven",
    "four_ranks",
    "sure",
    "drop_last",
    "workers",
    "accumulate",
    "user_sampler",
    "subset",
    "returned",
    "norm",
    "bf16",
    "checkpoint",
]
# the double precision ones without BatchNorm, whose statistics are per rank
REPLAYED = {
    "kakurenbo": {},
    "random": {"refresh": False},
    "baseline": {"refresh": False},
    "infobatch": {"refresh": False},
    "infobatch_returned": {"refresh": False},
    "random_unbiased": {"refresh": False},
    "random_cycle": {"refresh": False},
    "forget": {"refresh": False, "restart": 2},
    "forget_online": {},
    "el2n": {"refresh": False, "restart": 2},
    "el2n_score_pass": {"refresh": False, "restart": 2, "score_all": 1},
    "seta": {"refresh": False},
    "orderdp": {"refresh": False},
    "ies": {},
    "rcap": {"refresh": False},
    "uneven": {"count": 37},
    "four_ranks": {"count": 37},
    "sure": {"count": 48},
    "drop_last": {},
    "workers": {},
    "accumulate": {"accumulate": 3},
    "accumulate_weighted": {"accumulate": 2, "refresh": False},
    "accumulate_manual": {"accumulate": 2, "refresh": False},
    "user_sampler": {},
    "subset": {},
    "returned": {},
    "checkpoint": {},
}

every_fit = pytest.mark.parametrize("ranks", FITS, indirect=True)
pytestmark = pytest.mark.slow_cases(
    *("random", "random_cycle", "random_unbiased", "forget_online", "el2n", "seta", "infobatch_returned", "sure", "returned"),
    *("el2n_score_pass", "uneven", "four_ranks", "norm", "user_sampler", "balanced", "subset", "infobatch"),
    *("orderdp", "ies", "rcap"),
)


@every_fit
def test_every_rank_makes_the_same_number_of_steps(ranks):
    for records in epochs(ranks):
        assert len({len(record["trained"]) for record in records}) == 1
    assert len({rank["global_step"] for rank in ranks}) == 1


@pytest.mark.parametrize("ranks", [name for name in FITS if name != "drop_last"], indirect=True)
def test_the_ranks_together_train_the_plan_and_nothing_twice(ranks):
    for records in epochs(ranks):
        assert torch.equal(trained(records), records[0]["planned"].sort().values)


@every_fit
def test_hidden_samples_are_not_trained(ranks):
    for records in epochs(ranks):
        assert not torch.isin(trained(records), records[0]["hidden"]).any()


@pytest.mark.parametrize("ranks", [name for name in FITS if name != "baseline"], indirect=True)
def test_something_is_hidden(ranks):
    assert sum(len(record["hidden"]) for record in ranks[0]["epochs"].values()) > 5


@every_fit
def test_all_ranks_choose_the_same(ranks):
    for mine, *others in epochs(ranks):
        for other in others:
            assert torch.equal(mine["planned"], other["planned"])
            assert torch.equal(mine["hidden"], other["hidden"])
            assert (mine["checksum"], mine["lr_factor"]) == (other["checksum"], other["lr_factor"])


@every_fit
def test_all_ranks_know_the_same_to_the_bit(ranks):
    for mine, *others in epochs(ranks):
        for other in others:
            assert_same_bits(mine["statistics"], other["statistics"])


@every_fit
def test_recorded_rows_are_those_of_the_batch(ranks):
    for records in epochs(ranks):
        for record in records:
            assert [batch.tolist() for batch in record["dealt"]] == [batch.tolist() for batch in record["trained"]]


@every_fit
def test_weights_are_bit_equal_on_all_ranks(ranks):
    for mine, *others in epochs(ranks):
        for other in others:
            parameters = mine["weights"].keys() - mine["buffers"].keys()  # DDP equalises buffers only at the next forward
            assert all(torch.equal(mine["weights"][name], other["weights"][name]) for name in parameters)
    for rank in ranks[1:]:
        assert all(torch.equal(ranks[0]["weights"][name], rank["weights"][name]) for name in parameters)


@pytest.mark.parametrize("ranks", [name for name in FITS if name not in ("norm", "subset")], indirect=True)
def test_validation_runs_after_every_epoch_on_all_samples(ranks):
    for records in epochs(ranks):
        seen = torch.cat([batch for record in records for batch in record["validated"]])
        assert torch.equal(seen.unique(), torch.cat([records[0]["planned"], records[0]["hidden"]]).sort().values)


@every_fit
def test_totals_are_what_happened_on_all_ranks(ranks):
    counts = [{name: value for name, value in rank["totals"].items() if "samples" in name} for rank in ranks]
    assert all(count == counts[0] for count in counts)
    assert counts[0]["samples_trained"] == sum(len(trained(records)) for records in epochs(ranks))
    assert counts[0]["samples_hidden"] == sum(len(records[0]["hidden"]) for records in epochs(ranks))


@every_fit
def test_logged_values_are_the_plans_on_all_ranks(ranks):
    last = ranks[0]["epochs"][max(ranks[0]["epochs"])]
    share = len(last["hidden"]) / (len(last["hidden"]) + len(last["planned"]))
    for rank in ranks:
        assert rank["metrics"]["selection/hidden_fraction"] == pytest.approx(share)
        assert rank["metrics"]["selection/lr_factor"] == pytest.approx(last["lr_factor"])


@pytest.mark.parametrize("ranks", REPLAYED, indirect=True)
def test_weights_are_those_of_one_process_with_the_joined_batches(ranks, request):
    net = CodedNet() if ranks[0]["coded"] else Net()
    before, at_end = replay(ranks, net, **{"count": 45, **REPLAYED[request.node.callspec.params["ranks"]]})
    for epoch, (_, weights) in before.items():
        for name, weight in weights.items():
            torch.testing.assert_close(ranks[0]["epochs"][epoch]["weights"][name], weight, rtol=0, atol=1e-12)
    for name, weight in at_end.items():
        torch.testing.assert_close(ranks[0]["weights"][name], weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ranks", REPLAYED, indirect=True)
def test_statistics_are_those_of_one_process(ranks, request):
    coded = ranks[0]["coded"]
    before, _ = replay(ranks, CodedNet() if coded else Net(), **{"count": 45, **REPLAYED[request.node.callspec.params["ranks"]]})
    for epoch, (rows, _) in before.items():
        found = ranks[0]["epochs"][epoch]["statistics"]
        assert torch.equal(found["epoch_seen"], rows["epoch_seen"])
        for name in ("loss",) if coded else ("loss", "confidence", "correct"):
            expected = rows[name].to(found[name].dtype)
            torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("ranks", ["subset"], indirect=True)
def test_a_subset_is_all_that_is_trained_hidden_and_known(ranks):
    inside = torch.tensor(SUBSET)
    for records in epochs(ranks):
        assert torch.equal(torch.cat([records[0]["planned"], records[0]["hidden"]]).sort().values, inside)
    known = ranks[0]["epochs"][max(ranks[0]["epochs"])]["statistics"]["epoch_seen"] >= 0
    assert torch.equal(known.nonzero().squeeze(1), inside)
