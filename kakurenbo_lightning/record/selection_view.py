"""What a recorder reads of a selection besides its public attributes; nothing else in ``record/`` reaches into the session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.session.checkpoint import describe_method


class SelectionView:
    """The session of a selection, as far as a recorder needs it.

    Args:
        selection: which has a session from the Trainer's setup on.
    """

    def __init__(self, selection: SampleSelection) -> None:
        self._selection = selection

    @property
    def method(self) -> dict[str, Any]:
        """Name, settings and family of the method, as plain values."""
        return {**describe_method(self._selection.method), "family": self._selection.method.family}

    @property
    def seed(self) -> int:
        """Of order and choice."""
        return self._selection.session.seed

    @property
    def fingerprint(self) -> str | None:
        """A hash of the data set; ``None`` before it is known."""
        return self._selection.session.fingerprint

    @property
    def dataset(self) -> Any:
        """The train data set; ``None`` before it is known."""
        session = self._selection.session
        return None if session is None or session.loader is None else session.loader.dataset

    @property
    def step(self) -> int:
        """Number of the batch that is trained, in its epoch."""
        return self._selection.session.step

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the selection logs of the planned epoch."""
        return self._selection.session.metrics

    @property
    def metrics_of_last_epoch(self) -> Mapping[str, float]:
        """What it logged of the last epoch that ended."""
        return self._selection.session.ended

    def done_batches(self) -> int:
        """Batches of the epoch that a run resumed from a checkpoint of this moment does not train again."""
        return self._selection.session.adapter.done_batches()

    def call_on_trained(self, function: Callable[[Tensor], None] | None) -> None:
        """Call ``function`` in each training step with the indices that this rank trains in it, ``int64[b]`` on the device."""
        if self._selection.session is not None:
            self._selection.session.on_trained = function
