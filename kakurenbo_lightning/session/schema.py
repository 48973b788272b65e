"""The table of a session's saved state, key by key. ``to_state`` in ``checkpoint.py`` writes it, and nothing else is read."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from kakurenbo_lightning.core.durations import BINS
from kakurenbo_lightning.core.state_schema import (
    Check,
    absent,
    anything,
    array,
    either,
    flag,
    integer,
    listed,
    logged,
    mapping,
    number,
    one_of,
    optional,
    row,
    table,
    tensor,
    text,
)
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.errors import StateError
from kakurenbo_lightning.session import control
from kakurenbo_lightning.session.epoch_state import Phase
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.trainer import loader_place

_COUNT = integer()
_METRICS = mapping(logged())
_WHOLE_PLAN = {
    "hidden": tensor(torch.int64, indices=True),
    "indices": optional(tensor(torch.int64, indices=True)),
    "weights": optional(tensor(torch.float32, of_n=True)),
    "lr_factor": number(above=0),
    "metrics": _METRICS,
}
_KEYED_PLAN = {
    "keys": tensor(torch.int64),
    "weights": tensor(torch.float32),
    "total": _COUNT,
    "lr_factor": number(above=0),
    "metrics": _METRICS,
}
_SET_PLAN = either("keys", table(_KEYED_PLAN, closed=True), table(_WHOLE_PLAN))
_STREAMS = {  # core/random.py: rng_state
    "python": row(integer(), listed(integer(), 625), optional(number())),
    "numpy": row(tensor(rows=624), integer(), integer(), number()),
    "torch": tensor(torch.uint8, len(torch.get_rng_state())),
    "cuda": absent(tensor(torch.uint8)),
}
_RESTART = {
    "module": mapping(anything()),
    "optimizers": listed(mapping(anything())),
    "schedulers": listed(mapping(anything())),
    "precision": mapping(anything()),
    "callbacks": mapping(mapping(anything())),
    "rng": listed(table(_STREAMS)),
}
_CHECKPOINT = {"_last_global_step_saved": _COUNT, "_last_checkpoint_saved": text(), "_defer_save_until_validation": flag()}
_GRADIENTS = table({"through": one_of("", "backward", "update"), "of": mapping(array())}, closed=True)  # trainer/step_view.py
_PENDING = {  # session/pending.py
    "metrics": mapping(array()),
    "stopped": flag(),
    "unchecked": listed(text()),
    "saved_at": mapping(table({name: absent(check) for name, check in _CHECKPOINT.items()}, closed=True)),
    "validated": flag(),
    "stepped": flag(),
    "gradients": either("of", _GRADIENTS, table({}, closed=True)),
}
_DURATIONS = listed(row(integer(0, BINS - 1), integer(1, 2**48)))  # core/durations.py
_TIMES = {
    "steps": listed(row(text(), _DURATIONS)),
    "waits": _DURATIONS,
    "passes": _DURATIONS,
    "complete": flag(),
    "forwards": absent(_DURATIONS),
}


def _total(name: str) -> Check:
    """The check for one of the totals; it is optional where older releases did not have it."""
    check = number() if name.endswith("_seconds") else integer(-sys.maxsize) if name == "samples_spared" else _COUNT
    return absent(check) if name == "samples_spared" or name.startswith(("step_", "wait_", "steady_")) else check


STATE = {
    "version": integer(),
    "method": text(),
    "settings": mapping(anything()),
    "num_samples": integer(),  # 0 for iterable data
    "fingerprint": text(),
    "seed": integer(),
    "epoch": _COUNT,
    "step": _COUNT,
    "phase": one_of(*(phase.value for phase in Phase if phase is not Phase.IDLE)),
    "done": row(_COUNT, _COUNT),
    "plan": either("samples", table({"samples": integer(1), "metrics": _METRICS}), _SET_PLAN),
    "metrics": _METRICS,
    "ended_metrics": _METRICS,
    "world_size": integer(1),
    "batch_size": integer(),  # 0 where no batch has said it
    "drop_last": flag(),
    "shuffle": flag(),
    "full_batches": integer(1),
    "schedules": table(
        {
            "anchor_step": _COUNT,
            "anchors": listed(optional(integer(-1))),
            "origins": listed(optional(integer(-1))),
            "accumulate": absent(integer(1)),
            "full_accumulate": absent(integer(1)),
        }
    ),
    "statistics": table(
        {
            "loss": tensor(torch.float32, of_n=True),
            "confidence": tensor(torch.float32, of_n=True),
            "correct": tensor(torch.bool, of_n=True),
            "epoch_seen": tensor(torch.int16, of_n=True),
        },
        more=tensor(of_n=True),  # further columns of the method
    ),
    "judged_since": absent(optional(_COUNT)),
    "totals": table({field.name: _total(field.name) for field in fields(Totals)}, closed=True),
    "times": absent(table(_TIMES, closed=True)),
    "restart": table({"epochs": _COUNT, "initial": optional(table(_RESTART))}),
    "rng": listed(table(_STREAMS)),
    "engines": optional(listed(anything())),  # each engine checks its own state
    "shared": anything(),
    "pending": absent(listed(table(_PENDING))),
    "control": absent(control.STATE),
    "order": absent(text()),
    "loader": absent(listed(loader_place.STATE)),
    "kept": absent(_SET_PLAN),
}


def check_state(state: Mapping[str, Any]) -> None:
    """Compare a state, in the names of this release, with the table.

    Raises:
        StateError: a key is missing, or a value is not allowed; the message names its place and what is allowed.
    """
    count = state.get("num_samples")
    table(STATE)(state, "", count if type(count) is int else 0)
    for name in ("rng", "engines", "pending", "loader"):
        ranks, there = state["world_size"], state.get(name)
        # after an exception one rank saves alone: without streams, and with only its own engine state and pending work
        if there is not None and len(there) not in {ranks, *([] if ranks == 1 else [0, 1])}:
            raise StateError(f"{name} has {len(there)} values, it must be one for each of {ranks} ranks")


def check_parts(parts: Mapping[str, Any]) -> None:
    """Raise ``StateError`` if the value of one of these keys of a state is not allowed."""
    table({name: STATE[name] for name in parts})(parts, "", 0)


def check_columns(saved: Mapping[str, Any], statistics: SampleStatistics) -> None:
    """Raise ``StateError`` if a column of ``statistics`` is missing in ``saved`` or has another dtype."""
    for name, column in statistics.state_dict().items():
        table({name: tensor(column.dtype, of_n=True)})(saved, "statistics", len(saved["loss"]))
