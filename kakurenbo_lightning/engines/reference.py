"""A trained model that scores batches beside the module and is never trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

from kakurenbo_lightning.core.distributed import gather, largest
from kakurenbo_lightning.errors import ConflictError, OutputsError
from kakurenbo_lightning.methods.frozen_module import FrozenModule
from kakurenbo_lightning.trainer.adapter import TrainerAdapter


@contextlib.contextmanager
def explained(name: str, role: str) -> Iterator[None]:
    """Let an error inside, where the step of another module than the Trainer's is run, say so.

    Args:
        name: the setting and the class of that module.
        role: what it is there for, "which ...".
    """
    try:
        yield
    except OutputsError as error:
        raise OutputsError(f"{name}: of its own training_step, not of the module's: {error}") from error
    except Exception as error:
        if add_note := getattr(error, "add_note", None):  # since Python 3.11
            add_note(f"SampleSelection: this was the step of {name}, {role}")
        raise


class Reference:
    """The method's trained model, on the device and in the precision of the Trainer. Collective.

    It belongs to nothing that is trained or saved: not to the module's parameters, so to no optimizer and no checkpoint.

    Args:
        adapter: the Trainer's adapter.
        frozen: of the method.
        setting: the method's name for it, for errors.

    Attributes:
        module: the model.

    Raises:
        ConflictError: it would be trained with the module, or differs from rank to rank.
    """

    def __init__(self, adapter: TrainerAdapter, frozen: FrozenModule, setting: str) -> None:
        self.module, self._name = frozen.module, f"{setting}={frozen.name}"
        trainer = adapter.trainer
        own = {id(parameter) for parameter in self.module.parameters()}
        if any(id(parameter) in own for parameter in trainer.lightning_module.parameters()):
            raise ConflictError(
                f"{self._name} shares parameters with the module that is trained, so it would be trained too; give the method a model of "
                "its own (copy.deepcopy, or load_from_checkpoint), and do not assign it to an attribute of the module"
            )
        if len(set(gather(frozen.digest))) > 1:
            raise ConflictError(
                f"{self._name} has other weights on each rank, so ranks would choose by other losses; load the same file on every rank"
            )
        self.module.to(trainer.strategy.root_device)
        trainer.precision_plugin.convert_module(self.module)
        self._device = trainer.strategy.root_device

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """Let an error inside say that it is of this model's step."""
        return explained(self._name, "which scores beside the module")

    def check(self, loss: Tensor) -> None:
        """Raise ``OutputsError`` on every rank when no ``loss`` (``[n]``) of a rank's first batch is finite. Collective, waits."""
        if largest(int(not loss.isfinite().any()), self._device):
            raise OutputsError(
                f"{self._name}: its loss of every sample of the first batch is NaN or infinite, so nothing could be chosen; try it on a "
                "batch in eval mode, in the Trainer's precision"
            )
