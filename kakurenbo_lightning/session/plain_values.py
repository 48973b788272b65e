"""Converts what users and their methods give to plain Python values, so that a checkpoint loads with ``weights_only=True``."""

from __future__ import annotations

import inspect
import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any

import numpy as np
from torch import Tensor

from kakurenbo_lightning.core.plan import Plan, StreamPlan
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.frozen_module import FrozenModule
from kakurenbo_lightning.methods.per_sample import PerSample
from kakurenbo_lightning.methods.settings import plain, shown


def as_plain(value: Any, place: str) -> Any:
    """Return ``value`` with NumPy's numbers and strings replaced by Python's.

    Args:
        value: nested dicts, lists, tuples, tensors, numbers, strings and ``None``.
        place: name of the value's place, for errors.

    Raises:
        TypeError: it holds something else.
    """
    if type(value) in (dict, OrderedDict):
        parts = ((as_plain(key, f"a key of {place}"), as_plain(part, f"{place}.{key}")) for key, part in value.items())
        return type(value)(parts)
    if type(value) in (list, tuple):
        return type(value)(as_plain(part, f"{place}[{number}]") for number, part in enumerate(value))
    if isinstance(value, np.floating):
        return float(value)  # item() of a longdouble returns a longdouble again
    if isinstance(value, (np.integer, np.bool_, np.str_, np.bytes_)):
        return value.item()
    if value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, Tensor):
        return value
    raise TypeError(
        f"{place} is a {type(value).__name__}, which a checkpoint cannot hold and load with weights_only=True; use tensors, numbers, "
        "strings, and dicts and lists of them"
    )


def plain_settings(method: Method) -> dict[str, Any]:
    """The fields of a method as plain values: sequences, arrays and tensors as lists, paths as strings, functions by name.

    Raises:
        TypeError: a field holds something that a checkpoint cannot; the message names it.
    """
    return {field.name: as_plain(_listed(getattr(method, field.name)), f"{method.name}.{field.name}") for field in fields(method)}


def default_settings(method: Method | type[Method]) -> dict[str, Any]:
    """Defaults of those fields of a method that have one, in the form that :func:`is_same` compares."""
    return {field.name: field.default for field in fields(method) if field.default is not MISSING}


def savable(method: Method) -> Method:
    """Return the method; raise ``TypeError`` if its fields could not be saved in a checkpoint."""
    plain_settings(method)
    return method


def is_same(old: Any, new: Any) -> bool:
    """Whether two values of a setting are equal. A list equals a tuple or array of the same items, and NaN equals NaN."""
    old, new = _listed(old), _listed(new)
    return old == new or repr(old) == repr(new)


def _listed(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (PerSample, FrozenModule)):
        return value.as_setting()
    if inspect.isroutine(value):  # a function is compared by its name, as in pickle
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=repr)
    if isinstance(value, (Tensor, np.ndarray)):
        value = plain(value)
    if isinstance(value, Mapping):
        return {key: _listed(part) for key, part in value.items()}
    # tuples have become lists in the checkpoint
    return [_listed(part) for part in value] if isinstance(value, (list, tuple, range)) else value


def plain_plan(plan: Plan, method: str) -> Plan:
    """Return the plan with metrics and learning-rate factor converted to Python numbers.

    Raises:
        TypeError: a metric is not a number.
        ValueError: the factor is not a finite number above 0.
    """
    metrics = {str(name): _number(value) for name, value in plan.metrics.items()}
    for name, value in metrics.items():
        if value is None:
            raise TypeError(
                f"{method}: metric {name!r} is {shown(plan.metrics[name])}, it must be one number; log other values elsewhere"
            )
    if isinstance(plan, StreamPlan):
        return replace(plan, metrics=metrics)
    factor = _number(plan.lr_factor)
    if factor is None or not 0 < factor < math.inf:
        raise ValueError(
            f"{method}: lr_factor={shown(plan.lr_factor)} is not allowed; lr_factor must be a finite number > 0. 1.0 changes nothing."
        )
    return replace(plan, metrics=metrics, lr_factor=factor)


def _number(value: Any) -> float | int | None:
    """Convert a number of Python, NumPy or torch to Python's own, ``True`` to 1.0; ``None`` if it is not a number."""
    value = plain(value)
    return float(value) if isinstance(value, bool) else value if isinstance(value, (int, float)) else None


def brief(value: Any) -> str:
    """``repr`` of a value, cut to one line of a message."""
    text = repr(value)
    return (
        text if len(text) <= 80 else f"{text[:60]}... ({len(value)} values)" if hasattr(value, "__len__") else f"{text[:77]}..."
    )
