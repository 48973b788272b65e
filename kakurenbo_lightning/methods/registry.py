"""Methods by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from kakurenbo_lightning.methods.base import HideMethod

# of a method class that says nothing else; see HideMethod for what they mean
_DEFAULTS: dict[str, Any] = {
    "family": "hide",
    "summary": "",
    "paper": "-",
    "reads": ("loss", "confidence", "correct"),
    "refresh_mode": "eval",
    "check_run": lambda self, max_epochs: None,
}
_METHODS: dict[str, type[HideMethod]] = {}
M = TypeVar("M", bound=type)


def register_method(name: str) -> Callable[[M], M]:
    """Class decorator: make a method's settings dataclass available by ``name``.

    The class needs ``plan(statistics, epoch) -> EpochPlan``; what else :class:`HideMethod` names has defaults: family "hide", reading
    loss, confidence and correct, a refresh pass in eval mode.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(cls: M) -> M:
        if not is_dataclass(cls):
            raise TypeError(
                f"{cls.__qualname__} is not a dataclass; put @dataclass(frozen=True) below @register_method({name!r})"
            )
        taken = _METHODS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another name")
        cls.name = name
        for attribute, default in _DEFAULTS.items():
            if not hasattr(cls, attribute):
                setattr(cls, attribute, default)
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


def check_method(method: Any) -> HideMethod:
    """``method`` when it is a method object.

    Raises:
        TypeError: it is something else, or lacks a part.
    """
    if isinstance(method, type):
        raise TypeError(f"method={method.__name__} is a class; pass {method.__name__}(...)")
    needed = ("name", "plan", *_DEFAULTS)
    missing = [attribute for attribute in needed if not hasattr(method, attribute)]
    if "plan" in missing:
        raise TypeError(f"method={method!r} is neither a registered name nor a method object with plan(statistics, epoch)")
    if missing:
        raise TypeError(f"method={method!r} lacks {', '.join(missing)}; @register_method(name) on its class gives their defaults")
    return method


def _suggest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return hint + (f"available: {', '.join(known)}" if known else "it has no settings")
