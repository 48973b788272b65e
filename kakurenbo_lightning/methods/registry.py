"""Methods by name: ours, and those of other packages that declare them as entry points."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.core.statistics import BYTES_PER_SAMPLE, TARGET
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.settings import shown

ENTRY_POINTS = "kakurenbo_lightning.methods"

_METHODS: dict[str, type[Method]] = {}
_ASKED: set[str] = set()  # entry points that were loaded, or could not be
M = TypeVar("M", bound=type[Method])


@dataclass(frozen=True)
class MethodInfo:
    """What :func:`available_methods` says of a method.

    Attributes:
        name: as registered.
        family: ``"hide"``, ``"backprop"`` or ``"draw"``.
        paper: where it is from; "-" when from none.
        summary: one line.
        bytes_per_sample: of state on the device, with default settings.
        card: the file that explains it, or ``None``.
    """

    name: str
    family: str
    paper: str
    summary: str
    bytes_per_sample: int
    card: Path | None


def register_method(name: str) -> Callable[[M], M]:
    """Class decorator: make a method's settings dataclass available by ``name``.

    Raises:
        TypeError: the class derives from none of HideMethod, BackpropMethod, DrawMethod, StreamMethod.
        ValueError: the name is taken by another class.
    """

    def register(cls: M) -> M:
        if not is_dataclass(cls) or not issubclass(cls, Method):
            raise TypeError(
                f"{cls.__qualname__} is no method; derive it from HideMethod, BackpropMethod, DrawMethod or StreamMethod, and put "
                f"@dataclass(frozen=True) below @register_method({name!r})"
            )
        if "__dataclass_params__" not in vars(cls):
            raise TypeError(
                f"{cls.__qualname__} is not a dataclass itself; put @dataclass(frozen=True) below @register_method({name!r})"
            )
        taken = _METHODS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another name")
        cls.name = name
        if not cls.summary:
            cls.summary = (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        _METHODS[name] = cls
        return cls

    return register


def available_methods() -> dict[str, MethodInfo]:
    """Every registered method by name, in alphabetical order; those of installed packages too."""
    _load_entry_points()
    return {name: _describe(name, _METHODS[name]) for name in sorted(_METHODS)}


def registered() -> list[type[Method]]:
    """The settings dataclasses of the methods whose modules are imported: ours, and others so far."""
    return list(_METHODS.values())


def method_class(name: str) -> type[Method]:
    """The settings dataclass that is registered by ``name``.

    Raises:
        ValueError: unknown method.
    """
    if name not in _METHODS:
        _load_entry_points()
    if name not in _METHODS:
        raise ValueError(
            f"method={shown(name)} is not known; {_suggest(name, sorted(_METHODS))} (one of your own: import its module first)"
        )
    return _METHODS[name]


_SHARES = ("F", "max_fraction", "prune_ratio", "fraction")  # what methods, papers and the command line call how much is left out


def get_method(name: str, /, **settings: Any) -> Method:
    """The method ``name`` with these settings.

    Raises:
        ValueError: unknown method, or a setting out of range.
        TypeError: a setting the method does not have.
    """
    cls = method_class(name)
    known = [field.name for field in fields(cls)]
    for setting in settings:
        if setting not in known:
            own_share = [each for each in known if each in _SHARES and setting in _SHARES]
            hint = (
                f"its share is called {own_share[0]!r}; available: {', '.join(known)}" if own_share else _suggest(setting, known)
            )
            raise TypeError(f"{name} has no setting {shown(setting)}; {hint}")
    return cls(**settings)


def check_method(method: Any) -> Method:
    """``method`` when it is a method object.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(method, type):
        raise TypeError(f"method={method.__name__} is a class; pass {method.__name__}(...)")
    if not isinstance(method, Method):
        raise TypeError(
            f"method={shown(method)} is neither a registered name nor a method object; its class must derive from HideMethod, "
            "BackpropMethod, DrawMethod or StreamMethod"
        )
    return method


def _describe(name: str, cls: type[Method]) -> MethodInfo:
    source = getattr(sys.modules.get(cls.__module__), "__file__", None)  # a notebook has none
    beside = [Path(source).with_name(f"{name}.md"), Path(source).with_suffix(".md")] if source else []
    card = next((path for path in beside if path.is_file()), None)
    columns = (*cls.columns, *[TARGET] * (cls.needs_classes is True))  # a property where settings decide
    state = BYTES_PER_SAMPLE + sum(column.bytes_per_sample for column in columns) + 4 * (cls.family == "draw")
    return MethodInfo(name, cls.family, cls.paper, cls.summary, state, card)


def _load_entry_points() -> None:
    """Import what installed packages declare; one that fails is named and left out."""
    for point in entry_points(group=ENTRY_POINTS):
        if point.value in _ASKED:
            continue
        _ASKED.add(point.value)
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.module
            rank_zero_warn(f"the methods of {package} are left out: {point.value} cannot be loaded ({error!r})")


def _suggest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}available: {', '.join(known)}"
