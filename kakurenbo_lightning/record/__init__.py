"""Files that say what a selection did: ``from kakurenbo_lightning.record import RunRecorder``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kakurenbo_lightning.record.recorder import RunRecorder

__all__ = ["RunRecorder"]


def __getattr__(name: str) -> Any:
    """Import Lightning only for the recorder: a reader of the files needs the schema alone."""
    if name == "RunRecorder":
        from kakurenbo_lightning.record.recorder import RunRecorder

        return RunRecorder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
