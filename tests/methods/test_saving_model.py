"""The model of what hiding saves: by hand, monotone, and its inverse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kakurenbo_lightning import available_methods, get_method
from kakurenbo_lightning.methods.registry import method_class
from kakurenbo_lightning.methods.saving import Course, SavingModel, saving_model, share_setting, with_share

SHARES = {
    "el2n": "max_fraction",
    "forget": "max_fraction",
    "forget_online": "max_fraction",
    "infobatch": "prune_ratio",
    "kakurenbo": "max_fraction",
    "random": "max_fraction",
    "random_cycle": "max_fraction",
    "rcap": "max_fraction",
}
share, epochs = st.floats(0, 1), st.integers(2, 8)


@st.composite
def models(draw):
    """A model whose hidden samples are refreshed before some of the next epochs, as a method does."""
    count, limit = draw(epochs), draw(st.floats(0.1, 0.9))
    hidden = [0.0, *(limit * draw(share) for _ in range(count - 1))]
    refreshed = [0.0, *(part * draw(st.booleans()) for part in hidden[:-1])]
    extra = draw(st.integers(0, count - 1))
    nothing = Course((0.0,) * count, (0.0,) * count, extra)
    return SavingModel(nothing, Course(tuple(hidden), tuple(refreshed), extra), limit)


def test_the_saving_of_a_course_is_what_it_hides_less_what_it_scores():
    course = Course(hidden=(0.0, 0.4, 0.4, 0.2), refreshed=(0.0, 0.0, 0.4, 0.4))
    assert course.saving(0.25) == pytest.approx((1.0 - 0.25 * 0.8) / 4)
    assert course.saving(0.0) == pytest.approx(0.25) and course.spared(0.5, start=2) == pytest.approx(0.6 - 0.2)
    again = Course(hidden=(0.0, 0.5, 0.5), refreshed=(0.0, 0.0, 0.0), extra=1)  # two epochs, and a scoring one on top
    assert again.saving(0.3) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("every", "hidden", "refreshed"),
    [
        (1, (0, 0.5, 0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2), (0, 0, 0.5, 0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.2)),
        (3, (0, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.3), (0, 0, 0, 0, 0.5, 0, 0, 0.4, 0, 0)),
    ],
)
def test_the_course_of_kakurenbo_has_its_fractions_and_its_refreshes(every, hidden, refreshed):
    course = saving_model(get_method("kakurenbo"), 10, 0.5, every).most
    assert course.hidden == pytest.approx(hidden) and course.refreshed == pytest.approx(refreshed) and course.extra == 0


def test_a_static_method_pays_for_its_scoring_epochs():
    model = saving_model(get_method("forget", static_epochs=2), 10, 0.5)
    assert (model.most.epochs, model.most.extra) == (10, 2)
    assert model.saving(0.5, 1.0) == pytest.approx((10 * 0.5 - 2) / 10) and model.saving(0.0, 1.0) == pytest.approx(-0.2)


def test_what_is_hidden_beside_the_share_counts_too():
    model = saving_model(get_method("kakurenbo", drop_top=0.1, refresh_mode="eval"), 10, 0.5)
    assert model.saving(0.0, 0.0) == pytest.approx(0.9 * 0.1)
    assert model.hidden(0.25, 1) == pytest.approx(0.35)


def test_methods_with_one_setting_for_how_much_they_hide():
    assert {name: found for name in available_methods() if (found := share_setting(method_class(name)))} == SHARES


@pytest.mark.parametrize("name", SHARES)
def test_each_hides_in_proportion_to_it(name):
    method = get_method(name)
    model = saving_model(method, 12, 0.5)
    half = saving_model(with_share(method, 0.25), 12, 0.25).most.hidden
    assert [model.hidden(0.25, epoch) for epoch in range(len(half))] == pytest.approx(half, abs=0.006)
    assert 0 < max(model.most.hidden) <= 0.5


@given(models(), share, share, share, share)
def test_a_larger_share_never_saves_less_nor_does_a_cheaper_forward_pass(model, one, other, cheap, dear):
    (low, high), (cheap, dear) = sorted([one, other]), sorted([cheap, dear])
    assert model.saving(low * model.limit, dear) <= model.saving(high * model.limit, dear) + 1e-12
    assert model.saving(high * model.limit, dear) <= model.saving(high * model.limit, cheap) + 1e-12
    assert model.saving(high, cheap, start=1, rate=low) <= model.saving(high, cheap, start=1, rate=high) + 1e-12


@given(models(), share, share, st.floats(0, 2), st.integers(0, 7), st.floats(0.1, 1.5))
def test_the_share_for_a_saving_has_that_saving(model, wanted, forward, done, start, rate):
    how = (forward, done, min(start, len(model.most.hidden) - 1), rate)
    none, most = (model.saving(share, *how) for share in (0.0, model.limit))
    save = none + wanted * (most - none)
    found = model.share(save, *how)
    assert most - none < 1e-9 or model.saving(found, *how) == pytest.approx(save, abs=1e-9)
    assert found <= model.limit + 1e-9 or most - none < 1e-9
    assert model.share(save, *how) <= model.share(save + 0.1, *how)


def test_there_is_no_share_where_nothing_is_left_to_hide():
    model = saving_model(get_method("kakurenbo", end_fraction=0.5), 10, 0.5)
    assert model.share(0.2, 0.3, start=5) == float("inf") and model.share(0.0, 0.3, start=5) == 0.0
