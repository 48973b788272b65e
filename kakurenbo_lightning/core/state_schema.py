"""What a saved state must look like: checks that are put together to a table, and refuse a state by the name of the key.

A check is called with a value, its place in the state (``"plan.lr_factor"``) and N, the length of the data set. A key that is added to
a state is a line in the table that describes it; :func:`absent` says that states of older releases lack it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.errors import StateError

SHOWN = 60  # characters of a value in an error

Check = Callable[[Any, str, int], None]


@dataclass(frozen=True)
class absent:
    """The key may be missing, in states that an older release saved; where it is there, ``check`` holds."""

    check: Check

    def __call__(self, value: Any, place: str, count: int) -> None:
        self.check(value, place, count)


def _check(allowed: str, is_right: Callable[[Any, int], bool]) -> Check:
    def check(value: Any, place: str, count: int) -> None:
        if not is_right(value, count):
            raise StateError(f"{place} is {_shown(value)}, it must be {allowed.replace(' N', f' {count}')}")

    return check


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def anything() -> Check:
    """Allow any value: what the user's own classes have saved."""
    return _check("there", lambda value, count: True)


def integer(least: int = 0, most: float = math.inf) -> Check:
    """An int of at least ``least`` and at most ``most``."""
    allowed = f"an integer >= {least}" + f" and <= {most}" * math.isfinite(most)
    return _check(allowed, lambda value, count: type(value) is int and least <= value <= most)


def number(least: float = -math.inf, *, above: float = -math.inf, finite: bool = True) -> Check:
    """A float or an int of at least ``least`` and greater than ``above``; not NaN, and not infinite unless it need not be ``finite``."""

    def is_right(value: Any, count: int) -> bool:
        is_number = type(value) in (float, int) and (math.isfinite(value) or (not finite and value == math.inf))
        return is_number and value >= least and (value > above or above == -math.inf)

    ends = [f">= {least:g}"] * math.isfinite(least) + [f"> {above:g}"] * math.isfinite(above)
    return _check(" ".join(["a finite number" if finite else "a number", *ends]), is_right)


def logged() -> Check:
    """Allow a float or an int, NaN and infinity too, as metrics may be."""
    return _check("a number", lambda value, count: type(value) in (float, int))


def text() -> Check:
    """Allow a string of any length."""
    return _check("a string", lambda value, count: type(value) is str)


def flag() -> Check:
    """Allow ``True`` or ``False``, and no number in their place."""
    return _check("True or False", lambda value, count: type(value) is bool)


def one_of(*values: Any) -> Check:
    """Allow one of ``values``, of the same type."""
    return _check(" or ".join(map(repr, values)), lambda value, count: type(value) in map(type, values) and value in values)


def array() -> Check:
    """Allow a tensor of any type and shape."""
    return _check("a tensor", lambda value, count: isinstance(value, Tensor))


def tensor(dtype: torch.dtype | None = None, rows: int | None = None, *, of_n: bool = False, indices: bool = False) -> Check:
    """Allow a tensor with one axis.

    Args:
        dtype: its type; ``None`` for any.
        rows: how long it is.
        of_n: it is as long as the data set.
        indices: each of its values is an index of the data set; -1 where samples have none (N is 0).
    """
    length = " of N values" if of_n else "" if rows is None else f" of {rows} values"

    def is_right(value: Any, count: int) -> bool:
        if not isinstance(value, Tensor) or value.dim() != 1 or dtype not in (None, value.dtype):
            return False
        if len(value) != (count if of_n else len(value) if rows is None else rows):
            return False
        return not indices or not len(value) or (int(value.min()) >= (0 if count else -1) and int(value.max()) < count)

    among = ", each at least 0 and less than N" if indices else ""
    return _check(f"a tensor{length}{'' if dtype is None else f' of {dtype}'}{among}", is_right)


def scalar() -> Check:
    """A tensor without axes that holds a finite number."""
    allowed = "a tensor of one finite number"
    return _check(allowed, lambda value, count: isinstance(value, Tensor) and value.dim() == 0 and bool(value.isfinite()))


def optional(check: Check) -> Check:
    """Allow ``None``, or what ``check`` allows."""
    return lambda value, place, count: None if value is None else check(value, place, count)


def either(first: str, *tables: Check) -> Check:
    """The first of two tables where the key ``first`` is there, else the second."""

    def check(value: Any, place: str, count: int) -> None:
        tables[0 if isinstance(value, Mapping) and first in value else 1](value, place, count)

    return check


def listed(check: Check, length: int | None = None) -> Check:
    """A list or tuple of ``length`` values, or of any number, that ``check`` allows."""
    is_list = _check(
        f"a list{'' if length is None else f' of {length} values'}",
        lambda value, count: isinstance(value, (list, tuple)) and length in (None, len(value)),
    )

    def each(value: Any, place: str, count: int) -> None:
        is_list(value, place, count)
        for number, part in enumerate(value):
            check(part, f"{place}[{number}]", count)

    return each


def row(*checks: Check) -> Check:
    """A list or tuple with a check for each of its values."""

    def each(value: Any, place: str, count: int) -> None:
        listed(anything(), len(checks))(value, place, count)
        for number, (check, part) in enumerate(zip(checks, value, strict=True)):
            check(part, f"{place}[{number}]", count)

    return each


def mapping(check: Check, keys: type = str) -> Check:
    """A dict with keys of one type, and values that ``check`` allows."""
    is_dict = _check("a dict", lambda value, count: isinstance(value, Mapping) and all(type(key) is keys for key in value))

    def each(value: Any, place: str, count: int) -> None:
        is_dict(value, place, count)
        for key, part in value.items():
            check(part, f"{place}.{key}", count)

    return each


def table(checks: Mapping[str, Check], *, more: Check | None = None, closed: bool = False) -> Check:
    """A dict with these keys, each with its check.

    Args:
        checks: the check of each key.
        more: check of the values of other keys; by default they are not looked into.
        closed: other keys are not allowed.
    """
    is_dict = _check("a dict", lambda value, count: isinstance(value, Mapping))

    def each(value: Any, place: str, count: int) -> None:
        is_dict(value, place, count)
        for key, check in checks.items():
            if key in value:
                check(value[key], f"{place}.{key}".lstrip("."), count)
            elif not isinstance(check, absent):
                raise StateError(f"{place}.{key}".lstrip(".") + " is missing")
        for key in [key for key in value if key not in checks]:
            if closed:
                raise StateError(f"{place}.{key}".lstrip(".") + f" is not known; {place or 'the state'} has {', '.join(checks)}")
            if more is not None:
                more(value[key], f"{place}.{key}".lstrip("."), count)

    return each
