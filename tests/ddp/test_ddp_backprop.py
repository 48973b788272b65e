"""The backprop family on two and four ranks, which do not choose alike."""

import pytest
import torch
import torch.nn.functional as F
from backprop_cases import COUNT, EPOCHS, Small, Told
from fits import Points
from records import assert_same_bits, epochs
from replay import replay

LOPSIDED = ["lopsided_two", "lopsided_four", "lopsided_carry_two", "lopsided_carry_four"]
EVEN = ["sb", "sb_topk", "scored", "proxy", "proxy_lopsided", "stale_sb", "sb_fixed", "katharopoulos", "rho_loss"]
BATCH = 4

# run by test-all: ranks are as unlike with two of them, and methods/test_methods_ranks.py has four
pytestmark = pytest.mark.slow_cases("lopsided_four", "lopsided_carry_four", "sb_topk", "sb_fixed")
every = pytest.mark.parametrize("ranks", [*LOPSIDED, *EVEN], indirect=True)


@every
def test_all_ranks_make_the_same_steps_and_have_the_same_weights_to_the_bit(ranks):
    for records in epochs(ranks):
        assert len({len(record["trained"]) for record in records}) == 1
        assert all(record["steps"] == records[0]["steps"] for record in records)
        for record in records[1:]:
            assert_same_bits(record["weights"], records[0]["weights"])
    assert {rank["global_step"] for rank in ranks} == {sum(len(records[0]["trained"]) for records in epochs(ranks))}


@every
def test_at_most_one_full_batch_waits_on_each_rank(ranks):
    for records in epochs(ranks):
        assert all(max(record["waiting"]) <= BATCH for record in records)
        for waiting, pooled in zip(zip(*(r["waiting"] for r in records), strict=True), records[0]["pooled"], strict=True):
            assert sum(waiting) == pooled


@every
def test_counters_are_those_of_all_ranks_and_add_up(ranks):
    carried = 0
    for epoch, records in enumerate(epochs(ranks)):
        counts = records[0]["counts"]
        assert all(record["counts"] == counts for record in records)
        assert counts["scored"] + counts["carried"] == counts["chosen_trained"] + counts["rejected"] + counts["pooled"]
        assert counts["trained"] == sum(len(batch) for record in records for batch in record["trained"])
        assert counts["steps"] == len(records[0]["trained"])
        assert counts["carried"] == carried
        carried = counts["pooled"]
        assert min(counts.values()) >= 0
        if epoch == 0:
            assert (counts["scored"], counts["trained"]) == (0, COUNT)
        if epoch + 1 < EPOCHS:
            assert counts["pooled"] == sum(record["waiting"][-1] for record in records)
    assert carried == 0, "what waits in the end is rejected"
    assert all(rank["totals"] == ranks[0]["totals"] for rank in ranks)
    totals, all_counts = ranks[0]["totals"], [records[0]["counts"] for records in epochs(ranks)]
    assert totals["samples_scored"] == sum(counts["scored"] for counts in all_counts) > 0
    assert totals["samples_trained"] == sum(counts["trained"] for counts in all_counts)
    assert totals["samples_rejected"] == sum(counts["rejected"] for counts in all_counts) > 20


@pytest.mark.parametrize("ranks", [name for name in [*LOPSIDED, *EVEN] if name != "katharopoulos"], indirect=True)
def test_each_gradient_is_the_mean_over_all_samples_trained(ranks):
    before, weights = replay(ranks, Told(), COUNT, refresh=False)
    for epoch, records in enumerate(epochs(ranks)):
        after = before[epoch + 1][1] if epoch + 1 < EPOCHS else weights
        for name, value in after.items():
            torch.testing.assert_close(records[0]["weights"][name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ranks", LOPSIDED[:2], indirect=True)
def test_some_steps_have_ranks_of_unequal_sizes(ranks):
    """Else the test above shows less: the short last step, and not only in the ordinary first epoch."""
    sizes = [
        tuple(len(batch) for batch in step)
        for records in list(epochs(ranks))[1:]
        for step in zip(*(record["trained"] for record in records), strict=True)
    ]
    assert any(len(set(step)) > 1 for step in sizes)
    assert all(min(step) >= 2 and max(step) <= BATCH for step in sizes)


@pytest.mark.parametrize("ranks", LOPSIDED, indirect=True)
def test_one_rank_chooses_much_more_than_another(ranks):
    """And so waits with a full batch, while another has next to nothing."""
    later = list(epochs(ranks))[1:]
    full = [sum(count == BATCH for records in later for count in records[rank]["waiting"]) for rank in range(len(ranks))]
    assert full[0] > max(full[1:]) and full[0] > 3 * min(full[1:])


@pytest.mark.parametrize("ranks", [*LOPSIDED, "sb", "stale_sb"], indirect=True)
def test_nothing_that_was_looked_at_once_is_trained_twice(ranks):
    """A sample is chosen at most once in an epoch; what is left is trained in the next one when it is carried."""
    chosen, carried = 0, 0
    for epoch, records in enumerate(epochs(ranks)):
        trained = torch.cat([torch.arange(0), *(batch for record in records for batch in record["trained"])])
        twice = len(trained) - len(trained.unique())
        assert twice <= carried
        carried = records[0]["counts"]["pooled"]
        chosen += len(trained) if epoch else 0
    assert chosen > 20


@pytest.mark.parametrize("ranks", ["stale_sb"], indirect=True)
def test_stale_plans_are_equal_on_all_ranks_and_leave_a_part_out(ranks):
    for epoch, records in enumerate(epochs(ranks)):
        assert len({record["checksum"] for record in records}) == 1
        hidden = records[0]["hidden"]
        assert all(torch.equal(record["hidden"], hidden) for record in records)
        assert (5 < len(hidden) < COUNT - 5) == (epoch % 2 == 1)
        trained = torch.cat([batch for record in records for batch in record["trained"]])
        assert not torch.isin(trained, hidden).any()
        if epoch % 2:
            assert len(trained) == len(trained.unique()) == COUNT - len(hidden)


@pytest.mark.parametrize("ranks", ["katharopoulos"], indirect=True)
def test_t_is_equal_on_all_ranks_and_moves(ranks):
    seen = set()
    for records in epochs(ranks):
        for values in zip(*(record["t"] for record in records), strict=True):
            assert all(torch.equal(value, values[0]) for value in values)
            seen.add(float(values[0]))
    assert len(seen) > 10 and max(seen) > 0.5


@pytest.mark.parametrize("ranks", ["scored"], indirect=True)
def test_a_scorer_is_trained_with_the_mean_gradient_of_all_ranks(ranks):
    for rank in ranks[1:]:
        assert_same_bits(rank["scorer"], ranks[0]["scorer"])
    _, weights = replay(ranks, Small(), COUNT, refresh=False)
    for name, value in weights.items():
        torch.testing.assert_close(ranks[0]["scorer"][name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ranks", ["proxy"], indirect=True)
def test_proxy_masks_on_two_ranks_are_those_of_a_loop_by_hand(ranks):
    """The batches of both ranks in one process: each rank's half of its own batch, one step of each network on both halves."""
    points, net, small, at = Points(COUNT), Told(), Small(), 0
    optimizer, own = net.configure_optimizers(), small.configure_optimizers()

    def step(module, its_optimizer, rows):
        its_optimizer.zero_grad()
        F.cross_entropy(module.network(points.x[rows]), points.y[rows]).backward()
        its_optimizer.step()

    for epoch, records in enumerate(epochs(ranks)):
        for loaded in zip(*(record["loaded"] for record in records), strict=True):
            chosen = list(loaded)
            if epoch:
                with torch.no_grad():
                    losses = [F.cross_entropy(small.network(points.x[rows]), points.y[rows], reduction="none") for rows in loaded]
                best = [each.float().argsort(descending=True, stable=True)[: max(2, len(each) // 2)] for each in losses]
                chosen = [rows[order] for rows, order in zip(loaded, best, strict=True)]
            step(net, optimizer, torch.cat(chosen))
            if at % 3 == 0:
                step(small, own, torch.cat(chosen))
            at += 1
    assert at == 5 * 8
    for module, name in ((net, "weights"), (small, "scorer")):
        for key, value in module.state_dict().items():
            torch.testing.assert_close(ranks[0][name][key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ranks", ["proxy", "proxy_lopsided"], indirect=True)
def test_scorers_are_equal_on_all_ranks_to_the_bit(ranks):
    assert_same_bits(ranks[1]["scorer"], ranks[0]["scorer"])


@pytest.mark.parametrize("ranks", ["proxy_lopsided"], indirect=True)
def test_a_rank_that_chooses_too_little_takes_part_in_the_scorers_step(ranks):
    """Else the others would wait for it."""
    many, few = (len(rank["sizes"]) for rank in ranks)
    assert many > few >= 4 and min(min(rank["sizes"]) for rank in ranks) >= 2
