"""Writes files in a thread of its own, so that training never waits for a disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn


class BackgroundWriter:
    """One thread that writes into a folder; what cannot be written (a full disk) is a warning, and training goes on.

    Args:
        folder: where to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[Future] = []

    def start(self) -> None:
        """Make the thread; without it, nothing is written."""
        import pyarrow.parquet  # noqa: F401  now, because in the thread it would compete with the first steps

        self._thread = ThreadPoolExecutor(1, "run recorder")

    def submit(self, write: Callable[..., None], *arguments: Any) -> None:
        """Let the thread call ``write(folder, *arguments)``."""
        if self._thread is not None:
            self._pending = [one for one in self._pending if not one.done()]
            self._pending.append(self._thread.submit(self._try, write, *arguments))

    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(self._folder, *arguments)
        except Exception as error:  # training is worth more than its record
            rank_zero_warn(
                f"RunRecorder: {getattr(error, 'filename', None) or self._folder} is not written "
                f"({getattr(error, 'strerror', None) or error}), training goes on; make room or set another folder. What was "
                "there is whole"
            )

    def flush(self) -> None:
        """Wait until everything is written."""
        for one in self._pending:
            one.result()
        self._pending = []

    def stop(self) -> None:
        """Write what was submitted, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
