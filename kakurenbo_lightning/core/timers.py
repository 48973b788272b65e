"""Where the seconds of an epoch go: :class:`PhaseTimer` for work on a device, :class:`Stopwatch` for wall time."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from kakurenbo_lightning.core.durations import moment


class PhaseTimer:
    """Seconds of named phases, on the CPU by the clock, on a GPU by events on its stream: nothing waits for the device before
    :meth:`take`.

    Args:
        device: the device that does the work.
        enabled: ``False`` measures nothing and costs nothing.
    """

    def __init__(self, device: torch.device, enabled: bool = True) -> None:
        self._enabled = enabled
        self._cuda = device.type == "cuda"
        self._begun: dict[str, Any] = {}  # phase -> seconds of the clock, or a torch.cuda.Event
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self, phase: str) -> None:
        """Begin a phase; one that had begun begins again and loses its first part."""
        if self._enabled:
            self._begun[phase] = moment(self._cuda)

    def stop(self, phase: str) -> None:
        """End a phase; nothing happens when it had not begun."""
        begun = self._begun.pop(phase, None)
        if begun is None:
            return
        if self._cuda:
            self._events.append((phase, begun, moment(self._cuda)))
        else:
            self._seconds[phase] += moment(self._cuda) - begun

    def drop(self, phase: str) -> None:
        """Forget a phase that has begun, as if :meth:`start` had not been called."""
        self._begun.pop(phase, None)

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Time what runs inside a ``with`` block as one phase."""
        self.start(phase)
        try:
            yield
        finally:
            self.stop(phase)

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last time, without those that have not ended; waits for the device."""
        if self._events:
            torch.cuda.synchronize()
            for phase, begun, ended in self._events:
                self._seconds[phase] += begun.elapsed_time(ended) / 1000
        seconds = dict(self._seconds)
        self._events, self._seconds = [], defaultdict(float)
        self._begun.clear()
        return seconds


class Stopwatch:
    """Seconds of wall time that can be paused."""

    def __init__(self, running: bool = False) -> None:
        self._elapsed = 0.0
        self._since: float | None = None
        if running:
            self.start()

    def start(self) -> None:
        """Begin or go on; a running stopwatch is left alone."""
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop and keep what has elapsed."""
        if self._since is not None:
            self._elapsed += time.perf_counter() - self._since
            self._since = None

    def take(self) -> float:
        """Pause, return what has elapsed and begin again at 0."""
        self.pause()
        elapsed, self._elapsed = self._elapsed, 0.0
        return elapsed
