"""The state of a backprop engine: what it knows between two batches, counts in an epoch and saves."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from kakurenbo_lightning.core.state_schema import absent, anything, flag, integer, listed, mapping, optional, table, tensor
from kakurenbo_lightning.engines.sample_buffer import Samples
from kakurenbo_lightning.signals.outputs import Values


@dataclass
class Counts:
    """Samples of one epoch, over all ranks. ``scored + carried == chosen_trained + rejected + pooled``.

    Attributes:
        scored: went through a scoring pass.
        carried: waited in the buffer since the epoch before.
        trained: went through a training step, those that were not scored too.
        chosen_trained: how many of these were chosen.
        rejected: were scored and are not trained.
        pooled: wait in the buffer.
        unknown: could not be scored.
        steps: optimizer steps.
    """

    scored: int = 0
    carried: int = 0
    trained: int = 0
    chosen_trained: int = 0
    rejected: int = 0
    pooled: int = 0
    unknown: int = 0
    steps: int = 0


_SAMPLES = table({"batch": anything(), "indices": tensor(torch.int64, indices=True), "weights": optional(tensor(torch.float32))})
STATE = {
    "pool": listed(_SAMPLES),
    "candidates": listed(table({"samples": _SAMPLES, "values": table({"loss": tensor()}, more=tensor())})),
    "undecided": integer(),
    "carried": integer(),
    "held": flag(),
    "counts": table({field.name: integer() for field in fields(Counts)}, closed=True),
    "scorer": optional(
        table(
            {
                "module": mapping(anything()),
                "optimizer": optional(mapping(anything())),
                "schedules": absent(listed(mapping(anything()))),
                **{name: absent(integer()) for name in ("batches", "epochs", "due")},
            }
        )
    ),
}


@dataclass(frozen=True)
class Kept:
    """What an engine knows before a batch, so that the batch can be begun again.

    Attributes:
        memory: the method's memory, such as its history of losses.
        pool: samples that wait.
        candidates: scored samples among which nothing is chosen yet, with their values.
        undecided: how many these are on all ranks.
        carried: how many in the pool were scored in another epoch.
        held: the batch before made no step.
        counts: what the epoch had counted.
    """

    memory: dict[str, Any]
    pool: list[Samples]
    candidates: list[tuple[Samples, Values]]
    undecided: int
    carried: int
    held: bool
    counts: Counts


def reshard(pools: list[list[dict[str, Any]]], rank: int, world_size: int) -> list[dict[str, Any]]:
    """The samples that rank ``rank`` of ``world_size`` gets of those that waited on other ranks."""
    parts = [Samples.of(part) for pool in pools for part in pool]
    if not parts:
        return []
    joined = Samples.join(parts)
    rows = torch.arange(rank, len(joined), world_size)
    return [joined.take(rows).state_dict()] if len(rows) else []


def candidates(saved: list[list[dict[str, Any]]], mine: slice, device: torch.device) -> list[tuple[Samples, Values]]:
    """The candidates that ``saved`` ranks had, each list as long; of those of a batch, ``mine``, on ``device``."""
    made = []
    for parts in zip(*saved, strict=True):
        samples = Samples.join([Samples.of(part["samples"]) for part in parts])
        rows = torch.arange(len(samples))[mine]
        values = {name: torch.cat([part["values"][name] for part in parts])[rows].to(device) for name in parts[0]["values"]}
        made.append((samples.take(rows).to(device), values))
    return made
