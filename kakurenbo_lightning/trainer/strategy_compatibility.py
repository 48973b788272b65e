"""Every refusal of a strategy: docs/strategies.md has the table, which a test compares with this."""

from __future__ import annotations

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from kakurenbo_lightning.core.distributed import Ranks
from kakurenbo_lightning.core.flavour import AnyTrainer, is_instance
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.trainer.sharded import is_sharded


def wraps_parameters(strategy: object) -> bool:
    """Whether the module's parameters are whole only inside the wrapper that ``strategy`` puts around it: FSDP1 and DeepSpeed."""
    return is_instance(strategy, FSDPStrategy) or is_instance(strategy, DeepSpeedStrategy)


def check_strategy(trainer: AnyTrainer, method: Method, given: object = None) -> None:
    """Refuse a strategy that ``method`` cannot work with.

    Args:
        trainer: the Trainer.
        method: the selection method.
        given: the callback's ``sample_outputs``; ``None`` for none.

    Raises:
        ConflictError: naming it, the reason and the fix.
    """
    if reason := _refused(trainer, method, given):
        raise ConflictError(f"Trainer(strategy={type(trainer.strategy).__name__}) is not supported {reason}")


def check_mesh(trainer: AnyTrainer) -> None:
    """Raise ``ConflictError`` on every process where meshes differ, before the module is sharded over them and waits. Collective."""
    if is_instance(trainer.strategy, ModelParallelStrategy):
        Ranks.of(trainer.distributed_sampler_kwargs).check_mesh("a process, before training,")


def _refused(trainer: AnyTrainer, method: Method, given: object) -> str:
    """Why not, and what instead; "" when it is supported."""
    strategy, name, wraps = trainer.strategy, type(trainer.strategy).__name__, wraps_parameters(trainer.strategy)
    deepspeed, other = is_instance(strategy, DeepSpeedStrategy), "use ModelParallelStrategy (FSDP2) or strategy='ddp'"
    if "XLA" in name:
        return "with sample selection: the processes of XLA devices are no ranks of torch.distributed; use strategy='ddp' or one device"
    if "Pipeline" in name:
        return f"with sample selection: a pipeline's processes hold parts of one step, and no rank sees its losses whole; {other}"
    if deepspeed and (strategy.config or {}).get("zero_optimization", {}).get("stage", 0) > 2:
        return f"with ZeRO stage 3: it gathers parameters by hooks of a step that ends in a backward pass; use stage 1 or 2, or {other}"
    if deepspeed and method.family == "backprop":
        return f"with {method.name}: DeepSpeed counts every batch as part of a step, and this method skips some; {other}"
    if wraps and method.scoring_epochs(trainer.max_epochs):
        return f"with {method.name}: it starts the training again, and parameters inside a wrapper cannot be put back; {other}"
    if wraps and given is not None:
        return "with SampleSelection(sample_outputs=...): it runs outside of the wrapper; make it a method of the module"
    if (wraps or is_instance(strategy, ModelParallelStrategy)) and getattr(method, "inference_mode", False):
        return (
            f"with inference_mode=True of {method.name}: parameters that are first put together under torch.inference_mode cannot be "
            "trained; leave it out, scoring then runs under torch.no_grad"
        )
    return ""


def check_sharded_restart(trainer: AnyTrainer) -> None:
    """Raise ``ConflictError`` for an optimizer of sharded parameters that a static method's restart cannot put back."""
    for optimizer in trainer.optimizers:
        if any(is_sharded(value) for state in optimizer.state.values() for value in state.values()):
            raise ConflictError(
                f"{type(optimizer).__name__} has a state before its first step, of parameters that are sharded: the method scores some "
                "epochs and starts the training again, and cannot put that back; use SGD or Adam, or a method that does not start "
                "again, for example forget_online"
            )
