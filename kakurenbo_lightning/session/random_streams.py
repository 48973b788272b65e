"""The global random streams of a process, as training uses them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kakurenbo_lightning.core.random import rng_state, set_rng_state


class RandomStreams:
    """Keeps validation out of the random streams that training draws from, and restores saved streams when the resumed epoch is
    ready.
    """

    def __init__(self) -> None:
        self._set_aside: dict[str, Any] | None = None
        self._saved: dict[str, Any] | None = None
        self._of_step: dict[str, Any] | None = None

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Context of a validation, after which the streams are as before, so that a resumed session that skips a pending validation
        draws the same numbers.
        """
        self._set_aside = rng_state()
        try:
            yield
        finally:
            set_rng_state(self._set_aside)
            self._set_aside = None

    def begin_step(self) -> None:
        """Remember the streams before a batch is loaded for the next step."""
        self._of_step = rng_state()

    def of_training(self, in_step: bool = False) -> dict[str, Any]:
        """The streams to save, with which training continues. ``in_step``: the current step is repeated after resuming."""
        return self._set_aside or self._saved or (self._of_step if in_step else None) or rng_state()

    def restore_later(self, state: dict[str, Any] | None) -> None:
        """Let :meth:`restore` put ``state`` back; ``None`` cancels that."""
        self._saved = state

    def restore(self) -> None:
        """Restore the waiting state, once. It waits because planning and scoring passes of the resumed epoch still draw from the
        current streams.
        """
        if self._saved is not None:
            set_rng_state(self._saved)
            self._saved = None
