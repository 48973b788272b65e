"""Is a sharded checkpoint, a folder that torch.distributed.checkpoint wrote for Lightning, what was written?"""

from __future__ import annotations

import contextlib
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
    """Whether ``path`` is a folder that Lightning's ``ModelParallelStrategy`` or ``FSDPStrategy`` saved, or began to save."""
    return (path / META).is_file() or (path / LIST).is_file() or next(path.glob(f"*{SHARDS}"), None) is not None


def begin(folder: Path) -> None:
    """Let a sharded checkpoint that is to be saved over count as unfinished from now on.

    Its files are written one after the other, each in the place of an old one, so a training that is killed meanwhile leaves new weights
    beside old ones, each file whole. ``meta.pt`` is written last: until then it is empty.
    """
    if (folder / META).is_file():
        with contextlib.suppress(OSError):  # writing the rest of the folder fails then, with an error on every process
            (folder / META).write_bytes(b"")


def parts_of(folder: Path) -> dict[Path, int]:
    """The files of a sharded checkpoint that are to be there, each with the bytes it has at least by the list of what is in them.

    The list is read without running what a pickle may hold.

    Raises:
        DamagedCheckpointError: the checkpoint is not finished, or its list cannot be read.
    """
    meta = folder / META
    if not meta.is_file() or not meta.stat().st_size:
        raise DamagedCheckpointError(
            f"checkpoint {folder} is not finished: {META}, which is written last, is {'empty' if meta.is_file() else 'not there'}. Perhaps "
            f"its training was killed while it saved; {FIX}"
        )
    try:
        words = list(_words((folder / LIST).read_bytes()))
    except (OSError, ValueError, LookupError, struct.error) as error:
        raise DamagedCheckpointError(f"checkpoint {folder} is truncated or damaged ({LIST}: {error}); {FIX}") from error
    sizes = {word: 0 for word in words if isinstance(word, str) and word.endswith(SHARDS)}
    for place, word in enumerate(words):
        if word in sizes:
            match words[place + 1 : place + 5]:  # of each tensor in the file
                case ["offset", int(offset), "length", int(length)]:
                    sizes[word] = max(sizes[word], offset + length)
    return {meta: 1, **{folder / Path(name).name: size for name, size in sorted(sizes.items())}}


def _words(pickled: bytes) -> Iterator[str | int | None]:
    """Yield the strings and integers of a pickle in their order, also where it repeats one; ``None`` for what is neither."""
    memo: list[str | int | None] = []
    word: str | int | None = None
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "MEMOIZE":
            memo.append(word)
        elif operation.name not in ("FRAME", "PROTO"):  # not of what is pickled
            word = argument if isinstance(argument, (str, int)) else None
            if operation.name in ("BINGET", "LONG_BINGET") and isinstance(word, int):
                word = memo[word]
            yield word


def check_part(part: Path, size: int = 0) -> None:
    """Compare a file of a sharded checkpoint with the checksums in it; one of shards is a row of files of ``torch.save``.

    Args:
        part: the file.
        size: bytes that it has at least: one that is cut off between two tensors has the checksums of what is left.

    Raises:
        DamagedCheckpointError: naming the file, what is wrong and what to do.
    """
    if part.suffix != SHARDS:
        check_whole(part)
        return
    damaged = None
    try:
        if part.stat().st_size < size:
            raise EOFError(f"it has {part.stat().st_size} of {size} bytes")
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
    for part, size in parts_of(folder).items():
        check_part(part, size)


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
