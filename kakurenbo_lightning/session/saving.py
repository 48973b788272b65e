"""``SampleSelection(..., save=0.3)``: what it takes, and with which methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from typing import Any

from kakurenbo_lightning.methods import get_method
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.registry import available_methods, check_method, method_class
from kakurenbo_lightning.methods.saving import share_setting, with_share
from kakurenbo_lightning.methods.settings import Setting, integer, number, optional, require, setting, settings_of, shown

ABOVE_0 = number(0, 1, above=True, below=True)


@dataclass(frozen=True)
class Saving:
    """What ``SampleSelection(..., save=...)`` takes: the share alone, or with the limits within which it is to be reached.

    Attributes:
        share: of the training time.
        forward: the share of a training step that is its forward pass; ``None`` measures it in the first epoch.
        max_share: the largest share that the method may be set to hide.
        max_interval: how many epochs a choice may be kept at most; fewer refreshes cost less. 1 where ``every_n_epochs=1`` is given.

    Raises:
        ValueError: one of them is out of range.
    """

    share: float = setting(MISSING, ABOVE_0, "of the training time", fix="For example: 0.3 saves 30 %.")
    forward: float | None = setting(None, optional(ABOVE_0), "of a training step", fix="None measures it in the first epoch.")
    max_share: float = setting(0.5, ABOVE_0, "the largest share to hide")
    max_interval: int = setting(5, integer(1), "the most epochs that keep a choice", unit="epochs")

    def __post_init__(self) -> None:
        for name, declared in settings_of(type(self)).items():
            if declared is not None:
                object.__setattr__(self, name, declared.checked("Saving", name, getattr(self, name)))
        _check_share(self.share, self.max_share, self.share)


def _check_share(save: float, limit: float, given: object) -> None:
    allowed = f"a number in (0, {limit:g}), because no method is set to hide more than max_share={limit:g} of the samples"
    if save > 1:
        fix = "It is a share of the training time: 0.3 saves 30 %."
    else:
        fix = f"Ask for less, or allow more: save=Saving({save:g}, max_share=...), with a max_share above {save:g} and below 1."
    require(0 < save < limit, "SampleSelection", "save", given, allowed, fix if save > 0 else "For example: 0.3 saves 30 %.")


def method_and_saving(method: str | Method, settings: Mapping[str, Any], save: Any) -> tuple[Method, Saving | None]:
    """The method, and how much it is to save.

    Args:
        method: a registered name, or an object.
        settings: of the method, given beside its name; ``None`` as its share leaves that to ``save``.
        save: as it was given.

    Raises:
        ValueError: ``save`` or a setting is out of range, the method has no share that could be set, or the share was given too.
        TypeError: a setting the method does not have, or one beside an object.
    """
    if not isinstance(method, str) and settings:
        raise TypeError(
            f"settings {shown(sorted(settings))} are given beside a method object; put them into {type(method).__name__}(...), or give "
            "the method by name"
        )
    saving = None if save is None else save if isinstance(save, Saving) else _of_number(save)
    name = None if saving is None or not isinstance(method, str) else share_setting(method_class(method))
    if name is not None and settings.get(name, 0) is None:  # a config of Hydra has each setting
        settings = {key: value for key, value in settings.items() if key != name}
    elif saving is not None and settings.get("every_n_epochs") == 1:  # the default, but given: it stays
        saving = replace(saving, max_interval=1)
    made = get_method(method, **settings) if isinstance(method, str) else check_method(method)
    if saving is not None:
        _check_method(made, settings, saving)
    return made, saving


def _of_number(save: object) -> Saving:
    fix = "For example: 0.3 saves 30 % of the training time."
    share = Setting(number(), "", "", fix).checked("SampleSelection", "save", save)
    limit = default_of(Saving, "max_share")
    _check_share(share, limit, save)
    return Saving(share)


def _check_method(method: Method, settings: Mapping[str, Any], save: Saving) -> None:
    name = share_setting(method)
    if name is None:
        raise ValueError(
            f"save={save.share:g} is not possible with method {method.name}, which has no single setting for how much it hides; methods "
            f"that have one: {', '.join(methods_with_share())}"
        )
    share = getattr(method, name)
    if name in settings or share != default_of(type(method), name):
        of_preset = f" (of preset={shown(settings['preset'])})" if "preset" in settings and name not in settings else ""
        raise ValueError(
            f"{method.name}: {name}={shown(share)}{of_preset} and save={save.share:g} both say how much is hidden; leave one of them "
            f"out (in a config of Hydra: {name}=null)"
        )
    try:
        with_share(method, save.max_share)
    except ValueError as error:
        raise ValueError(
            f"save={save.share:g} sets {name} to as much as max_share={save.max_share:g}, and then {error} With a smaller one it may be "
            f"possible: save=Saving({save.share:g}, max_share=...)"
        ) from None


def methods_with_share(values: str = "sample_loss") -> list[str]:
    """The methods that ``save`` can set; with ``values="bls"`` those of them that read only the loss, as a loss of whole batches has."""
    able = [name for name in available_methods() if share_setting(method_class(name))]
    return [name for name in able if values != "bls" or method_class(name).reads in ((), ("loss",))]


def default_of(cls: type, name: str) -> Any:
    """The default of a field of a dataclass."""
    return cls.__dataclass_fields__[name].default
