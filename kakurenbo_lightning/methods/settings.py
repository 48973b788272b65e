"""Settings of methods: each is declared once, as a dataclass field, from which checks, tables and Hydra configs are made.

A field made by :func:`setting` says which values it takes (a :class:`Kind`), in which unit, and what it means::

    pool: float = setting(0.6, number(0, 1, below=True), "share of lowest mean loss, from which half is hidden", unit="share of N")

A bad value raises an error with the setting, its value, what is allowed, and the fix. A good one is converted to a plain Python value:
scalars of NumPy and torch become int, float, bool or str; arrays, lists and OmegaConf's lists become tuples.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Optional, Union

import numpy as np

from kakurenbo_lightning.core.lazy_torch import torch

Check = Callable[[bool, str, str, str], None]
SETTING = "setting"  # the key of a Setting in a field's metadata
SHOWN = 80  # characters of a value to show in an error


@dataclass(frozen=True)
class Kind:
    """Describes which values a setting takes.

    Attributes:
        allowed: the allowed values in words, which follow "must be" in an error.
        type: annotation of the setting in a Hydra config, as OmegaConf knows it.
        convert: converts what the user gave to a plain Python value. Raises ``ValueError`` or ``TypeError`` if it is not allowed; the
            message, if any, says what is wrong beyond :attr:`allowed`.
    """

    allowed: str
    type: Any
    convert: Callable[[Any], Any]


@dataclass(frozen=True)
class Setting:
    """The declaration of one setting.

    Attributes:
        kind: which values it takes.
        meaning: what it does, for tables.
        unit: unit of its values, such as "epochs"; "" if there is none.
        fix: the sentence with which an error ends.
    """

    kind: Kind
    meaning: str
    unit: str
    fix: str

    def checked(self, method: str, name: str, value: object) -> Any:
        """Convert ``value`` to a plain Python value.

        Raises:
            ValueError: the kind does not allow it.
        """
        try:
            return self.kind.convert(value)
        # tensors with more than one element raise RuntimeError
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            wrong = f"; {error}" if str(error) and type(error) is ValueError else ""
        require(False, method, name, value, self.kind.allowed + wrong, self.fix)


def setting(default: Any, kind: Kind, meaning: str, *, unit: str = "", fix: str = "") -> Any:
    """Declare a dataclass field as a setting.

    A subclass that only changes the default declares a plain field of the same name, ``start_epoch: int = 1``.

    Args:
        default: ``dataclasses.MISSING`` for a setting that must be given.
        kind: which values it takes.
        meaning: what it does, in a few words.
        unit: unit of its values.
        fix: the sentence with which an error ends. Without it, the default is shown as an example.
    """
    fix = fix or ("" if default is MISSING else f"For example: {default!r}.")
    return field(default=default, metadata={SETTING: Setting(kind, meaning, unit, fix)})


def settings_of(cls: type) -> dict[str, Setting | None]:
    """The declaration of each field of a method class, by name and in the order of the fields; ``None`` for a plain field.

    A plain field that only changes the default of an inherited setting has the declaration of that setting.
    """
    declared: dict[str, Setting | None] = {}
    for each in fields(cls):
        here = (vars(base).get("__dataclass_fields__", {}).get(each.name) for base in cls.__mro__)
        declared[each.name] = next((found.metadata[SETTING] for found in here if found and SETTING in found.metadata), None)
    return declared


# --- kinds


def number(
    low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False, infinite: bool = False
) -> Kind:
    """The kind of a float from ``low`` to ``high``; NaN is never allowed.

    Args:
        low: least value.
        high: largest value.
        above: exclude ``low`` itself.
        below: exclude ``high`` itself.
        infinite: allow infinity if the bounds allow it.
    """

    def convert(value: object) -> float:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError
        value = float(value)
        within = (low < value if above else low <= value) and (value < high if below else value <= high)
        if not within or (math.isinf(value) and not infinite):
            raise ValueError
        return value

    if math.isfinite(low) and math.isfinite(high):
        return Kind(f"a number in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}", float, convert)
    ends = [f"{'>' if above else '>='} {low:g}"] * math.isfinite(low) + [f"{'<' if below else '<='} {high:g}"] * math.isfinite(
        high
    )
    return Kind(" ".join(["a number", *ends, *["or infinity"] * infinite]), float, convert)


def proportion() -> Kind:
    """The kind of a share that leaves something: a number in [0, 1)."""
    return number(0, 1, below=True)


def integer(least: int = 0) -> Kind:
    """The kind of an int of at least ``least``; the float 2.0 is not allowed."""

    def convert(value: object) -> int:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int):  # bool is a subclass of int
            raise TypeError
        if value < least:
            raise ValueError
        return int(value)

    return Kind(f"an integer >= {least}", int, convert)


def flag() -> Kind:
    """The kind of ``True`` or ``False``; the int 1 is not allowed."""

    def convert(value: object) -> bool:
        value = plain(value)
        if not isinstance(value, bool):
            raise TypeError
        return value

    return Kind("True or False", bool, convert)


def choice(*options: str) -> Kind:
    """The kind of a string that is one of ``options``."""

    def convert(value: object) -> str:
        value = plain(value)
        if not isinstance(value, str) or value not in options:
            raise ValueError
        return options[options.index(value)]  # a plain str, even if the value is of a subclass such as an enum's

    return Kind(" or ".join(map(repr, options)), str, convert)


def flag_or_choice(*options: str) -> Kind:
    """The kind of ``True``, ``False`` or one of these strings. The first string is another name for ``True`` and is converted to
    it.
    """
    either, named = flag(), choice(*options)

    def convert(value: object) -> bool | str:
        value = plain(value)
        if not isinstance(value, str):
            return either.convert(value)
        return named.convert(value) == options[0] or named.convert(value)

    return Kind(f"{either.allowed}, {named.allowed}", Union[bool, str], convert)  # noqa: UP007


def optional(kind: Kind) -> Kind:
    """The kind of ``None`` or anything that ``kind`` allows."""
    return Kind(f"None or {kind.allowed}", Optional[kind.type], lambda value: None if value is None else kind.convert(value))  # noqa: UP045


def several(kind: Kind, allowed: str) -> Kind:
    """The kind of a list, range, set, array or tensor of what ``kind`` allows; it is converted to a tuple.

    Args:
        kind: the kind of each item.
        allowed: the allowed values in words, "a list of ...".
    """

    def convert(values: object) -> tuple:
        values = plain(values)
        if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
            raise TypeError
        found = []
        for place, value in enumerate(values):
            try:
                found.append(kind.convert(value))
            except (TypeError, ValueError):
                raise ValueError(f"item {place} is {shown(value)}") from None
        return tuple(found)

    return Kind(allowed, list[kind.type], convert)


def epoch_or_share(least: int = 0) -> Kind:
    """The kind of a number of epochs (an int) or a share of ``max_epochs`` (a float in (0, 1))."""
    epochs, share = integer(least), number(0, 1, above=True, below=True)

    def convert(value: object) -> int | float:
        value = plain(value)
        return (share if isinstance(value, float) else epochs).convert(value)

    return Kind(f"epochs (an integer >= {least}) or a share of max_epochs (a float in (0, 1))", Union[int, float], convert)  # noqa: UP007


def path() -> Kind:
    """The kind of a path of a file, which is converted to a str."""

    def convert(value: object) -> str:
        value = os.fspath(plain(value))
        if not isinstance(value, str):
            raise TypeError
        return str(value)

    return Kind("the path of a file", str, convert)


def plain(value: Any) -> Any:
    """Convert scalars of NumPy and torch to Python's own, and arrays and tensors to (nested) tuples. Anything else is unchanged.

    A float of fewer than 64 bits becomes its shortest decimal: ``np.float32(0.29)`` becomes 0.29, not 0.28999999165534973.
    """
    # without torch imported it cannot be a tensor, and importing takes seconds
    if "torch" in sys.modules and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype is torch.bfloat16 else value).numpy()  # NumPy has no bfloat16
    if isinstance(value, np.ndarray):
        return tuple(map(plain, value)) if value.ndim else plain(value[()])
    if type(value).__module__.startswith("omegaconf.") and type(value).__name__.endswith("Node"):
        return plain(value._value())  # the private node of an item in OmegaConf's list of unions
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


# --- errors


def require(condition: bool, method: str, name: str, value: object, allowed: str, fix: str) -> None:
    """Raise a ``ValueError`` that names the setting, its value, what is allowed and the fix, unless ``condition`` is true."""
    if not condition:
        raise ValueError(f"{method}: {name}={shown(value)} is not allowed; {name} must be {allowed}. {fix}")


def checker(method: Any) -> Check:
    """Return ``check(condition, setting, allowed, fix)``, which calls :func:`require` with the settings of one method object."""

    def check(condition: bool, name: str, allowed: str, fix: str) -> None:
        require(condition, method.name, name, getattr(method, name), allowed, fix)

    return check


def require_epochs(check: Check, name: str, values: Sequence[int | float], max_epochs: int | None) -> None:
    """Check that each of ``values`` is an epoch of a training of ``max_epochs``, or a share of it."""
    check(
        max_epochs is not None or not any(isinstance(value, float) for value in values),
        name,
        "epochs (integers) in a run without an end",
        "Set Trainer(max_epochs=...), of which it is a share, or give epochs.",
    )
    check(
        max_epochs is None or all(value <= max_epochs for value in values),
        name,
        f"at most max_epochs={max_epochs}",
        "Give fewer epochs, or a share such as 0.1.",
    )


def shown(value: object) -> str:
    """``repr(value)`` in one line, cut to at most :data:`SHOWN` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 20]}...{text[-17:]}"
