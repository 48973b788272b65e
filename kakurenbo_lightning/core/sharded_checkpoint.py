"""Is a sharded checkpoint, a folder that torch.distributed.checkpoint wrote for Lightning, what was written?"""

from __future__ import annotations

import io
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from kakurenbo_lightning.core.checkpoint_file import FIX, UNREADABLE, check_whole
from kakurenbo_lightning.errors import DamagedCheckpointError

META, LIST, SHARDS = (
    "meta.pt",
    ".metadata",
    ".distcp",
)  # what Lightning saves beside the weights, the list of files, and their ending
_END, _LARGE = b"PK\x05\x06", b"PK\x06\x07"  # of a zip file: its last record, and one before it where it is over 4 GB
_END_SIZE, _LARGE_SIZE = 22, 20


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a folder that Lightning's ``ModelParallelStrategy`` or ``FSDPStrategy`` saved."""
    return (path / META).is_file()


def parts_of(folder: Path) -> list[Path]:
    """The files of a sharded checkpoint that are to be there. Its list is read without running what a pickle may hold.

    Raises:
        DamagedCheckpointError: the list cannot be read.
    """
    try:
        words = [argument for _, argument, _ in pickletools.genops((folder / LIST).read_bytes()) if isinstance(argument, str)]
    except (OSError, ValueError, struct.error) as error:
        raise DamagedCheckpointError(f"checkpoint {folder} is truncated or damaged ({LIST}: {error}); {FIX}") from error
    return [folder / META, *(folder / name for name in sorted({Path(word).name for word in words if word.endswith(SHARDS)}))]


def check_part(part: Path) -> None:
    """Compare a file of a sharded checkpoint with the checksums in it; one of shards is a row of files of ``torch.save``.

    Raises:
        DamagedCheckpointError: naming the file, what is wrong and what to do.
    """
    if part.suffix != SHARDS:
        check_whole(part)
        return
    damaged = None
    try:
        with part.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for start, end in _archives(content):
                with zipfile.ZipFile(io.BufferedReader(_Slice(content, start, end))) as archive:
                    damaged = damaged or archive.testzip()
    except UNREADABLE as error:
        raise DamagedCheckpointError(f"checkpoint {part} is truncated or damaged ({error}); {FIX}") from error
    if damaged is not None:
        raise DamagedCheckpointError(f"checkpoint {part} is damaged: {damaged} does not match its checksum; {FIX}")


def check_sharded(folder: Path) -> None:
    """:func:`check_part` of each file of a sharded checkpoint."""
    for part in parts_of(folder):
        check_part(part)


def _archives(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield where each zip file begins and ends: ``content`` is several of them, one after the other."""
    start = 0
    while start < len(content):
        place = content.find(_END, start)
        while not _is_end(content, start, place):
            place = content.find(_END, place + 1)
        end = place + _END_SIZE + int.from_bytes(content[place + _END_SIZE - 2 : place + _END_SIZE], "little")
        yield start, end
        start = end


def _is_end(content: mmap.mmap, start: int, place: int) -> bool:
    """Whether the zip file that begins at ``start`` ends with the record at ``place``, whose mark a tensor may hold, too."""
    if place < 0:
        raise zipfile.BadZipFile(f"what begins at byte {start} has no end")
    size, offset = struct.unpack("<II", content[place + 12 : place + 20])
    return start + offset + size == place or content[place - _LARGE_SIZE : place - _LARGE_SIZE + 4] == _LARGE


class _Slice(io.RawIOBase):
    """A part of ``content``, readable as a file of its own."""

    def __init__(self, content: mmap.mmap, start: int, end: int) -> None:
        self._content, self._start, self._size, self._place = content, start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, counted from the beginning, from here, or from the end."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill ``buffer`` as far as there are bytes left."""
        first = self._start + self._place
        found = self._content[first : min(first + len(buffer), self._start + self._size)]
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)
