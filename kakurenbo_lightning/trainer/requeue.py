"""SLURM's signal to save and requeue a job is answered between two steps."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from kakurenbo_lightning.trainer.adapter import TrainerAdapter


class Requeue:
    """Puts Lightning's answer to SLURM's signal, a checkpoint and ``scontrol requeue``, off to the end of the step that it arrives in.

    A handler may run between any two lines of Python, also while the optimizer has updated half of the parameters, and on every rank in
    another step. So the signal is noted, and answered when the batch is done and counted, by all ranks after the same one; a validation of
    one process answers before its next batch.

    Args:
        adapter: the Trainer's adapter.
    """

    def __init__(self, adapter: TrainerAdapter) -> None:
        self._adapter = adapter
        self._number: int | None = None  # of the signal
        self._handler: Callable[..., Any] | None = None  # Lightning's
        self._received = False
        self._group: Any = None  # of the ranks' processors
        self._answered_first = False  # another rank was notified before this one

    def hold(self) -> None:
        """Let SLURM's signal wait from now on, if Lightning answers one; collective."""
        self.release()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM}:
            handler = signal.getsignal(number)
            parts = getattr(handler, "signal_handlers", [])
            if callable(handler) and any(getattr(part, "__name__", "") == "_slurm_sigusr_handler_fn" for part in parts):
                self._number, self._handler = number, handler
                if not self._adapter.ranks.is_alone and self._group is None:
                    self._group = dist.new_group(backend="gloo")
                signal.signal(number, self._note)
                return

    def _note(self, *_: Any) -> None:
        self._received, self._answered_first = not self._answered_first, False

    def answer(self, alone: bool = False) -> None:
        """The Trainer is between two steps: answer a signal that waits; collective unless ``alone``, which ranks of several cannot be."""
        several = not self._adapter.ranks.is_alone
        if self._handler is None or (alone and several):
            return
        received = self._received
        if several:  # over gloo: to read what NCCL has reduced is to wait for the device, at every step
            ranks = torch.tensor(int(received))
            dist.all_reduce(ranks, dist.ReduceOp.MAX, group=self._group)
            received = bool(ranks)
        if received:
            self._answered_first, self._received = not self._received, False
            self._handler(self._number, None)

    def release(self) -> None:
        """Hand the signal back to Lightning's own handler."""
        if self._handler is not None and self._number is not None and signal.getsignal(self._number) == self._note:
            signal.signal(self._number, self._handler)
        self._handler = None
