"""``fraction_schedule``: the hidden fraction alternates, and a whole round hides exactly as much as without."""

from dataclasses import replace

import pytest
import torch
from helpers import Net, Spy, SureNet, fit, loader
from histories import made, recorded
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from kakurenbo_lightning import Epoch, SampleSelection, get_method

SURE = [(i % 7 + i / 64, 1.0, True) for i in range(60)]  # nothing is moved back
SCHEDULES = {
    "kakurenbo": {"tau": 0.0},
    "forget_online": {},
    "random": {},
    "random_cycle": {},
    "orderdp": {},
}


@st.composite
def schedules(draw):
    """Factors in tenths or thousandths whose mean is 1, in any order."""
    unit = draw(st.sampled_from([10, 1000]))
    apart = draw(st.lists(st.integers(0, unit), min_size=1, max_size=4))
    factors = [*(1 + a / unit for a in apart), *(1 - a / unit for a in apart), *([1.0] * draw(st.integers(0, 2)))]
    return tuple(round(factor, 3) for factor in draw(st.permutations(factors)))


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    schedule=schedules(),
    fraction=st.sampled_from([0.05, 0.29, 0.3, 0.49]),
    count=st.integers(1, 60),
    options=st.fixed_dictionaries(
        {"start_epoch": st.integers(0, 3), "every_n_epochs": st.integers(1, 3), "balance": st.sampled_from([None, "class"])}
    ),
    milestones=st.lists(st.integers(1, 30), max_size=3, unique=True),
    first=st.integers(0, 2),
)
def test_every_whole_round_hides_exactly_as_many_as_without(name, schedule, fraction, count, options, milestones, first):
    settings = {**SCHEDULES[name], **options}
    if name == "orderdp":
        settings |= {"random_fraction": 0.8, "top_fraction": 0.75, "end_fraction": 0.0}
    else:
        settings |= {"max_fraction": fraction}
    if name == "kakurenbo":
        settings |= {"milestones": sorted(milestones), "fractions": [1.0, 0.8, 0.35, 0.1][: len(milestones) + 1]}
    method = get_method(name, **settings, fraction_schedule=schedule)
    statistics = recorded(made(SURE[:count]), method)
    begin = method.start_epoch + first * len(schedule) * method.every_n_epochs
    epochs = range(begin, begin + len(schedule) * method.every_n_epochs, method.every_n_epochs)

    def hidden(method):
        return [len(method.plan(statistics, Epoch(epoch, 100)).hidden) for epoch in epochs]

    alternating, fixed = hidden(method), hidden(replace(method, fraction_schedule=()))
    assert sum(alternating) == sum(fixed)
    parts = 3 if method.balance else 1
    for number, (factor, epoch) in enumerate(zip(schedule, epochs, strict=True)):
        share = sum(fixed) / len(fixed) * factor
        assert abs(alternating[number] - share) < parts, (
            f"epoch {epoch} hides its factor of the mean, up to rounding in each class"
        )


@pytest.mark.parametrize("unbiased", [False, True])
def test_infobatch_prunes_by_the_fraction_of_the_epoch_and_weighs_by_it(unbiased):
    history = made([(0.25 if i % 2 else 0.75, 1.0, True) for i in range(200)])
    method = get_method("infobatch", prune_ratio=0.4, unbiased=unbiased, fraction_schedule=[1.5, 0.5])
    plans = [method.plan(recorded(history, method), Epoch(epoch, 100)) for epoch in (1, 2, 3, 4)]
    assert [len(plan.hidden) for plan in plans] == [60, 20, 60, 20]
    if unbiased:
        assert [plan.weights.max().item() for plan in plans] == pytest.approx([2.5, 1.25, 2.5, 1.25])
        assert [plan.weights[plan.indices].sum().item() for plan in plans] == pytest.approx([200] * 4)


def test_kakurenbo_in_a_run_hides_more_and_less_with_its_milestones_and_scales_the_rate():
    """64 samples, F 0.25 for four epochs that hide, then 0.125: rounds of two hide 32 and 16 altogether, in shares of 3 to 1."""
    selection = SampleSelection(
        "kakurenbo", max_fraction=0.25, tau=0.0, fractions=(1, 0.5), milestones=(5,), fraction_schedule=(1.5, 0.5)
    )
    spy = Spy(selection)
    fit(SureNet(), loader(), selection, spy, max_epochs=9)
    counts = [len(spy.hidden[epoch]) for epoch in range(9)]
    assert counts == [0, 24, 8, 24, 8, 12, 4, 12, 4]
    assert [spy.rates[epoch][0] for epoch in range(9)] == pytest.approx([0.1 / (1 - hidden / 64) for hidden in counts])
    assert selection.totals.samples_hidden == 64 * (4 * 0.25 + 4 * 0.125)


def test_a_milestone_within_a_round_is_spread_over_it():
    method = get_method("kakurenbo", max_fraction=0.4, tau=0.0, fractions=(1, 0.5), milestones=(2,), fraction_schedule=(1.5, 0.5))
    statistics = recorded(made(SURE), method)
    assert [len(method.plan(statistics, Epoch(epoch, 100)).hidden) for epoch in (1, 2, 3, 4)] == [
        27,
        9,
        18,
        6,
    ]  # 24 + 12, 12 + 12


def test_the_published_learning_rate_goes_by_the_fraction_of_the_epoch():
    settings = {"max_fraction": 0.4, "tau": 1.0, "fractions": (1,), "milestones": (), "lr_fraction": "max"}
    method = get_method("kakurenbo", **settings, fraction_schedule=(2, 0))
    statistics = recorded(made([(1.0, 0.5, True)] * 20), method)
    plans = [method.plan(statistics, Epoch(epoch, 10)) for epoch in (1, 2)]
    assert [plan.lr_factor for plan in plans] == pytest.approx([1 / (1 - 0.8), 1.0]) and not any(
        len(plan.hidden) for plan in plans
    )


def test_a_factor_of_zero_trains_everything_and_the_rounds_begin_with_start_epoch():
    method = get_method("random", max_fraction=0.3, start_epoch=2, fraction_schedule=(2, 0, 1))
    statistics = recorded(made(SURE), method)
    assert [len(method.plan(statistics, Epoch(epoch, 9)).hidden) for epoch in range(9)] == [0, 0, 36, 0, 18, 36, 0, 18, 36]


def test_random_cycle_with_epochs_of_several_lengths_takes_none_twice_before_all_were_taken():
    for count, fraction, schedule in (
        (20, 0.3, (1.5, 0.5)),
        (17, 0.6, (1.6, 0.4, 1)),
        (50, 0.5, (0, 1.9, 1.1)),
        (7, 0.29, (2, 0)),
    ):
        method = get_method("random_cycle", max_fraction=fraction, fraction_schedule=schedule)
        statistics = recorded(made([(0.5, 1.0, True)] * count), method)
        taken, lengths = torch.zeros(count), set()
        for epoch in range(40):
            indices = method.plan(statistics, Epoch(epoch, 40)).indices
            assert len(indices.unique()) == len(indices)
            taken[indices] += 1
            lengths.add(len(indices))
            assert taken.max() - taken.min() <= 1, f"epoch {epoch}"
        assert len(lengths) > 1


@pytest.mark.parametrize("name", ["kakurenbo", "random_cycle"])
def test_a_scheduled_run_that_is_cut_and_resumed_equals_the_uncut_one(tmp_path, name):
    settings = {"max_fraction": 0.4, "fraction_schedule": (1.5, 1.5, 0.5, 0.5)} | ({"tau": 0.3} if name == "kakurenbo" else {})
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, spy, resumed = Net(), Spy(SampleSelection(name, **settings)), Net()
    fit(whole, loader(), spy.selection, spy, keep, max_epochs=6, enable_checkpointing=True)
    assert len(set(spy.steps)) > 1
    fit(
        resumed,
        loader(),
        SampleSelection(name, **settings),
        max_epochs=6,
        ckpt_path=tmp_path / f"step={sum(spy.steps[:3]) + 2}.ckpt",
    )
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("ies", {}, "fraction_schedule must be empty, because no fraction says how much ies hides"),
        ("seta", {}, "fraction_schedule must be empty, because no fraction says how much seta hides"),
        ("forget", {}, "fraction_schedule must be empty, because forget chooses once. Use forget_online"),
        (
            "random",
            {"max_fraction": 0.7},
            "fraction_schedule must be factors below 1.42857, with which the fraction 0.7 stays below 1",
        ),
        ("orderdp", {"random_fraction": 0.5}, "with which the fraction 0.575 stays below 1"),
        ("kakurenbo", {"max_fraction": 0.5, "drop_top": 0.1}, r"max_fraction x the highest of fraction_schedule \+ drop_top=1.0"),
    ],
)
def test_where_no_fraction_can_alternate_it_is_refused_by_name(name, settings, words):
    with pytest.raises(ValueError, match=words):
        get_method(name, **settings, fraction_schedule=(1.8, 0.2))


@pytest.mark.parametrize("schedule", [(1.5,), (1.5, 0.6), (0.1,) * 9, (1.1, 1.1, 0.7999)], ids=str)
def test_factors_must_have_the_mean_1(schedule):
    with pytest.raises(ValueError, match=r"fraction_schedule must be a list of numbers >= 0 whose mean is 1\. For example"):
        get_method("random", fraction_schedule=schedule)


def test_the_baseline_has_no_fraction_that_could_alternate():
    with pytest.raises(
        ValueError, match=r"baseline: fraction_schedule=\(1.5, 0.5\) is not allowed; .* empty, because no fraction says"
    ):
        SampleSelection("baseline", fraction_schedule=[1.5, 0.5])
    with pytest.raises(ValueError, match=r"baseline: balance='rcap' is not allowed"):
        SampleSelection("baseline", balance="rcap")
