"""Progress bars that do not fill a log."""

from __future__ import annotations

import contextlib
import sys
from contextlib import AbstractContextManager
from typing import Any, TextIO

EVERY = 60.0  # seconds, where the output is no terminal


class Lines:
    """A stream to which tqdm writes lines, in place of a line that it goes back in to write it again.

    Args:
        stream: where they go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write what is not empty as a line."""
        if text.strip():
            self._stream.write(f"{text.strip()}\n")

    def flush(self) -> None:
        """Flush the stream below, as tqdm asks for after each line."""
        self._stream.flush()


def bar_settings(**settings: Any) -> dict[str, Any]:
    """Settings of a bar of tqdm; where the output is neither a terminal nor a notebook, as in a log, it writes a line a minute at most.

    Args:
        settings: tqdm's settings of the bar on a terminal; ``disable=True`` shows nothing anywhere.
    """
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return settings
    rare = {"mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY, "leave": False}
    return {**settings, **rare, "file": Lines(sys.stderr)}


def set_aside() -> AbstractContextManager[None]:
    """Bars of tqdm on a terminal are taken away inside, so that what is written has lines of its own, and drawn again below it."""
    module = sys.modules.get("tqdm.std")
    if module is None or not sys.stderr.isatty():
        return contextlib.nullcontext()
    return module.tqdm.external_write_mode()
