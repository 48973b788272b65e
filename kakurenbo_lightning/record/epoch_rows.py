"""The rows of selection.parquet: what was planned, counted and logged in each epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from kakurenbo_lightning import SampleStatistics
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.record.schema import HISTOGRAM, LOSS_EDGES, PLANNED, TRAINED, renamed
from kakurenbo_lightning.record.selection_view import SelectionView


class EpochRows:
    """A row per epoch that is over, and an open one for the epoch that is trained.

    Args:
        view: the view of the selection that plans the epochs.

    Attributes:
        validation: names of what validation logs.
    """

    def __init__(self, view: SelectionView) -> None:
        self._view = view
        self._rows: list[dict[str, Any]] = []
        self._open: dict[str, Any] = {}
        self._before: dict[str, float] = {}  # totals that are in rows
        self._late: set[str] = set()  # names of what is logged when an epoch's row is closed
        self.validation: set[str] = set()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def epoch(self) -> int | None:
        """Epoch of the open row; ``None`` when there is none."""
        return self._open.get("epoch")

    @property
    def last(self) -> int:
        """The epoch of the last closed row."""
        return self._rows[-1]["epoch"]

    @property
    def outdated(self) -> bool:
        """Whether the selection has started over since, which ``on_mismatch="reset"`` makes it do."""
        return self._view.selection.totals.samples_trained < self._before.get("samples_trained", 0)

    def open(self, epoch: int) -> None:
        """Begin the row of an epoch that is planned."""
        if not self._before and self._view.selection.totals.samples_trained:  # earlier epochs had no recorder
            self._added((*PLANNED, *TRAINED))
        self._open = {
            "epoch": epoch,
            **_floats(self._view.metrics),
            "threshold": _threshold(self._view.plan, self._view.statistics),
            HISTOGRAM: histogram(self._view.statistics.loss),
            "samples_hidden": len(self._view.plan.hidden),
            **self._added(PLANNED),
            "logged": {},
        }

    def close(self) -> None:
        """End the row of an epoch that is trained."""
        row, self._open = self._open, {}
        row |= self._added(TRAINED)
        seconds = sum(row[f"{phase}_seconds"] for phase in ("train", "refresh", "select"))
        row["elapsed_seconds"] = seconds + (self._rows[-1]["elapsed_seconds"] if self._rows else 0.0)
        self._rows.append(row)

    def _added(self, names: Iterable[str]) -> dict[str, float]:
        """How much totals have grown since they were last asked for."""
        now = {name: getattr(self._view.selection.totals, name) for name in names}
        added = {name: value - self._before.get(name, 0) for name, value in now.items()}
        self._before |= now
        return added

    # --- what was logged

    def take_validation(self, trainer: L.Trainer, before: set[str]) -> None:
        """Put what a validation logged into the open row; ``before``: names that were there when it began."""
        self.validation |= set(trainer.callback_metrics) - before
        self._open["logged"].update(_logged(trainer, self.validation))

    def take_training(self, trainer: L.Trainer) -> None:
        """Put what the selection and the module logged of a trained epoch into the open row."""
        self._open |= _floats(self._view.metrics)
        self._open["logged"].update(_logged(trainer, set(trainer.callback_metrics) - self.validation - self._late))

    def take_ended(self) -> None:
        """Put what the selection counted into the open row of an epoch that was trained before a checkpoint: Lightning does not end it."""
        self._open |= _floats(self._view.last_metrics)

    def take_late(self, trainer: L.Trainer) -> None:
        """Put what was logged after ``take_training`` into the last row: the module's ``on_train_epoch_end`` comes after a callback's."""
        if not self._open and self._rows:
            last, names = self._rows[-1], set(trainer.callback_metrics) - self.validation
            self._late |= names - last["logged"].keys()
            self._rows[-1] = {**last, "logged": last["logged"] | _logged(trainer, names)}

    def logged(self, name: str | None) -> list[float]:
        """The values logged as ``name``, by epoch; epochs without it are left out."""
        return [row["logged"][name] for row in self._rows if name in row["logged"]]

    # --- out and in

    def flat(self) -> list[dict[str, Any]]:
        """The closed rows; what was logged under the name of another column is left out."""
        rows = [({name: value for name, value in row.items() if name != "logged"}, row["logged"]) for row in self._rows]
        return [ours | logged | ours for ours, logged in rows]

    def state_dict(self) -> dict[str, Any]:
        """The rows and what they go by, as plain values."""
        return {
            "rows": [dict(row) for row in self._rows],
            "open": {**self._open, "logged": dict(self._open["logged"])} if self._open else None,
            "before": dict(self._before),
            "validation": sorted(self.validation),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over ``state_dict``, also of a checkpoint with the names of format 1."""
        self._rows, self._before = [renamed(row) for row in state["rows"]], renamed(state["before"])
        self._open = {**renamed(state["open"]), "logged": dict(state["open"]["logged"])} if state["open"] else {}
        self.validation = set(state["validation"])


def histogram(loss: Tensor) -> list[int]:
    """Count losses (float ``[N]``) between ``LOSS_EDGES``: those beyond are in the outer bins, those that are not finite in none."""
    finite = loss[loss.isfinite()]
    low, high, bins = math.log10(LOSS_EDGES[0]), math.log10(LOSS_EDGES[-1]), len(LOSS_EDGES) - 1
    places = (finite.clamp_min(1e-30).log10() - low) * (bins / (high - low))
    return torch.bincount(places.long().clamp(0, bins - 1), minlength=bins).tolist()


def _threshold(plan: Plan, statistics: SampleStatistics) -> float:
    """The largest loss among the hidden samples that were predicted correctly; NaN when there are none, or their rows are not known."""
    if not len(statistics):
        return math.nan
    rows = plan.hidden.to(statistics.device)
    losses = statistics.loss[rows][statistics.correct[rows]]
    return losses.max().item() if len(losses) else math.nan


def _logged(trainer: L.Trainer, names: set[str]) -> dict[str, float]:
    """Logged values by name, without those of the selection."""
    there = trainer.callback_metrics
    return {name: float(there[name]) for name in sorted(names & there.keys()) if not name.startswith("selection/")}


def _floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
