"""RCAP, the method and ``balance="rcap"``; against numbers of atif-hassan/RCAP-dynamic-dataset-pruning at d1879c2."""

import math

import histories
import numpy as np
import pytest
from helpers import Spy, SureNet, fit
from histories import made, recorded
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning import Epoch, SampleSelection, get_method
from kakurenbo_lightning.methods.hide.shares import clipped_losses, kept_by_class

# sizes of classes, their mean losses, the share kept -> what the authors' loader keeps of each class, given those class losses
THEIRS = [
    ((500, 300, 150, 50), (1, 1, 1, 1), 0.3, (114, 89, 63, 36)),
    ((400, 400, 400, 400, 400), (0.1, 0.2, 0.4, 0.8, 1.6), 0.5, (89, 126, 178, 252, 356)),
]


@pytest.mark.parametrize(("sizes", "losses", "share", "theirs"), THEIRS)
def test_classes_keep_what_the_authors_loader_keeps_but_for_rounding(sizes, losses, share, theirs):
    """They round every class up, so that all keep up to a sample per class more than asked for."""
    kept = round(share * sum(sizes))
    ours = kept_by_class(np.array(losses, float), np.array(sizes), kept)
    assert ours.sum() == kept < sum(theirs)
    assert set(np.array(theirs) - ours) <= {0, 1}


def test_what_a_full_class_cannot_keep_goes_to_the_others():
    """The authors' loader keeps (86, 141, 75, 50), 352 of the 300 it should: it takes what the full class has from no other."""
    ours = kept_by_class(np.array([0.2, 0.9, 0.5, 1.3]), np.array([500, 300, 150, 50]), 300)
    assert ours.tolist() == [71, 117, 62, 50]
    weights = [math.sqrt(loss * size) for loss, size in ((0.2, 500), (0.9, 300), (0.5, 150))]
    assert ours[:3] == pytest.approx([250 * weight / sum(weights) for weight in weights], abs=1)


@given(
    classes=st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.0, 1e-9, 0.01, 0.5, 1.0, 4.6])), min_size=1, max_size=30),
    share=st.floats(0, 1),
)
def test_the_sum_is_exact_every_class_has_its_due_and_none_more_than_it_has(classes, share):
    sizes, losses = np.array([size for size, _ in classes]), np.array([loss for _, loss in classes])
    kept = round(share * sizes.sum())
    counts = kept_by_class(losses, sizes, kept)
    assert counts.sum() == kept and (counts >= 0).all() and (counts <= sizes).all()
    assert (counts >= 1).all() or kept < len(sizes)
    weights = np.sqrt(np.maximum(losses, 1e-12) * sizes)
    free = (counts > 1) & (counts < sizes - 1)  # between the bounds all are in one proportion, up to rounding
    if free.any():
        scale = (counts[free] / weights[free]).mean()
        assert (abs(counts[free] - scale * weights[free]) <= 2 + counts[free] * (1 / counts[free]).max()).all()


def test_losses_are_clipped_to_that_of_a_guess():
    losses = np.array([-1.0, 0.5, 5.0, math.nan, math.inf, -math.inf])
    assert clipped_losses(losses, 4).tolist() == [0.0, 0.5, *[math.log(4)] * 4]
    assert clipped_losses(losses, 1).tolist() == [0.0] * 6


SIZES = (60, 30, 10)


def unlike(losses=(0.1, 0.4, 0.9)):
    """Three classes of :data:`SIZES`, all of whose samples are right and sure."""
    rows = [(loss + i / 1000, 1.0, True) for loss, size in zip(losses, SIZES, strict=True) for i in range(size)]
    return made(rows, [label for label, size in enumerate(SIZES) for _ in range(size)])


@pytest.mark.parametrize("name", ["kakurenbo", "random", "forget", "forget_online"])
def test_the_balance_says_how_many_and_the_method_says_whom(name):
    history = unlike()
    settings = {"kakurenbo": {"tau": 0.0, "milestones": (), "fractions": (1,)}, "forget": {"static_epochs": 2}}.get(name, {})
    method = get_method(name, max_fraction=0.4, balance="rcap", **settings)
    hidden = method.plan(recorded(history, method), Epoch(2, 10)).hidden
    means = np.array([0.1295, 0.4145, 0.9045])
    weights = np.sqrt(means * np.array(SIZES))
    counts = np.bincount(np.array(history.targets)[hidden.numpy()], minlength=3)
    wanted = 50 * weights[:2] / weights[:2].sum()  # the third class is kept whole: its share would be 11 or more
    assert counts.tolist() == [60 - round(wanted[0]), 30 - round(wanted[1]), 0]
    if name == "kakurenbo":
        first = np.cumsum([0, *SIZES])
        assert hidden.tolist() == [first[c] + i for c in range(3) for i in range(counts[c])], "of each class those of lowest loss"


def test_what_kakurenbo_moves_back_nothing_takes_the_place_of():
    history = unlike()
    wrong = histories.History(
        tuple(seen if i >= 5 else (seen[0]._replace(correct=False),) for i, seen in enumerate(history.samples)), history.targets
    )
    method = get_method("kakurenbo", max_fraction=0.4, tau=0.0, balance="rcap")
    all_of, but_five = (set(method.plan(recorded(each, method), Epoch(2, 10)).hidden.tolist()) for each in (history, wrong))
    assert but_five == all_of - set(range(5))


def test_before_anything_is_measured_classes_keep_by_the_root_of_their_share():
    method = get_method("random", max_fraction=0.5, balance="rcap")
    statistics = histories.empty(method, unlike())
    counts = np.bincount(np.array(unlike().targets)[method.plan(statistics, Epoch(0, 10)).indices.numpy()])
    assert counts.tolist() == [23, 17, 10]  # the smallest is kept whole; sqrt(60) : sqrt(30) of 40


def test_kept_samples_weigh_one_over_the_share_that_their_class_keeps():
    method = get_method("random", max_fraction=0.5, balance="rcap", unbiased=True)
    plan = method.plan(histories.empty(method, unlike()), Epoch(0, 10))
    weights = plan.weights.numpy()
    assert [weights[0], weights[60], weights[90]] == pytest.approx([60 / 23, 30 / 17, 1.0])
    assert float(plan.weights[plan.indices].sum()) == pytest.approx(100)


class Unlike(Dataset):
    """Points of three classes of 40, 16 and 8."""

    def __init__(self):
        self.targets = [0] * 40 + [1] * 16 + [2] * 8
        self.points = np.random.RandomState(0).randn(64, 6).astype(np.float32)

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return self.points[index], self.targets[index], index


def test_in_a_run_the_small_class_of_high_loss_is_trained_more():
    selection = SampleSelection("kakurenbo", max_fraction=0.5, tau=0.0, milestones=(), fractions=(1,), balance="rcap")
    spy = Spy(selection)
    fit(SureNet(), DataLoader(Unlike(), 8, shuffle=True), selection, spy, max_epochs=4)
    for epoch in (1, 2, 3):
        hidden = np.bincount([Unlike().targets[i] for i in spy.hidden[epoch]], minlength=3)
        assert hidden.sum() == 32
        assert hidden[0] / 40 > hidden[1] / 16 > hidden[2] / 8


def test_random_cycle_cannot_know_the_lengths_of_epochs_that_losses_decide():
    with pytest.raises(
        ValueError, match="random_cycle: balance='rcap' is not allowed; balance must be None or 'class', because the place"
    ):
        get_method("random_cycle", balance="rcap")


# --- the method


def frequencies(beta, times=4000):
    """How often the first six of twelve samples, which are a class and of which three stay, are kept."""
    rows = [(loss, 0.9, True) for loss in np.random.RandomState(0).gamma(1.5, size=12).astype(np.float32)]
    history = made(rows, [0] * 6 + [1] * 4 + [2] * 2)
    method = get_method("rcap", max_fraction=0.5, beta=beta, balance="class")
    statistics = recorded(history, method)
    kept = [method.plan(statistics, Epoch(1, 10, seed)).indices.numpy() for seed in range(times)]
    return np.bincount(np.concatenate(kept), minlength=12)[:6] / times


def test_within_a_class_samples_stay_as_often_as_in_the_authors_draw():
    """Their ``numpy.random.choice`` of three, 200,000 times, at beta 2; bounds of 5 standard deviations."""
    theirs = [0.5226, 0.5217, 0.5216, 0.3969, 0.5172, 0.5200]
    assert frequencies(2.0) == pytest.approx(theirs, abs=5 * 0.5 / 4000**0.5)


def test_a_low_beta_takes_those_of_high_loss_and_a_high_one_all_alike():
    assert frequencies(1e-300, 50)[[3, 4]].tolist() == [0, 0], "the two whose loss is below that of a guess"
    assert frequencies(1e6, 2000) == pytest.approx([0.5] * 6, abs=5 * 0.5 / 2000**0.5)


def test_a_loss_that_is_not_finite_counts_as_that_of_a_guess():
    losses = [math.nan, 0.0, math.inf, 0.0, -math.inf, 0.0, 9.0, 0.0]
    history = made([(loss, 0.9, True) for loss in losses], [0, 1] * 4)
    method = get_method("rcap", max_fraction=0.5, beta=0.01, balance=None)
    assert method.plan(recorded(history, method), Epoch(1, 10)).hidden.tolist() == [1, 3, 5, 7]
