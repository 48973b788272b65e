"""Checks of settings, whose errors name the setting, its value, what is allowed and the fix."""

from collections.abc import Iterable
from difflib import get_close_matches


def check_setting(name: str, value: object, ok: bool, allowed: str, fix: str) -> None:
    """Raise a ValueError about the setting `name` unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value!r} is not possible: it must be {allowed}. {fix}")


def is_count(value: object, least: int) -> bool:
    """Whether `value` is an int (no bool) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_share(value: object) -> bool:
    """Whether `value` is a number (no bool) in [0, 1)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return the question after the nearest name, or else something else to say."""
    near = get_close_matches(str(name), list(known), n=1)
    return f"Did you mean {near[0]}?" if near else otherwise
