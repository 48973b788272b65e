"""``SampleSelection(..., guard=SelectionGuard(...))``: if a validated metric falls too far, the next epochs train on everything."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kakurenbo_lightning.core.distributed import collective, gather, rank_zero_info, rank_zero_warn
from kakurenbo_lightning.core.extras import require as require_extra
from kakurenbo_lightning.core.state_schema import Check, integer, logged, optional, table
from kakurenbo_lightning.errors import ConflictError
from kakurenbo_lightning.methods.settings import Kind, choice, number, plain, setting, settings_of, shown
from kakurenbo_lightning.methods.settings import integer as at_least

OWN = "own"
HIGHER = {
    "acc",
    "accuracy",
    "top1",
    "top5",
    "auc",
    "auroc",
    "f1",
    "precision",
    "recall",
    "iou",
    "miou",
    "dice",
    "map",
    "psnr",
    "ssim",
}
LOWER = {"loss", "error", "err", "mse", "rmse", "mae", "nll", "perplexity", "ppl"}
RUN, EPOCHS = "run.json", "selection.parquet"  # files of a run folder, see record/schema.py


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _reference(value: Any) -> str | tuple[float, ...]:
    if isinstance(value, (str, Path)):
        return str(value)
    numbers = tuple(float(number) for number in plain(value))
    if not any(map(math.isfinite, numbers)):
        raise ValueError
    return numbers


@dataclass(frozen=True)
class SelectionGuard:
    """Compares a validated metric with a reference after each epoch. If it is worse by more than ``max_drop``, the next epochs train
    on everything.

    An alarm holds for ``epochs`` epochs, and each validation may raise it again, so that everything is trained until the metric has
    recovered. The first epoch after that makes a new choice, from values that every sample has just got. NaN is worse than any value.

    Attributes:
        monitor: name of the metric, as ``validation_step`` logs it. The value of rank 0 counts.
        max_drop: how much worse the metric may be, in its own unit: 0.5 for an accuracy in percent, 0.005 for one in [0, 1].
        reference: ``"own"``, the best value of this training so far; or a baseline's value after each epoch: as numbers, or as the folder
            of a run that a ``RunRecorder`` wrote (of several seeds of one method: their mean). Epochs are compared one by one, and after
            the last one its value stays; a baseline of another length or schedule is no fair reference.
        mode: ``"max"`` if higher is better, ``"min"`` for a loss. A metric whose name suggests the opposite (``acc``, ``loss``) causes
            a warning.
        epochs: number of epochs that train on everything after an alarm.
        curve: the reference by epoch, NaN where it has no value; empty for ``"own"``.

    Raises:
        ValueError: a setting out of range; a folder without such a run, or whose runs have no such value. Every rank reads it.
        MissingExtraError: the folder needs the extra ``report``.
    """

    monitor: str = setting(MISSING, Kind("the name of a logged value", str, _text), "", fix="For example: 'val_acc'.")
    max_drop: float = setting(MISSING, number(0), "", fix="For example: 0.005 of an accuracy in [0, 1].")
    reference: str | Sequence[float] = setting(
        OWN,
        Kind("'own', the folder of a recorded run, or a list of numbers by epoch", Any, _reference),
        "",
        fix="'own' compares with the best value so far.",
    )
    mode: Literal["max", "min"] = setting("max", choice("max", "min"), "", fix="'min' is for a loss.")
    epochs: int = setting(1, at_least(1), "")
    curve: tuple[float, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        for name, declared in settings_of(type(self)).items():
            if declared is not None:
                object.__setattr__(self, name, declared.checked("SelectionGuard", name, getattr(self, name)))
        if self.reference != OWN:
            given = self.reference
            object.__setattr__(self, "curve", read_curve(Path(given), self.monitor) if isinstance(given, str) else given)
        words = set(re.split(r"[^a-z0-9]+", self.monitor.lower()))
        better = "" if (HIGHER & words) and (LOWER & words) else "max" if HIGHER & words else "min" if LOWER & words else ""
        if better and better != self.mode:
            rank_zero_warn(
                f"SelectionGuard: monitor={self.monitor!r} is by its name better when {'higher' if better == 'max' else 'lower'}, but with "
                f"mode={self.mode!r} the guard acts when it {'falls' if self.mode == 'max' else 'rises'}; if that is not meant, set "
                f"mode={better!r}"
            )

    def described(self) -> dict[str, Any]:
        """Settings that a resumed training must share. The curve is given by its hash, because its folder may have moved."""
        digest = hashlib.blake2b(repr(self.curve).encode(), digest_size=8).hexdigest() if self.curve else OWN
        return {"monitor": self.monitor, "max_drop": self.max_drop, "reference": digest, "mode": self.mode, "epochs": self.epochs}

    def expected(self, epoch: int, best: float | None) -> float | None:
        """The value that the one after ``epoch`` is compared with, ``None`` if there is none. ``best`` is the best of this training so
        far.
        """
        if self.reference == OWN:
            return best
        value = self.curve[min(epoch, len(self.curve) - 1)]
        return None if math.isnan(value) else value

    def drop(self, value: float, expected: float) -> float:
        """How much worse ``value`` is than ``expected``; infinite for NaN."""
        worse = expected - value if self.mode == "max" else value - expected
        return math.inf if math.isnan(worse) else worse

    def better(self, one: float, other: float | None) -> float | None:
        """The better of two values, ignoring NaN."""
        if math.isnan(one):
            return other
        return one if other is None else max(one, other) if self.mode == "max" else min(one, other)


def read_curve(folder: Path, monitor: str) -> tuple[float, ...]:
    """Mean over the runs at and below ``folder`` (of one method) of what they logged as ``monitor``, by epoch; NaN where none has a
    value.

    Raises:
        ValueError: there is no such run, the runs belong to several methods, or they did not log that metric.
        MissingExtraError: pyarrow is missing.
    """
    require_extra("SelectionGuard(reference=FOLDER)", "report", "pyarrow")
    from pyarrow import parquet

    where = f"SelectionGuard: reference={shown(str(folder))}"
    paths = sorted(path for path in folder.rglob(EPOCHS)) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{where} holds no {EPOCHS} of a run; give a folder that RunRecorder wrote, numbers, or 'own'")
    methods = {_method(path.with_name(RUN)) for path in paths}
    if len(methods) > 1:
        raise ValueError(
            f"{where} has runs of {', '.join(sorted(methods))}; give the folder of one of them, such as a baseline's"
        )
    if selecting := sorted(methods - {"baseline", "?"}):
        rank_zero_warn(
            f"{where} is a run of {selecting[0]}, which selected samples itself; a baseline's shows what selection costs"
        )
    found: dict[int, list[float]] = {}
    for path in paths:
        with path.open("rb") as opened:  # opened here, because pyarrow reads a path with "=" as a partition
            columns = parquet.ParquetFile(opened).read().to_pydict()
        if monitor not in columns:
            there = sorted(name for name in columns if any(isinstance(value, float) for value in columns[name]))
            raise ValueError(f"{where}: {path} has no monitor={monitor!r}; it has {', '.join(there)}")
        for epoch, value in zip(columns["epoch"], columns[monitor], strict=True):
            if value is not None and not math.isnan(value):
                found.setdefault(epoch, []).append(value)
    if not found:
        raise ValueError(f"{where}: monitor={monitor!r} has no value in any epoch")
    curve = [found.get(epoch, [math.nan]) for epoch in range(max(found) + 1)]
    return tuple(math.fsum(values) / len(values) for values in curve)


def _method(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["method"])
    except (OSError, ValueError, KeyError, TypeError):
        return "?"


class GuardWatch:
    """The values that a guard has seen, and how long its alarm holds.

    Args:
        guard: the user's guard.
    """

    def __init__(self, guard: SelectionGuard) -> None:
        self._guard = guard
        # the last value and its epoch; the best value before it; the last epoch of the alarm; number of epochs that alarms have held for
        self._seen: dict[str, Any] = {"value": None, "epoch": -1, "best": None, "until": -1, "held": 0}

    def check(self, validates: bool, max_epochs: int | None = None) -> None:
        """Raise ``ConflictError`` if there is no validation; warn if the reference does not have ``max_epochs`` epochs."""
        known = len(self._guard.curve)
        if known > 1 and max_epochs is not None and known != max_epochs:
            rank_zero_warn(
                f"SelectionGuard: the reference has {known} epochs and this training {max_epochs}: epochs are compared one by one, and a "
                "baseline of another length or learning-rate schedule is no fair reference; use one of this length, or reference='own'"
            )
        if not validates:
            raise ConflictError(
                f"SelectionGuard(monitor={self._guard.monitor!r}): this training validates nothing, so there is nothing to compare; give "
                "Trainer.fit validation data and the module a validation_step, or leave the guard out"
            )

    def validated(self, logged: Mapping[str, Any], epoch: int, position: str) -> None:
        """Keep rank 0's value from ``logged`` after a validation of ``epoch``. Collective.

        Raises:
            ConflictError: on every rank, if the metric is not in ``logged``, which holds only what the validation itself logged.
        """
        name = self._guard.monitor
        theirs = [each for each in sorted(logged) if not each.startswith("selection/")]
        # a list stands for a missing metric; the answer of rank 0 decides, so that all ranks raise the same error
        mine = float(logged[name]) if name in logged else theirs
        with collective("compare a validated value", position):
            found = gather(mine)[0]
        if isinstance(found, list):
            raise ConflictError(
                f"SelectionGuard(monitor={name!r}): the validation logged no such value; it logged {', '.join(found) or 'nothing'}. Name "
                f"one of them, or call self.log({name!r}, ...) in validation_step"
            )
        self._seen |= {"value": found, "epoch": epoch}

    def begin(self, index: int, scoring: int = 0) -> bool:
        """Decide whether epoch ``index``, which is about to be planned, trains on everything.

        Args:
            index: number of the epoch.
            scoring: number of epochs before a static method's restart. They hide nothing, and their values belong to another training.
        """
        seen = self._seen
        if seen["value"] is not None and seen["epoch"] == index - 1:
            if index > scoring:
                self._judge(index, seen["value"], scoring)
            seen["value"] = None
        seen["held"] += self.holds(index)
        return self.holds(index)

    def holds(self, index: int) -> bool:
        """Whether epoch ``index`` trains on everything; valid once it is planned."""
        return index <= self._seen["until"]

    def _judge(self, index: int, value: float, scoring: int) -> None:
        seen, guard = self._seen, self._guard
        expected = guard.expected(index - 1 - scoring, seen["best"])
        drop = -math.inf if expected is None else guard.drop(value, expected)
        seen["best"] = guard.better(value, seen["best"])
        after = f"SampleSelection: guard: {guard.monitor}={value:.5g} after epoch {index - 1}"
        if drop > guard.max_drop:
            seen["until"] = max(seen["until"], index + guard.epochs - 1)
            epochs = f"epoch {index} trains" if seen["until"] == index else f"epochs {index} to {seen['until']} train"
            rank_zero_info(
                f"{after} is worse than {expected:.5g} by more than max_drop={guard.max_drop:g}: {epochs} on everything"
            )
        elif 0 <= seen["until"] == index - 1:
            rank_zero_info(f"{after} is back; samples are hidden again")

    @property
    def held(self) -> int:
        """Number of epochs that it has made train on everything so far."""
        return self._seen["held"]

    @property
    def summary(self) -> str:
        """How often it acted, in words; empty if it never did."""
        return f"; the guard let {self.held} epoch{'' if self.held == 1 else 's'} train on everything" if self.held else ""

    def state_dict(self) -> dict[str, Any]:
        """The values seen, and the state of the alarm, as plain numbers."""
        return dict(self._seen)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, when a training resumes."""
        self._seen |= state


_VALUE = optional(logged())
STATE: Check = table(
    {"value": _VALUE, "epoch": integer(-1), "best": _VALUE, "until": integer(-1), "held": integer()}, closed=True
)
