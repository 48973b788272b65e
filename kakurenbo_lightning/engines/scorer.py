"""A network that scores in the module's place, and is trained beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.engines.reference import explained
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.signals.returned import loss_of
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.compatibility import has_no_step
from kakurenbo_lightning.trainer.forward_pass import call_training_step, trained_beside
from kakurenbo_lightning.trainer.restart import copied

CLOCKS = ("batches", "epochs", "due")


class Scorer:
    """Trains the user's scorer by the mean gradient of all ranks, in full precision, with random numbers of its own.

    A step of its schedules of interval ``"step"`` is a batch as the Trainer counts them, whether it is trained on it or not. In epochs of
    other lengths than they were built for ``EpochSchedules`` of the session takes care that they end where they should.

    Args:
        adapter: the Trainer's adapter.
        module: has a ``training_step``, and ``configure_optimizers`` that returns one optimizer, with schedules or without, or ``None``:
            it is then never trained.
        every: it is trained on what is chosen of every so-many-th loaded batch; ``None``: on all that the Trainer's module trains.

    Attributes:
        module: the scorer.
        every: the argument of that name.
        schedules: Lightning's configs of its own.

    Raises:
        ConflictError: it cannot be trained so; named.
    """

    def __init__(self, adapter: TrainerAdapter, module: pl.LightningModule, every: int | None) -> None:
        self._adapter, self.module, self.every = adapter, module, every
        trainer = adapter.trainer
        module.to(trainer.strategy.root_device)
        trainer.precision_plugin.convert_module(module)
        optimizers, self.schedules = adapter.configured(module)
        self._optimizer: torch.optim.Optimizer | None = optimizers[0] if optimizers else None
        self._batches = self._epochs = 0  # so far
        self._due = 0  # from which of them on the next one is trained on
        self._check(len(optimizers))
        self._from_rank_zero([*module.parameters(), *module.buffers()])

    @property
    def _name(self) -> str:
        return f"scorer={type(self.module).__name__}"

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """Let an error inside, where the scorer's step is run, say that the step is not the module's."""
        return explained(self._name, "which scores in the module's place")

    def _check(self, optimizers: int) -> None:
        name = self._name
        if optimizers > 1:
            raise ConflictError(
                f"{name}: configure_optimizers returned {optimizers} optimizers; it must return one, or None for a scorer "
                "that is never trained"
            )
        if any(config.reduce_on_plateau for config in self.schedules):
            raise ConflictError(
                f"{name}: its ReduceLROnPlateau has nothing to go by, a scorer is not validated; use another schedule"
            )
        if self._optimizer is None:
            if self.every is not None:
                rank_zero_warn(
                    f"train_scorer_every={self.every} changes nothing: {name} has no optimizer, so it is never trained"
                )
            return
        if has_no_step(self.module):  # it scores by its sample_outputs
            raise ConflictError(
                f"{name} has an optimizer, and no training_step to be trained by; write one that returns its loss, or let "
                "configure_optimizers return None for a scorer that is never trained"
            )
        own = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        if any(id(parameter) in own for parameter in self._adapter.trainer.lightning_module.parameters()):
            raise ConflictError(
                f"{name} shares parameters with the module that is trained, so two optimizers would step them; give the scorer a "
                "network of its own, and do not assign it to an attribute of the module"
            )
        if (
            self.every
            and not self._adapter.ranks.is_alone
            and any(isinstance(part, nn.SyncBatchNorm) for part in self.module.modules())
        ):
            raise ConflictError(
                f"{name} has SyncBatchNorm, whose ranks would wait for one of which nothing is chosen; use BatchNorm in the scorer"
            )

    @property
    def is_due(self) -> bool:
        """Whether it is to be trained on what is chosen now, or trained as it is. The same on every rank."""
        return self._optimizer is not None and self._batches >= self._due

    def learn(self, batch: Any, number: int, scale: float, seed: int) -> None:
        """Train the scorer by one step; collective.

        Args:
            batch: of this rank.
            number: of the batch, for ``training_step``.
            scale: factor on this rank's mean loss; 0: this rank has nothing, but takes part.
            seed: of its random numbers.
        """
        if not self.is_due or self._optimizer is None:
            return
        if self.every is not None:
            self._due = (self._batches // self.every + 1) * self.every
        self._optimizer.zero_grad()
        if scale:
            with self.explained(), trained_beside(self._adapter, self.module, seed):
                loss = loss_of(call_training_step(self._adapter.trainer, self.module, batch, number))
            if isinstance(loss, Tensor):
                (loss * scale).backward()
        if not self._adapter.ranks.is_alone:
            for parameter in self.module.parameters():
                if parameter.requires_grad:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= dist.get_world_size()
        self._optimizer.step()
        self._from_rank_zero(self.module.buffers())  # each rank's BatchNorm has seen samples of its own

    def _from_rank_zero(self, tensors: Iterable[Tensor]) -> None:
        if not self._adapter.ranks.is_alone:
            for tensor in tensors:
                dist.broadcast(tensor.data.view(torch.uint8) if tensor.dtype is torch.bool else tensor.data, src=0)

    def end_batch(self, number: int, is_extra: bool) -> None:
        """Batch ``number`` of the epoch is done; ``is_extra``: the one after its last, which the Trainer counts too."""
        self._batches += not is_extra
        self._move("step", number + 1)

    def end_epoch(self) -> None:
        """Count the epoch, and move the scorer's schedules of interval ``"epoch"``."""
        self._epochs += 1
        self._move("epoch", self._epochs)

    def _move(self, interval: str, count: int) -> None:
        for config in self.schedules:
            if config.interval == interval and count % config.frequency == 0:
                self.module.lr_scheduler_step(config.scheduler, None)

    def state_dict(self) -> dict[str, Any]:
        """The state of the scorer, its optimizer and schedules, and how many batches and epochs it has behind it."""
        state = {
            "module": dict(self.module.state_dict()),
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "schedules": [_plain(config.scheduler.state_dict()) for config in self.schedules],
            **{name: getattr(self, f"_{name}") for name in CLOCKS},
        }
        return copied(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over :meth:`state_dict`, or that of an older release, which knew no schedules."""
        self.module.load_state_dict(state["module"])
        if self._optimizer is not None and state["optimizer"] is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        for config, saved in zip(self.schedules, state.get("schedules", ()), strict=False):
            config.scheduler.load_state_dict(saved)
        for name in CLOCKS:
            setattr(self, f"_{name}", state.get(name, 0))


def _plain(state: Any) -> Any:
    """A copy with dicts for classes derived from them, such as MultiStepLR's Counter, which a state cannot hold."""
    if isinstance(state, Mapping):
        return {key: _plain(part) for key, part in state.items()}
    return [_plain(part) for part in state] if type(state) is list else state
