"""What a checkpoint holds of a selection, and whether it belongs to the run that loads it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kakurenbo_lightning.methods import HideMethod

STATE_VERSION = 1


class MismatchError(ValueError):
    """The checkpoint's selection is of another data set, method or setting than this run's."""


def describe_method(method: HideMethod) -> dict[str, Any]:
    """Name and settings, as plain values."""
    return {
        "method": method.name,
        "settings": {field.name: _plain(getattr(method, field.name)) for field in fields(method)},
    }


def mismatches(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """What differs between the identities of a saved and the current selection, in words.

    An identity has ``method``, ``settings``, ``num_samples``, ``fingerprint`` and ``seed`` (``None``: any).
    """
    if saved["method"] != current["method"]:
        return [f"method={current['method']!r}, the checkpoint has {saved['method']!r}"]
    differing = []
    if saved["num_samples"] != current["num_samples"]:
        differing.append(f"the data set has {current['num_samples']} samples, the checkpoint's had {saved['num_samples']}")
    elif saved["fingerprint"] != current["fingerprint"]:
        differing.append("the data set has other samples than the checkpoint's (compared by a hash of a few of them)")
    names = sorted(saved["settings"].keys() | current["settings"].keys())
    for name in names:
        old, new = (identity["settings"].get(name, "not set") for identity in (saved, current))
        if old != new:
            differing.append(f"{name}={new!r}, the checkpoint has {old!r}")
    if current["seed"] is not None and saved["seed"] != current["seed"]:
        differing.append(f"seed={current['seed']!r}, the checkpoint has {saved['seed']!r}")
    return differing


def check_version(state: dict[str, Any]) -> None:
    """Raise :class:`MismatchError` for a state of a later release."""
    if state.get("version") != STATE_VERSION:
        raise MismatchError(
            f"the checkpoint's selection state has version {state.get('version')!r}, this release reads {STATE_VERSION}; "
            "resume with the release of kakurenbo-lightning that wrote it, or with on_mismatch='reset'"
        )


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
