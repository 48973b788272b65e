"""Refusals of checkpoints from which a training with this selection cannot go on."""

from __future__ import annotations

from kakurenbo_lightning.errors import ConflictError, MismatchError


def check_public_resume(epoch: int, ended_unvalidated: bool) -> None:
    """Raise ``ConflictError`` for a checkpoint from which ``wrap`` cannot go on: between an epoch's last batch and its validation."""
    if ended_unvalidated:
        raise ConflictError(
            f"the checkpoint was saved between the last batch of epoch {epoch} and its validation, where selection.wrap(...) "
            "cannot resume; use one saved before, at the validation's end or at the epoch's end, or leave out wrap"
        )


def check_public_foreign(public: bool, epoch: int, batches: int) -> None:
    """Raise ``MismatchError`` where ``wrap`` resumes after ``batches`` of an epoch that holds no selection; it cannot begin it again."""
    if public and batches:
        raise MismatchError(
            f"the checkpoint was saved after {batches} batches of epoch {epoch} and holds no selection that fits this run, so it is not "
            "known which samples are left of this epoch, and selection.wrap(...) cannot begin it again. Resume from one saved at an "
            "epoch's end, or leave out wrap and pass SampleSelection(..., on_mismatch='reset')"
        )


def check_foreign_resume(epoch: int, batches: int, on_mismatch: str) -> None:
    """Refuse a checkpoint of a training without this selection that was saved within an epoch: nobody knows the samples left of it.

    Raises:
        MismatchError: unless ``on_mismatch`` is ``"reset"``, which begins the epoch again.
    """
    if on_mismatch == "error":
        raise MismatchError(
            f"the checkpoint was saved after {batches} batches of epoch {epoch} and holds no selection, so it is not known which samples "
            "are left of this epoch. Resume from one saved at an epoch's end, or pass SampleSelection(..., on_mismatch='reset') to begin "
            f"epoch {epoch} again from where the checkpoint's weights are"
        )
