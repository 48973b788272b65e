"""A structured config for every registered method, and every preset of one, made from its declared settings.

The config of ``plb`` instantiates ``SampleSelection("plb", ...)``. It holds each setting with its type and default, so it composes on
its own, and Hydra refuses a wrong name or type when it composes. Ranges are checked when the method is created. Methods that hide also
have ``guard``, ``values`` and ``bls_alpha``, and those with a share to set have ``save``, with which that share is null:
``method.save=0.2 method.max_fraction=null``, or a node with ``_target_: kakurenbo_lightning.Saving``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, field, make_dataclass
from functools import cache
from types import UnionType
from typing import Any, Optional, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.registry import method_class, named_presets
from kakurenbo_lightning.methods.saving import share_setting
from kakurenbo_lightning.methods.settings import settings_of

TARGET = "kakurenbo_lightning.SampleSelection"


def method_config(name: str) -> type:
    """Return the structured config, a dataclass, of the method ``name``, or of one of its presets, as ``kakurenbo_fast``.

    Raises:
        ValueError: unknown method.
    """
    method, preset = named_presets().get(name, (name, None))
    return _config_of(method_class(method), preset)


def __getattr__(name: str) -> type:
    """Return the config of the method or preset ``name`` as an attribute of this module, because pickle looks classes up by module and
    name.
    """
    if not name.startswith("_"):
        try:
            return method_config(name)
        except ValueError:
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _config_of(cls: type[Method], preset: str | None) -> type:
    own = [("_target_", str, TARGET), ("_convert_", str, "all"), ("method", str, cls.name)]
    share = share_setting(cls)
    settings = [
        (name, Optional[kind] if name == share else kind, default)  # noqa: UP045
        for name, kind, default in _typed_settings(cls, {} if preset is None else cls.presets[preset])
    ]
    beside: list[tuple[str, Any, Any]] = [("save", Any, None)] if share else []
    if cls.family == "hide":
        beside += [("guard", Any, None), ("values", str, "sample_loss"), ("bls_alpha", float, 0.7)]
    fields = [*own, *settings, *beside]
    name = cls.name if preset is None else f"{cls.name}_{preset}"
    return make_dataclass(name, fields, namespace={"__module__": __name__, "__doc__": cls.summary})


def _typed_settings(cls: type[Method], given: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, annotation and default of each setting; those ``given`` have other defaults. Types that OmegaConf does not know become
    ``Any``; defaults that it cannot hold are left out.
    """
    try:
        hints = get_type_hints(cls)  # resolves annotations that are strings
    except Exception:
        hints = {}
    for name, declared in settings_of(cls).items():
        default = _held(given[name]) if name in given else _default(cls.__dataclass_fields__[name])
        for annotation in (declared.kind.type if declared else hints.get(name, Any), Any):
            typed = (name, _without_listed_unions(annotation), default)
            try:
                OmegaConf.structured(make_dataclass("one", [typed]))
            except OmegaConfBaseException:
                continue
            yield typed
            break


def _without_listed_unions(annotation: Any) -> Any:
    """Replace a list of unions by ``list``, because OmegaConf passes such lists to callables as its own nodes."""
    is_listed = get_origin(annotation) in (list, tuple)
    return list[Any] if is_listed and any(get_origin(item) in (Union, UnionType) for item in get_args(annotation)) else annotation


def _default(declared: Field) -> Any:
    """Return the default as OmegaConf holds it: a tuple becomes a list, and a required setting is ``"???"``."""
    value = declared.default if declared.default_factory is MISSING else declared.default_factory()
    if value is MISSING:
        return "???"
    return _held(value)


def _held(value: Any) -> Any:
    """A default as a dataclass takes it and OmegaConf holds it."""
    if isinstance(value, (list, tuple, dict)):
        return field(default_factory=lambda: list(value) if isinstance(value, tuple) else value)
    return value
