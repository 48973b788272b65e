"""The rows of selection.parquet: what was planned, counted and logged in each epoch."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L

from kakurenbo_lightning import EpochPlan, SampleSelection
from kakurenbo_lightning.record.files import histogram

# parts of the totals, by when an epoch adds to them
PLANNED = ("samples_refreshed", "refresh_seconds", "select_seconds")
TRAINED = (
    *("samples_trained", "samples_scored", "samples_rejected"),
    *(f"{phase}_seconds" for phase in ("train", "score", "forward", "backward", "data")),
)


class EpochRows:
    """A row per epoch that is over, and the one of the epoch that is trained.

    Args:
        selection: whose.

    Attributes:
        epoch: of the open row; None when there is none.
    """

    def __init__(self, selection: SampleSelection) -> None:
        self._selection = selection
        self._rows: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._before: dict[str, float] = {}  # totals that are in rows
        self._validation: set[str] = set()  # names of what validation logs
        self._late: set[str] = set()  # names of what is logged when an epoch's row is closed

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def epoch(self) -> int | None:
        """Epoch of the open row."""
        return None if self._open is None else self._open["epoch"]

    @property
    def validation(self) -> set[str]:
        """Names of what validation logs."""
        return self._validation

    @property
    def outdated(self) -> bool:
        """Whether the selection has begun anew since."""
        return self._selection.totals.samples_trained < self._before.get("samples_trained", 0)

    def open(self, epoch: int) -> None:
        """Begin the row of an epoch that is planned."""
        if not self._before and self._selection.totals.samples_trained:  # earlier epochs had no recorder
            self._added((*PLANNED, *TRAINED))
        plan, run = self._selection.plan, self._selection.session
        self._open = {
            "epoch": epoch,
            **_floats(run.metrics),
            "threshold": self._threshold(plan),
            "loss_histogram": histogram(run.statistics.loss),
            "samples_hidden": len(plan.hidden),
            **self._added(PLANNED),
            "logged": {},
        }

    def close(self) -> None:
        """End the row of an epoch that is trained."""
        row, self._open = self._open, None
        row |= self._added(TRAINED)
        seconds = sum(row[f"{phase}_seconds"] for phase in ("train", "refresh", "select"))
        row["elapsed_seconds"] = seconds + (self._rows[-1]["elapsed_seconds"] if self._rows else 0.0)
        self._rows.append(row)

    def _added(self, names: Iterable[str]) -> dict[str, float]:
        """By how much totals have grown since they were last asked for."""
        now = {name: getattr(self._selection.totals, name) for name in names}
        added = {name: value - self._before.get(name, 0) for name, value in now.items()}
        self._before |= now
        return added

    def _threshold(self, plan: EpochPlan) -> float:
        """The largest loss among the hidden samples that were predicted correctly."""
        statistics = self._selection.statistics
        rows = plan.hidden.to(statistics.device)
        losses = statistics.loss[rows][statistics.correct[rows]]
        return losses.max().item() if len(losses) else math.nan

    # --- what the module logged

    def take_validation(self, trainer: L.Trainer, before: set[str]) -> None:
        """A validation is over, and what it logged goes into the open row; `before`: names that were there when it began."""
        self._validation |= set(trainer.callback_metrics) - before
        self._open["logged"].update(_values(trainer, self._validation))

    def take_training(self, trainer: L.Trainer) -> None:
        """The epoch is trained: what the selection and the module logged goes into the open row."""
        self._open |= _floats(self._selection.session.metrics)
        self._open["logged"].update(_values(trainer, set(trainer.callback_metrics) - self._validation - self._late))

    def take_ended(self) -> None:
        """The epoch was trained before a checkpoint, which Lightning does not end: what the selection counted goes into the open row."""
        self._open |= _floats(self._selection.session.ended)

    def take_late(self, trainer: L.Trainer) -> None:
        """What was logged after `take_training` goes into the last row: the module's own `on_train_epoch_end` comes after a callback's."""
        if self._open is None and self._rows:
            last, names = self._rows[-1], set(trainer.callback_metrics) - self._validation
            self._late |= names - last["logged"].keys()
            self._rows[-1] = {**last, "logged": last["logged"] | _values(trainer, names)}

    def logged(self, name: str | None) -> list[float]:
        """Return what was logged as `name`, by epoch."""
        return [row["logged"][name] for row in self._rows if name in row["logged"]]

    # --- out and in

    def flat(self) -> list[dict[str, Any]]:
        """Return the rows with what was logged, where no column of ours has that name."""
        flat = []
        for row in self._rows:
            ours = {name: value for name, value in row.items() if name != "logged"}
            flat.append({**ours, **{name: value for name, value in row["logged"].items() if name not in ours}})
        return flat

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rows": [dict(row) for row in self._rows],
            "open": None if self._open is None else {**self._open, "logged": dict(self._open["logged"])},
            "before": dict(self._before),
            "validation": sorted(self._validation),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over `state_dict`."""
        self._rows, self._before, self._validation = list(state["rows"]), dict(state["before"]), set(state["validation"])
        self._open = None if state["open"] is None else {**state["open"], "logged": dict(state["open"]["logged"])}


def _values(trainer: L.Trainer, names: set[str]) -> dict[str, float]:
    """Return logged values but those of the selection."""
    there = trainer.callback_metrics
    return {name: float(there[name]) for name in sorted(names & there.keys()) if not name.startswith("selection/")}


def _floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
