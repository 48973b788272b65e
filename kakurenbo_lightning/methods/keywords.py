"""The settings of all methods as the keywords of one function, for tools that read signatures, such as LightningCLI."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict, Union

from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.settings import settings_of


def keywords_of(classes: Iterable[type[Method]]) -> Any:
    """Return a ``TypedDict`` of all settings of these methods, none required. Its docstring says to which methods each belongs."""
    kinds: dict[str, dict[Any, None]] = {}
    owners: dict[str, list[str]] = {}
    for cls in classes:
        for name, declared in settings_of(cls).items():
            kinds.setdefault(name, {})[declared.kind.type if declared else Any] = None
            owners.setdefault(name, []).append(cls.name)
        if cls.presets:
            kinds.setdefault("preset", {})[str] = None
            owners.setdefault("preset", []).append(cls.name)
    made = TypedDict("Settings", {name: Union[tuple(several)] for name, several in kinds.items()}, total=False)  # type: ignore  # noqa: UP007
    made.__doc__ = "Settings of methods.\n\nArgs:\n" + "\n".join(f"    {name}: of {', '.join(owners[name])}" for name in kinds)
    return made
