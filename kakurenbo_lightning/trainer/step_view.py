"""The step under way, as a checkpoint that is saved in it must hold it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from kakurenbo_lightning.core.durations import StepTimes
from kakurenbo_lightning.core.flavour import is_instance
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.lr_schedule import stepping
from kakurenbo_lightning.trainer.module_state import BufferCopies

BACKWARD, UPDATE = "backward", "update"  # what saved gradients have been through, of the batch that is trained again


class StepView:
    """Lets a checkpoint saved within a step resume exactly that step.

    Until the optimizer has stepped, the step is made again from its beginning: the checkpoint gets the buffers that the module had then
    (the session puts in the random streams, the engine what it knew). Once it has stepped, the step is done and counted, although Lightning
    has not counted it yet. Between accumulated batches the gradients are saved too. A batch whose own gradient is in them already is
    trained again for what it logs and observes, and they take the place of what that gives.

    Args:
        adapter: the Trainer's adapter.
        times: are given how long steps take.
    """

    def __init__(self, adapter: TrainerAdapter, times: StepTimes) -> None:
        self._adapter, self._trainer, self._times = adapter, adapter.trainer, times
        self._handles: list[Any] = []
        self._buffers: BufferCopies | None = None
        self._updated = self._scaled_back = False
        self._marks: list[Any] | None = None  # of the gradients before this batch's backward pass, between accumulated batches
        self._saved: dict[str, Tensor] = {}  # gradients that wait for the batch whose own are in them
        self._saved_after = ""

    # --- the step

    def attach(self, optimizers: Iterable[Optimizer]) -> None:
        """Follow these optimizers from the start of training on."""
        self.release()
        self._handles = [stepping(optimizer).register_step_post_hook(self._update) for optimizer in optimizers]
        self._buffers = BufferCopies(self._trainer.lightning_module)
        self._times.use(self._trainer.strategy.root_device)
        self._times.drop()

    def release(self) -> None:
        """Let go of the optimizers and of the copies of buffers."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._buffers = [], None

    def begin(self) -> None:
        """The batch of the next step will be loaded."""
        self._updated, self._scaled_back, self._marks = False, False, None
        if self._buffers is not None:
            self._buffers.update()
        self._times.wait()

    def loaded(self) -> None:
        """Note that the batch of the step is there."""
        self._times.begin()

    def end(self, kind: str) -> None:
        """The step is done; ``kind`` says what it did."""
        if self._adapter.passive:  # Lightning's learning-rate finder trains
            self._times.drop()
        else:
            self._times.end(f"{kind}, update" if self._updated else kind)

    def before_backward(self) -> None:
        """The forward pass is over. Mark the gradients of the batches before, to notice when this one's are added."""
        self._times.end_forward()
        if self._trainer.fit_loop.batch_idx % self._trainer.accumulate_grad_batches:
            self._marks = self._gradient_marks()

    def after_backward(self) -> None:
        """Put saved gradients in the place of those of a batch that is trained again."""
        self._put_back(BACKWARD)

    def before_update(self) -> None:
        """Note that mixed precision has scaled the gradients back, so the update comes next."""
        self._scaled_back = True
        self._put_back(UPDATE)

    def _update(self, *_: Any) -> None:
        self._updated = True

    # --- a checkpoint

    @property
    def in_batch(self) -> bool:
        """Whether a batch is there that is not counted as done."""
        return self._adapter.in_batch

    @property
    def updated(self) -> bool:
        """Whether Lightning has not counted a step that the optimizer has made; with manual optimization it cannot be known."""
        return self._updated and self._adapter.in_step and self._trainer.lightning_module.automatic_optimization

    @property
    def begins_again(self) -> bool:
        """Whether a session that is resumed from a checkpoint saved now makes the step again that is under way."""
        return self._adapter.in_step and not self.updated

    def done_batches(self) -> int:
        """Batches of the epoch that a session resumed from a checkpoint saved now does not train again."""
        return self._adapter.done_batches() + self.updated

    def rewind(self, checkpoint: dict[str, Any]) -> None:
        """Put what the step began with into a checkpoint, or count the step."""
        if self.updated:
            self._adapter.count_step(checkpoint)
        elif self.begins_again and self._buffers is not None:
            self._buffers.put_into(checkpoint.get("state_dict", {}))

    # --- gradients of accumulated batches

    def gradients(self) -> dict[str, Any]:
        """What was accumulated for a step that further batches belong to; empty where nothing was, or where parameters are
        sharded.

        ``of`` has it by parameter, on the CPU; ``through`` says what it has been through of the batch that is trained again, ``""`` for
        nothing.
        """
        trainer, done = self._trainer, self.done_batches()
        plain = is_instance(trainer.strategy, SingleDeviceStrategy) or is_instance(trainer.strategy, DDPStrategy)
        accumulates = done % trainer.accumulate_grad_batches and done < trainer.num_training_batches
        if not plain or not accumulates or not trainer.lightning_module.automatic_optimization:
            return {}
        through = ""
        if self.begins_again and self._marks is not None and self._marks != self._gradient_marks():
            through = UPDATE if self._scaled_back else BACKWARD
        named = trainer.lightning_module.named_parameters()
        return {"through": through, "of": {name: p.grad.to("cpu", copy=True) for name, p in named if p.grad is not None}}

    def restore(self, gradients: dict[str, Any]) -> None:
        """Put back :meth:`gradients`: now, or when the batch that is trained again is as far."""
        self._saved, self._saved_after = dict(gradients.get("of", {})), gradients.get("through", "")
        self._put_back("")

    def _put_back(self, through: str) -> None:
        if not self._saved or through != self._saved_after:
            return
        saved, self._saved = self._saved, {}
        for name, parameter in self._trainer.lightning_module.named_parameters():
            if name not in saved:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = saved[name].to(parameter.device)
            else:
                parameter.grad.copy_(saved[name])

    def _gradient_marks(self) -> list[Any]:
        gradients = (parameter.grad for parameter in self._trainer.lightning_module.parameters())
        return [None if gradient is None else (id(gradient), gradient._version) for gradient in gradients]
