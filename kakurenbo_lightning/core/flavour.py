"""Lightning under both of its names: ``lightning.pytorch`` and ``pytorch_lightning`` are two copies of one package.

No class of one is a class of the other. This package imports the first; a user's Trainer, module and callbacks may be of either, so classes
are compared by name here. Nothing of Lightning is imported.
"""

from __future__ import annotations

import logging
import sys
from abc import ABCMeta
from typing import Any, TypeGuard, TypeVar

# A Trainer of either name. Lightning sets many of its attributes without declaring them, so its type would say too little.
AnyTrainer = Any
T = TypeVar("T")

_TWINS = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}
_OURS = {other: name for name, other in _TWINS.items()}


def _renamed(module: str, names: dict[str, str]) -> str:
    """The name that a module has in the other copy; its own when it is of none."""
    for name, other in names.items():
        if module == name or module.startswith(f"{name}."):
            return other + module[len(name) :]
    return module


def is_class(cls: type, ours: type) -> bool:
    """Whether ``cls`` is ``ours``, a class of ``lightning.*``, or its twin of the other name."""
    return (_renamed(cls.__module__, _OURS), cls.__qualname__) == (ours.__module__, ours.__qualname__)


def is_instance(value: object, ours: type[T]) -> TypeGuard[T]:
    """``isinstance(value, ours)`` for a class of ``lightning.*``, or for its twin of the other name."""
    return any(is_class(base, ours) for base in type(value).__mro__)


def package_of(value: object, name: str) -> str:
    """``lightning.pytorch``, or ``pytorch_lightning`` where the class of that ``name`` that ``value`` derives from is of that copy."""
    names = {base.__module__.partition(".")[0] for base in type(value).__mro__ if base.__qualname__ == name}
    return "pytorch_lightning" if names == {"pytorch_lightning"} else "lightning.pytorch"


def join(cls: type) -> None:
    """Make ``cls``, a class of ours, a subclass of the twins of Lightning's classes it derives from, where the other copy is imported.

    Trainers and the command line of that copy ask ``isinstance``. It may be imported after us, and importing it for everybody would take a
    second: so this is called when ``cls`` is made, and again with each instance.
    """
    for base in cls.__mro__:
        twin = getattr(sys.modules.get(_renamed(base.__module__, _TWINS)), base.__qualname__, None)
        if not isinstance(twin, type) or issubclass(cls, twin):
            continue
        if isinstance(twin, ABCMeta):
            twin.register(cls)
        else:
            cls.__bases__ += (twin,)


def leave_log() -> None:
    """Let Lightning's messages go where they went before this package imported ``lightning``.

    Both copies log through one variable, which belongs to the one imported last. A user of ``pytorch_lightning`` who silenced its logger
    would hear from another one.
    """
    order = [name for name in sys.modules if name in ("kakurenbo_lightning", "lightning.pytorch", "pytorch_lightning")]
    if len(order) == 3 and order[-1] == "lightning.pytorch":  # imported last, so not by the user before us
        shared: Any = sys.modules["lightning_utilities.core.rank_zero"]
        shared.log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
