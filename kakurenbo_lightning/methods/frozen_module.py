"""The kind of setting that holds a trained model, which computes values of samples and is itself never trained."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.methods.settings import Kind, path

if TYPE_CHECKING:
    from torch import Tensor

ALLOWED = "the path of a file, or a LightningModule that was trained on other data"


@dataclass(frozen=True, eq=False)
class FrozenModule:
    """A trained module. It is compared, shown and saved by a hash of its weights, so that a checkpoint does not hold them.

    Attributes:
        module: has a ``training_step`` of its own, or ``sample_outputs(batch)``.
        digest: of its parameters and persistent buffers, as they were given: a training may move and convert them.

    Raises:
        ValueError: it cannot compute losses, or was not trained to an end; the message says what is wrong with it.
    """

    module: Any
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        _check(self.module)
        object.__setattr__(self, "digest", _digest(self.module))

    @property
    def name(self) -> str:
        """The class of the module."""
        return type(self.module).__name__

    def as_setting(self) -> str:
        """The text that a checkpoint stores."""
        return f"{self.name} with the hash {self.digest}"

    def __repr__(self) -> str:
        return f"<{self.as_setting()}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenModule) and self.as_setting() == other.as_setting()

    def __hash__(self) -> int:
        return hash(self.as_setting())


def path_or_module() -> Kind:
    """The kind of the path of a file, which is converted to a str, or of a trained module, which becomes a :class:`FrozenModule`."""
    of_path = path()

    def convert(value: object) -> str | FrozenModule:
        if isinstance(value, FrozenModule):
            return value
        # without torch imported it cannot be a module, and importing takes seconds
        if "torch" in sys.modules and isinstance(value, torch.nn.Module):
            return FrozenModule(value)
        if isinstance(value, type):
            raise ValueError(f"{value.__name__} is a class, give an object such as {value.__name__}.load_from_checkpoint(...)")
        return of_path.convert(value)

    return Kind(ALLOWED, Any, convert)


def _check(module: Any) -> None:
    name, by_itself = type(module).__name__, callable(getattr(module, "sample_outputs", None))
    step = getattr(module, "training_step", None)
    # by name, because Lightning is there under two names, and methods do not import it
    if not by_itself and getattr(step, "__qualname__", "LightningModule.training_step") == "LightningModule.training_step":
        raise ValueError(
            f"{name} has neither training_step nor sample_outputs(batch), so it says nothing of losses: put the network into a "
            "LightningModule whose training_step returns its loss"
        )
    if not by_itself and not getattr(module, "automatic_optimization", True):
        raise ValueError(
            f"{name} has automatic_optimization=False, so its training_step would train it: give it sample_outputs(batch), which returns "
            "{'sample_loss': ...}"
        )
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta or hasattr(tensor, "materialize"):  # of lazy modules
            raise ValueError(f"{key} of {name} has no values yet: load its weights before")
        if tensor.isnan().any():
            raise ValueError(f"{key} of {name} holds NaN, so its losses would tell nothing: load weights that are finite")


def _digest(module: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    tensors: dict[str, Tensor] = {name: each for name, each in module.state_dict().items() if isinstance(each, torch.Tensor)}
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        values: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(values)
    return digest.hexdigest()
