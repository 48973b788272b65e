"""The PoD family on two and four ranks: one table, a stream of draws on each rank, and what one rank saw is known to all."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fits import Points
from pod_cases import BATCH, COUNT, EPOCHS, FIXED, LogitsNet
from records import assert_same_bits, epochs
from replay import replay
from streamed import dense_table, observed, shares

STREAMS = ["owc", "lb", "nlb", "plb", "peb", "plb_four", "plb_unbiased", "plb_pretrained", "plb_looking"]
EXCHANGES = {"plb_exchange": 3, "lb_exchange": 3, "plb_exchange_limited": 3, "plb_bounded": 2}
LATER = [*EXCHANGES, "plb_workers", "plb_accumulate"]
MOMENTS = ["lb_cut_first", "lb_cut_inside_1", "lb_cut_inside_3", "lb_cut_inside_due_1", "lb_cut_inside_due_3"]
PLANNED = ["iswr", "iswr_unbiased", "weighted"]

every = pytest.mark.parametrize("ranks", [*STREAMS, *LATER], indirect=True)
# run by test-all: they take the path of plb and lb, or of a moment nearby
pytestmark = pytest.mark.slow_cases(
    *("owc", "nlb", "peb", "plb_four", "owc_cut", "lb_cut_inside_3", "lb_cut_inside_due_3", "plb_cut_workers", "plb_looking"),
    *("plb_cut_exchange", "plb_cut_last", "weighted_cut"),
    *(
        "lb",
        "lb_exchange",
        "plb_exchange_limited",
        "plb_bounded",
        "lb_cut",
        "lb_cut_first",
        "lb_cut_inside_due_1",
        "iswr_unbiased",
    ),
)


def name_of(request):
    """The name of the case."""
    return request.node.callspec.params["ranks"]


def drawn_epochs(ranks):
    """Each drawn epoch as the records of the ranks."""
    return [records for records in epochs(ranks) if records[0]["table"] is not None]


@every
def test_tables_are_equal_on_all_ranks_to_the_bit_after_every_epoch(ranks):
    for records in drawn_epochs(ranks):
        for record in records[1:]:
            for when in ("table_before", "table"):
                assert_same_bits({"values": record[when]["values"]}, {"values": records[0][when]["values"]})
                for mine, first in zip(record[when]["sums"], records[0][when]["sums"], strict=True):
                    assert torch.equal(mine, first)
    for rank in ranks[1:]:
        assert_same_bits(rank["statistics"], ranks[0]["statistics"])
        assert_same_bits(rank["weights"], ranks[0]["weights"])
        assert rank["totals"] == ranks[0]["totals"]


@every
def test_each_rank_draws_batches_of_its_own_and_trains_those(ranks, request):
    batches = []
    for records in drawn_epochs(ranks):
        for record in records:
            assert all(map(torch.equal, record["trained"], record["drawn"]))
            assert {len(batch) for batch in record["trained"]} == {BATCH}
            batches += [tuple(batch.tolist()) for batch in record["trained"]]
        assert len({len(record["trained"]) for record in records}) == 1
    # lb and nlb draw from a few samples only, and may draw the same ones again
    assert len(set(batches)) == len(batches) or (len(set(batches)) > 0.9 * len(batches) and name_of(request) in ("lb", "nlb"))


def pairs(records, name, step):
    """The (index, observation) pairs of a step of all ranks, rank after rank."""
    target = Points(COUNT).y
    seen = [record["seen"][step] for record in records]
    indices = torch.cat([indices for indices, _ in seen])
    logits = torch.cat([logits for _, logits in seen])
    return indices.tolist(), observed(name, logits, target[indices])


@pytest.mark.parametrize("ranks", [*STREAMS, *LATER], indirect=True)
def test_tables_are_those_of_a_dense_replay_of_all_pairs_in_order(ranks, request):
    """Pairs count by step, then by rank, then by place in the batch; each epoch from the table it began with."""
    name = name_of(request).split("_")[0]
    changed = 0
    for records in drawn_epochs(ranks):
        before = records[0]["table_before"]["values"].double().numpy()
        steps = [pairs(records, name, step) for step in range(len(records[0]["seen"]))]
        expected = dense_table(name, before, steps)
        np.testing.assert_allclose(shares(records[0]["table"]["values"]), shares(expected), rtol=2e-5, atol=1e-7)
        changed += (shares(before) != shares(expected)).sum()
    assert changed > COUNT


@pytest.mark.parametrize("ranks", ["plb_ranked"], indirect=True)
def test_of_a_sample_that_several_ranks_drew_in_one_step_the_highest_rank_counts(ranks):
    last, both = {}, 0
    for records in epochs(ranks):
        for step in range(len(records[0]["seen"])):
            both += len(set.intersection(*(set(record["seen"][step][0].tolist()) for record in records)))
            for rank, record in enumerate(records):
                for place, index in enumerate(record["seen"][step][0].tolist()):
                    last[index] = 1 + step + rank / 4 + place / (8 * BATCH)
        table = records[0]["table"]["values"].tolist()
        assert table == [last.get(index, 1.0) for index in range(10)]
    assert both > 5
    assert ranks[0]["statistics"]["loss"].tolist() == table


@pytest.mark.parametrize(
    "ranks", ["lb", "nlb", "plb", "peb", "plb_four", "plb_unbiased", "plb_exchange", "plb_workers"], indirect=True
)
def test_the_stream_starts_with_what_the_ranks_looked_at_together(ranks, request):
    name, values, target = name_of(request).split("_")[0], np.full(COUNT, np.nan), Points(COUNT).y
    for rank in ranks:
        for looked in rank["epochs"][0]["scored"]:
            values[looked["indices"].numpy()] = observed(name, looked["logits"], target[looked["indices"]])
    values = np.tanh(values) if name == "nlb" else values
    start = ranks[0]["epochs"][0]["table_before"]["values"]
    np.testing.assert_allclose(shares(start), shares(values), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    "ranks", ["plb", "peb", "plb_four", "plb_workers", *[name for name in EXCHANGES if name != "lb_exchange"]], indirect=True
)
def test_after_training_the_table_holds_the_last_values_of_the_statistics(ranks, request):
    """Those of all ranks, also of steps that were exchanged at the epoch's end only."""
    column = "entropy" if name_of(request) == "peb" else "loss"
    table = ranks[0]["epochs"][EPOCHS - 1]["table"]["values"]
    assert torch.equal(table, ranks[0]["statistics"][column])


@pytest.mark.parametrize("ranks", ["plb_fixed"], indirect=True)
def test_draws_of_all_ranks_follow_the_values(ranks):
    """1,600 draws of each rank; Pearson's chi-square with 44 degrees of freedom is above 97 with probability 1e-5."""
    expected = shares(FIXED.numpy())
    found = [Counter(torch.cat(epoch["trained"]).tolist()) for rank in ranks for epoch in rank["epochs"].values()]
    assert len(found) == 4
    for counts in found:
        total = sum(counts.values())
        assert total == 200 * BATCH
        assert sum((counts[i] - total * p) ** 2 / (total * p) for i, p in enumerate(expected)) < 97
    both = sum((Counter(counts) for counts in found), Counter())
    assert sum((both[i] - 3200 * p) ** 2 / (3200 * p) for i, p in enumerate(expected)) < 97


@pytest.mark.parametrize("ranks", list(EXCHANGES), indirect=True)
def test_values_are_as_stale_as_exchanges_are_rare(ranks, request):
    """A draw knows the steps up to the last exchange; staleness is logged, and within its bound."""
    interval, bounded = EXCHANGES[name_of(request)], name_of(request) == "plb_bounded"
    for records in epochs(ranks):
        for record in records:
            steps = len(record["written"])
            ahead = 2 if bounded else 0  # one batch of each worker
            known = [max(0, step - ahead) // interval * interval for step in range(steps)]
            assert record["written"] == known
            staleness = [step - written for step, written in enumerate(known)]
            assert max(staleness) == (3 if bounded else 2) == record["logged"]["largest_staleness"]
            assert record["logged"]["staleness"] == pytest.approx(np.mean(staleness))


@pytest.mark.parametrize("ranks", ["plb_workers"], indirect=True)
def test_workers_draw_ahead_on_every_rank(ranks):
    for records in epochs(ranks):
        for record in records:
            assert record["written"] == [max(0, step - 4) for step in range(12)]


# ---- training


@pytest.mark.parametrize(
    "ranks", ["owc", "lb", "nlb", "plb", "peb", "plb_four", "plb_pretrained", "plb_workers", *PLANNED], indirect=True
)
def test_weights_are_those_of_one_process_with_joined_batches(ranks):
    before, weights = replay(ranks, LogitsNet(), COUNT, refresh=False)
    assert len(before) == EPOCHS
    for name, value in weights.items():
        torch.testing.assert_close(ranks[0]["weights"][name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ranks", ["plb_accumulate"], indirect=True)
def test_accumulated_weights_are_those_of_one_process_with_joined_batches(ranks):
    _, weights = replay(ranks, LogitsNet(), COUNT, refresh=False, accumulate=2)
    for name, value in weights.items():
        torch.testing.assert_close(ranks[0]["weights"][name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ranks", ["plb_unbiased"], indirect=True)
def test_unbiased_weights_are_those_of_the_moment_of_the_draw(ranks):
    net, data = LogitsNet(), Points(COUNT)
    optimizer = net.configure_optimizers()
    for records in epochs(ranks):
        for step in range(len(records[0]["drawn"])):
            batch, weights = (torch.cat([record[key][step] for record in records]) for key in ("drawn", "weights"))
            assert weights.max() <= 5 + 1e-5 and weights.std() > 0
            losses = F.cross_entropy(net.network(data.x[batch]), data.y[batch], reduction="none")
            optimizer.zero_grad()
            (losses * weights).mean().backward()
            optimizer.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(ranks[0]["weights"][name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ranks", ["plb_looking"], indirect=True)
def test_ranks_share_what_they_look_at_and_diagnose_together(ranks):
    for epoch, records in enumerate(epochs(ranks)):
        logged = records[0]["logged"]
        assert all(record["logged"] == logged for record in records)
        assert 0 <= logged["distribution_distance"] <= 1 and 0 <= logged["ordered_share"] <= 1
        looked = [set(torch.cat([look["indices"] for look in record["scored"]]).tolist()) for record in records]
        assert len(set.union(*looked)) == COUNT if epoch == 0 else all(looked)
    assert ranks[0]["totals"]["samples_refreshed"] > COUNT + 9 * EPOCHS


# ---- planned draws


@pytest.mark.parametrize("ranks", PLANNED, indirect=True)
def test_planned_draws_are_equal_on_all_ranks_and_trained_by_one_each(ranks, request):
    first = 0 if name_of(request) == "weighted" else 1  # of the epochs that are drawn
    for epoch, records in enumerate(epochs(ranks)):
        planned = records[0]["planned"]
        assert all(torch.equal(record["planned"], planned) for record in records)
        trained = torch.cat([batch for record in records for batch in record["trained"]])
        assert torch.equal(trained.sort().values, planned.sort().values)
        assert len(planned) == COUNT and (len(planned.unique()) < COUNT) == (epoch >= first)
    for rank in ranks[1:]:
        assert_same_bits(rank["statistics"], ranks[0]["statistics"])


@pytest.mark.parametrize("ranks", PLANNED, indirect=True)
def test_planned_draws_that_several_ranks_trained_have_the_last_loss(ranks):
    """Of the last epoch, in which nothing is looked at afterwards; on the same step the highest rank's counts."""
    target, last = Points(COUNT).y, {}
    records = [rank["epochs"][EPOCHS - 1] for rank in ranks]
    for step in range(len(records[0]["seen"])):
        for record in records:
            indices, logits = record["seen"][step]
            loss = F.cross_entropy(logits, target[indices], reduction="none").float()
            last.update(zip(indices.tolist(), loss.tolist(), strict=True))
    statistics = ranks[0]["statistics"]
    assert {i for i in range(COUNT) if statistics["epoch_seen"][i] == EPOCHS - 1} == set(last)
    assert {i: float(statistics["loss"][i]) for i in last} == last
    assert len(last) < COUNT


# ---- cut and resumed, merged


@pytest.mark.parametrize(
    "ranks",
    ["plb_cut", "lb_cut", "owc_cut", "plb_cut_exchange", "plb_cut_last", "plb_cut_workers", "iswr_cut", "weighted_cut", *MOMENTS],
    indirect=True,
)
def test_cut_and_resumed_equals_uncut_on_every_rank(ranks):
    for rank in ranks:
        whole, resumed = rank["whole"], rank["resumed"]
        for key in ("weights", "statistics"):
            assert_same_bits(whole[key], resumed[key])
        assert (whole["global_step"], whole["totals"]) == (resumed["global_step"], resumed["totals"])
        assert sorted(resumed["epochs"])[-1] == EPOCHS - 1
        for epoch, after in resumed["epochs"].items():
            before = whole["epochs"][epoch]
            left = len(after["trained"])
            assert all(map(torch.equal, before["trained"][len(before["trained"]) - left :], after["trained"]))
            assert before["written"][len(before["written"]) - left :] == after["written"]
            assert before["logged"] == after["logged"]
            if before["table"] is not None:
                assert_same_bits({"values": before["table"]["values"]}, {"values": after["table"]["values"]})
                assert all(map(torch.equal, before["table"]["sums"], after["table"]["sums"]))


@pytest.mark.parametrize("ranks", ["merge_repeats"], indirect=True)
def test_of_samples_that_several_ranks_saw_the_last_record_counts_however_often_they_merge(ranks):
    for rank in ranks:
        for epoch, alone in enumerate(rank["alone"]):
            for name in ("once", "often"):
                merged = rank[name][epoch]
                for column, value in alone.items():
                    assert torch.equal(merged[column].nan_to_num(-1), value.nan_to_num(-1)), (name, epoch, column)
                known = alone["epoch_seen"] >= 0
                assert torch.equal(merged["correct"][known], alone["loss"][known] % 2 == 0)
                assert torch.equal(merged["confidence"][known], alone["loss"][known] / 4096)
    for rank in ranks[1:]:
        for name in ("once", "often"):
            for mine, first in zip(rank[name], ranks[0][name], strict=True):
                assert_same_bits(mine, first)


@pytest.mark.parametrize("ranks", ["owc_silent"], indirect=True)
def test_a_rank_that_observes_nothing_keeps_no_other_waiting(ranks):
    """And the tables are equal, and hold what the others observed."""
    for records in epochs(ranks):
        assert_same_bits({"values": records[0]["table"]["values"]}, {"values": records[1]["table"]["values"]})
        assert [len(record["trained"]) for record in records] == [7, 7]
    assert ranks[0]["epochs"][0]["table"]["values"].unique().numel() > 2
    assert ranks[0]["epochs"][EPOCHS - 1]["logged"]["not_written"] == 0
