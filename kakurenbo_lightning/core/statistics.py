"""One row per data set index: the last values of every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kakurenbo_lightning.core.distributed import world_size
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.spread import ALONE, Spread
from kakurenbo_lightning.core.sum_tree import last_rows

if TYPE_CHECKING:
    from torch import Tensor

MAX_EPOCHS = (1 << 15) - 1  # the largest int16
BYTES_PER_SAMPLE = 12  # without a method's own columns


@dataclass(frozen=True)
class Column:
    """One more value per sample, that a method keeps.

    Attributes:
        name: key in :attr:`SampleStatistics.extra`.
        dtype: a float of 32 bits, or an integer of at most 32, or bool; also by its name, such as ``"int16"``, which needs no torch.
        initial: value of samples that were never measured.
    """

    name: str
    dtype: torch.dtype | str
    initial: float

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that one value of the column takes."""
        return np.dtype(str(self.dtype).removeprefix("torch.")).itemsize

    def full(self, num_samples: int, device: torch.device | str) -> Tensor:
        """The column of samples that were never measured, ``[num_samples]``."""
        dtype = getattr(torch, self.dtype) if isinstance(self.dtype, str) else self.dtype
        return torch.full((num_samples,), self.initial, dtype=dtype, device=device)


Observer = Callable[["SampleStatistics", "Tensor", Mapping[str, "Tensor"], Any], None]  # a method's observe
TARGET = Column("target", "int32", -1)  # the class of each sample, where the data set or the outputs say it


class SampleStatistics:
    """The last loss, confidence and correctness of every sample, replicated on every rank.

    Rows are written on the device by :meth:`record` without synchronising it. In one epoch each index belongs to
    one rank, so :meth:`merge` is an exact sum of masked bits and leaves every rank with the same rows.

    Memory: 12 bytes per sample (loss 4, confidence 4, epoch_seen 2, correct 1, touched 1) and those of ``columns``; when there is more
    than one rank :meth:`merge` takes 16 more, and 4 for each further column, for its duration.

    Args:
        num_samples: N.
        device: the device of the columns.
        columns: what a method keeps beside loss, confidence and correctness.
        repeats: an index may be recorded more than once in an epoch, by any rank; the last record of it counts (of those that the ranks
            made at the same time, the highest rank's). 4 bytes more per sample.

    Attributes:
        loss: ``float32[N]``, NaN where never measured.
        confidence: ``float32[N]``, the largest class probability, NaN where never measured.
        correct: ``bool[N]``, whether the arg max equalled the target; see :attr:`judged` for where it is known.
        judged_since: the epoch from which on every record had ``correct``; ``None`` where the last one had none, as a regression's.
        extra: the further columns by name, each ``[N]``.
        spread: where the rows of all samples are: here.
        grows: samples are known by keys, and have a row from when they were first trained on.
    """

    spread: Spread = ALONE
    grows: ClassVar[bool] = False

    def __init__(
        self,
        num_samples: int,
        device: torch.device | str = "cpu",
        columns: Iterable[Column] = (),
        repeats: bool = False,
    ) -> None:
        self.loss = torch.full((num_samples,), float("nan"), device=device)
        self.confidence = torch.full((num_samples,), float("nan"), device=device)
        self.correct = torch.zeros(num_samples, dtype=torch.bool, device=device)
        self.extra = {column.name: column.full(num_samples, device) for column in columns}
        # where rows may be written by several ranks: the number of the last :meth:`record` since a merge
        self._when = torch.zeros(num_samples, dtype=torch.int32, device=device) if repeats else None
        self._records = 0
        self.judged_since: int | None = None
        self._epoch_seen = torch.full((num_samples,), -1, dtype=torch.int16, device=device)
        self._touched = torch.zeros(num_samples, dtype=torch.bool, device=device)
        # indices recorded in _pending_epoch whose epoch_seen and touched are not written yet: once per epoch is enough
        self._pending: list[Tensor] = []
        self._pending_epoch = -1

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def total(self) -> int:
        """How many samples there are; statistics that are sharded have rows of a part of them."""
        return self.spread.total(len(self))

    @property
    def repeats(self) -> bool:
        """Whether an index may be recorded more than once in an epoch."""
        return self._when is not None

    @property
    def device(self) -> torch.device:
        return self.loss.device

    @property
    def epoch_seen(self) -> Tensor:
        """``int16[N]``: the epoch of the last measurement, -1 where never measured."""
        if self._pending:
            indices = torch.cat(self._pending)
            self._epoch_seen.index_fill_(0, indices, self._pending_epoch)
            self._touched.index_fill_(0, indices, True)
            self._pending.clear()
        return self._epoch_seen

    @property
    def measured(self) -> Tensor:
        """``bool[N]``: recorded at least once."""
        return self.epoch_seen >= 0

    @property
    def judged(self) -> Tensor:
        """``bool[N]``: measured, and :attr:`correct` is known; where it is False, :attr:`correct` says nothing."""
        since = MAX_EPOCHS if self.judged_since is None else self.judged_since - 1
        return self.epoch_seen > since

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that one row takes, with the further columns."""
        return sum(column.element_size() for column in self._columns().values()) + (1 if self._when is None else 5)

    def to(self, device: torch.device | str) -> SampleStatistics:
        """Move every column to ``device``, in place."""
        self._columns()  # writes what is pending
        for name in ("loss", "confidence", "correct", "_epoch_seen", "_touched", *(["_when"] if self._when is not None else [])):
            setattr(self, name, getattr(self, name).to(device))
        self.extra = {name: column.to(device) for name, column in self.extra.items()}
        return self

    def subset(self, rows: Tensor | slice) -> SampleStatistics:
        """The rows ``rows``: a copy of those of a tensor (``int64[n]``), a view of a slice. For reading."""
        if isinstance(rows, torch.Tensor):
            rows = rows.to(self.device)
        part = object.__new__(SampleStatistics)  # 1,000 classes are 1,000 parts
        part.loss, part.confidence, part.correct = self.loss[rows], self.confidence[rows], self.correct[rows]
        part._epoch_seen, part._pending, part.judged_since = self.epoch_seen[rows], [], self.judged_since
        part.extra = {name: column[rows] for name, column in self.extra.items()}
        return part

    def record(self, indices: Tensor, values: Mapping[str, Tensor], epoch: int) -> None:
        """Write the values of ``indices`` in ``epoch``; no host synchronisation.

        Args:
            indices: ``int64[b]`` on :attr:`device`, without duplicates (unless ``repeats``: the last of them counts).
            values: ``loss`` (float ``[b]``), and where known ``confidence`` (float ``[b]``), ``correct`` (bool ``[b]``) and those of
                :attr:`extra`, all on :attr:`device`.
            epoch: counted from 0, at most 32767.
        """
        if epoch > MAX_EPOCHS:
            raise ValueError(f"epoch={epoch} is more than statistics can count; at most {MAX_EPOCHS} epochs are allowed")
        if epoch != self._pending_epoch:
            self._columns()
            self._pending_epoch = epoch
        self._pending.append(indices)
        if ("correct" in values) != (self.judged_since is not None):
            self.judged_since = epoch if "correct" in values else None
        if self._when is not None:
            self._records += 1
            self._when.index_fill_(0, indices, self._records)
            last = last_rows(indices)
            values = {name: value[last] for name, value in values.items()}
        columns = {"loss": self.loss, "confidence": self.confidence, "correct": self.correct, **self.extra}
        for name, value in values.items():
            if (column := columns.get(name)) is not None:
                column.index_copy_(0, indices, value if value.dtype is column.dtype else value.to(column.dtype))

    def write(self, observe: Observer, indices: Tensor, values: Mapping[str, Tensor], epoch: Any) -> None:
        """Let ``observe`` bring further columns up to date, then :meth:`record`; in statistics that are sharded, where the rows are.

        Args:
            observe: called with the statistics, the rows, values and ``epoch``.
            indices: see :meth:`record`, as ``values``.
            values: of them.
            epoch: an ``Epoch``.
        """
        observe(self, indices, values, epoch)
        self.record(indices, values, epoch.index)

    def nonfinite(self) -> int:
        """How many measured samples have a NaN or infinite loss."""
        return self.spread.count(self.measured & ~self.loss.isfinite())

    def merge(self, records: bool = True) -> None:
        """Give every rank the rows that any rank wrote since the last merge: one collective, exact to the bit.

        Does nothing but forget who wrote what when there is one process.

        Args:
            records: what this process wrote counts; not so where another one records for its rank.
        """
        if world_size() > 1:
            if not records:
                self._columns()  # writes what is pending
                self._touched.zero_()
            if self._when is not None:
                self._keep_last(self._when)
            packed = self._pack()
            torch.distributed.all_reduce(packed)
            self._unpack(packed)
        self._columns()
        self._touched.zero_()
        self._records = 0

    def _keep_last(self, when: Tensor) -> None:
        """Where several ranks wrote one row, let only the one that wrote it last go on as its writer; collective."""
        self._columns()  # writes what is pending
        place = when * world_size() + torch.distributed.get_rank() + 1
        mine = torch.where(self._touched, place, 0)
        last = mine.clone()
        torch.distributed.all_reduce(last, torch.distributed.ReduceOp.MAX)
        self._touched.logical_and_(mine == last)

    def _pack(self) -> Tensor:
        """``int32[k, N]``: the bits of the columns, correct and epoch_seen in one word; 0 where this rank wrote nothing."""
        rest = (self.epoch_seen.to(torch.int32) + 1) * 2 + self.correct  # writes what is pending first
        columns = [self.loss, self.confidence, *self.extra.values()]
        rows = [column.view(torch.int32) if column.is_floating_point() else column.to(torch.int32) for column in columns]
        packed = torch.empty(len(rows) + 1, len(self), dtype=torch.int32, device=self.device)
        for row, out in zip([*rows, rest], packed, strict=True):
            torch.mul(row, self._touched, out=out)
        return packed

    def _unpack(self, packed: Tensor) -> None:
        rest = packed[-1]
        written = rest > 0
        for column, row in zip([self.loss, self.confidence, *self.extra.values()], packed, strict=False):
            values = row.view(torch.float32) if column.is_floating_point() else row.to(column.dtype)
            column.copy_(torch.where(written, values, column))
        self.correct.copy_(torch.where(written, (rest & 1).bool(), self.correct))
        self.epoch_seen.copy_(torch.where(written, (rest >> 1) - 1, self.epoch_seen))

    def _columns(self) -> dict[str, Tensor]:
        own = {"loss": self.loss, "confidence": self.confidence, "correct": self.correct, "epoch_seen": self.epoch_seen}
        return {**own, **self.extra}

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the columns on the CPU (11 bytes per sample and the further columns); merge first when there is more than one rank."""
        return {name: column.detach().to("cpu", copy=True) for name, column in self._columns().items()}

    def collected(self) -> dict[str, Tensor]:
        """:meth:`state_dict` of all samples, on the rank that saves it. Collective in statistics that are sharded."""
        return self.state_dict()

    def without(self, protected: Sequence[int]) -> tuple[SampleStatistics, Tensor | None]:
        """Statistics of all samples but ``protected``, for reading, and which rows they are (``int64[n]``; ``None``: all)."""
        if not protected:
            return self, None
        free = torch.ones(len(self), dtype=torch.bool)
        free[list(protected)] = False
        rows = free.nonzero().squeeze(1)
        return self.subset(rows), rows

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved columns.

        Raises:
            ValueError: they are of another data set length.
        """
        if len(state["loss"]) != len(self):
            raise ValueError(
                f"the saved statistics are of {len(state['loss'])} samples, this data set has {len(self)}; "
                "resume with the data set of the saved run"
            )
        for name, column in self._columns().items():
            column.copy_(state[name])
        self._touched.zero_()


class NoStatistics(SampleStatistics):
    """Of samples without an index: it has no rows, and nothing that is recorded is kept."""

    def __init__(self) -> None:
        super().__init__(0)

    def record(self, indices: Tensor, values: Mapping[str, Tensor], epoch: int) -> None:
        """Keep nothing, because there is no row to keep it in."""

    def merge(self, records: bool = True) -> None:
        """There is nothing that the ranks could give each other."""
