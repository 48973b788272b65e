"""Files that are whole or not there."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kakurenbo_lightning.errors import DamagedCheckpointError

FIX = "resume from an earlier checkpoint"


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


def check_whole(path: Path) -> None:
    """Compare every record of a checkpoint file with its checksum.

    Raises:
        DamagedCheckpointError: naming the file, what is wrong and what to do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise DamagedCheckpointError(f"checkpoint {path} is truncated or damaged ({error}); {FIX}") from error
    if damaged is not None:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: {damaged} does not match its checksum; {FIX}")
