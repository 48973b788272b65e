"""Refusals of what cannot be combined with ``SampleSelection(key=...)``."""

from __future__ import annotations

from typing import Any

from kakurenbo_lightning.core.key_field import KeyField
from kakurenbo_lightning.core.key_filter import KeyFilter
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.registry import available_methods, method_class
from kakurenbo_lightning.methods.settings import shown


def checked_key(key: Any, method: Method, *, save: object, values: str, statistics: str) -> KeyFilter | None:
    """What the setting ``key`` says, when it can be used with the others; ``None``: it is not set.

    Raises:
        ValueError: it is no field, or another setting forbids it.
    """
    if key is None:
        return None
    names = tuple(key) if isinstance(key, (list, tuple)) else (key,)
    if not names or not all(type(name) in (str, int) for name in names):
        raise ValueError(
            f"SampleSelection: key={shown(key)} is not allowed; key must be the name of a field of a sample, its position in a tuple, or "
            "several of them. For example: '__key__', 2, or ('__url__', '__key__')."
        )
    check_keyed_method(method)
    others = {
        "save": (save is not None, "no scoring pass of hidden samples can be measured: set the method's own share"),
        "values": (values != "sample_loss", "a mean over batches is kept by index: use values='sample_loss'"),
        "statistics": (statistics != "replicated", "rows are given to ranks by index: use statistics='replicated'"),
    }
    for name, (is_wrong, why) in others.items():
        if is_wrong:
            raise ValueError(
                f"SampleSelection: key={shown(key)} is not allowed with {name}=..., because {why}, or a map-style data set"
            )
    return KeyFilter(KeyField(names))


def check_keyed_method(method: Method) -> None:
    """Raise ``ValueError`` for a method, or a setting of it, that needs more of a sample than a key."""
    able = {name: method_class(name) for name in available_methods()}
    works = ", ".join(name for name, cls in able.items() if not cls.needs_places and cls.needs_classes is not True)
    why = method.needs_places
    if not why and method.needs_classes:
        why = (
            "the class of each sample is not known before it arrives (leave balance and protected_classes out where it has them)"
        )
    if not why and getattr(method, "protected", ()):
        why = "protected=... names samples by their index; leave it out"
    if why:
        raise ValueError(f"SampleSelection: key=... is not allowed with {method.name}: {why}. Methods that take keys: {works}")


def check_no_index(loader: Any) -> None:
    """Raise ``ConflictError`` for ``key=`` and a data set that has an index."""
    kind = type(getattr(loader, "dataset", loader)).__name__
    raise ConflictError(
        f"SampleSelection(key=...) is for iterable data, and the train loader's {kind} is map-style: its samples are known by their index, "
        "so leave key out; hidden samples are not loaded at all then"
    )
