"""Is a checkpoint file what was written?"""

from __future__ import annotations

import zipfile
from pathlib import Path

from kakurenbo_lightning.errors import DamagedCheckpointError

FIX = "resume from an earlier checkpoint"


def check_whole(path: Path) -> None:
    """Compare every record of a file of ``torch.save`` with its checksum.

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
