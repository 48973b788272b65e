"""Errors of loader workers that die: torch raises them in its handler of SIGCHLD, wherever the main thread happens to be.

``on_exception`` does not see them all: the death of a worker may be noticed while Lightning already handles another error, such as the
broken connection to that worker, and the error that comes last is the one that the user gets.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from weakref import WeakMethod


@dataclass(frozen=True)
class _Handler:
    """Calls ``inner``, and ``explain`` with the error that it raises; then it leaves its place to ``inner``.

    Lightning puts all signal handlers back at the end of a fit, but not when it meets another error while it handles one.
    """

    inner: Callable[[int, FrameType | None], object]
    explain: WeakMethod[Callable[[BaseException], None]]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.inner(number, frame)
        except BaseException as error:
            explain = self.explain()
            if explain is not None:
                explain(error)
            if signal.getsignal(number) is self:
                signal.signal(number, self.inner)
            raise


def explain_worker_errors(explain: Callable[[BaseException], None]) -> None:
    """Let the method ``explain`` see the next error of a worker as it is raised; its object is not kept alive.

    Call it when workers have been started, since torch sets its handler with the first one of the process. Only the main thread may set
    handlers, and torch needs it, too: in another thread nothing is done.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    inner = handler.inner if isinstance(handler, _Handler) else handler
    if callable(inner):
        signal.signal(signal.SIGCHLD, _Handler(inner, WeakMethod(explain)))
