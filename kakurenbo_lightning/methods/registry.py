"""Methods by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

from kakurenbo_lightning.methods.base import HideMethod

_METHODS: dict[str, type[HideMethod]] = {}
M = TypeVar("M", bound=type)


def register_method(name: str) -> Callable[[M], M]:
    """Class decorator: make a method's settings dataclass available by ``name``.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(cls: M) -> M:
        taken = _METHODS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another name")
        cls.name = name
        _METHODS[name] = cls
        return cls

    return register


def available_methods() -> list[str]:
    """The registered names, sorted."""
    return sorted(_METHODS)


def get_method(name: str, **settings: Any) -> HideMethod:
    """The method ``name`` with these settings.

    Raises:
        ValueError: unknown method, or a setting out of range.
        TypeError: a setting the method does not have.
    """
    if name not in _METHODS:
        raise ValueError(f"method={name!r} is not known; {_suggest(name, available_methods())}")
    cls = _METHODS[name]
    known = [field.name for field in fields(cls)]
    for setting in settings:
        if setting not in known:
            raise TypeError(f"{name} has no setting {setting!r}; {_suggest(setting, known)}")
    return cls(**settings)


def _suggest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return hint + (f"available: {', '.join(known)}" if known else "it has no settings")
