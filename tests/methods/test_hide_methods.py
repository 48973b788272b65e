"""Every method against its reference in ``references.py``, and what all of them keep to; see ``method_tester.py``."""

import math

import histories
import method_tester
import numpy as np
import pytest
import references
import torch
from histories import HISTORIES, MAX_EPOCHS, NASTY, Sighting, bits, drawn, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from method_tester import ROWS, check_equals_reference, check_run, takes, variants

from kakurenbo_lightning import Epoch, available_methods, get_method

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
# what all share, by methods that hide by loss, by class, at random, by groups and by what was learned
of_each_kind = pytest.mark.quick("kakurenbo", "rcap", "random", "seta", "forget")
ALL_PROTECTED = [{"protected": range(20)}, {"protected_classes": (1,)}, {"protected_classes": (1,), "balance": "class"}]
LONG = drawn(47, seed=5, epochs=14)  # the longest of short runs: four epochs of scoring, and ten


def test_every_method_has_a_row():
    method_tester.check_rows(method_tester.our_methods(), ROWS)


def test_a_method_without_a_row_is_told_what_to_do():
    with pytest.raises(AssertionError, match=r"no row for random: write the reference in tests/references\.py and add a Row"):
        method_tester.check_rows(["baseline", "random"], {"baseline": ROWS["baseline"]})


@every_row
@pytest.mark.parametrize("name", HISTORIES)
def test_plans_are_those_of_the_reference(row, name):
    for method in variants(row):
        check_equals_reference(row, method, HISTORIES[name])


FLOAT = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 2.0, float("nan"), float("inf"), float("-inf")]), st.floats(-5, 5, width=32))
SIGHTING = st.tuples(
    FLOAT, st.one_of(st.sampled_from([0.5, 0.7, 1.0]), st.floats(0, 1, width=32)), st.booleans(), st.integers(0, 90)
)
SAMPLE = st.tuples(st.integers(0, 2), *[st.one_of(st.none(), SIGHTING)] * 3)


def history_of(samples):
    """A history from :data:`SAMPLE` values."""

    def seen(sightings):
        return tuple(
            Sighting(epoch, s[0], float(np.float32(s[1])), s[2], s[3] / histories.GRID) for epoch, s in enumerate(sightings) if s
        )

    return histories.History(tuple(seen(sample[1:]) for sample in samples), tuple(sample[0] for sample in samples))


@every_row
@settings(max_examples=25)
@given(
    samples=st.lists(SAMPLE, min_size=1, max_size=30),
    protected=st.lists(st.integers(0, 29), max_size=3),
    protected_classes=st.lists(st.integers(0, 2), max_size=1),
    balance=st.sampled_from([None, "class", "rcap"]),
    schedule=st.sampled_from([(), (1.1, 0.8, 1.1)]),
    seed=st.integers(0, 3),
)
def test_any_plan_is_that_of_the_reference(row, samples, protected, protected_classes, balance, schedule, seed):
    history = history_of(samples)
    protected = [i for i in protected if i < len(history)]
    options = {"balance": balance, "fraction_schedule": schedule}
    options = {name: value for name, value in options.items() if takes(row, {name: value})}
    for method in variants(row, protected=protected, protected_classes=protected_classes, **options):
        check_equals_reference(row, method, history, seed=seed)


@of_each_kind
@every_row
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start_epoch": 3},
        {"end_fraction": 0.3},
        {"every_n_epochs": 3},
        {"start_epoch": 2, "end_fraction": 0.2, "every_n_epochs": 4},
        {"protected": range(0, 47, 3), "protected_classes": [1], "every_n_epochs": 2},
        {"balance": "class", "protected_classes": [2], "protected": [5], "start_epoch": 1},
        {"fraction_schedule": (1.1, 0.8, 1.1)},
        {"fraction_schedule": (0.85, 1.15, 0.99, 1.01), "every_n_epochs": 2, "balance": "class"},
        {"balance": "rcap", "protected": [5]},
        {"balance": "rcap", "protected_classes": [2], "start_epoch": 1, "fraction_schedule": (1.15, 0.85)},
    ],
    ids=str,
)
def test_a_run_makes_the_references_choice_when_it_is_due(row, options):
    if not takes(row, options):  # refused by name
        with pytest.raises(ValueError, match=f"{row.name}: (balance|fraction_schedule)="):
            variants(row, **options)
        return
    for method in variants(row, **options):
        hidden = check_run(row, method, LONG)
        begin = references.scoring_epochs(method, MAX_EPOCHS) + method.start_epoch
        assert not any(hidden[:begin])
        assert row.name == "baseline" or any(hidden[begin:])
        if "end_fraction" in options:
            assert not any(hidden[-round(options["end_fraction"] * MAX_EPOCHS) :])


@every_row
def test_protected_samples_and_classes_are_never_hidden(row):
    history = HISTORIES["all sure and right"]
    protected = {*range(0, 50, 7), *(i for i in range(50) if history.targets[i] == 1)}
    for method in variants(row, protected=range(0, 50, 7), protected_classes=(1,)):
        statistics = recorded(history, method)
        for index in method_tester.some_epochs(method):
            assert not protected & set(method.plan(statistics, Epoch(index, MAX_EPOCHS)).hidden.tolist())


@every_row
@pytest.mark.parametrize("options", ALL_PROTECTED, ids=str)
def test_when_every_sample_is_protected_nothing_is_hidden(row, options):
    for method in variants(row, **options):
        check_equals_reference(row, method, HISTORIES["one class"])


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.exact], ids=lambda row: row.name)
def test_balance_holds_the_fraction_in_each_class(row):
    targets = [0] * 23 + [2] * 17 + [5] * 10
    history = histories.made([(i % 7 + i / 64, 1.0, True, i / 64) for i in range(50)], targets)
    method = get_method(row.name, **{**row.settings, "max_fraction": 0.3}, balance="class")
    begin = references.scoring_epochs(method, MAX_EPOCHS) + method.start_epoch
    hidden = method.plan(recorded(history, method), Epoch(begin, MAX_EPOCHS)).hidden
    assert torch.tensor(targets)[hidden].bincount().tolist() == [6, 0, 5, 0, 0, 3]


@every_row
def test_unbiased_weighs_or_is_refused_by_name(row):
    known = get_method(row.name).knows_keep_probability
    if not known:
        with pytest.raises(ValueError, match=f"{row.name}: unbiased=True is not allowed; .* because {row.name} hides by a rule"):
            get_method(row.name, unbiased=True)
        return
    for method in (
        *variants(row, unbiased="epoch"),
        *variants(row, unbiased="step"),
        *variants(row, unbiased="step", balance="class"),
    ):
        check_run(row, method, LONG)
        check_equals_reference(row, method, LONG)
    assert get_method(row.name, unbiased="epoch") == get_method(row.name, unbiased=True)
    for method in variants(row, unbiased=False):
        assert method.plan(recorded(LONG, method), Epoch(3, MAX_EPOCHS)).weights is None


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.loss_decides is not None], ids=lambda row: row.name)
@pytest.mark.parametrize("name", ["all nan", "all inf", "all -inf", "some not finite", "one finite", "257 random, seed 0"])
def test_a_loss_that_is_not_finite_is_never_hidden(row, name):
    history = HISTORIES[name]
    bad = {i for i, seen in enumerate(history.samples) if not math.isfinite(references.loss_of(seen))}
    assert bad
    for method in variants(row, **row.loss_decides):
        statistics = recorded(history, method)
        for index in method_tester.some_epochs(method):
            assert not bad & set(method.plan(statistics, Epoch(index, MAX_EPOCHS)).hidden.tolist())


@of_each_kind
@every_row
@pytest.mark.parametrize("options", [{}, {"balance": "class"}], ids=str)
def test_plans_are_pure(row, options):
    for method in variants(row, **options):
        method_tester.check_pure(method, LONG)


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.draws != "never"], ids=lambda row: row.name)
def test_five_seeds_give_five_draws(row):
    history = LONG if row.draws == "always" else HISTORIES["all equal"]
    for method in variants(row):
        statistics = recorded(history, method)
        index = references.scoring_epochs(method, MAX_EPOCHS) + 2
        assert len({method.plan(statistics, Epoch(index, MAX_EPOCHS, seed)).checksum() for seed in range(5)}) == 5


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.draws == "never"], ids=lambda row: row.name)
@pytest.mark.parametrize("name", ["all equal", "few values", "257 random, seed 0"])
def test_methods_that_do_not_draw_do_not_ask_for_the_seed(row, name):
    for method in variants(row):
        statistics = recorded(HISTORIES[name], method)
        assert len({method.plan(statistics, Epoch(3, MAX_EPOCHS, seed)).checksum() for seed in range(5)}) == 1


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.draws == "always"], ids=lambda row: row.name)
def test_epochs_draw_anew(row):
    for method in variants(row, end_fraction=0.0):
        statistics = recorded(LONG, method)
        plans = [tuple(method.plan(statistics, Epoch(index, MAX_EPOCHS)).hidden.tolist()) for index in range(5)]
        assert len(set(plans)) == 5


@every_row
def test_memory_per_sample_is_as_declared(row):
    declared = available_methods()[row.name].bytes_per_sample
    statistics = histories.empty(get_method(row.name), drawn(1000, seed=0, epochs=0))
    assert method_tester.real_bytes(statistics) == row.bytes_per_sample * 1000
    assert declared == statistics.bytes_per_sample == row.bytes_per_sample


@of_each_kind
@every_row
def test_batch_size_and_order_of_recording_change_nothing(row):
    for method in variants(row):
        wanted = recorded(LONG, method)
        for batch_size, order in ((1, 3), (5, None), (16, 4), (1000, 7)):
            statistics = recorded(LONG, method, batch_size=batch_size, order=order)
            assert histories.same(bits(statistics), bits(wanted))
            epochs = range(method_tester.run_length(method))
            assert method_tester.checksums(method, statistics, epochs) == method_tester.checksums(method, wanted, epochs)


@every_row
def test_a_part_is_hidden_in_the_histories_compared(row):
    """Else the comparisons above show nothing."""
    if row.name == "baseline":
        return
    for method in variants(row):
        counts = []
        for history in NASTY.values() if row.sightings == 1 else (drawn(40, seed, epochs=10) for seed in range(3)):
            statistics = recorded(history, method)
            counts += [
                len(method.plan(statistics, Epoch(index, MAX_EPOCHS)).hidden) for index in method_tester.some_epochs(method)
            ]
        assert sum(count > 0 for count in counts) > len(counts) / 5
