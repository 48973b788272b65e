"""Is a checkpoint file what was written?"""

from __future__ import annotations

import lzma
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path

from kakurenbo_lightning.errors import DamagedCheckpointError

FIX = "resume from an earlier checkpoint"
# of zipfile: a changed bit in the directory may say that a record is compressed, in any way, or encrypted
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)


OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before release 1.6, and does without its zip file


def is_old_format(path: Path) -> bool:
    """Whether ``path`` is a file of ``torch.save(..., _use_new_zipfile_serialization=False)``: it has no checksums."""
    with path.open("rb") as file:
        return file.read(len(OLD)) == OLD


def is_cut_off(path: Path) -> bool:
    """Whether a file of the old format ends within one of the pickles before its tensors; it may look as one of an unknown object then."""
    with path.open("rb") as file:
        try:
            for _ in range(5):  # its mark, its version, the system, the object, and the names of the tensors
                for _operation in pickletools.genops(file):
                    pass
        except (ValueError, struct.error):
            return True
    return False


def check_whole(path: Path) -> None:
    """Compare every record of a file of ``torch.save`` with its checksum; a file of the old format has none.

    Raises:
        DamagedCheckpointError: naming the file, what is wrong and what to do.
    """
    if path.is_dir():
        raise DamagedCheckpointError(
            f"checkpoint {path} is a folder; give the file of a checkpoint in it, or, when it is a sharded checkpoint, train with the "
            "strategy that saved it"
        )
    try:
        if is_old_format(path):
            return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            before = min((record.header_offset for record in archive.infolist()), default=0)
    except UNREADABLE as error:
        raise DamagedCheckpointError(f"checkpoint {path} is truncated or damaged ({error}); {FIX}") from error
    if damaged is not None:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: {damaged} does not match its checksum; {FIX}")
    if before:
        raise DamagedCheckpointError(f"checkpoint {path} has {before} bytes before its beginning, cut them off or {FIX}")
