"""Train on fewer samples and lose nothing: sample selection as a PyTorch Lightning callback.

The names below are imported when they are first used (PEP 562), so that what needs torch alone, such as :mod:`kakurenbo_lightning.core`
and the script ``kakurenbo-inspect``, does not wait for Lightning's import. :mod:`kakurenbo_lightning.methods` does not wait for torch's.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kakurenbo_lightning.arena.advice import advise
    from kakurenbo_lightning.arena.compare import compare
    from kakurenbo_lightning.callback import SampleSelection
    from kakurenbo_lightning.core.plan import EpochPlan
    from kakurenbo_lightning.core.sampler import SelectionSampler
    from kakurenbo_lightning.core.seeded_dataset import SeededDataset
    from kakurenbo_lightning.core.statistics import Column, SampleStatistics
    from kakurenbo_lightning.errors import DamagedCheckpointError, MismatchError
    from kakurenbo_lightning.methods import Choice, Epoch, HideMethod, available_methods, get_method, register_method
    from kakurenbo_lightning.session.guard import SelectionGuard
    from kakurenbo_lightning.session.saving import Saving
    from kakurenbo_lightning.trainer.checkpoint_io import AtomicCheckpointIO

__version__ = "0.2.0"  # the only place: pyproject.toml reads it from here

__all__ = [
    "AtomicCheckpointIO",
    "Choice",
    "Column",
    "DamagedCheckpointError",
    "Epoch",
    "EpochPlan",
    "HideMethod",
    "MismatchError",
    "SampleSelection",
    "SampleStatistics",
    "Saving",
    "SeededDataset",
    "SelectionGuard",
    "SelectionSampler",
    "advise",
    "available_methods",
    "compare",
    "get_method",
    "register_method",
]

_MODULES = {  # the imports of TYPE_CHECKING again, for the interpreter; tests/test_architecture.py compares the two
    "arena.advice": ("advise",),
    "arena.compare": ("compare",),
    "callback": ("SampleSelection",),
    "core.plan": ("EpochPlan",),
    "core.sampler": ("SelectionSampler",),
    "core.seeded_dataset": ("SeededDataset",),
    "core.statistics": ("Column", "SampleStatistics"),
    "errors": ("DamagedCheckpointError", "MismatchError"),
    "methods": ("Choice", "Epoch", "HideMethod", "available_methods", "get_method", "register_method"),
    "session.guard": ("SelectionGuard",),
    "session.saving": ("Saving",),
    "trainer.checkpoint_io": ("AtomicCheckpointIO",),
}
_JOINED = ("AtomicCheckpointIO", "SampleSelection")  # asked for again, when pytorch_lightning may have been imported
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    if name in _JOINED:
        import_module(f"{__name__}.core.flavour").join(value)
    else:
        globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
