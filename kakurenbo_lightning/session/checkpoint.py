"""What a checkpoint holds of a session: conversion to and from plain values, and checks whether it fits the session that loads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from kakurenbo_lightning.core.distributed import rank_zero_info, rank_zero_warn
from kakurenbo_lightning.core.key_plan import KeyPlan
from kakurenbo_lightning.core.plan import EpochPlan, Plan, StreamPlan
from kakurenbo_lightning.core.shard import Layout
from kakurenbo_lightning.errors import MismatchError, StateError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.session.epoch_state import EpochState, Phase
from kakurenbo_lightning.session.plain_values import as_plain, brief, is_same, plain_settings
from kakurenbo_lightning.session.schema import check_parts, check_state
from kakurenbo_lightning.session.totals import Totals

STATE_VERSION = 2
READABLE = (1, STATE_VERSION)
# names in states of version 1: of totals, of the counts of an epoch, and of its logged metrics
_RENAMED = {"samples_looked": "samples_scored", "look_seconds": "score_seconds", "looked": "scored"}


@dataclass(frozen=True)
class SessionState:
    """Everything that a checkpoint holds of a session.

    Attributes:
        method: name and settings of the method, see :func:`describe_method`.
        fingerprint: hash of the data set, and of the part of it that can be trained.
        seed: seed of the order and the choice of samples.
        epoch: the state of the current epoch.
        layout: ranks and batches of the epoch; its own rank number has no meaning.
        full_batches: number of batches of a full epoch, for which the schedules were built.
        schedules: positions of the schedulers when the epoch, or its current layout, began.
        statistics: columns by name, each ``[N]`` on the CPU.
        judged_since: first epoch from which the statistics hold predictions.
        totals: sums over the epochs.
        restart: state of the restart of a static method.
        rng: random streams by rank; empty if the ranks could not be asked.
        engines: state of the engine by rank; ``None`` for an engine without state.
        shared: state of the engine that is equal on every rank.
        pending: by rank, what the Trainer had still to do and Lightning does not save; empty in states of older releases.
        control: state of ``save`` and ``guard``; empty without them.
        order: a hash of the order that the user's sampler lists; empty without one.
        loader: by rank, the position of the loader of iterable data; empty for a map-style data set.
    """

    method: dict[str, Any]
    fingerprint: str
    seed: int
    epoch: EpochState
    layout: Layout
    full_batches: int
    schedules: dict[str, Any]
    statistics: dict[str, Tensor]
    judged_since: int | None
    totals: Totals
    restart: dict[str, Any]
    rng: list[dict[str, Any]]
    engines: list[dict[str, Any]] | None
    shared: Any
    pending: list[dict[str, Any]] = field(default_factory=list)
    control: dict[str, Any] = field(default_factory=dict)
    order: str = ""
    loader: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        """Number of samples in the data set."""
        return len(self.statistics["loss"])


def to_state(state: SessionState) -> dict[str, Any]:
    """Convert a state to plain tensors, numbers and strings, which load with ``weights_only=True``.

    Raises:
        TypeError: the state holds anything else; the message names its place.
    """
    epoch, layout = state.epoch, state.layout
    plain = {
        "version": STATE_VERSION,
        **state.method,
        "num_samples": state.num_samples,
        "fingerprint": state.fingerprint,
        "seed": state.seed,
        "epoch": epoch.epoch,
        "step": epoch.step,
        "phase": epoch.phase.value,
        "done": list(epoch.done),
        "plan": _plan_state(epoch.plan, state.num_samples),
        "metrics": dict(epoch.metrics),
        "ended_metrics": dict(epoch.ended_metrics),
        "world_size": layout.world_size,
        "batch_size": layout.batch_size,
        "drop_last": layout.drop_last,
        "shuffle": layout.shuffle,
        "full_batches": state.full_batches,
        "schedules": state.schedules,
        "statistics": state.statistics,
        "judged_since": state.judged_since,
        "totals": asdict(state.totals),
        "times": state.totals.times.state_dict(),
        "rng": state.rng,
        "engines": state.engines,
        "shared": state.shared,
        **({"pending": state.pending} if state.pending else {}),  # states of older releases have none
        **({"control": state.control} if state.control else {}),
        **({"order": state.order} if state.order else {}),
        **({"loader": state.loader} if state.loader else {}),
        **({} if epoch.kept is None else {"kept": _plan_state(epoch.kept, state.num_samples)}),
    }
    # the restart holds states of the user's callbacks and optimizers, which are saved unchanged, as Lightning does
    return {**as_plain(plain, "selection"), "restart": state.restart}


def from_state(state: Mapping[str, Any]) -> SessionState:
    """Read a state that this release or an earlier readable one has written.

    Raises:
        MismatchError: another release has written it in a form that cannot be read, or (``StateError``) it is damaged.
    """
    version = state.get("version")
    if version not in READABLE:
        raise MismatchError(
            f"the checkpoint's selection state has version {version!r}, this release reads {READABLE[0]} to {STATE_VERSION} (another "
            "release of kakurenbo-lightning wrote it)"
        )
    if version == 1:
        try:
            state = _from_version_1(state)
        except (KeyError, TypeError, AttributeError) as error:
            raise StateError(f"{error} is missing in a state of version 1, or is not what it must be") from None
    check_state(state)
    epoch = _epoch_of(state)
    return SessionState(
        method={"method": state["method"], "settings": dict(state["settings"])},
        fingerprint=state["fingerprint"],
        seed=state["seed"],
        epoch=epoch,
        layout=_layout_of(state, epoch),
        full_batches=state["full_batches"],
        schedules=dict(state["schedules"]),
        statistics=dict(state["statistics"]),
        judged_since=state["judged_since"] if "judged_since" in state else _judged_since(state["statistics"]),
        totals=_totals_of(state),
        restart=dict(state["restart"]),
        rng=list(state["rng"]),
        engines=state["engines"],
        shared=state["shared"],
        pending=list(state.get("pending", [])),
        control=dict(state.get("control", {})),
        order=state.get("order", ""),
        loader=list(state.get("loader", [])),
    )


def _epoch_of(state: Mapping[str, Any]) -> EpochState:
    return EpochState(
        epoch=state["epoch"],
        step=state["step"],
        phase=_phase_of(state),
        plan=_plan_of(state["plan"], state["num_samples"]),
        done=tuple(state["done"]),
        metrics=dict(state["metrics"]),
        ended_metrics=dict(state["ended_metrics"]),
        kept=_plan_of(state["kept"], state["num_samples"]) if "kept" in state else None,
    )


def _layout_of(state: Mapping[str, Any], epoch: EpochState) -> Layout:
    return Layout(
        state["batch_size"],
        state["world_size"],
        drop_last=state["drop_last"],
        shuffle=state["shuffle"],
        seed=state["seed"],
        epoch=epoch.epoch,
        done=epoch.done,
    )


def _totals_of(state: Mapping[str, Any]) -> Totals:
    totals = Totals(**{"samples_spared": state["totals"]["samples_hidden"], **state["totals"]})
    totals.times.load_state_dict(state.get("times"))
    return totals


def _judged_since(statistics: Mapping[str, Tensor]) -> int | None:
    """Reconstruct ``judged_since``, which older states do not hold: 0 if the statistics have any prediction, else ``None``."""
    return 0 if bool(statistics["correct"].any()) or not bool(statistics["confidence"].isnan().all()) else None


def _phase_of(state: Mapping[str, Any]) -> Phase:
    """Read the phase. Without ``pending`` a state does not say whether a validation was over; it counts as over and is not
    repeated.
    """
    phase = Phase(state["phase"])
    return Phase.VALIDATED if phase is Phase.VALIDATING and "pending" not in state else phase


# --- the plan


def _plan_state(plan: Plan, num_samples: int) -> dict[str, Any]:
    if isinstance(plan, StreamPlan):
        return {"samples": plan.samples, "metrics": dict(plan.metrics)}
    if isinstance(plan, KeyPlan):
        whole = {name: getattr(plan, name) for name in ("total", "lr_factor")}
        return {**whole, "keys": plan.keys.clone(), "weights": plan.weights.clone(), "metrics": dict(plan.metrics)}
    return {
        "hidden": plan.hidden.clone(),
        # trained samples follow from the hidden ones, except in plans that draw
        "indices": None if plan.is_complement(num_samples) else plan.indices.clone(),
        "weights": None if plan.weights is None else plan.weights.clone(),
        "lr_factor": plan.lr_factor,
        "metrics": dict(plan.metrics),
    }


def _plan_of(state: Mapping[str, Any], num_samples: int) -> Plan:
    if "samples" in state:
        return StreamPlan(num_samples, state["samples"], dict(state["metrics"]))
    if "keys" in state:
        if len(state["keys"]) != len(state["weights"]):
            raise StateError(
                f"plan.weights has {len(state['weights'])} values, it must have one for each of {len(state['keys'])} keys"
            )
        return KeyPlan(**{**state, "metrics": dict(state["metrics"])})
    if state["indices"] is not None:
        return EpochPlan(state["indices"], state["hidden"], state["weights"], state["lr_factor"], dict(state["metrics"]))
    mask = torch.zeros(num_samples, dtype=torch.bool).index_fill_(0, state["hidden"], True)
    return EpochPlan.hide(mask, state["lr_factor"], dict(state["metrics"]), state["weights"])


# --- version 1


def _from_version_1(old: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a state of release 0.1 to the names of this one."""
    started = Phase.TRAINED if old["ending"] else Phase.TRAINING if old["step"] else Phase.PLANNED
    plan = {name: old[name] for name in ("hidden", "indices", "weights", "lr_factor")} | {"metrics": old["plan_metrics"]}
    if old["shared"] is not None:  # the sum tree of a stream that has started
        batches = old["settings"]["epoch_length"] or -(-old["num_samples"] // old["batch_size"])
        plan = {"samples": old["epoch_samples"] or batches * old["batch_size"], "metrics": old["plan_metrics"]}
    engines = old["driven"]
    if engines is not None and all("counts" in engine for engine in engines):
        engines = [{**engine, "counts": _renamed(engine["counts"])} for engine in engines]
    return {
        **old,
        "phase": (Phase.ENDED if old["counted"] else started).value,
        "plan": plan,
        "metrics": _renamed(old["metrics"]),
        "ended_metrics": {},
        "schedules": old["paces"],
        "totals": _renamed(old["totals"]),
        "engines": engines,
    }


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in values.items()}


# --- does it fit this session?


def describe_method(method: Method, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Name and settings of a method, together with the settings ``beside`` it, as plain values."""
    return {"method": method.name, "settings": {**plain_settings(method), **method.contents(), **(beside or {})}}


@dataclass(frozen=True)
class Identity:
    """What a checkpoint must have in common with the session that loads it.

    Attributes:
        method: name and settings, see :func:`describe_method`.
        num_samples: number of samples in the data set; ``None`` fits any, where they become known as they arrive.
        fingerprint: hash of the data set.
        seed: the user's seed; ``None`` fits any.
        defaults: default settings of the method, used for settings that did not exist when the checkpoint was saved.
    """

    method: dict[str, Any]
    num_samples: int | None
    fingerprint: str
    seed: int | None
    defaults: dict[str, Any] = field(default_factory=dict)


def mismatches(saved: SessionState, current: Identity) -> list[str]:
    """Differences between a saved session and the current one, in words."""
    if saved.method["method"] != current.method["method"]:
        return [f"method={current.method['method']!r}, the checkpoint has {saved.method['method']!r}"]
    differing = []
    if current.num_samples not in (None, saved.num_samples):
        differing.append(f"the data set has {current.num_samples} samples, the checkpoint's had {saved.num_samples}")
    elif saved.fingerprint != current.fingerprint:
        same = saved.fingerprint.split("/")[0] == current.fingerprint.split("/")[0]
        differing.append(
            "the train loader's sampler yields other samples of the data set than the checkpoint's"
            if same
            else "the data set has other samples than the checkpoint's (compared by a hash of a few of them)"
        )
    settings = {**current.defaults, **saved.method["settings"]}, current.method["settings"]
    for name in sorted(settings[0].keys() | settings[1].keys()):
        old, new = (there.get(name, "not set") for there in settings)
        if not is_same(old, new):
            differing.append(f"{name}={brief(new)}, the checkpoint has {brief(old)}")
    if current.seed is not None and saved.seed != current.seed:
        differing.append(f"seed={current.seed!r}, the checkpoint has {saved.seed!r}")
    return differing


def fitting_state(
    state: Mapping[str, Any],
    current: Identity,
    on_mismatch: Literal["error", "reset"],
    check: Callable[[SessionState], None] = lambda saved: None,
) -> SessionState | None:
    """Return the state of a checkpoint if it fits the current session; ``None`` if it does not and the user wants to forget it.

    Args:
        state: the loaded selection state.
        current: what the current session requires.
        on_mismatch: the user's setting for a state that does not fit.
        check: raises ``StateError`` if a part of the session cannot load its part of the state.

    Raises:
        MismatchError: it does not fit (``StateError``: it is damaged), and ``on_mismatch`` does not say to forget it.
    """
    try:
        saved = from_state(state)
        if differing := mismatches(saved, current):
            raise MismatchError(f"the checkpoint's selection does not fit this run: {'; '.join(differing)}")
        check(saved)
        return saved
    except MismatchError as error:
        if on_mismatch == "error" and isinstance(error, StateError):
            raise StateError(
                f"the checkpoint's selection state is damaged, or something else wrote it: {error}. Resume from an earlier checkpoint, or "
                "pass SampleSelection(..., on_mismatch='reset') to start the selection from the beginning"
            ) from None
        if on_mismatch == "error":
            raise MismatchError(
                f"{error}. Resume with what the checkpoint has, or pass SampleSelection(..., on_mismatch='reset') to forget its "
                "statistics and start the selection from the beginning"
            ) from None
        rank_zero_warn(f"the selection starts from the beginning, nothing is hidden at first: {error}")
        return None


def saved_schedules(state: Mapping[str, Any]) -> tuple[dict[str, Any], int] | None:
    """Read the positions of the schedulers, and the full epoch's number of batches, from a state that is otherwise forgotten.

    ``None`` if that part is damaged.
    """
    found = {"schedules": state.get("schedules", state.get("paces")), "full_batches": state.get("full_batches")}
    try:
        check_parts(found)
    except StateError:
        return None
    return dict(found["schedules"]), found["full_batches"]


def in_layout(saved: SessionState, layout: Layout) -> tuple[EpochState, dict[str, Any] | None]:
    """Return the epoch state and random streams with which a session of this ``layout`` continues.

    With the saved number of ranks and batch size it continues exactly. Otherwise the rest of the epoch is sharded over the new ranks,
    and the random streams are ``None``.
    """
    before, epoch = saved.layout, saved.epoch
    if isinstance(epoch.plan, KeyPlan) or not saved.num_samples:  # iterable data, whose batches nobody lays out
        return epoch, saved.rng[layout.rank] if len(saved.rng) == layout.world_size else None
    begun = epoch.step > 0 and epoch.phase not in (Phase.TRAINED, Phase.ENDED)
    if begun and saved.order != layout.order_digest:
        raise MismatchError(
            f"the train loader's sampler lists epoch {epoch.epoch} in another order than that of the checkpoint, which is of "
            f"step {epoch.step}: what is left of the epoch is not known; resume with the same sampler and batch size, or from a checkpoint "
            "of an epoch's end"
        )
    if (before.world_size, before.batch_size) == (layout.world_size, layout.batch_size):
        # a checkpoint that one rank saved after an exception has no random streams
        return epoch, saved.rng[layout.rank] if len(saved.rng) == layout.world_size else None
    done = epoch.step, epoch.plan.shard(before).samples_until(epoch.step)
    rank_zero_info(
        f"SampleSelection: the checkpoint is of {before.world_size} ranks with batches of {before.batch_size}, this run has "
        f"{layout.world_size} with batches of {layout.batch_size}; what is left of epoch {epoch.epoch} is resharded "
        f"after {done[1]:,} samples, random streams start again, step schedules keep their pace per epoch"
    )
    return replace(epoch, done=done), None
