"""The global random streams of a process, as training sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kakurenbo_lightning.core.random import rng_state, set_rng_state


class RandomStreams:
    """Keeps validation out of the streams that training draws from, and puts saved streams back when the resumed epoch is ready."""

    def __init__(self) -> None:
        self._set_aside: dict[str, Any] | None = None
        self._saved: dict[str, Any] | None = None
        self._of_step: dict[str, Any] | None = None

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Validation runs in here: it moves no random stream of training, so a resumed session that skips a pending one is the same."""
        self._set_aside = rng_state()
        try:
            yield
        finally:
            set_rng_state(self._set_aside)
            self._set_aside = None

    def begin_step(self) -> None:
        """A step begins, with the loading of its batch."""
        self._of_step = rng_state()

    def of_training(self, in_step: bool = False) -> dict[str, Any]:
        """The streams as training goes on with them; to be saved. ``in_step``: it goes on with the step that is under way, once more."""
        return self._set_aside or self._saved or (self._of_step if in_step else None) or rng_state()

    def restore_later(self, state: dict[str, Any] | None) -> None:
        """:meth:`restore` puts ``state`` back; ``None``: nothing."""
        self._saved = state

    def restore(self) -> None:
        """Put back what waits, once: planning and scoring passes of the resumed epoch draw from the streams before."""
        if self._saved is not None:
            set_rng_state(self._saved)
            self._saved = None
