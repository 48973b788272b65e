"""Progress bars that do not fill a log."""

from __future__ import annotations

import sys
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
        """As of any stream."""
        self._stream.flush()


def bar_settings(**settings: Any) -> dict[str, Any]:
    """Settings of a bar of tqdm; where the output is neither a terminal nor a notebook, as in a log, it writes a line a minute at most.

    Args:
        settings: of the bar on a terminal; ``disable=True`` shows nothing anywhere.
    """
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return settings
    rare = {"mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY, "leave": False}
    return {**settings, **rare, "file": Lines(sys.stderr)}
