"""Checkpoints that are whole or not there."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from kakurenbo_lightning.core.atomic import replacing
from kakurenbo_lightning.core.checkpoint_file import FIX, check_whole, is_cut_off, is_old_format
from kakurenbo_lightning.core.distributed import gather, process, world_size
from kakurenbo_lightning.core.flavour import join
from kakurenbo_lightning.core.sharded_checkpoint import begin, check_part, parts_of
from kakurenbo_lightning.errors import DamagedCheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own checkpoint files, written to a temporary name first and checked when they are read.

    A process killed while it writes, or a full disk, leaves the file of that name as it was. A truncated file, or one with a changed
    byte, is refused with a :class:`DamagedCheckpointError`. Remote paths (``s3://...``) are left to Lightning.
    :class:`~kakurenbo_lightning.SampleSelection` puts it in place of the default plug-in; any other plug-in is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        join(AtomicCheckpointIO)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; the file appears under its name when all of it is on the disk.

        Raises:
            OSError: it could not be written; what was at ``path`` is untouched.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            with replacing(path) as partial, partial.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoint not written: {error.strerror or error}; free some space or set another dirpath. Checkpoints "
                "already there are whole",
                str(path),
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, after comparing each of its records with its checksum.

        Raises:
            DamagedCheckpointError: the file is not what was written.
        """
        if "://" in str(path) or not Path(path).exists():
            return super().load_checkpoint(path, *args, **kwargs)
        check_whole(Path(path))
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except _UNREADABLE as error:
            # not the file's fault: an object that weights_only refuses, or a device that is not there
            if not isinstance(error, UnicodeError) and not _is_of_file(str(error), Path(path)):
                raise
            raise DamagedCheckpointError(f"checkpoint {path} is damaged ({_first_line(error)}); {FIX}") from error


def guard_folders(strategy: Any) -> None:
    """Let ``strategy``, which saves and reads checkpoints itself and not through a plug-in, refuse a damaged one on every process.

    The processes share the files of a sharded checkpoint: each is read by one of them. One that was being saved when its training was
    killed is known by its ``meta.pt``. The strategy stays so.
    """

    def save_checkpoint(checkpoint: dict[str, Any], filepath: str | Path, *args: Any, **kwargs: Any) -> None:
        if process() == 0 and "://" not in str(filepath):
            begin(Path(filepath))  # no process writes before all have told this one what they have to write
        type(strategy).save_checkpoint(strategy, checkpoint, filepath, *args, **kwargs)

    def load_checkpoint(path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if "://" not in str(path):
            _check_together(Path(strategy.broadcast(path)))
        return type(strategy).load_checkpoint(strategy, path, *args, **kwargs)

    strategy.save_checkpoint, strategy.load_checkpoint = save_checkpoint, load_checkpoint


def _check_together(path: Path) -> None:
    """Raise ``DamagedCheckpointError`` on every process when a file of the checkpoint is damaged. Lightning names one that is not there."""
    error = None
    try:
        parts = parts_of(path) if path.is_dir() else {path: 0} if path.is_file() else {}
        for part, size in list(parts.items())[process() :: world_size()]:
            check_part(part, size)
    except DamagedCheckpointError as damaged:
        error = str(damaged)
    if found := next(filter(None, gather(error)), None):
        raise DamagedCheckpointError(found)


# what torch raises for a damaged file; of the old format the last ones too
_UNREADABLE = (RuntimeError, UnicodeError, pickle.UnpicklingError, EOFError, struct.error, IndexError)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_of_file(text: str, path: Path) -> bool:
    if not is_old_format(path):
        return "PytorchStreamReader" in text or "inline_container" in text
    return is_cut_off(path) if "GLOBAL" in text else "deserialize object on" not in text
