"""Statistics of a stream: a row for each key that was trained so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kakurenbo_lightning.core.distributed import gather
from kakurenbo_lightning.core.key_field import UNIQUE
from kakurenbo_lightning.core.statistics import Column, Observer, SampleStatistics
from kakurenbo_lightning.errors import ConflictError, StateError

KEYS = "keys"  # the name of their column in a state
Part = dict[str, np.ndarray]  # records, by the names of their values


class KeyedStatistics(SampleStatistics):
    """Rows in the order of their keys, replicated on every rank, and as many as keys were recorded.

    The order does not depend on how the samples arrive, on how many ranks and workers, so neither does what a method chooses. What is
    recorded waits until :meth:`merge`, which all ranks' records go through: 8 bytes a record beside its values. Memory: 19 bytes a row
    and those of ``columns``.

    Args:
        columns: what a method keeps beside loss, confidence and correctness.

    Attributes:
        keys: ``int64[N]`` on the CPU, ascending.
    """

    grows: ClassVar[bool] = True

    def __init__(self, columns: Iterable[Column] = ()) -> None:
        self._kinds = tuple(columns)
        super().__init__(0, columns=self._kinds)
        self.keys = torch.empty(0, dtype=torch.int64)
        self._waiting: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._writing: tuple[Observer, Any] | None = None  # what the records are to be written by

    # --- what is recorded

    def write(self, observe: Observer, indices: Tensor, values: Mapping[str, Tensor], epoch: Any) -> None:
        """Keep what was measured of the keys ``indices`` (``int64[b]`` on the CPU) until :meth:`merge`; no host synchronisation."""
        self._writing = observe, epoch
        self._waiting.append((indices, {name: value.detach().clone() for name, value in values.items()}))

    def merge(self, records: bool = True) -> None:
        """Write what was recorded since the last merge on any rank; collective.

        Raises:
            ConflictError: on every rank, when a key was recorded twice.
        """
        mine = self._taken()
        self._write([part for parts in gather(mine if records else []) for part in parts])

    def _write(self, known: list[Part]) -> None:
        """Write records of any rank."""
        writing, self._writing = self._writing, None
        if known:
            self._grow(_distinct(np.concatenate([part[KEYS] for part in known])))
        for part in known:
            rows = torch.from_numpy(np.searchsorted(self.keys.numpy(), part.pop(KEYS))).to(self.device)
            values = {name: torch.from_numpy(value).to(self.device) for name, value in part.items()}
            if values:
                assert writing is not None, "each rank makes as many steps as the others"
                observe, epoch = writing
                observe(self, rows, values, epoch)
                self.record(rows, values, epoch.index)
        self._columns()  # writes what is pending

    def _taken(self) -> list[Part]:
        """What waits, in parts that have the same values, each in the order of its keys."""
        waiting, self._waiting = self._waiting, []
        parts = []
        for names, group in groupby(waiting, key=lambda record: tuple(sorted(record[1]))):
            records = list(group)
            keys = torch.cat([keys for keys, _ in records]).numpy()
            order = np.argsort(keys)  # then they are found in the order of the memory
            joined = {name: torch.cat([values[name] for _, values in records]).cpu() for name in names}
            plain = {name: (column.float() if column.is_floating_point() else column) for name, column in joined.items()}
            parts.append({KEYS: keys[order], **{name: column.numpy()[order] for name, column in plain.items()}})
        return parts

    def _grow(self, found: np.ndarray) -> None:
        """Have rows for the keys ``found`` (``int64[n]``, ascending)."""
        before = self.keys.numpy()
        places = np.searchsorted(before, found)
        is_known = before.take(places, mode="clip") == found if len(before) else np.zeros(len(found), dtype=bool)
        if not is_known.all():
            keys = np.sort(np.concatenate([before, found[~is_known]]), kind="stable")
            old, rows = self._columns(), torch.from_numpy(np.searchsorted(keys, before)).to(self.device)
            self._begin(torch.from_numpy(keys))
            for name, column in self._columns().items():
                column.index_copy_(0, rows, old[name])

    def _begin(self, keys: Tensor) -> None:
        """Have rows for ``keys`` and no others, all of them never measured."""
        fresh = SampleStatistics(len(keys), self.device, self._kinds)
        self.keys, self.extra = keys, fresh.extra
        for name in ("loss", "confidence", "correct", "_epoch_seen", "_touched"):
            setattr(self, name, getattr(fresh, name))

    # --- what is known

    def since(self, epoch: int) -> SampleStatistics:
        """As if what was measured before ``epoch`` never had been. For reading."""
        part, old = self.subset(slice(None)), self.epoch_seen < epoch
        part._epoch_seen = self.epoch_seen.masked_fill(old, -1)
        part.loss, part.confidence = (column.masked_fill(old, torch.nan) for column in (self.loss, self.confidence))
        return part

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the columns and the keys on the CPU, 19 bytes a row and the further columns."""
        return {**super().state_dict(), KEYS: self.keys.clone()}

    def collected(self) -> dict[str, Tensor]:
        """See :class:`SampleStatistics`; with what waits on a rank that saves alone, because of an exception."""
        if self._waiting:
            self._write(self._taken())
        return self.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved columns, as many as there are.

        Raises:
            StateError: the keys do not ascend.
        """
        keys = state[KEYS].cpu()
        if not bool((keys[1:] > keys[:-1]).all()):
            raise StateError(f"statistics.{KEYS} must ascend, each key once")
        self._columns()
        self._begin(keys.clone())
        super().load_state_dict(state)


def _distinct(keys: np.ndarray) -> np.ndarray:
    """The keys in order.

    Raises:
        ConflictError: one of them is there twice.
    """
    ordered = np.sort(keys, kind="stable")
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(again):
        raise ConflictError(
            f"{len(again)} of {len(keys)} samples that were trained since the last epoch or checkpoint have the key of another one (the "
            f"first is {again[0]}; of strings that is a hash), so the key does not name a sample. {UNIQUE}"
        )
    return ordered
