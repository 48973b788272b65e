"""The forward-only pass over samples that were not trained, which brings their statistics up to date."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from kakurenbo_lightning.forward_only import forward_only
from kakurenbo_lightning.methods.base import RefreshMode
from kakurenbo_lightning.outputs import SampleOutputs, Values
from kakurenbo_lightning.plan import deal_forward_only
from kakurenbo_lightning.rng import seed_everything
from kakurenbo_lightning.sampler import SelectionSampler
from kakurenbo_lightning.trainer_adapter import TrainerAdapter

PROGRESS_AFTER_SECONDS = 2.0


@contextlib.contextmanager
def looking(trainer: pl.Trainer, mode: RefreshMode = "eval") -> Iterator[None]:
    """Run the module inside as training would, in its precision, but without a trace (see :func:`forward_only`)."""
    with forward_only(trainer.lightning_module, mode), trainer.precision_plugin.train_step_context():
        yield


def refresh(
    trainer: pl.Trainer,
    adapter: TrainerAdapter,
    loader: DataLoader,
    indices: Tensor,
    outputs: SampleOutputs,
    record: Callable[[Tensor, Values], None],
    mode: RefreshMode,
    seed: int,
) -> float:
    """Look at ``indices`` as the network is now; each rank looks at, and records, its share.

    The module is called directly, never through DDP's wrapper, with the same number of batches on every rank. ``loader`` is the
    train loader, whose :class:`SelectionSampler` is borrowed for the pass, so there is one pool of workers.

    Args:
        indices: ``int64[h]``, at least one, the same on every rank.
        outputs: where per-sample values come from.
        record: ``record(rows, values)`` is given the values of some of them.
        mode: "eval", or "train" to let BatchNorm update its running statistics.
        seed: of the random numbers the pass may draw (augmentation).

    Returns:
        Seconds; the device has nothing left to do, before and after, so that they are counted where they are spent.
    """
    wait_for(outputs.device)
    started = time.perf_counter()
    module, sampler = trainer.lightning_module, loader.sampler
    assert isinstance(sampler, SelectionSampler)
    equalise_buffers(module)
    dealt = deal_forward_only(indices, sampler.batch_size, sampler.num_replicas, sampler.rank)
    training, start = sampler.dealt, sampler.start
    sampler.follow(dealt)
    on_device = dealt.to(outputs.device)
    bar = trainer.progress_bar_callback
    try:
        with looking(trainer, mode):
            seed_everything(seed)
            for number, batch in enumerate(
                tqdm(
                    loader,
                    desc=f"Looking at {len(indices)} samples",
                    total=dealt.steps,
                    delay=PROGRESS_AFTER_SECONDS,
                    leave=False,
                    disable=bar is None or bar.is_disabled or not trainer.is_global_zero,
                )
            ):
                batch = adapter.to_device(batch)
                step = partial(call_training_step, module, batch, number)
                size = dealt.batch_length(number)
                values = outputs.look(step, batch, size)
                rows = on_device.step(number)
                record(rows, {name: value[: len(rows)] for name, value in values.items()})
    finally:
        sampler.follow(training, start=start)
    wait_for(outputs.device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was told, between epochs, so that seconds are counted where they are spent."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def call_training_step(module: pl.LightningModule, batch: object, number: int) -> object:
    """``training_step`` with as many of ``(batch, batch_idx)`` as it takes."""
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)  # Lightning's own rule
    return module.training_step(batch, number) if takes_index else module.training_step(batch)


def equalise_buffers(module: pl.LightningModule) -> None:
    """Every rank looks with rank 0's buffers, the ones a checkpoint holds. Collective: one broadcast for each dtype."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        by_dtype.setdefault(buffer.dtype, []).append(buffer)
    for dtype, buffers in by_dtype.items():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.broadcast(flat.view(torch.uint8) if dtype is torch.bool else flat, src=0)
        for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
