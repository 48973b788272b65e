"""Methods by name, and what every method keeps to."""

from dataclasses import FrozenInstanceError, dataclass, fields, replace

import pytest
import torch

from kakurenbo_lightning import (
    Choice,
    Epoch,
    HideMethod,
    SampleSelection,
    SampleStatistics,
    available_methods,
    get_method,
    register_method,
)
from kakurenbo_lightning.arena.runs import Entry
from kakurenbo_lightning.methods import Baseline, RandomHiding, registry
from kakurenbo_lightning.methods.registry import method_class


def test_the_methods_are_listed():
    assert {"baseline", "kakurenbo", "random"} <= set(available_methods())


@pytest.mark.parametrize("name", ["baseline", "kakurenbo", "random"])
def test_a_method_is_a_frozen_pure_object(name):
    method = get_method(name)
    assert isinstance(method, HideMethod)
    assert method.name == name
    for field in fields(method):
        with pytest.raises(FrozenInstanceError):
            setattr(method, field.name, 0)
    statistics = SampleStatistics(50)
    statistics.record(torch.arange(50), {"loss": torch.rand(50), "confidence": torch.ones(50), "correct": torch.ones(50)}, 0)
    before = statistics.state_dict()
    plans = [method.plan(statistics, Epoch(3, 10, seed=1)) for _ in range(2)]
    assert plans[0].checksum() == plans[1].checksum()
    assert all(torch.equal(column, statistics.state_dict()[key]) for key, column in before.items())
    assert sorted(torch.cat([plans[0].indices, plans[0].hidden]).tolist()) == list(range(50))


def test_unknown_method_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'kakurenbo'"):
        SampleSelection("kakurembo")
    with pytest.raises(ValueError, match=r"available: .*baseline"):
        SampleSelection("zzz")


def test_unknown_setting_suggests_the_nearest():
    with pytest.raises(TypeError, match="kakurenbo has no setting 'max_fractoin'; did you mean 'max_fraction'"):
        SampleSelection("kakurenbo", max_fractoin=0.3)
    for method, setting, own in (("kakurenbo", "F", "max_fraction"), ("infobatch", "max_fraction", "prune_ratio")):
        with pytest.raises(
            TypeError, match=f"{method} has no setting '{setting}'; its share is called '{own}'; available: start_"
        ):
            SampleSelection(method, **{setting: 0.3})
    for name in ("name", "self", "cls"):  # which Python's own functions take as names of arguments
        with pytest.raises(TypeError, match=f"kakurenbo has no setting '{name}'; available: start_epoch, "):
            SampleSelection("kakurenbo", **{name: 1})
    with pytest.raises(TypeError, match="baseline has no setting 'tau'; available: start_epoch, "):
        SampleSelection("baseline", tau=0.3)


def test_a_preset_gives_settings_together_and_those_beside_it_win():
    fast = get_method("kakurenbo", preset="fast")
    together = {"max_fraction": 0.5, "fractions": (1.0,), "milestones": (), "every_n_epochs": 3}
    assert fast == get_method("kakurenbo", **together)
    assert get_method("kakurenbo", preset="fast", max_fraction=0.4, tau=0.6) == replace(fast, max_fraction=0.4, tau=0.6)
    assert SampleSelection("kakurenbo", preset="fast").method == fast
    assert Entry.of("kakurenbo:preset=fast,tau=0.5").name == 'kakurenbo preset="fast" tau=0.5'
    with pytest.raises(ValueError, match=r"kakurenbo: preset='fsat' is not known; did you mean 'fast'. available: fast"):
        get_method("kakurenbo", preset="fsat")
    with pytest.raises(
        ValueError, match=r"kakurenbo: preset='fast' has no effect, because all .* \(max_fraction, fractions, milestones"
    ):
        SampleSelection("kakurenbo", preset="fast", **{name: getattr(get_method("kakurenbo"), name) for name in together})
    assert get_method("kakurenbo", preset=None) == get_method("kakurenbo")
    with pytest.raises(
        ValueError, match="infobatch has no presets: preset='fast' is not allowed; methods that have some: kakurenbo"
    ):
        SampleSelection("infobatch", preset="fast")
    with pytest.raises(ValueError, match=r"max_fraction=0\.5 \(of preset='fast'\) and save=0\.2 both say how much is hidden"):
        SampleSelection("kakurenbo", preset="fast", save=0.2)


@pytest.mark.parametrize("name", available_methods())
def test_every_preset_is_allowed_by_its_method(name):
    for preset in method_class(name).presets:
        assert get_method(name, preset=preset) != get_method(name)


def test_settings_beside_a_method_object_are_refused():
    with pytest.raises(TypeError, match=r"put them into RandomHiding\(...\)"):
        SampleSelection(RandomHiding(0.2), max_fraction=0.3)
    with pytest.raises(TypeError, match="method=3"):
        SampleSelection(3)


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="'kakurenbo' is taken"):
        register_method("kakurenbo")(dataclass(frozen=True)(type("Other", (RandomHiding,), {})))
    assert register_method("baseline")(Baseline) is Baseline


def test_a_method_needs_no_more_than_a_choice_and_is_told_what_it_lacks():
    @dataclass(frozen=True)
    class Least(HideMethod):
        """Hides nothing at all.

        It has no settings.
        """

        def choose(self, statistics, epoch):
            return Choice(torch.zeros(len(statistics), dtype=torch.bool))

    with pytest.raises(TypeError, match=r"method=Least is a class; pass Least\(...\)"):
        SampleSelection(Least)
    register_method("test_least")(Least)
    method = SampleSelection("test_least", start_epoch=2).method
    assert (method.reads, method.summary) == (("loss", "confidence", "correct"), "Hides nothing at all")
    registry._METHODS.pop("test_least")  # other tests go through all methods there are
    with pytest.raises(TypeError, match="Plain is not a method; derive it from HideMethod, BackpropMethod"):
        register_method("test_plain")(dataclass(frozen=True)(type("Plain", (), {})))
    with pytest.raises(TypeError, match="Undecorated is not a dataclass itself"):
        register_method("test_plain")(type("Undecorated", (HideMethod,), {}))


@pytest.mark.parametrize(
    "choice, found",
    [
        (lambda n: torch.zeros(n, dtype=torch.bool), r"torch.bool\[50\]"),
        (lambda n: None, "NoneType"),
        (lambda n: Choice(torch.arange(3)), r"Choice\(torch.int64\[3\]\)"),
        (lambda n: Choice(torch.zeros(n)), r"Choice\(torch.float32\[50\]\)"),
        (lambda n: Choice([True] * n), r"Choice\(list\)"),
    ],
)
def test_a_choice_that_is_none_is_named(choice, found):
    @dataclass(frozen=True)
    class Wrong(HideMethod):
        def choose(self, statistics, epoch):
            return choice(len(statistics))

    with pytest.raises(
        TypeError, match=rf"choose\(...\) must return Choice\(hidden\) .* torch.bool\[50\] tensor, it returned {found}"
    ):
        Wrong().plan(SampleStatistics(50), Epoch(1, 3))


def test_random_hides_exactly_its_share_and_draws_anew():
    method = get_method("random", max_fraction=0.29)
    statistics = SampleStatistics(100)
    hidden = [tuple(method.plan(statistics, Epoch(e, 10, seed=s)).hidden.tolist()) for s in (0, 1) for e in (0, 1, 2)]
    assert {len(h) for h in hidden} == {29}
    assert len(set(hidden)) == 6


def test_random_hides_each_sample_equally_often():
    """Each count is binomial(2000, 0.3); 6 sigma off has probability < 1e-6 for all 20 together."""
    method, statistics = get_method("random", max_fraction=0.3), SampleStatistics(20)
    counts = torch.zeros(20)
    for epoch in range(2000):
        counts[method.plan(statistics, Epoch(epoch)).hidden] += 1
    assert (counts - 600).abs().max() < 6 * (2000 * 0.3 * 0.7) ** 0.5
