"""What PoD streams draw, look at and report, epoch by epoch."""

import math

import numpy as np
import pod_references as references
import pod_tester as tester
import pytest
import torch
from frequencies import assert_counts
from pod_tester import (
    BY_VALUE,
    HISTORIES,
    INF,
    NAN,
    ROWS,
    STREAMS,
    Stream,
    always,
    repeated,
    rows_to_score,
    seen_of,
    some_seen,
)
from shards import shard_of

from kakurenbo_lightning import Epoch, get_method
from kakurenbo_lightning.core.plan import EpochPlan, StreamPlan
from kakurenbo_lightning.engines.diagnosis import distribution_distance, ordered_share

every_stream = pytest.mark.parametrize("row", STREAMS.values(), ids=STREAMS)
SEEN = HISTORIES["random"]


# --- epochs


def test_what_was_looked_at_is_written_when_the_epoch_is_planned():
    for name in BY_VALUE:
        stream = Stream(get_method(name), repeated(*[1.0] * 6))
        expected = references.start(stream.method, repeated(*[1.0] * 6))
        tester.record(stream.statistics, [None, seen_of(3.0, True, 3.0), None, seen_of(0.5, True, 0.5), None, None], 0)
        stream.begin(1, scored=[1, 3])
        saw = repeated(3.0, 0.5)
        tester.check_values(stream, ROWS[name].reference(stream.method, expected, [1, 3], saw, INF))


@every_stream
def test_ordinary_epochs_come_first_and_the_stream_starts_with_what_they_saw(row):
    method = get_method(row.name, pretrain_epochs=2)
    assert [method.streams(Epoch(index)) for index in range(4)] == [False, False, True, True]
    stream = Stream(method, [None] * 60)
    assert stream.engine.shared_state() is None
    tester.record(stream.statistics, SEEN, 1)
    stream.begin(1)
    assert stream.engine.shared_state() is None
    stream.begin(2)
    tester.check_values(stream, references.start(method, SEEN))


@every_stream
def test_an_epoch_has_as_many_batches_as_an_ordinary_one_or_those_asked_for(row):
    method = get_method(row.name)
    assert [method.epoch_batches(n, 8) for n in (1, 7, 8, 9, 64, 65)] == [1, 1, 1, 2, 8, 9]
    assert get_method(row.name, epoch_length=5).epoch_batches(1000, 8) == 5
    for world_size, steps in ((1, 9), (2, 5), (4, 3)):
        plan = StreamPlan(65, method.stream_samples(65, 8))
        epochs = [shard_of(plan, 8, world_size, rank) for rank in range(world_size)]
        assert {epoch.steps for epoch in epochs} == {steps}
        assert epochs[0].samples_until(steps) == steps * 8 * world_size


@every_stream
def test_max_staleness_bounds_what_is_drawn_ahead(row):
    assert get_method(row.name).draws_ahead is None
    assert get_method(row.name, max_staleness=0).draws_ahead == 0
    assert get_method(row.name, max_staleness=7, exchange_every=3).draws_ahead == 5
    assert get_method(row.name, max_staleness=2, exchange_every=3).draws_ahead == 0


def test_a_forward_only_pass_is_announced_where_there_is_one():
    modes = {name: get_method(name).refresh_mode for name in ROWS}
    assert modes == {"owc": None, "lb": "eval", "nlb": "eval", "plb": "eval", "peb": "eval", "iswr": "eval", "weighted": None}
    assert get_method("owc", refresh_share=0.1).refresh_mode == "eval" and get_method("iswr", refresh=False).refresh_mode is None


@pytest.mark.parametrize("name", BY_VALUE)
def test_the_stream_starts_with_a_look_at_those_that_were_not_seen(name):
    never, some = [-1] * 5, [0, -1, 1, -1, 1]
    assert rows_to_score(get_method(name), never, 0) == [0, 1, 2, 3, 4]
    assert rows_to_score(get_method(name, pretrain_epochs=2), never, 0) == []
    assert rows_to_score(get_method(name, pretrain_epochs=2), some, 1) == []
    assert rows_to_score(get_method(name, pretrain_epochs=2), some, 2) == [1, 3]
    assert rows_to_score(get_method(name, pretrain_epochs=2, start_pass=True), some, 2) == [0, 1, 2, 3, 4]
    assert rows_to_score(get_method(name), some, 3) == [1, 3], "where the first drawn epoch was never planned"
    assert rows_to_score(get_method(name, start_pass=True), [0, 1, 2], 3) == []


def test_owc_starts_without_a_look():
    assert rows_to_score(get_method("owc"), [-1] * 5, 0) == rows_to_score(get_method("owc"), [-1] * 5, 1) == []


@every_stream
def test_the_stalest_are_looked_at_until_they_have_their_share_of_all_forward_passes(row):
    """Epoch 4 of 40 samples, of which 10 each were seen last in epochs 0, 1, 2 and 3."""
    seen_in = [i % 4 for i in range(40)]
    for share, looked in ((0.2, 10), (0.5, 40), (0.29, 16), (0.1, 4), (0.9, 40)):
        method = get_method(row.name, refresh_share=share)
        rows = rows_to_score(method, seen_in, 4)
        assert len(rows) == looked, share
        assert max(seen_in[i] for i in rows) == sorted(seen_in)[looked - 1]
        assert {tuple(rows_to_score(method, seen_in, 4, seed=seed)) for seed in range(3)} == {tuple(rows)} or looked in (4, 16)
    assert len({tuple(rows_to_score(get_method(row.name, refresh_share=0.1), seen_in, 4, seed=seed)) for seed in range(5)}) > 1
    short = get_method(row.name, refresh_share=0.5, epoch_length=2)
    assert len(rows_to_score(short, seen_in, 4, batch_size=8)) == 16, "2 batches of 8 are drawn"
    assert rows_to_score(get_method(row.name, refresh_share=0.5, pretrain_epochs=5), seen_in, 4) == []


@every_stream
def test_draws_depend_on_seed_epoch_batch_and_rank_alone(row):
    def drawn(seed=0, epoch=1, number=3, rank=0):
        stream = Stream(get_method(row.name), SEEN, seed=seed)
        stream.engine._rank = rank
        stream.begin(epoch)
        return tuple(stream.engine.draw(number).indices.tolist())

    torch.manual_seed(1)
    first = drawn()
    torch.manual_seed(2)
    assert drawn() == first
    assert len({first, drawn(seed=1), drawn(epoch=2), drawn(number=4), drawn(rank=1)}) == 5


@every_stream
def test_a_batch_is_drawn_once_and_from_what_was_written_until_then(row):
    stream = Stream(get_method(row.name, mix=0.0), SEEN, batch=4000)
    ahead = stream.engine.draw(2).indices
    stream.engine._write(torch.arange(10), stream.method.observed(tester.tensors([seen_of(9.0, False, 1.0)] * 10)))
    assert torch.equal(stream.engine.draw(2).indices, ahead)
    assert torch.equal(stream.shard.step(2), ahead) and next(stream.shard.batches(2)) == ahead.tolist()
    assert_counts(torch.bincount(stream.engine.draw(3).indices, minlength=60), stream.probabilities * 4000)


def test_effective_share_is_one_for_equal_values_and_the_share_of_those_that_have_everything():
    stream = Stream(get_method("plb", min_value=1e-9), repeated(*[1.0] * 20))
    stream.step(0, always(seen_of(1.0)))
    counts, _ = stream.engine.end_epoch(False)
    assert counts["effective_share"] == pytest.approx(1) and counts["staleness"] == counts["largest_staleness"] == 0
    stream.begin(1)
    stream.engine._write(torch.arange(15), torch.zeros(15))
    stream.engine.draw(2)
    for number in range(3):
        stream.step(number, lambda count: [seen_of(1.0) for _ in range(count)])
    stream.engine._write(torch.arange(15), torch.zeros(15))
    counts, _ = stream.engine.end_epoch(False)
    assert counts["effective_share"] == pytest.approx(5 / 20, rel=1e-3)
    assert (counts["staleness"], counts["largest_staleness"]) == (pytest.approx(2 / 3), 2)


# --- how far stored values are from the real ones


def pairs_of_values():
    rng = np.random.default_rng(0)
    yield "one sample", [3.0], [2.0]
    yield "two", [1.0, 2.0], [5.0, 6.0]
    yield "two turned round", [2.0, 1.0], [5.0, 6.0]
    yield "equal stored", [1.0] * 5, [1.0, 2.0, 3.0, 3.0, 2.0]
    yield "equal real", [1.0, 2.0, 3.0], [4.0] * 3
    yield "disjoint", [1.0, 0.0, 0.0], [0.0, 1.0, 2.0]
    yield "subnormal", [1e-40, 2e-40], [2e-40, 1e-40]
    for count in (3, 10, 60, 300):
        yield f"{count} random", rng.random(count), rng.gamma(0.3, size=count)
        yield f"{count} with ties", rng.integers(1, 4, size=count), rng.integers(1, 4, size=count)


@pytest.mark.parametrize("stored, real", [pair[1:] for pair in pairs_of_values()], ids=[pair[0] for pair in pairs_of_values()])
def test_distance_and_order_are_those_of_obvious_loops(stored, real):
    one, other = (torch.tensor(np.asarray(values), dtype=torch.float32) for values in (stored, real))
    before = one.clone(), other.clone()
    assert ordered_share(one, other) == pytest.approx(references.ordered_share(one.tolist(), other.tolist()), rel=1e-6)
    distance = references.distribution_distance(one.tolist(), other.tolist())
    assert distribution_distance(one, other) == pytest.approx(distance, abs=1e-9)
    assert torch.equal(one, before[0]) and torch.equal(other, before[1])


def test_distance_and_order_know_their_ends():
    real = torch.tensor([1.0, 2.0, 4.0, 9.0])
    assert ordered_share(3 * real, real) == 1 and ordered_share(-real, real) == 0 and ordered_share(torch.ones(4), real) == 0.5
    assert distribution_distance(3 * real, real) == pytest.approx(0, abs=1e-12)
    assert distribution_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])) == 1
    assert distribution_distance(torch.zeros(4), torch.ones(4)) == distribution_distance(torch.zeros(4), torch.zeros(4)) == 0


@pytest.mark.parametrize("name", BY_VALUE)
def test_diagnosis_compares_a_drawn_part_with_what_is_real_now(name):
    method = get_method(name, diagnose=25, temperature=0.5)
    stream, now = Stream(method, SEEN), some_seen(np.random.default_rng(9), 60, bad=0.1)
    looked = []

    def score(rows, record):
        looked.append(rows.tolist())
        for part in (rows[:10], rows[10:]):
            record(part, tester.tensors([now[i] for i in part.tolist()]))

    before = stream.values
    counts = stream.engine.diagnosed(Epoch(3, 10), stream.plan, score)
    again = stream.engine.diagnosed(Epoch(4, 10), stream.plan, score)
    assert stream.values == before, "it is only reported"
    rows = looked[0]
    assert len(set(rows)) == 25 and rows != looked[1] and counts != again
    real = {i: references.value_of(method, now[i]) for i in rows}
    finite = [i for i in rows if math.isfinite(real[i])]
    assert 10 < len(finite) < 25
    stored, real = [stream.values[i] for i in finite], [real[i] for i in finite]
    assert counts == {
        "distribution_distance": pytest.approx(references.distribution_distance(stored, real), rel=1e-5),
        "ordered_share": pytest.approx(references.ordered_share(stored, real), rel=1e-5),
    }
    assert Stream(get_method(name), SEEN).engine.diagnosed(Epoch(3, 10), StreamPlan(len(SEEN), len(SEEN)), score) == {}
    pretraining = get_method(name, diagnose=25, pretrain_epochs=5)
    everything = EpochPlan.everything(len(SEEN))
    assert Stream(pretraining, SEEN).engine.diagnosed(Epoch(3, 10), everything, score) == {} and len(looked) == 2


def test_owc_is_compared_with_what_is_misclassified_now():
    stream = Stream(get_method("owc", diagnose=4, alpha=0.5), [None] * 4)
    stream.begin(0)
    wrong = [seen_of(1.0, index != 0, 1.0) for index in range(4)]  # only the first is wrong
    stream.engine.tree.update(torch.tensor([0, 1]), torch.tensor([0.5, 1.0], dtype=torch.float64))
    stored = [value / sum(stream.values) for value in stream.values]
    counts = stream.engine.diagnosed(
        Epoch(1, 10), stream.plan, lambda rows, record: record(rows, tester.tensors([wrong[index] for index in rows.tolist()]))
    )
    assert counts["distribution_distance"] == pytest.approx(1 - stored[0])
    assert counts["ordered_share"] == pytest.approx(sum(stored[0] > value for value in stored[1:]) / 3)


@pytest.mark.parametrize("name", BY_VALUE)
def test_a_diagnosis_of_nothing_finite_is_none(name):
    stream = Stream(get_method(name, diagnose=4), repeated(*[1.0] * 9))
    counts = stream.engine.diagnosed(
        Epoch(1, 10), stream.plan, lambda rows, record: record(rows, tester.tensors(repeated(*[NAN] * len(rows))))
    )
    assert all(math.isnan(value) for value in counts.values())
