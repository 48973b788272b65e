"""Methods by name: those of this package, and those that other packages declare as entry points."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
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
_ASKED: set[str] = set()  # entry points that were tried, whether they could be loaded or not
M = TypeVar("M", bound=type[Method])


@dataclass(frozen=True)
class MethodInfo:
    """The facts about a method that :func:`available_methods` lists.

    Attributes:
        name: name in the registry.
        family: ``"hide"``, ``"backprop"`` or ``"draw"``.
        paper: authors, venue and year of its paper; "-" if there is none.
        summary: one line that says what it does.
        bytes_per_sample: state per sample on the device, with default settings.
        card: path of the Markdown file that explains it, or ``None``.
    """

    name: str
    family: str
    paper: str
    summary: str
    bytes_per_sample: int
    card: Path | None


def register_method(name: str) -> Callable[[M], M]:
    """Class decorator that makes a method's settings dataclass available under ``name``.

    Raises:
        TypeError: the class does not derive from HideMethod, BackpropMethod, DrawMethod or StreamMethod, or is not a dataclass itself.
        ValueError: the name is taken by another class.
    """

    def register(cls: M) -> M:
        if not is_dataclass(cls) or not issubclass(cls, Method):
            raise TypeError(
                f"{cls.__qualname__} is not a method; derive it from HideMethod, BackpropMethod, DrawMethod or StreamMethod, and put "
                f"@dataclass(frozen=True) below @register_method({name!r})"
            )
        if "__dataclass_params__" not in vars(cls):
            raise TypeError(
                f"{cls.__qualname__} is not a dataclass itself; put @dataclass(frozen=True) below @register_method({name!r})"
            )
        taken = _METHODS.get(name)
        # compared by name, because reloading a module (in a notebook) registers a new class of the same name
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another name")
        cls.name = name
        if not cls.summary:
            cls.summary = (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        _METHODS[name] = cls
        return cls

    return register


def available_methods() -> dict[str, MethodInfo]:
    """Every registered method by name, in alphabetical order, including those of installed packages."""
    _load_entry_points()
    return {name: _describe(name, _METHODS[name]) for name in sorted(_METHODS)}


def named_presets() -> dict[str, tuple[str, str]]:
    """The presets of all methods under names of their own, as ``kakurenbo_fast``, each with its method and preset; those that are also the
    name of a method are left out.
    """
    presets = {f"{name}_{preset}": (name, preset) for name in available_methods() for preset in _METHODS[name].presets}
    return {name: each for name, each in presets.items() if name not in _METHODS}


def registered() -> list[type[Method]]:
    """The settings dataclasses of all methods whose modules have been imported so far."""
    return list(_METHODS.values())


def method_class(name: str) -> type[Method]:
    """The settings dataclass that is registered as ``name``.

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


# names that methods, papers and the command line use for the hidden share
_SHARES = ("F", "max_fraction", "prune_ratio", "fraction")


def get_method(name: str, /, **settings: Any) -> Method:
    """Create the method ``name`` with the given settings.

    Args:
        name: name in the registry.
        **settings: of the method. ``preset``, where the method has one of that name, gives several together; others given beside it win.

    Raises:
        ValueError: unknown method or preset, or a setting out of range.
        TypeError: the method has no such setting.
    """
    cls = method_class(name)
    known = [field.name for field in fields(cls)]
    if "preset" in settings and "preset" not in known:
        preset = settings.pop("preset")
        together = _preset_of(cls, preset)
        if together and all(name in settings for name in together):  # a config of Hydra has each setting
            raise ValueError(
                f"{name}: preset={shown(preset)} has no effect, because all that it stands for is given beside it ({', '.join(together)}); "
                "leave the preset out, or those settings (in kakurenbo-train: method=kakurenbo_fast)"
            )
        settings = {**together, **settings}
    for setting in settings:
        if setting not in known:
            own_share = [each for each in known if each in _SHARES and setting in _SHARES]
            hint = (
                f"its share is called {own_share[0]!r}; available: {', '.join(known)}" if own_share else _suggest(setting, known)
            )
            raise TypeError(f"{name} has no setting {shown(setting)}; {hint}")
    return cls(**settings)


def _preset_of(cls: type[Method], preset: Any) -> Mapping[str, Any]:
    if preset is None:
        return {}
    if not cls.presets:
        able = sorted(name for name, other in _METHODS.items() if other.presets)
        raise ValueError(
            f"{cls.name} has no presets: preset={shown(preset)} is not allowed; methods that have some: {', '.join(able)}"
        )
    if not isinstance(preset, str) or preset not in cls.presets:
        raise ValueError(f"{cls.name}: preset={shown(preset)} is not known; {_suggest(str(preset), cls.presets)}")
    return cls.presets[preset]


def check_method(method: Any) -> Method:
    """Return ``method`` if it is a method object.

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
    source = getattr(sys.modules.get(cls.__module__), "__file__", None)  # a class of a notebook has no file
    beside = [Path(source).with_name(f"{name}.md"), Path(source).with_suffix(".md")] if source else []
    card = next((path for path in beside if path.is_file()), None)
    columns = (*cls.columns, *[TARGET] * (cls.needs_classes is True))  # it may be a property, if settings decide
    state = BYTES_PER_SAMPLE + sum(column.bytes_per_sample for column in columns) + 4 * (cls.family == "draw")
    return MethodInfo(name, cls.family, cls.paper, cls.summary, state, card)


def _load_entry_points() -> None:
    """Import the methods that installed packages declare. One that fails is named in a warning and left out."""
    for point in entry_points(group=ENTRY_POINTS):
        if point.value in _ASKED:
            continue
        # before loading, so that an entry point that fails is not tried, and warned about, again
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
