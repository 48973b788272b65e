"""Settings of methods: what each kind takes, what it becomes, and what an error says."""

import math
import re
from dataclasses import MISSING, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Union

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from kakurenbo_lightning import Choice, HideMethod, available_methods, get_method
from kakurenbo_lightning.methods import RandomHiding
from kakurenbo_lightning.methods.registry import method_class
from kakurenbo_lightning.methods.settings import (
    checker,
    choice,
    epoch_or_share,
    flag,
    integer,
    number,
    optional,
    path,
    proportion,
    setting,
    settings_of,
    several,
)

METHODS = sorted(available_methods())
SHARES = several(epoch_or_share(1), "a list of epochs or shares")
ROWS = several(integer(), "a list of indices")


@dataclass
class Typed:
    """A user's own structured config."""

    shares: list[Union[int, float]] = field(default_factory=lambda: [0.3, 2])  # noqa: UP007 (OmegaConf 2.3)


class Own(HideMethod):
    """Hides nothing; what the classes of these tests share."""

    def choose(self, statistics, epoch):
        return Choice(torch.zeros(len(statistics), dtype=torch.bool))


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (number(0, 1), 1, 1.0),
        (number(0, 1), np.float64(0.3), 0.3),
        (number(0, 1), np.float32(0.29), 0.29),
        (number(0, 1), np.float16(0.29), 0.29),
        (number(0, 1), np.array(0.5), 0.5),
        (number(0, 1), np.int64(1), 1.0),
        (number(0, 1), torch.tensor(0.29), 0.29),
        (number(0, 1), torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (number(0, 1), torch.tensor(0.7, dtype=torch.float64, requires_grad=True), 0.7),
        (number(), -1e300, -1e300),
        (number(0, infinite=True), math.inf, math.inf),
        (proportion(), 0, 0.0),
        (integer(), np.uint8(3), 3),
        (integer(-1), torch.tensor(-1), -1),
        (flag(), np.bool_(True), True),
        (flag(), torch.tensor(False), False),
        (choice("a", "b"), np.str_("b"), "b"),
        (optional(integer(1)), None, None),
        (optional(integer(1)), np.int32(2), 2),
        (ROWS, range(3), (0, 1, 2)),
        (ROWS, {4}, (4,)),
        (ROWS, [], ()),
        (ROWS, np.arange(2), (0, 1)),
        (ROWS, torch.arange(2), (0, 1)),
        (ROWS, OmegaConf.create([5, 6]), (5, 6)),
        (SHARES, OmegaConf.structured(Typed).shares, (0.3, 2)),
        (SHARES, [np.float32(0.3), torch.tensor(2)], (0.3, 2)),
        (SHARES, np.array([0.3, 0.6], dtype=np.float32), (0.3, 0.6)),
        (epoch_or_share(), np.int64(0), 0),
        (epoch_or_share(), np.float32(0.1), 0.1),
        (path(), Path("a/b.pt"), "a/b.pt"),
        (path(), np.str_("b.pt"), "b.pt"),
    ],
)
def test_a_value_becomes_pythons_own(kind, given, value):
    found = kind.convert(given)
    assert (found, type(found)) == (value, type(value))
    if isinstance(value, tuple):
        assert [type(item) for item in found] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (number(0, 1), [True, np.bool_(True), math.nan, np.float32("nan"), math.inf, -math.inf, "0.5", None, 1 + 0j, 1.01, -0.1]),
        (number(0, 1), [np.array([0.1, 0.2]), torch.rand(2), [0.5], torch.empty(0), np.array([0.5]), Fraction(1, 2), object()]),
        (number(), [math.inf, math.nan, 10**400]),
        (number(0, above=True), [0, -1]),
        (number(0, 1, above=True, below=True), [0, 1]),
        (proportion(), [1, 1.0]),
        (integer(2), [1, 2.0, True, "3", None, np.float64(3), torch.tensor(3.0), np.arange(3), math.nan]),
        (flag(), [0, 1, None, "yes", np.int64(1), np.array([True, False]), torch.tensor([True])]),
        (choice("a", "b"), ["c", "", None, 1, np.array(["a", "b"]), ["a"]]),
        (optional(choice("a")), ["b", 0, False, np.array([None])]),
        (ROWS, [3, "12", b"12", {1: 2}, None, [-1], ["a"], [1.5], np.ones(2), np.eye(2, dtype=int), torch.tensor(3), [[1], [2]]]),
        (SHARES, [[0], [1.0], [0.0], [True], [math.nan], "0.3"]),
        (epoch_or_share(), [-1, 1.0, 0.0, 1.5, True, "0.1", math.nan, np.array([0.1])]),
        (path(), [None, 3, b"a", ["a"], np.array(["a", "b"])]),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(kind, values):
    @dataclass(frozen=True)
    class Mine(Own):
        mine: object = setting(MISSING, kind, "of this test", fix="Try another.")

    for value in values:
        with pytest.raises(ValueError, match=r"(?s)^unregistered: mine=.* is not allowed; mine must be ") as error:
            Mine(mine=value)
        assert str(error.value).endswith(". Try another.")
        assert kind.allowed in str(error.value)
        assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (number(0, 1), "a number in [0, 1]"),
        (number(0, 1, above=True), "a number in (0, 1]"),
        (proportion(), "a number in [0, 1)"),
        (number(0), "a number >= 0"),
        (number(0, above=True), "a number > 0"),
        (number(high=0.5), "a number <= 0.5"),
        (number(high=2, below=True), "a number < 2"),
        (number(), "a number"),
        (integer(1), "an integer >= 1"),
        (flag(), "True or False"),
        (choice("a", "b", "c"), "'a' or 'b' or 'c'"),
        (optional(number(0)), "None or a number >= 0"),
        (epoch_or_share(1), "epochs (an integer >= 1) or a share of max_epochs (a float in (0, 1))"),
    ],
)
def test_a_kind_says_what_it_allows(kind, words):
    assert kind.allowed == words


@pytest.mark.parametrize(
    "value", ["x" * 5000, list(range(5000)), np.arange(5000), torch.arange(5000) * 1.5, Path("y" * 5000)], ids=type
)
def test_an_error_shows_the_ends_of_a_long_value_in_one_line(value):
    with pytest.raises(ValueError) as error:
        get_method("kakurenbo", tau=value)
    assert len(str(error.value)) < 200
    assert "..." in str(error.value) and "\n" not in str(error.value)


def test_an_error_names_the_item_of_a_list():
    protected = [*range(1000), -7]
    with pytest.raises(ValueError, match=re.escape("protected must be a list of data set indices; item 1000 is -7. For example")):
        get_method("random", protected=protected)


def test_equal_settings_make_equal_methods_whatever_they_came_in():
    made = get_method("random", max_fraction=torch.tensor(0.29), protected=np.arange(3), unbiased=np.True_)
    assert made == RandomHiding(0.29, protected=[0, 1, 2], unbiased=True)
    assert hash(made) == hash(RandomHiding(0.29, protected=(0, 1, 2), unbiased=True))
    assert repr(made) == repr(RandomHiding(0.29, protected=(0, 1, 2), unbiased=True))


# --- declarations


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_declared_and_its_default_is_allowed(name):
    cls = method_class(name)
    for each in fields(cls):
        declared = settings_of(cls)[each.name]
        assert declared is not None, f"{each.name} is a plain field"
        assert declared.meaning and declared.fix.endswith("."), each.name
        assert "|" not in declared.meaning + declared.kind.allowed, "a table is made of it"
        converted = declared.checked(name, each.name, each.default)
        assert (converted, type(converted)) == (each.default, type(each.default))


def test_a_plain_field_that_changes_the_default_keeps_the_declaration():
    @dataclass(frozen=True)
    class Later(Own):
        start_epoch: int = 3

    assert settings_of(Later)["start_epoch"] is settings_of(HideMethod)["start_epoch"]
    assert Later().start_epoch == 3
    with pytest.raises(ValueError, match="start_epoch=-1 is not allowed; start_epoch must be an integer >= 0"):
        Later(start_epoch=-1)


def test_settings_are_checked_one_by_one_and_then_together():
    @dataclass(frozen=True)
    class Pair(Own):
        low: float = setting(0.2, number(0, 1), "least share")
        high: float = setting(0.8, number(0, 1), "largest share")

        def check_settings(self):
            super().check_settings()
            checker(self)(self.low <= self.high, "low", f"at most high={self.high}", "Swap them.")

    assert Pair(low=np.float32(0.3)).low == 0.3
    with pytest.raises(ValueError, match=r"low=0\.9 is not allowed; low must be at most high=0\.8\. Swap them\."):
        Pair(low=0.9)
    with pytest.raises(ValueError, match=r"low='0\.9' is not allowed; low must be a number in \[0, 1\]\. For example: 0\.2\."):
        Pair(low="0.9")


def test_a_method_with_plain_fields_and_checks_of_its_own_works_as_before():
    @dataclass(frozen=True)
    class Plain(Own):
        pool: float = 0.5

        def __post_init__(self):
            super().__post_init__()
            checker(self)(0 < self.pool < 1, "pool", "in (0, 1)", "For example: 0.5.")

    assert settings_of(Plain)["pool"] is None
    assert Plain(pool=0.25, protected=[np.int64(3)]).protected == (3,)
    with pytest.raises(ValueError, match=r"unregistered: pool=2 is not allowed; pool must be in \(0, 1\)"):
        Plain(pool=2)
    with pytest.raises(ValueError, match="every_n_epochs=0 is not allowed"):
        Plain(every_n_epochs=0)
