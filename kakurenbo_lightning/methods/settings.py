"""Checks of settings, with the error every bad one gets: the setting, its value, what is allowed, the fix."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

Check = Callable[[bool, str, str, str], None]


def require(condition: bool, method: str, setting: str, value: object, allowed: str, fix: str) -> None:
    """Raise ``ValueError`` unless ``condition``."""
    if not condition:
        raise ValueError(f"{method}: {setting}={value!r} is not allowed; {setting} must be {allowed}. {fix}")


def checker(method: Any) -> Check:
    """``check(condition, setting, allowed, fix)`` for the settings of one method object."""

    def check(condition: bool, setting: str, allowed: str, fix: str) -> None:
        require(condition, method.name, setting, getattr(method, setting), allowed, fix)

    return check


def require_fraction(method: str, setting: str, value: object) -> None:
    """A share of the data set: a number in [0, 1)."""
    require(is_number(value) and 0 <= value < 1, method, setting, value, "a number in [0, 1)", "For example: 0.3 hides 30 %.")


def require_epochs(check: Check, setting: str, values: Sequence[object], max_epochs: int | None) -> None:
    """``values`` are epochs of a run of ``max_epochs``, or shares of it."""
    check(
        max_epochs is not None or not any(isinstance(value, float) for value in values),
        setting,
        "epochs (integers) in a run without an end",
        "Set Trainer(max_epochs=...), of which it is a share, or give epochs.",
    )
    check(
        max_epochs is None or all(value <= max_epochs for value in values),
        setting,
        f"at most max_epochs={max_epochs}",
        "Give fewer epochs, or a share such as 0.1.",
    )


def is_epoch_or_share(value: object) -> bool:
    """An epoch >= 0, or a float in (0, 1)."""
    return is_count(value) or (isinstance(value, float) and 0 < value < 1)


def is_number(value: object) -> bool:
    """An int or a float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_count(value: object, least: int = 0) -> bool:
    """An int of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def whole_numbers(values: object) -> tuple[int, ...] | None:
    """A list, range, array or tensor of integers >= 0 as a tuple; ``None`` when it is something else."""
    try:
        found = tuple(operator.index(value) for value in values) if not isinstance(values, (str, bytes)) else (-1,)
    except TypeError:
        return None
    return found if all(value >= 0 for value in found) else None
