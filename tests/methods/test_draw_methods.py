"""Every PoD method against its reference in ``pod_references.py``; see ``pod_tester.py``. The training loop: ``test_stream*.py``."""

import math
import warnings
from dataclasses import FrozenInstanceError, fields

import histories
import method_tester
import numpy as np
import pod_references as references
import pod_tester as tester
import pytest
import torch
from histories import bits
from hypothesis import given, settings
from hypothesis import strategies as st
from pod_references import Seen
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
    seeing,
    seen_of,
    some_seen,
    variants,
)

from kakurenbo_lightning import Epoch, available_methods, get_method

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
every_stream = pytest.mark.parametrize("row", STREAMS.values(), ids=STREAMS)
every_history = pytest.mark.parametrize("name", HISTORIES)
VARIANTS = [(row, method) for row in STREAMS.values() for method in variants(row)]
every_variant = pytest.mark.parametrize(
    ("row", "method"), VARIANTS, ids=[f"{row.name}-{dict(s)}" for row in STREAMS.values() for s in row.variants]
)
SEEN = HISTORIES["random"]


def test_every_pod_method_has_a_row():
    method_tester.check_rows(method_tester.our_methods("draw"), ROWS)


# --- the values, step after step


@pytest.mark.slow
@every_stream
def test_after_10_000_steps_values_are_the_references(row):
    """The references normalise every step in O(N); 8 of 60 samples are drawn in each, many of them twice."""
    tester.check_stream(row, get_method(row.name, mix=0.2), SEEN, 10_000, seeing(1))


@pytest.mark.slow_cases("lb", "nlb", "peb")  # test_any_step_is_the_references has all their settings, in fewer steps
@every_variant
def test_with_every_setting_values_are_the_references(row, method):
    tester.check_stream(row, method, SEEN, 400, seeing(2))


@pytest.mark.quick("{'mix': 0.3, 'unbiased': True}")
@every_variant
def test_observations_that_are_not_finite_change_nothing_in_the_reference_either(row, method):
    tester.check_stream(row, method, HISTORIES["random, some not finite"], 200, seeing(3, bad=0.2))


@every_stream
@pytest.mark.slow_cases("0.0001", "10000.0", "lb", "nlb", "peb")
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e12])
def test_whatever_the_scale_of_losses_the_common_factor_is_the_references(row, scale):
    """What is normalised every step is on its own scale; the factors that were taken out multiply to far more than float32 can hold."""
    method = get_method(row.name, mix=0.5, **({"alpha": scale} if row.name == "owc" else {}))
    stream, _ = tester.check_stream(row, method, SEEN, 600, seeing(4, scale=scale))
    values = stream.engine.tree.values
    assert values.min() > 0 and values.isfinite().all()


@every_stream
@pytest.mark.parametrize("count", [1, 2, 127, 129])
def test_for_data_sets_of_any_length_values_are_the_references(row, count):
    seen = some_seen(np.random.default_rng(count), count)
    tester.check_stream(row, get_method(row.name), seen, 60, seeing(5), batch=20)


NUMBER = st.one_of(st.sampled_from([0.0, -0.0, 1.0, NAN, INF, -INF]), st.floats(-1, 50, width=32, allow_subnormal=False))
SIGHTING = st.builds(Seen, NUMBER, st.booleans(), NUMBER)


@every_stream
@settings(max_examples=40)
@given(
    start=st.lists(st.one_of(st.none(), SIGHTING), min_size=1, max_size=12),
    steps=st.lists(st.lists(st.tuples(st.integers(0, 11), SIGHTING), min_size=1, max_size=10), max_size=5),
    variant=st.integers(0, 6),
)
def test_any_step_is_the_references(row, start, steps, variant):
    """Whatever was drawn, however often."""
    method = get_method(row.name, **row.variants[variant % len(row.variants)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = Stream(method, start)
        expected, cap = references.start(method, start), references.cap_of(method, start)
        tester.check_values(stream, expected)
        for pairs in steps:
            drawn, seen = [i % len(start) for i, _ in pairs], [one for _, one in pairs]
            stream.engine._write(torch.tensor(drawn), method.observed(tester.tensors(seen)))
            expected = row.reference(method, expected, drawn, seen, cap)
            tester.check_values(stream, expected)


def test_of_a_sample_drawn_twice_the_last_observation_counts():
    stream = Stream(get_method("plb"), repeated(*[1.0] * 4))
    stream.engine._write(torch.tensor([2, 1, 2]), torch.tensor([5.0, 3.0, 0.5]))
    assert stream.values == [1.0, 3.0, 0.5, 1.0]


# --- the start


@every_stream
@every_history
def test_start_values_are_the_references(row, name):
    for method in variants(row):
        tester.check_values(Stream(method, HISTORIES[name]), references.start(method, HISTORIES[name]))


@every_row
@pytest.mark.parametrize("losses", [[1e-42, 0.0], [1e-38] * 5 + [0.0], [3e38] * 9 + [0.0]], ids=["subnormal", "tiny", "huge"])
def test_no_start_value_is_0_or_infinite(row, losses):
    for method in variants(row):
        values = method.all_values(tester.recorded(method, repeated(*losses)))
        assert values.dtype == torch.float32 and (values > 0).all() and values.isfinite().all()


def test_the_start_is_that_of_the_table_of_methods():
    """METHODS.md: 1/N, loss, tanh(loss), loss, H, all with a sum of 1; misses are there for OWC only, which starts without."""
    losses, entropies = [0.5, 1.0, 2.5], [0.25, 0.75, 1.0]
    seen = [seen_of(loss, False, entropy) for loss, entropy in zip(losses, entropies, strict=True)]
    tanh = [math.tanh(loss) for loss in losses]
    expected = {
        "owc": [1 / 3] * 3,
        "lb": [1 / 8, 1 / 4, 5 / 8],
        "nlb": [value / sum(tanh) for value in tanh],
        "plb": [1 / 8, 1 / 4, 5 / 8],
        "peb": [1 / 8, 3 / 8, 1 / 2],
    }
    for name, probabilities in expected.items():
        assert np.allclose(Stream(get_method(name), seen).probabilities, probabilities, rtol=1e-6), name


def test_the_updates_are_those_of_the_table_of_methods():
    """One step on four samples of p = 1/4 (values .5), worked out by hand."""
    seen, saw = [seen_of(0.5, True, 0.5)] * 4, seen_of(2.0, False, 1.0)
    tanh = math.tanh(2)
    new_and_old = {
        "owc": (0.35 / 1.1, 0.25 / 1.1),
        "lb": (2 / 2.75, 0.25 / 2.75),
        "nlb": (tanh / (tanh + 0.75), 0.25 / (tanh + 0.75)),
        "plb": (2 / 3.5, 0.5 / 3.5),
        "peb": (1 / 2.5, 0.5 / 2.5),
    }
    for name, (new, old) in new_and_old.items():
        stream = Stream(get_method(name, **({"alpha": 0.1} if name == "owc" else {})), seen)
        stream.engine._write(torch.tensor([1]), stream.method.observed(tester.tensors([saw])))
        assert np.allclose(stream.probabilities, [old, new, old, old], rtol=1e-6), name


# --- nothing is lost for ever


@pytest.mark.quick("lb")
@every_stream
def test_losses_of_0_leave_every_sample_to_be_drawn(row):
    stream = Stream(get_method(row.name), repeated(*[1.0] * 12), steps=2000)
    drawn = [set(stream.step(number, always(seen_of(0.0, True, 0.0)))[0]) for number in range(2000)]
    assert set().union(*drawn[:100]) == set().union(*drawn[-500:]) == set(range(12))
    values = stream.engine.tree.values
    assert values.isfinite().all() and values.min() > 0


@every_stream
def test_a_value_that_is_written_is_at_least_its_share_of_the_mean(row):
    stream = Stream(get_method(row.name, min_value=0.25), repeated(*[1.0] * 10))
    stream.engine._write(torch.tensor([3]), torch.tensor([0.0]))
    expected = [0.1] * 10 if row.name == "owc" else [1 / 9.25] * 3 + [0.25 / 9.25] + [1 / 9.25] * 6
    assert np.allclose(stream.probabilities, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["lb", "nlb"])
def test_values_stay_positive(name):
    """The few that are drawn take nearly everything, again and again; the others shrink, but never to nothing."""
    stream = Stream(get_method(name, min_value=1e-30), repeated(*[1.0] * 40), batch=30, steps=300)
    for number in range(300):
        stream.step(number, always(seen_of(1e-3 if number % 2 else 50.0)))
        assert stream.engine.tree.values.min() > 0
    stream.engine._write(torch.arange(20), torch.zeros(20))
    assert stream.engine.tree.values.min() > 0


@pytest.mark.parametrize("name", ["owc", "lb", "plb", "peb"])
@pytest.mark.parametrize("losses", [[1e38], [1e38, 1e10], [3e38, 3e38], [1e30, 1e30, 1e30]], ids=str)
def test_huge_finite_losses_leave_a_finite_table(name, losses):
    """They take everything, three times one after another; OWC has alpha instead."""
    count = len(losses)
    stream = Stream(get_method(name, **({"alpha": losses[0]} if name == "owc" else {})), repeated(*[1.0] * 100), batch=500)
    for number in range(3):
        stream.engine._write(torch.arange(count), torch.ones(count) if name == "owc" else torch.tensor(losses))
        probabilities = stream.probabilities
        assert np.isfinite(probabilities).all() and probabilities.min() > 0
        assert math.isclose(probabilities.sum(), 1, rel_tol=1e-9)
        assert probabilities[:count].sum() > 0.9999
        assert set(stream.engine.draw(number).indices.tolist()) <= set(range(count))


# --- what is not finite


@pytest.mark.parametrize("name", BY_VALUE)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_is_not_written_and_is_counted(name, bad):
    stream = Stream(get_method(name), repeated(*[1.0] * 5))
    before = stream.values
    with pytest.warns(UserWarning, match=f"{name}: a NaN or infinite value was observed; the sample keeps the value it had"):
        drawn, _ = stream.step(0, always(seen_of(bad, True, bad)))
    assert stream.values == before and stream.not_written == len(drawn) == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        stream.begin(1)
        stream.step(0, lambda count: [seen_of(bad, True, bad), *[seen_of(1.0, True, 1.0)] * (count - 1)])
    assert stream.not_written == 1
    stream.begin(2)
    stream.step(0, always(seen_of(1.0, True, 1.0)))
    assert stream.not_written == 0


def test_owc_asks_for_no_loss():
    stream = Stream(get_method("owc", alpha=1.0), repeated(*[1.0] * 5))
    drawn, _ = stream.step(0, always(Seen(NAN, False, NAN)))
    assert stream.not_written == 0
    assert {i for i, p in enumerate(stream.probabilities) if p > 0.1} == set(drawn) or len(set(drawn)) == 5


# --- what every method keeps to


@every_row
def test_a_method_is_frozen_and_knows_its_name(row):
    for method in variants(row):
        assert method.name == row.name and method.family == "draw" and method.summary and method.paper != "-"
        for field in fields(method):
            with pytest.raises(FrozenInstanceError):
                setattr(method, field.name, 0)


@every_row
@every_history
def test_nothing_that_is_asked_of_a_method_changes_the_statistics(row, name):
    for method in variants(row):
        statistics = tester.recorded(method, HISTORIES[name])
        before = bits(statistics)
        for index in (0, 1, 3):
            epoch = Epoch(index, 10)
            plans = [method.plan(statistics, epoch).checksum() for _ in range(2)]
            assert plans[0] == plans[1]
            assert torch.equal(*(method.rows_to_score(statistics, epoch, None) for _ in range(2)))
        assert torch.equal(*(method.all_values(statistics) for _ in range(2)))
        assert method.cap(statistics) == method.cap(statistics)
        assert histories.same(before, bits(statistics))


@every_row
def test_plans_are_pure_and_do_not_depend_on_the_order_of_recording(row):
    history = histories.drawn(47, seed=5, epochs=8)
    epochs = range(histories.MAX_EPOCHS)
    for method in variants(row):
        method_tester.check_pure(method, history)
        wanted = histories.recorded(history, method)
        for batch_size, order in ((1, 3), (5, None), (16, 4)):
            statistics = histories.recorded(history, method, batch_size=batch_size, order=order)
            assert histories.same(bits(statistics), bits(wanted))
            assert method_tester.checksums(method, statistics, epochs) == method_tester.checksums(method, wanted, epochs)


@every_row
def test_memory_is_as_declared(row):
    declared = available_methods()[row.name].bytes_per_sample
    for method in variants(row):
        statistics = histories.empty(method, histories.drawn(1000, seed=0, epochs=0))
        assert statistics.repeats
        assert method_tester.real_bytes(statistics) == row.bytes_per_sample * 1000
        assert declared == statistics.bytes_per_sample == row.bytes_per_sample
