"""Checks of settings, whose errors name the setting, its value, what is allowed and the fix."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from kakurenbo_lightning.methods.registry import method_class
from kakurenbo_lightning.methods.saving import share_setting

# settings that may differ between processes of one search or arena, because they change no score
MACHINE = ("logger.", "data.root.", "data.num_workers.", "trainer.accelerator.", "trainer.enable_progress_bar.")


def check_setting(name: str, value: object, ok: bool, allowed: str, fix: str) -> None:
    """Raise a ValueError about the setting `name` unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value!r} is not possible: it must be {allowed}. {fix}")


def made_of(node: DictConfig, **given: Any) -> Any:
    """Instantiate a node of the config, with lists and mappings converted to Python's, because Lightning and torch check for these."""
    return instantiate(node, _convert_="all", **given)


def made_method(method: DictConfig, save: float | None = None, guard: DictConfig | None = None, **given: Any) -> Any:
    """Create the callback of the method. An error about one of its settings names the command-line setting that it comes from.

    Args:
        method: its config.
        save: share of the training time to save instead of the method's own share; used only if the method has one.
        guard: the group guard.
        given: further arguments of the callback.
    """
    share, above = share_setting(method_class(method.method)), given
    if save is not None and share is not None:
        above |= {"save": save, share: None}
    if guard:
        above |= {"guard": guard}
    try:
        return made_of(method, **above)
    except InstantiationException as error:
        raw = OmegaConf.to_container(method, resolve=False)
        assert isinstance(raw, dict)
        raise InstantiationException(as_typed(str(error), raw)) from ValueError(as_typed(str(error.__cause__), raw))


def as_typed(text: str, method: Mapping[Any, Any]) -> str:
    """An error text with `F=1.5 (max_fraction) is not allowed` in place of `max_fraction=1.5 is not allowed`, where that is `${F}`."""
    for name, value in method.items():
        source = re.fullmatch(r"\$\{(\w+)\}", str(value))
        if source and source[1] != name:
            text = re.sub(rf"\b{name}=(\S+) is not", rf"{source[1]}=\1 ({name}) is not", text)
    return text


def is_count(value: object, least: int) -> bool:
    """Whether `value` is an int (no bool) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_share(value: object) -> bool:
    """Whether `value` is a number (no bool) in [0, 1)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return "did you mean ...?" with the nearest name, or `otherwise` if none is near."""
    near = get_close_matches(str(name), list(known), n=1)
    return f"Did you mean {near[0]}?" if near else otherwise
