"""Thousands of settings, most of them bad: each is refused by name, or it is what the words of the setting allow.

The oracle reads the words that errors and tables show (:attr:`Kind.allowed`), not the code that checks.
"""

import datetime
import decimal
import fractions
import itertools
import math
import random
import re
import sys
import warnings

import numpy as np
import pytest
import torch

from kakurenbo_lightning import SampleSelection, available_methods, get_method
from kakurenbo_lightning.methods.per_sample import PerSample
from kakurenbo_lightning.methods.registry import method_class
from kakurenbo_lightning.methods.settings import settings_of

pytestmark = pytest.mark.slow
METHODS = sorted(available_methods())
LONGEST = 600  # characters of an error


class Hostile:
    """A value that answers nothing."""

    def __repr__(self):
        return "line\n" * 2000

    def __eq__(self, other):
        raise RuntimeError("no comparison")

    def __bool__(self):
        raise RuntimeError("no truth value")

    __hash__ = None


# fmt: off
VALUES = {  # by kind; made each time, because some can be read once
    "none, flags, integers": lambda: [None, True, False, 0, 1, 2, -1, 3, 10**30, -(10**30), 10**400],
    "numbers": lambda: [
        0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 2.0, 1e-320, 1e308, math.nan, math.inf, -math.inf, 1j, 0.5 + 0j,
        decimal.Decimal("0.5"), decimal.Decimal("NaN"), fractions.Fraction(1, 2), datetime.timedelta(1), datetime.date(2024, 1, 1),
    ],
    "texts": lambda: [
        "", "abc", "0.5", "1", "True", "None", "class", "eval", "loss", "x" * 5000, "line\nline", b"eval", b"0.5", bytearray(b"1"),
    ],
    "lists": lambda: [
        [], [0], [0.5], [True, False], [-1], [1, 2], [0.3, 0.6], [2, 1], [0.6, 0.3], ["a"], [None], [[1]], [math.nan], [1, 0.5],
        list(range(5000)), [0.5] * 5000, ["x" * 5000],
    ],
    "other collections": lambda: [
        (), (0,), (1, 2), (1, 2, 3), range(3), range(-3, 0), {1, 2}, frozenset([-1]), {}, {"a": 1}, {1: 2}, memoryview(b"ab"),
        iter([1, 2]), (number for number in [0.5, 0.7]), map(float, [1]), slice(3),
    ],
    "objects": lambda: [
        Ellipsis, NotImplemented, object(), object, int, len, Hostile(), lambda: 0, Exception("x"), re.compile("x"),
    ],
    "scalars of NumPy": lambda: [
        np.float64(0.5), np.float32(0.5), np.float16("nan"), np.int64(-1), np.uint8(1), np.bool_(True), np.str_("abc"),
        np.bytes_("x"), np.complex64(1), np.datetime64("2024-01-01"), np.timedelta64(1), np.ma.masked,
    ],
    "arrays": lambda: [
        np.array(0.5), np.array(2), np.array("abc"), np.array(None), np.zeros(0), np.zeros(3), np.ones(3, bool), np.zeros((2, 2)),
        np.zeros(5000), np.array([1, 2]), np.array(["a"]), np.array([None]), np.array([math.nan]),
        np.ma.masked_array([1.0], [True]), np.zeros(2, [("a", int)]),
    ],
    "scalars of torch": lambda: [
        torch.tensor(0.5), torch.tensor(2), torch.tensor(True), torch.tensor(math.nan), torch.tensor(1j),
        torch.tensor(1.0).to_sparse(), torch.tensor(0.5, dtype=torch.bfloat16), torch.float32,
    ],
    "tensors": lambda: [
        torch.zeros(0), torch.zeros(3), torch.tensor([1, 2]), torch.zeros(2, 2), torch.ones(3, dtype=torch.bool),
        torch.zeros(5000), torch.zeros(3, requires_grad=True), torch.zeros(3, device="meta"),
    ],
}
# fmt: on


def anything():
    """Values of all kinds."""
    return [value for make in VALUES.values() for value in make()]


def near(words):
    """Numbers on and beside every number in ``words``, and some far away."""
    draws = random.Random(words)
    for text in re.findall(r"\d+(?:\.\d+)?", words):
        bound = float(text)
        yield from (bound, int(bound), bound - 1, bound + 1, int(bound) - 1, int(bound) + 1)
        yield from (math.nextafter(bound, -math.inf), math.nextafter(bound, math.inf), np.float32(bound), np.int16(bound))
    for _ in range(5):
        yield from (draws.uniform(-1e3, 1e3), draws.randrange(-1000, 1000), -draws.random(), [draws.uniform(-2, 2)])


# --- the oracle


def scalar(value):
    """A Python scalar of NumPy's and torch's; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.dim() == 0 and not value.is_sparse:
        return value.item()
    if isinstance(value, np.ndarray) and value.ndim == 0 and not isinstance(value, np.ma.MaskedArray):
        return value[()].item() if isinstance(value[()], np.generic) else value[()]
    return value.item() if isinstance(value, np.generic) else value


def is_number(value, test=lambda number: True):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > sys.float_info.max:
        return False
    return not math.isnan(value) and test(value)


def is_integer(value, least):
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_share(value):
    return isinstance(value, float) and 0 < value < 1


def items_of(value):
    """Of a list, range, set, array, tensor or iterator; ``None`` when it is none of these."""
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
        return None
    if isinstance(value, (np.ndarray, torch.Tensor)) and (value.ndim != 1 or getattr(value, "is_meta", False)):
        return None
    return [scalar(item) for item in value]


def in_range(words):
    """The test of "a number in (0, 1]"."""
    low_end, low, high, high_end = re.search(r"([\[(])([\d.]+), ([\d.]+)([\])])", words).groups()
    low, high = float(low), float(high)
    return lambda number: (
        (low < number if low_end == "(" else low <= number) and (number < high if high_end == ")" else number <= high)
    )


def of_one_kind(items, least):
    return all(is_integer(item, least) for item in items) or all(map(is_share, items))


def allows(words, value):
    """Whether ``words``, of a setting, allow ``value``.

    Raises:
        AssertionError: the words are new; teach them to this function.
    """
    if words.startswith("None or "):
        return value is None or allows(words.removeprefix("None or "), value)
    value = scalar(value)
    if words.startswith("True or False"):
        return isinstance(value, bool) or (bool(rest := words[len("True or False, ") :]) and allows(rest, value))
    if words.startswith("'"):
        return isinstance(value, str) and value in re.findall("'(.*?)'", words)
    if found := re.fullmatch(r"an integer >= (\d+)", words):
        return is_integer(value, int(found[1]))
    if words.startswith("a number in "):
        return is_number(value, in_range(words))
    if words.endswith(" or infinity"):
        return (isinstance(value, float) and value == math.inf) or allows(words.removesuffix(" or infinity"), value)
    if found := re.fullmatch(r"a number (>=|>) (\d+)", words):
        return is_number(value, lambda number: number >= float(found[2]) if found[1] == ">=" else number > float(found[2]))
    if found := re.fullmatch(r"epochs \(an integer >= (\d+)\) or a share of max_epochs \(a float in \(0, 1\)\)", words):
        return is_integer(value, int(found[1])) or is_share(value)
    if words == "the path of a file":
        return isinstance(value, str)
    if words.startswith("one number >= 0 for each sample"):
        return value is None or callable(value) or allows_weights(value)  # None: not given yet, which no run takes
    assert words.startswith(("a list of ", "(first, end) with first < end")), f"the oracle does not know {words!r}"
    items = items_of(value)
    if items is None:
        return False
    if words in ("a list of data set indices", "a list of classes"):
        return all(is_integer(item, 0) for item in items)
    if words == "a list of numbers >= 0":
        return all(is_number(item, lambda number: number >= 0) for item in items)
    if words.startswith("a list of numbers in "):
        return all(is_number(item, in_range(words)) for item in items)
    if words.startswith("a list of epochs (positive integers)"):
        return of_one_kind(items, 1)
    return len(items) == 2 and items[0] < items[1] and of_one_kind(items, 0)


def allows_weights(value):
    """Flags count as 0 and 1."""
    if isinstance(value, (set, frozenset, memoryview, bytearray, np.ma.MaskedArray)) or not hasattr(value, "__len__"):
        return False
    items = [float(item) if isinstance(item, bool) else item for item in items_of(value) or []]
    return all(is_number(item, lambda number: number >= 0) for item in items) and any(items)


# --- what is tried


def words_of(method):
    return {name: declared.kind.allowed for name, declared in settings_of(method_class(method)).items()}


def tried(words):
    """The values for a setting with these words, each with whether they are allowed; a value that is read once comes twice."""
    for value, twin in zip([*anything(), *near(words)], [*anything(), *near(words)], strict=True):
        yield value, allows(words, twin)


def is_plain(value):
    """Whether ``value`` is of Python's own types alone."""
    if type(value) is PerSample:  # which a checkpoint holds by its hash
        return type(value.as_setting()) is str
    return all(map(is_plain, value)) if type(value) is tuple else value is None or type(value) in (bool, int, float, str)


def refusal(make, name):
    """The object that ``make()`` makes, or ``None`` when it is refused by ``name``, in few words."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns before it refuses
        try:
            return make()
        except (ValueError, TypeError) as error:
            message = str(error)
    assert re.search(rf"\b{re.escape(name)}\b", message), f"{name} is not named: {message}"
    assert "is not allowed" in message or "must be" in message, f"what is allowed is not said: {message}"
    assert len(message) < LONGEST and "\n" not in message, f"{len(message)} characters: {message[:1000]}"
    assert "truth value" not in message and "ambiguous" not in message, message
    return None


def shown(value):
    return f"{type(value).__name__} {repr(value)[:80]!r}"


@pytest.mark.parametrize("method", METHODS)
def test_a_setting_is_what_its_words_allow_or_refused_by_name(method):
    wrong = []
    makers = itertools.cycle([get_method, lambda name, **settings: SampleSelection(name, **settings).method])
    for name, words in words_of(method).items():
        for (value, allowed), make in zip(tried(words), makers, strict=False):
            try:
                made = refusal(lambda make=make, name=name, value=value: make(method, **{name: value}), name)
            except Exception as error:
                wrong.append(f"{name}={shown(value)}: {type(error).__name__}: {error}")
                continue
            if made is not None and not allowed:
                wrong.append(f"{name}={shown(value)} is taken as {shown(getattr(made, name))}; it must be {words}")
            elif made is not None and not is_plain(getattr(made, name)):
                wrong.append(f"{name}={shown(value)} is kept as {shown(getattr(made, name))}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_more_than_a_thousand_bad_settings_are_tried_and_defaults_are_good_ones():
    bad = 0
    for method in METHODS:
        made = get_method(method)
        for name, words in words_of(method).items():
            assert allows(words, getattr(made, name)), f"{method}: {name}={getattr(made, name)!r} is the default, but not {words}"
            bad += sum(not allowed for _, allowed in tried(words))
    assert bad > 1000


ARGUMENTS = {
    "seed": "None or an integer >= 0",
    "align_schedules": "True or False",
    "check_attribution": "True or False",
    "unweighted_rest": "True or False",
    "mean_over_samples": "None or True or False",
    "values": "'sample_loss' or 'bls'",
    "bls_alpha": "a number in [0, 1)",
    "on_mismatch": "'error' or 'reset'",
    "sample_outputs": None,
    "scorer": None,
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_of_the_callback_is_what_is_allowed_or_refused_by_name(name):
    wrong, words = [], ARGUMENTS[name]
    for value, twin in zip(anything(), anything(), strict=True):
        allowed = value is None or (name == "sample_outputs" and callable(value)) if words is None else allows(words, twin)
        try:
            made = refusal(lambda value=value: SampleSelection("selective_backprop", **{name: value}), name)
        except Exception as error:
            wrong.append(f"{name}={shown(value)}: {type(error).__name__}: {error}")
            continue
        if (made is not None) != allowed:
            wrong.append(f"{name}={shown(value)} is {'refused' if made is None else 'taken'}")
        elif made is not None and words is not None and not is_plain(getattr(made._settings, name)):
            wrong.append(f"{name}={shown(value)} is kept as {shown(getattr(made._settings, name))}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_what_is_no_method_is_refused_by_name():
    wrong = []
    for value in anything():
        try:
            SampleSelection(value)
            wrong.append(f"method={shown(value)} is taken")
        except (ValueError, TypeError) as error:
            if "method=" not in str(error) or len(str(error)) > LONGEST or "\n" in str(error):
                wrong.append(f"method={shown(value)}: {error}")
        except Exception as error:
            wrong.append(f"method={shown(value)}: {type(error).__name__}: {error}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", ["x" * 5000, "max_fractoin", "", "line\nline", "family", "é"])
def test_a_setting_that_there_is_none_of_is_refused_by_name(name):
    for method in METHODS:
        with pytest.raises(TypeError, match=rf"^{method} has no setting ") as caught:
            SampleSelection(method, **{name: 1})
        assert len(str(caught.value)) < LONGEST and "\n" not in str(caught.value)
