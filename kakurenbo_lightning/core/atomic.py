"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a kill leaves there stays until the file of its name is written
    fcntl = None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; the file written there takes the name ``path`` when the block ends without an error.

    A process that is killed in the block leaves ``path`` as it was, and a hidden ``.NAME.partial`` that the next writer of a file of
    that suffix in the folder removes. The folder is made when it is missing. Two processes must not write one path at the same time.
    """
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(partial):
        _remove_left(path.parent, path.suffix)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _held(partial: Path) -> Iterator[None]:
    """Hold a lock on the file, which ends with the process: by it another writer knows that this one is alive."""
    for _ in range(0 if fcntl is None else 10):  # an end, for file systems that number a file differently each time
        with partial.open("ab") as file:
            _locked(file.fileno())
            if not _is_at(partial, file.fileno()):
                continue  # another writer took it for one that was left, before it was locked
            yield
            return
    yield  # as on Windows, which renames no file that is open


def _remove_left(folder: Path, suffix: str) -> None:
    """Remove the temporary files of writers that are dead."""
    if fcntl is None:
        return
    for partial in folder.glob(f".*{suffix}.partial"):
        with contextlib.suppress(OSError), partial.open("r+b") as file:
            if _locked(file.fileno()) and _is_at(partial, file.fileno()):
                partial.unlink()


def _locked(file: int) -> bool:
    """Whether this process now has the only lock on an open file; not where the file system knows no locks."""
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
