"""Checks that every key of the composed config is read by something; a key that nothing reads is refused by name.

Hydra itself refuses `optimiser.lr=0.5`, but accepts what `+` or `++` add. So the whole config is checked before it is used: the program
reads its own keys (`schema.TrainSchema`), and a node with a `_target_` is read by that target, whose signature says which keys and types
it takes.
"""

import inspect
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from kakurenbo_lightning.methods.registry import method_class
from kakurenbo_lightning.methods.settings import settings_of
from kakurenbo_recipes.settings import check_setting

# keys of a node that hydra.utils.instantiate reads itself
HYDRAS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
KEYED = ("callbacks", "logger")  # groups that hold several named nodes side by side
ADD = "Write +{0}.NAME._target_=package.Class for one of your own, or choose {0}=[{1}]."
# arguments that the program itself passes to a group's target, and what to set instead
GIVEN: dict[str, dict[str, str]] = {
    "trainer": {
        "callbacks": "Write callbacks=[early_stopping,lr_monitor], or +callbacks.NAME._target_=package.Class for one of your own.",
        "logger": "Write logger=[csv,tensorboard], or +logger.NAME._target_=package.Class for one of your own.",
    },
    "model": {"num_classes": "The data say how many there are."},
    "scorer": {"num_classes": "The data say how many there are."},
    "optimizer": {"params": "They are the model's."},
    "schedule": {"optimizer": "It is that of the group optimizer.", "trainer": "It is that of the group trainer."},
    "task": {name: f"It is that of the group {name}." for name in ("optimizer", "schedule")}
    | {"network": "It is that of the group model.", "num_classes": "The data say how many there are."},
    "record": {
        "selection": "It is that of the group method.",
        "folder": "Write hydra.run.dir=FOLDER.",
        "metric": "It is that of the group task.",
        "config": "It is this config.",
    },
}
# keys of nodes that the program itself reads
READ = (("trainer", "enable_checkpointing"), ("trainer", "accumulate_grad_batches"), ("optimizer", "lr"))
MAY_BE_EMPTY = ("callbacks", "guard", "logger", "record", "scorer", "small")
SELECTION = "kakurenbo_lightning.SampleSelection"
# ranges that signatures do not express and nothing else checks before the data are read: check, allowed values in words, and the fix
LIMITS: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "seed": (lambda value: 0 <= value < 2**32, "an int from 0 to 4294967295", "Try 0."),
    "optimizer.lr": (lambda value: 0 < value < math.inf, "a number above 0 that is finite", "Try 0.1, or 0.001 with adamw."),
    "optimizer.momentum": (lambda value: 0 <= value < 1, "a number in [0, 1)", "Try 0.9."),
    "trainer.max_epochs": (lambda value: value is not None and value >= 1, "an int >= 1", "Try 30."),
    "trainer.max_steps": (lambda value: value == -1 or value >= 1, "-1 for no limit, or an int >= 1", "Try -1."),
    "trainer.accumulate_grad_batches": (lambda value: value >= 1, "an int >= 1", "Write 1 for a step at each batch."),
    "trainer.limit_train_batches": (
        lambda value: value is None or (value >= 1 if isinstance(value, int) else 0 < value <= 1),
        "null, an int >= 1 or a share in (0, 1]",
        "Write null for all batches.",
    ),
    **dict.fromkeys(
        ("trainer.limit_val_batches", "trainer.limit_test_batches"),
        (
            lambda value: value is None or (value >= 0 if isinstance(value, int) else 0 <= value <= 1),
            "null, an int >= 0 or a share in [0, 1]",
            "Write null for all batches.",
        ),
    ),
    "trainer.val_check_interval": (
        lambda value: not isinstance(value, int | float) or (value >= 1 if isinstance(value, int) else 0 < value <= 1),
        "null, an int >= 1 of batches, a share in (0, 1] of an epoch, or a time",
        "Write null for the end of an epoch.",
    ),
    "trainer.check_val_every_n_epoch": (lambda value: value is None or value >= 1, "null or an int >= 1", "Try 1."),
    "trainer.devices": (
        lambda value: not isinstance(value, int) or value == -1 or value >= 1,
        "auto, -1 for all, an int >= 1 or a list of devices",
        "Try 1.",
    ),
    "trainer.num_nodes": (lambda value: value >= 1, "an int >= 1", "Try 1."),
    "trainer.num_sanity_val_steps": (lambda value: value >= -1, "an int >= -1", "Try 0."),
}
REFERENCE = re.compile(r"\$\{\s*(\w+)")  # the first name in an interpolation


def check_config(cfg: DictConfig, names: Iterable[str], program: str = "kakurenbo-train") -> None:
    """Refuse keys that nothing reads, keys that are missing, and values of another type than their reader takes.

    Args:
        cfg: the composed config.
        names: settings and groups that the program reads.
        program: name of the program, whose `--cfg job` lists the settings.

    Raises:
        ValueError: names the key, its value and the nearest key that is read.
    """
    known = list(names)
    check_complete(cfg, known)
    raw, values = (typing.cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=resolve)) for resolve in (False, True))
    referred = set(REFERENCE.findall(str(raw)))  # a helper key counts as read if another key interpolates it
    walk = Walk(values, program)
    for key in values:
        if key not in known and key not in referred:
            walk.refuse(key, values[key], known, "nothing reads it")
    for key, value in (values.get("small") or {}).items():
        if key not in known:
            walk.refuse(f"small.{key}", value, known, "nothing reads it")
    # plain settings first, so that an error names F and not the method's key that refers to it
    for name in sorted(known, key=lambda name: isinstance(values[name], dict)):
        if not isinstance(values[name], dict):
            walk.node(name, values[name], {})
        elif name != "small":
            walk.keyed(name) if name in KEYED else walk.node(name, values[name], GIVEN.get(name, {}))
    for path, (is_allowed, allowed, fix) in LIMITS.items():
        group, _, key = path.rpartition(".")
        node = values.get(group, {}) if group else values
        if key in node:
            check_setting(path, node[key], is_allowed(node[key]), allowed, fix)


def check_complete(cfg: DictConfig, names: Iterable[str]) -> None:
    """Refuse a config in which one of these names was deleted or is missing.

    Raises:
        ValueError: with the first of these names.
    """
    for name in names:
        empty = OmegaConf.is_missing(cfg, name) or (isinstance(cfg.get(name), DictConfig) and "_target_" not in cfg[name])
        if name not in cfg or (empty and name not in MAY_BE_EMPTY):
            none = f", or {name}=none" if name in MAY_BE_EMPTY else ""
            raise ValueError(
                f"{name} is missing, and the program reads it. Leave ~{name} out, or write {name}=VALUE{none}; --help lists them."
            )
    for name in sorted(OmegaConf.missing_keys(cfg)):
        raise ValueError(f"{name} is missing, and has no default. Write {name}=VALUE.")
    for group, key in READ:
        if group in names and key not in cfg[group]:
            raise ValueError(f"{group}.{key} is missing, and the program reads it. Leave ~{group}.{key} out.")


class Walk:
    """Checks the nodes of a config recursively; it holds all resolved values for its suggestions."""

    def __init__(self, values: dict[str, Any], program: str) -> None:
        self.values, self.program = values, program

    def keyed(self, group: str) -> None:
        """Check a group of named nodes; null entries are left out."""
        for name, node in self.values[group].items():
            is_node = node is None or (isinstance(node, dict) and "_target_" in node)
            options = {"callbacks": "early_stopping,lr_monitor", "logger": "csv,tensorboard"}[group]
            check_setting(f"{group}.{name}", node, is_node, "a node with a _target_, under a name", ADD.format(group, options))
            if node is not None:
                self.node(f"{group}.{name}", node, {})

    def node(self, path: str, node: Any, given: Mapping[str, str]) -> None:
        """Check a value: a node with a `_target_` by that target's signature, anything else by its contents."""
        if isinstance(node, list):
            for index, part in enumerate(node):
                self.node(f"{path}[{index}]", part, {})
        elif isinstance(node, dict):
            takes = parameters(path, node["_target_"], node) if "_target_" in node else None
            for key, value in node.items():
                if key in given:
                    raise ValueError(f"{path}.{key}={value!r} is not possible: the program gives it. {given[key]}")
                if takes is not None and key not in HYDRAS:
                    self.argument(f"{path}.{key}", value, takes, [name for name in takes.types if name not in given])
                self.node(f"{path}.{key}", value, {})
        elif isinstance(node, float):
            finite = math.isfinite(node) or (math.isinf(node) and path.startswith(KEYED))  # divergence_threshold=inf
            check_setting(path, node, finite, "a finite number", "Leave it out for the default.")

    def argument(self, path: str, value: Any, takes: "Parameters", names: list[str]) -> None:
        """Check one setting of a node against the signature of its target."""
        key = path.rpartition(".")[2]
        if key not in takes.types:
            if not takes.open:
                self.refuse(path, value, names, f"{takes.target} takes no {key}")
            return
        kind, default = takes.types[key], takes.defaults.get(key, inspect.Parameter.empty)
        made = isinstance(value, dict) and "_target_" in value
        ok = made or fits(value, kind) is not False or (type(value) is type(default) and value == default)
        check_setting(path, value, ok, words(kind), "Leave it out for the default; --help shows it.")

    def refuse(self, path: str, value: Any, names: Iterable[str], why: str) -> NoReturn:
        """Raise an error for a key, with the nearest key that is read, here or anywhere in the config."""
        top, _, inner = path.partition(".")
        where = f"{self.program} --cfg job" + (f" --package {top}" if inner else "") + " lists the settings"
        near = nearest(path, value, names, self.values)
        shown = (
            f"{path}.{next(iter(value))}={next(iter(value.values()))!r}"
            if isinstance(value, dict) and value
            else f"{path}={value!r}"
        )
        hint = f"Did you mean {near}? " if near else ""
        raise ValueError(f"{shown} is not possible: {why}. {hint}{where}.")


def nearest(path: str, value: Any, names: Iterable[str], values: Mapping[str, Any]) -> str | None:
    """The path of the key that was probably meant: one of `names`, or a key of the same name anywhere in the config."""
    group, _, key = path.rpartition(".")
    inner = f".{next(iter(value))}" if isinstance(value, dict) and value else ""
    close = get_close_matches(key, list(names), n=1)
    if close:
        return f"{group}.{close[0]}{inner}".lstrip(".")
    leaves = {
        leaf.rpartition(".")[2]: leaf
        for leaf in reversed(list(leaves_of(values)))
        if leaf != path and not leaf.startswith(f"{path}.")
    }
    close = get_close_matches(key, list(leaves), n=1, cutoff=0.8)
    return leaves[close[0]] if close else None


def leaves_of(values: Mapping[str, Any], path: str = "") -> Iterable[str]:
    """The paths of all values that are not mappings, without the keys that `instantiate` reads itself."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves_of(value, f"{path}{key}.")
        elif key not in HYDRAS:
            yield f"{path}{key}"


# ---- signatures


class Parameters(typing.NamedTuple):
    """The parameters of a target, by name.

    Attributes:
        target: name of the target.
        types: annotation of each parameter; Any if it has none.
        defaults: defaults of those parameters that have one.
        open: whether the target accepts other names too (`**kwargs`).
    """

    target: str
    types: dict[str, Any]
    defaults: dict[str, Any]
    open: bool


def parameters(path: str, target: Any, node: Mapping[str, Any]) -> Parameters:
    """Read the parameters of a node's target.

    Raises:
        ValueError: there is no such target.
    """
    try:
        found = resolve_name(str(target))
    except Exception as error:
        reason = f"{' '.join(str(error).split())}. Write the whole path of a class that is installed."
        raise ValueError(f"{path}._target_={target!r} is not possible: {reason}") from error
    types, defaults, is_open = {}, {}, False
    for function in functions_of(found):
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # classes written in C have no signature
            return Parameters(target, types, defaults, True)
        hints = hints_of(function)
        is_open = False
        for name, parameter in list(signature.parameters.items())[function is not found :]:  # drop self
            is_open |= parameter.kind is parameter.VAR_KEYWORD
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                types.setdefault(name, hints.get(name, Any))
                if parameter.default is not parameter.empty:
                    defaults.setdefault(name, parameter.default)
        if not is_open:
            break
    if node["_target_"] == SELECTION and isinstance(node.get("method"), str):  # SampleSelection passes **settings to the method
        types |= dict.fromkeys(settings_of(method_class(node["method"])), Any)
        return Parameters(f"method={node['method']}", types, defaults, False)
    return Parameters(target, types, defaults, is_open)


def functions_of(target: Any) -> list[Callable[..., Any]]:
    """The function that is called, and, for our classes that pass `**settings` to their base class, those of the base classes."""
    if not isinstance(target, type):
        return [target]
    made = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls) and cls is not object]
    if not made:  # a class with only __new__, like timedelta
        return [target]
    return made if target.__module__.partition(".")[0] == "kakurenbo_recipes" else made[:1]


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function; empty if one of them cannot be resolved."""
    try:
        return get_type_hints(function)
    except Exception:
        return {}


SCALARS = {bool: "true or false", int: "an int", float: "a number", str: "a text", NoneType: "null"}


def fits(value: Any, kind: Any) -> bool | None:
    """Whether a YAML value fits a type; None if only the target itself can say."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        found = [fits(value, part) for part in parts]
        return True if True in found else None if None in found else False
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in parts)
    if kind in SCALARS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and kind is str:
            return None  # YAML reads a text that looks like a number as a number (name=7)
        return number if kind is float else type(value) is kind
    if is_tensor(kind):
        return False
    if not isinstance(origin or kind, type) or issubclass(origin or kind, bytes):
        return None
    if issubclass(origin or kind, Mapping):
        return isinstance(value, dict)
    if issubclass(origin or kind, Sequence):
        item, length = items_of(kind)
        return isinstance(value, list) and length in (None, len(value)) and all(fits(each, item) is not False for each in value)
    return None


def items_of(kind: Any) -> tuple[Any, int | None]:
    """The type of a list's items (Any if they differ) and their required number (None for any)."""
    parts, is_fixed = get_args(kind), get_origin(kind) is tuple and ... not in get_args(kind)
    return parts[0] if len({str(part) for part in parts if part is not ...}) == 1 else Any, len(parts) if is_fixed else None


def is_tensor(kind: Any) -> bool:
    """Whether a type is torch's Tensor, which no YAML value is. Works without importing torch."""
    return getattr(kind, "__module__", "").partition(".")[0] == "torch" and getattr(kind, "__name__", "") == "Tensor"


def words(kind: Any) -> str:
    """A type in words. The values of several Literals are joined into one list."""
    parts = [part for part in flat(kind) if not is_tensor(part)]
    literal = [yaml(value) for part in parts if get_origin(part) is Literal for value in get_args(part)]
    others = [part for part in parts if get_origin(part) is not Literal]
    named = [SCALARS.get(part) or listed(part) or getattr(part, "__name__", str(part)) for part in others]
    named.sort(key=lambda named: named.startswith("a list"))  # lists last, because the type of their items follows
    return " or ".join(dict.fromkeys((["one of " + ", ".join(dict.fromkeys(literal))] if literal else []) + named))


def listed(kind: Any) -> str:
    """The type of a list or mapping in words, with that of its items; empty for other types."""
    made = get_origin(kind) or kind
    if not isinstance(made, type) or not issubclass(made, (Sequence, Mapping)):
        return ""
    if issubclass(made, Mapping):
        return "a mapping"
    item, length = items_of(kind)
    return "a list" + (f" of {length}" if length else "") + (f", each {words(item)}" if item is not Any else "")


def flat(kind: Any) -> list[Any]:
    """The member types of a union, including nested ones."""
    if get_origin(kind) not in (Union, UnionType):
        return [kind]
    return [part for each in get_args(kind) for part in flat(each)]


def yaml(value: Any) -> str:
    """Format a value as it is written on the command line."""
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
