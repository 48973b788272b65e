"""Scoring passes: forward passes without training, which leave no trace."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader
from torchmetrics import Metric

from kakurenbo_lightning.core.distributed import world_size
from kakurenbo_lightning.core.flavour import AnyTrainer
from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.random import isolated_rng, seed_everything
from kakurenbo_lightning.core.sampler import SelectionSampler
from kakurenbo_lightning.core.shard import scoring_shard
from kakurenbo_lightning.methods.base import RefreshMode
from kakurenbo_lightning.signals.outputs import SampleOutputs, Values
from kakurenbo_lightning.trainer.adapter import TrainerAdapter
from kakurenbo_lightning.trainer.compatibility import batch_hooks
from kakurenbo_lightning.trainer.loader import seed_workers
from kakurenbo_lightning.trainer.module_state import attributes_kept, norms_kept
from kakurenbo_lightning.trainer.progress import with_bar
from kakurenbo_lightning.trainer.sharded import reshard, resharded
from kakurenbo_lightning.trainer.strategy_compatibility import wraps_parameters


@contextlib.contextmanager
def forward_only(
    adapter: TrainerAdapter, module: pl.LightningModule, mode: RefreshMode = "eval", thorough: bool = False
) -> Iterator[None]:
    """Run the module inside without a trace: no gradient, no random number taken from training, nothing logged.

    Every submodule's train/eval flag, every buffer and every torchmetrics state is as before afterwards; see
    :class:`~kakurenbo_lightning.trainer.module_state.ModuleState` for ``thorough`` and for what else may change. ``mode="train"``
    leaves the flags alone, so that BatchNorm updates its running statistics. To the user's code it looks like validation:
    ``trainer.training`` is False, ``trainer.validating`` is True.
    """
    parts = list(module.modules())
    reshard(parts)
    with (
        adapter.module_state.kept(module, parts, thorough, but_norms=mode == "train"),
        resharded(parts),
        _as_validation(adapter.trainer),
        _flags_kept(module, parts, mode),
        metrics_kept(parts),
        torch.no_grad(),
        isolate_rng(),
        _silenced(module),
    ):
        yield


@contextlib.contextmanager
def _as_validation(trainer: AnyTrainer) -> Iterator[None]:
    stage = trainer.state.stage
    trainer.validating = True
    try:
        yield
    finally:
        trainer.state.stage = stage


@contextlib.contextmanager
def _flags_kept(module: pl.LightningModule, parts: list[nn.Module], mode: RefreshMode) -> Iterator[None]:
    flags = {part: part.training for part in parts}
    if mode == "eval":
        module.eval()
    try:
        yield
    finally:
        for part, training in flags.items():
            part.training = training


@contextlib.contextmanager
def metrics_kept(parts: list[nn.Module]) -> Iterator[None]:
    """Put back the state of the torchmetrics among ``parts``."""
    metrics = {part: _metric_state(part) for part in parts if isinstance(part, Metric)}
    try:
        yield
    finally:
        for metric, state in metrics.items():
            vars(metric).update(state)


@contextlib.contextmanager
def _silenced(module: pl.LightningModule) -> Iterator[None]:
    """Let ``self.log`` and ``self.log_dict`` of ``module`` do nothing inside."""
    hidden = {name: vars(module).pop(name, None) for name in ("log", "log_dict")}

    def discard(*args: Any, **kwargs: Any) -> None:
        """Nothing is logged for samples that are not trained."""

    for name in hidden:
        object.__setattr__(module, name, discard)
    try:
        yield
    finally:
        for name, own in hidden.items():
            object.__delattr__(module, name)
            if own is not None:
                object.__setattr__(module, name, own)


@contextlib.contextmanager
def trained_beside(adapter: TrainerAdapter, module: pl.LightningModule, seed: int) -> Iterator[None]:
    """Run the step of ``module``, a second one, inside beside the Trainer's: nothing is logged, random numbers come from ``seed`` and none
    is taken from the training, and where the Trainer's precision is mixed the pass is in float32, which needs no loss scale."""
    trainer = adapter.trainer
    full = torch.autocast(trainer.strategy.root_device.type, enabled=False)
    with isolated_rng(), _silenced(module), torch.enable_grad(), trainer.precision_plugin.train_step_context(), full:
        seed_everything(seed)
        yield


def _metric_state(metric: Metric) -> dict[str, Any]:
    """Copies of what ``update`` and ``forward`` of a metric change."""
    state: dict[str, Any] = {
        name: list(value) if isinstance(value, list) else value.clone() for name, value in metric.metric_state.items()
    }
    for name in ("_update_count", "_computed", "_forward_cache"):
        if name in vars(metric):
            state[name] = vars(metric)[name]
    return state


@contextlib.contextmanager
def scoring(adapter: TrainerAdapter, mode: RefreshMode = "eval", thorough: bool = False) -> Iterator[None]:
    """Run the module inside as training would, in its precision, but without a trace (see :func:`forward_only`)."""
    trainer = adapter.trainer
    with forward_only(adapter, trainer.lightning_module, mode, thorough), trainer.precision_plugin.train_step_context():
        yield


def score_samples(
    adapter: TrainerAdapter,
    loader: DataLoader,
    indices: Tensor | IndexSet,
    outputs: SampleOutputs,
    record: Callable[[Tensor, Values], None],
    mode: RefreshMode,
    seed: int,
) -> float:
    """Score ``indices`` with the network as it is now; each rank scores, and records, its shard.

    The module is called directly, never through DDP's wrapper, with the same number of batches on every rank. ``loader`` is the
    train loader, whose :class:`SelectionSampler` is borrowed for the pass, so there is one pool of workers.

    Args:
        adapter: the Trainer's adapter.
        loader: the train loader.
        indices: ``int64[h]``, at least one, or a set of them; the same on every rank.
        outputs: where sample values come from.
        record: ``record(rows, values)`` is given the values of some of them.
        mode: "eval", or "train" to let BatchNorm update its running statistics.
        seed: seed of the random numbers the pass may draw (augmentation).

    Returns:
        Seconds; the device has nothing left to do, before and after, so that they are counted where they are spent.
    """
    wait_for(outputs.device)
    started = time.perf_counter()
    trainer, sampler, module = adapter.trainer, loader.sampler, adapter.trainer.lightning_module
    assert isinstance(sampler, SelectionSampler)
    shard = scoring_shard(indices, sampler.batch_size, sampler.num_replicas, sampler.rank)
    training, start = sampler.shard, sampler.start
    sampler.follow(shard)
    on_device = shard.to(outputs.device)
    try:
        with buffers_of_rank_zero(module, mode), scoring(adapter, mode, thorough=True):
            seed_everything(seed)
            seed_workers(loader, seed)
            for number, batch in enumerate(with_bar(loader, trainer, len(indices), shard.steps)):
                batch = adapter.to_device(batch)
                step = partial(call_training_step, trainer, module, batch, number)
                size = shard.batch_length(number)
                with _explained(trainer):
                    values = outputs.score(step, batch, size, **replaying(trainer, module, number))
                rows = on_device.step(number)
                record(rows, {name: value[: len(rows)] for name, value in values.items()})
    finally:
        sampler.follow(training, start=start)
    wait_for(outputs.device)
    return time.perf_counter() - started


@contextlib.contextmanager
def _explained(trainer: AnyTrainer) -> Iterator[None]:
    """An error inside says that hooks made the batch as they do for validation."""
    try:
        yield
    except Exception as error:
        hooks, add_note = batch_hooks(trainer), getattr(error, "add_note", None)  # since Python 3.11
        if hooks and add_note is not None:
            add_note(
                f"SampleSelection: this was a scoring pass, whose batches {', '.join(hooks)} makes as for validation (trainer.training is "
                "False). If training_step needs what it makes for training, give the module sample_outputs(batch)"
            )
        raise


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done its work, between epochs, so that seconds are counted where they are spent."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def call_training_step(trainer: AnyTrainer, module: pl.LightningModule, batch: object, number: int) -> object:
    """``training_step`` with as many of ``(batch, batch_idx)`` as it takes.

    Through the strategy where that wraps the Trainer's module, and the parameters are whole inside the wrapper alone; the module itself
    else, also where ``module`` is a scorer.
    """
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)  # Lightning's own rule
    step = module.training_step
    if module is trainer.lightning_module and wraps_parameters(trainer.strategy):
        step = partial(type(trainer.strategy).training_step, trainer.strategy)  # not the one that an engine stands before
    return step(batch, number) if takes_index else step(batch)


def replaying(trainer: AnyTrainer, module: pl.LightningModule, number: int) -> dict[str, Any]:
    """Arguments of ``SampleOutputs`` that say how it runs the step of batch ``number`` again, to verify what it records."""
    return {
        "replay": lambda batch: call_training_step(trainer, module, batch, number),
        "kept": partial(_kept, module),  # what is appended to a list of the module's is taken away again
        "frozen": partial(frozen, module),
    }


@contextlib.contextmanager
def _kept(module: pl.LightningModule) -> Iterator[None]:
    with attributes_kept(module), norms_kept(module):
        yield


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter of ``module`` asks for a gradient inside, so it keeps nothing for a backward pass though gradients are on."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.is_leaf]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def buffers_of_rank_zero(module: pl.LightningModule, mode: RefreshMode = "eval") -> Iterator[None]:
    """Every rank scores with rank 0's buffers, the ones a checkpoint holds, and has its own ones afterwards.

    Collective: one broadcast for each dtype. ``mode="train"``: running statistics of normalisation layers, which are not read then and are
    meant to move, stay each rank's own.
    """
    if world_size() == 1:
        yield
        return
    norms = [part for part in module.modules() if mode == "train" and isinstance(part, _NormBase)]
    left = {id(buffer) for part in norms for buffer in part.buffers(recurse=False)}
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        if id(buffer) not in left:
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
    own: list[tuple[Tensor, Tensor]] = []
    for dtype, buffers in by_dtype.items():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        if dist.get_rank() > 0:
            own += zip(buffers, flat.clone().split([buffer.numel() for buffer in buffers]), strict=True)
        dist.broadcast(flat.view(torch.uint8) if dtype is torch.bool else flat, src=0)
        _fill(zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True))
    try:
        yield
    finally:
        _fill(own)


def _fill(buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, values in buffers:
            buffer.copy_(values.view_as(buffer))
