"""What a checkpoint holds of a selection, and whether it belongs to the run that loads it."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from kakurenbo_lightning.core.distributed import gather, together
from kakurenbo_lightning.core.plan import EpochPlan
from kakurenbo_lightning.core.random import rng_state
from kakurenbo_lightning.core.shard import deal
from kakurenbo_lightning.errors import ConflictError, MismatchError
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.methods.draw.base import StreamMethod
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.trainer.lr_schedule import positions

STATE_VERSION = 1


def describe_method(method: Method) -> dict[str, Any]:
    """Name and settings, as plain values."""
    return {
        "method": method.name,
        "settings": {field.name: _plain(getattr(method, field.name)) for field in fields(method)} | method.contents(),
    }


def mismatches(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """What differs between the identities of a saved and the current selection, in words.

    An identity has ``method``, ``settings``, ``num_samples``, ``fingerprint`` and ``seed`` (``None``: any).
    """
    if saved["method"] != current["method"]:
        return [f"method={current['method']!r}, the checkpoint has {saved['method']!r}"]
    differing = []
    if saved["num_samples"] != current["num_samples"]:
        differing.append(f"the data set has {current['num_samples']} samples, the checkpoint's had {saved['num_samples']}")
    elif saved["fingerprint"] != current["fingerprint"]:
        differing.append("the data set has other samples than the checkpoint's (compared by a hash of a few of them)")
    names = sorted(saved["settings"].keys() | current["settings"].keys())
    for name in names:
        old, new = (identity["settings"].get(name, "not set") for identity in (saved, current))
        if old != new:
            differing.append(f"{name}={brief(new)}, the checkpoint has {brief(old)}")
    if current["seed"] is not None and saved["seed"] != current["seed"]:
        differing.append(f"seed={current['seed']!r}, the checkpoint has {saved['seed']!r}")
    return differing


def check_version(state: dict[str, Any]) -> None:
    """Raise :class:`MismatchError` for a state of another version."""
    if state.get("version") != STATE_VERSION:
        raise MismatchError(
            f"the checkpoint's selection state has version {state.get('version')!r}, this release reads {STATE_VERSION} (another "
            "release of kakurenbo-lightning wrote it)"
        )


class Resumable:
    """The part of :class:`~kakurenbo_lightning.run.Session` that writes its state and takes one over."""

    def state_dict(self, collective: bool) -> dict[str, Any]:
        """See :meth:`SampleSelection.state_dict`; ``collective``: every rank is here."""
        if self.plan is None:
            return self._loaded or {}  # nothing has happened since it was loaded
        rng_of_training = self._training_rng or rng_state()
        driven = None if self.engine is None else self.engine.state_dict(not collective, self.adapter.done_batches())
        if collective:
            self.merge()
            with together("save a checkpoint", self.position()):
                rng, driven = gather(rng_of_training), gather(driven)
        else:
            rng, driven = ([rng_of_training], [driven]) if self._sampler.num_replicas == 1 else ([], [driven])
        return {
            "version": STATE_VERSION,
            **self._identity(),
            "seed": self._seed,
            "epoch": self.epoch,
            "step": self.step,
            "done": list(self._done),
            "epoch_samples": self._epoch_samples,
            "counted": self._counted,
            "ending": self._ending,
            "world_size": self._sampler.num_replicas,
            "batch_size": self._sampler.batch_size,
            "paces": self._aligner.state_dict(),
            "full_batches": self._schedule_batches or self._full_batches,
            "drop_last": self._sampler.drop_last,
            "shuffle": self._sampler.shuffle,
            "hidden": self.plan.hidden.clone(),
            "indices": None if self.plan.is_complement() else self.plan.indices.clone(),
            "weights": None if self.plan.weights is None else self.plan.weights.clone(),
            "lr_factor": self.plan.lr_factor,
            "plan_metrics": dict(self.plan.metrics),
            "metrics": dict(self.metrics),
            "statistics": self.statistics.state_dict(),
            "totals": asdict(self.totals),
            "restart": self.restart.state_dict(),
            "rng": rng,
            "driven": None if self.engine is None else driven,
            "shared": None if self.engine is None else self.engine.shared_state(),
        }

    def _identity(self) -> dict[str, Any]:
        return {
            **describe_method(self._method),
            "num_samples": len(self.statistics),
            "fingerprint": self.fingerprint,
            "seed": self._given_seed,
        }

    @property
    def saved_restart(self) -> dict[str, Any] | None:
        """What a state that was loaded, and not taken over yet, says of the restart."""
        return None if self._loaded is None or self._loaded.get("method") != self._method.name else self._loaded.get("restart")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until the data set is there; within a run (the LR finder restores one) take it over at once."""
        if self.plan is not None and self.loader is not None and state:
            self._apply_state(state)
            self._rng = None  # Lightning does not turn back the random streams then
        else:
            self._loaded = dict(state) or None

    def _apply_state(self, state: dict[str, Any]) -> None:
        self._loaded = None
        try:
            check_version(state)
            differing = mismatches(state, self._identity())
            if differing:
                raise MismatchError(f"the checkpoint's selection does not fit this run: {'; '.join(differing)}")
        except MismatchError as error:
            if self._on_mismatch == "error":
                raise MismatchError(
                    f"{error}. Resume with what the checkpoint has, or pass SampleSelection(..., on_mismatch='reset') to forget its "
                    "statistics and select anew"
                ) from None
            rank_zero_warn(f"the selection begins anew, nothing is hidden at first: {error}")
            return
        self.statistics.load_state_dict(state["statistics"])
        mask = torch.zeros(len(self.statistics), dtype=torch.bool).index_fill_(0, state["hidden"], True)
        self.plan = EpochPlan.hide(mask, state["lr_factor"], dict(state["plan_metrics"]), state["weights"])
        if state["indices"] is not None:
            self.plan = replace(self.plan, indices=state["indices"], hidden=state["hidden"])
        self.epoch, self.step = state["epoch"], state["step"]
        self._counted, self._ending = state["counted"], state["ending"]
        self.metrics, self.totals = dict(state["metrics"]), Totals(**state["totals"])
        self._seed = self._sampler.seed = state["seed"]
        self._sampler.shuffle = state["shuffle"]
        self.restart.load_state_dict(state["restart"])
        if self.engine is not None:
            self.engine.load_state_dict(state["driven"], state["shared"], self._sampler.rank, self._sampler.num_replicas)
        self._done, self._paces, self._epoch_samples = tuple(state["done"]), dict(state["paces"]), state["epoch_samples"]
        self._take_share(state)

    def take_over_rest(self) -> None:
        """Apply a loaded state that no epoch came to use."""
        if self._loaded is not None and self._sampler is not None:
            self._arrive()
            if self.plan is not None:
                self._close_epoch()
            self._restore_rng()

    def _resume_publicly(self) -> None:
        """Plan before Lightning takes the first batch of a resumed run, which it does not take again."""
        self._arrive()
        if self.plan is None:
            return
        if self._ending:
            raise ConflictError(
                f"the checkpoint was saved between the last batch of epoch {self.epoch} and its validation, where selection.wrap(...) "
                "cannot resume; use one saved before, at the validation's end or at the epoch's end, or leave out wrap"
            )
        if self.step >= self._sampler.deal(self.plan, self.epoch, self._done).steps:
            if self.epoch + 1 == self._max_epochs():
                self._close_epoch()
                return
            self._close_epoch()
            self._plan_epoch(self.epoch + 1, self._score_rest(self.epoch + 1))
            self.step = 0
        self._sampler.follow(self._sampler.deal(self.plan, self.epoch, self._done), start=self.step)

    def _take_share(self, state: dict[str, Any]) -> None:
        """Go on where the saved ranks were, or, when there are other ranks or batches now, deal what is left anew."""
        world_size, batch_size = state["world_size"], state["batch_size"]
        if (world_size, batch_size) == (self._sampler.num_replicas, self._sampler.batch_size):
            if len(state["rng"]) == world_size:
                self._rng = state["rng"][self._sampler.rank]
            if state["full_batches"] != self._full_batches:
                self._schedule_batches = state["full_batches"]
            return
        self._schedule_batches = state["full_batches"]
        self._paces.update(anchor_step=self.step, anchors=positions(self._trainer.lr_scheduler_configs))
        options = {"drop_last": state["drop_last"], "shuffle": state["shuffle"], "seed": self._seed, "epoch": self.epoch}
        if isinstance(self._method, StreamMethod) and self._method.streams(self._epoch(self.epoch)):
            before = self._streamed(batch_size, world_size, self._done)
            self._epoch_samples = self._epoch_samples or self._method.epoch_batches(len(self.statistics), batch_size) * batch_size
        else:
            before = deal(self.plan, batch_size, world_size, 0, **options, done=self._done)
        self._done = (self.step, before.samples_until(self.step))
        rank_zero_info(
            f"SampleSelection: the checkpoint is of {world_size} ranks with batches of {batch_size}, this run has "
            f"{self._sampler.num_replicas} with batches of {self._sampler.batch_size}; what is left of epoch {self.epoch} is dealt anew "
            f"after {self._done[1]:,} samples, random streams begin anew, step schedules keep their pace per epoch"
        )


def brief(value: Any) -> str:
    """``repr`` in one line of a message."""
    text = repr(value)
    return (
        text if len(text) <= 80 else f"{text[:60]}... ({len(value)} values)" if hasattr(value, "__len__") else f"{text[:77]}..."
    )


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
