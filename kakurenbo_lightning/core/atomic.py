"""Files that are whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; the file written there takes the name ``path`` when the block ends without an error.

    A process that is killed in the block leaves ``path`` as it was, and a hidden ``.NAME.partial`` that the next writer overwrites.
    The folder is made when it is missing. Two processes must not write one path at the same time.
    """
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
