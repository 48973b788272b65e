"""Errors of loader workers that die: torch raises them in its handler of SIGCHLD, wherever the main thread happens to be.

``on_exception`` does not see them all: the death of a worker may be noticed while Lightning already handles another error, such as the
broken connection to that worker, and the error that comes last is the one that the user gets. Nor is every place a good one: where errors
are caught because they say something of the user's step, or of another rank, that of a worker says nothing of it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from weakref import WeakMethod


class _Handler:
    """Calls ``inner``, and ``explain`` with the error that it raises; then it leaves its place to ``inner``.

    Lightning puts all signal handlers back at the end of a fit, but not when it meets another error while it handles one.
    """

    def __init__(
        self, inner: Callable[[int, FrameType | None], object], explain: WeakMethod[Callable[[BaseException], None]]
    ) -> None:
        self.inner, self._explain = inner, explain
        self._depth = 0  # of blocks that errors wait in
        self._late: BaseException | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.inner(number, frame)
        except BaseException as error:
            explain = self._explain()
            if explain is not None:
                explain(error)
            if signal.getsignal(number) is self:
                signal.signal(number, self.inner)
            if not self._depth:
                raise
            self._late = error

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._late is not None and not self._depth:
            error, self._late = self._late, None
            raise error


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


@contextlib.contextmanager
def worker_errors_wait() -> Iterator[None]:
    """The error of a worker that dies meanwhile is raised when what is inside is done, and not taken for an error of that."""
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    with handler.waiting() if isinstance(handler, _Handler) else contextlib.nullcontext():
        yield
