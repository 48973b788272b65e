"""What the settings of PoD methods do, and which are refused."""

import re
import warnings
from dataclasses import fields

import numpy as np
import pod_references as references
import pod_tester as tester
import pytest
import torch
from frequencies import assert_counts
from pod_tester import BY_VALUE, HISTORIES, INF, NAN, ROWS, STREAMS, Stream, always, repeated, seeing, seen_of, some_seen

from kakurenbo_lightning import get_method

every_stream = pytest.mark.parametrize("row", STREAMS.values(), ids=STREAMS)
SEEN = HISTORIES["random"]


# --- the settings


@every_stream
def test_mix_draws_so_many_uniformly(row):
    for mix in (0.0, 0.4, 1.0):
        stream = Stream(get_method(row.name, mix=mix), SEEN, batch=2000, steps=20)
        stream.engine._write(torch.arange(5), stream.method.observed(tester.tensors([seen_of(30.0, False, 1.0)] * 5)))
        counts = sum(torch.bincount(stream.engine.draw(number).indices, minlength=60) for number in range(20))
        expected = references.probabilities(stream.method, stream.probabilities.tolist())
        assert max(expected) > 1.5 * min(expected) or mix == 1
        assert_counts(counts, np.array(expected) * 40_000)


@every_stream
@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_weights_are_one_over_n_p_of_the_moment_of_the_draw(row, mix):
    """Batches 1 and 2 are drawn ahead, then the values change."""
    stream = Stream(get_method(row.name, unbiased=True, mix=mix), SEEN)
    drawn = {}
    for number in range(3):
        expected = references.probabilities(stream.method, stream.values)
        drawn[number] = stream.engine.draw(number), [1 / (60 * p) for p in expected]
        if number == 0:
            stream.step(0, seeing(6))
    for number, (batch, weights) in drawn.items():
        assert batch.weights.dtype == torch.float32
        assert np.allclose(batch.weights, [weights[i] for i in batch.indices.tolist()], rtol=1e-5)
        assert batch.written == (0 if number == 0 else 1)
        assert number == 0 or torch.equal(stream.shard.step_weights(number), batch.weights)
    now = [1 / (60 * p) for p in references.probabilities(stream.method, stream.values)]
    stream.step(1, always(seen_of(9.0, False, 0.9)))
    later = [1 / (60 * p) for p in references.probabilities(stream.method, stream.values)]
    assert not np.allclose(now, later, rtol=1e-2), "the test shows something"
    assert torch.equal(stream.engine.draw(2).weights, drawn[2][0].weights)
    if mix:
        assert max(float(batch.weights.max()) for batch, _ in drawn.values()) <= (1 + 1e-6) / mix


@every_stream
def test_weighted_means_are_those_of_all_samples_in_expectation(row):
    stream = Stream(get_method(row.name, unbiased=True, mix=0.1), SEEN, batch=20_000, steps=1)
    for number in range(3):
        stream.engine._write(
            torch.arange(60)[number::3], stream.method.observed(tester.tensors(some_seen(np.random.default_rng(number), 20)))
        )
    column = torch.randn(60, generator=torch.Generator().manual_seed(0)).double()
    batch = stream.engine.draw(0)
    for wanted in (column, torch.ones(60)):
        terms = batch.weights * wanted[batch.indices]
        assert abs(terms.mean() - wanted.double().mean()) < 6 * terms.std() / 20_000**0.5 + 1e-9


@every_stream
def test_without_unbiased_there_are_no_weights(row):
    stream = Stream(get_method(row.name), SEEN)
    assert stream.engine.draw(0).weights is None and stream.shard.step_weights(0) is None
    assert get_method(row.name).weighs is False and get_method(row.name, unbiased=True).weighs is True


@pytest.mark.parametrize("name", ["plb", "peb"])
def test_temperature_is_the_power_of_the_base_value(name):
    seen = repeated(0.25, 1.0, 4.0)
    for temperature, powers in ((0, [1, 1, 1]), (0.5, [0.5, 1, 2]), (1, [0.25, 1, 4]), (3, [1 / 64, 1, 64])):
        stream = Stream(get_method(name, temperature=temperature), seen)
        assert np.allclose(stream.values, powers, rtol=1e-6)
        stream.engine._write(torch.tensor([0, 1]), torch.tensor([4.0, 0.25]))
        assert np.allclose(stream.values, [powers[2], powers[0], powers[2]], rtol=1e-6)


@pytest.mark.parametrize("name", ["lb", "plb", "peb"])
def test_a_power_beyond_float32_is_the_largest_value(name):
    method = get_method(name, temperature=30.0)
    values = method.all_values(tester.recorded(method, repeated(1.0, 2.0, 1e4)))
    assert values.isfinite().all() and values.argmax() == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = Stream(method, repeated(1.0, 2.0, 1.5))
        stream.engine._write(torch.tensor([0]), torch.tensor([1e4]))
        assert stream.probabilities[0] > 0.999
    capped = Stream(get_method(name, temperature=200.0, cap_quantile=0.9), repeated(1.0, 2.0, 1e4))
    capped.begin(1)
    assert np.allclose(capped.probabilities, [0, 0.5, 0.5], atol=1e-5), "a power of 200 makes both of them the largest"


@pytest.mark.parametrize("share", [1e-9, 0.1, 0.5, 0.8, 0.9, 0.999, 1.0])
def test_the_cap_is_the_quantile_of_all_base_values(share):
    losses = [float(i) for i in range(1, 11)]
    seen = [None, *repeated(NAN, *losses, INF)]
    above = {1e-9: 1, 0.1: 1, 0.5: 5, 0.8: 8, 0.9: 9, 0.999: 10, 1.0: INF}[share]
    method = get_method("plb", cap_quantile=share)
    assert method.cap(tester.recorded(method, seen)) == above == references.cap_of(method, seen)
    stream = Stream(method, seen)
    assert stream.values[2:12] == [min(loss, above) for loss in losses]
    stream.engine._write(torch.tensor([2]), torch.tensor([1e6]))
    assert stream.values[2] == min(above, 1e6)


@pytest.mark.parametrize("name", BY_VALUE)
def test_each_epoch_takes_the_cap_anew(name):
    """Of what was seen last, which all values that are not normalised are then made of; the others are only written with it."""
    method = get_method(name, cap_quantile=0.75)
    first = repeated(1.0, 2.0, 3.0, 4.0)
    row, stream, expected = ROWS[name], Stream(method, first), references.start(method, first)
    for epoch, seen in ((1, repeated(0.25, 0.5, 0.75, 1.0)), (2, repeated(5.0, 6.0, 7.0, 8.0))):
        tester.record(stream.statistics, seen, epoch - 1)
        stream.begin(epoch)
        if not method.normalised:
            expected = references.start(method, seen)
        tester.check_values(stream, expected)
        stream.engine._write(torch.tensor([3]), torch.tensor([20.0]))
        expected = row.reference(method, expected, [3], repeated(20.0), references.cap_of(method, seen))
        tester.check_values(stream, expected)
    assert name in ("lb", "nlb") or expected[3] == 7


@pytest.mark.parametrize("name", ["plb", "peb"])
def test_a_new_cap_leaves_what_is_not_finite_its_value(name):
    stream = Stream(get_method(name, cap_quantile=0.75), repeated(1.0, 2.0, 3.0, 4.0))
    tester.record(stream.statistics, [seen_of(NAN, True, NAN), None, None, None], 0)
    stream.begin(1)
    assert stream.values == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("name", BY_VALUE)
@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0, 1.0], [-1.0, -1.0, -1.0, 1.0], [0.0] * 4], ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_a_cap_of_zero_or_less_leaves_every_sample_drawable(name, losses, temperature):
    stream = Stream(get_method(name, cap_quantile=0.5, temperature=temperature), repeated(1.0, 2.0, 3.0, 4.0), batch=2000)
    tester.record(stream.statistics, repeated(*losses), 0)
    stream.begin(1)
    assert stream.engine.tree.values.min() > 0
    stream.step(0, lambda count: [seen_of(losses[i % 4], True, losses[i % 4]) for i in range(count)])
    assert stream.engine.tree.values.min() > 0
    assert set(stream.engine.draw(1).indices.tolist()) <= set(range(4))
    fresh = Stream(get_method(name, cap_quantile=0.5, temperature=temperature), repeated(*losses))
    assert fresh.engine.tree.values.min() > 0


# --- settings

NOT_FLAGS, NOT_NUMBERS, NOT_COUNTS = (0, 1, None, "yes"), (NAN, INF, True, "0.5", None), (-1, 1.5, 2.0, "3", True)
POD = {
    "unbiased": ("True or False", NOT_FLAGS),
    "min_value": (r"a number in \(0, 1\]", (0, -1e-6, 1.5, *NOT_NUMBERS)),
    "temperature": ("a number >= 0", (-1, *NOT_NUMBERS)),
    "mix": (r"a number in \[0, 1\]", (-0.1, 1.1, *NOT_NUMBERS)),
    "cap_quantile": (r"a number in \(0, 1\]", (0, -0.5, 1.01, *NOT_NUMBERS)),
}
STREAM = {
    "epoch_length": ("None or an integer >= 1", (0, *NOT_COUNTS)),
    "pretrain_epochs": ("an integer >= 0", (None, *NOT_COUNTS)),
    "start_pass": ("True or False", NOT_FLAGS),
    "max_staleness": ("None or an integer >= 0", NOT_COUNTS),
    "exchange_every": ("an integer >= 1", (0, None, *NOT_COUNTS)),
    "refresh_share": (r"a number in \[0, 1\)", (-0.1, 1, 1.5, *NOT_NUMBERS)),
    "diagnose": ("an integer >= 0", (None, *NOT_COUNTS)),
}
OWN = {
    "iswr": {"refresh": ("True or False", NOT_FLAGS)},
    "weighted": {
        "weights": (
            r"one number >= 0 for each sample .* or the path of a \.npy, \.pt or \.csv file with them.*",
            (
                1,
                0.5,
                True,
                {},
                [],
                [1.0, -2.0],
                [0.5, NAN],
                [0.5, INF],
                [0, 0.0],
                ["a"],
                [[1.0]],
                "nowhere.npy",
                "nowhere",
                b"ab",
            ),
        ),
        "num_samples": ("None or an integer >= 1", (0, *NOT_COUNTS)),
    },
    "owc": {
        "alpha": ("None or a number > 0", (0, -1.0, NAN, INF, True, "1")),
        "temperature": ("1, because owc has no base values", (2.0, 0.0)),
        "cap_quantile": ("1, because owc has no base values", (0.9,)),
        "start_pass": ("False, because owc starts with equal probabilities", (True,)),
    },
}
BAD = {name: {**POD, **(STREAM if name in STREAMS else {}), **OWN.get(name, {})} for name in ROWS}


@pytest.mark.parametrize(("name", "setting"), [(name, setting) for name in ROWS for setting in BAD[name]])
def test_a_bad_setting_is_named_with_what_is_allowed(name, setting):
    allowed, values = BAD[name][setting]
    for value in values:
        words = rf"^{name}: {setting}={re.escape(repr(value))} is not allowed; {setting} must be {allowed}\. \w.*\.$"
        with pytest.raises(ValueError, match=words):
            get_method(name, **{setting: value})


def test_every_setting_has_bad_values():
    for name in ROWS:
        assert {field.name for field in fields(get_method(name))} == BAD[name].keys()


def test_max_staleness_leaves_room_for_the_exchange():
    with pytest.raises(ValueError, match=r"max_staleness=1 is not allowed; .* an integer >= exchange_every - 1 = 2"):
        get_method("plb", exchange_every=3, max_staleness=1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("plb", {"min_value": 1, "mix": 1, "temperature": 0, "cap_quantile": 1}),
        ("peb", {"mix": 0, "temperature": 100.0, "cap_quantile": 1e-9, "refresh_share": 0.999, "max_staleness": 0}),
        ("owc", {"alpha": 10, "diagnose": 100, "epoch_length": 1, "pretrain_epochs": 7}),
        ("owc", {"temperature": 1, "cap_quantile": 1.0}),
    ],
    ids=str,
)
def test_settings_at_the_ends_are_allowed(name, settings):
    method = get_method(name, **settings)
    assert {setting: getattr(method, setting) for setting in settings} == settings


@every_stream
def test_pretraining_that_leaves_nothing_to_draw_is_told(row):
    method = get_method(row.name, pretrain_epochs=4)
    with pytest.warns(
        UserWarning, match=f"{row.name}: pretrain_epochs=4 with max_epochs=4: .* nothing is drawn; pretrain for fewer"
    ):
        method.check_run(4, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.check_run(5, 100)
        method.check_run(None, 100)
