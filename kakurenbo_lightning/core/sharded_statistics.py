"""Statistics of very many samples: each rank has the rows of its share of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kakurenbo_lightning.core.collectives import Collectives
from kakurenbo_lightning.core.index_set import index_dtype
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.spread import Share
from kakurenbo_lightning.core.statistics import Column, Observer, SampleStatistics

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 20  # records that go to their owners at a time
BLOCK = 1 << 16  # rows that two bytes can number
VALUES = ("loss", "confidence", "correct", "el2n", "entropy")  # that a record may have
Piece = dict[str, "Tensor"]


class ShardedStatistics(SampleStatistics):
    """The rows of index i are on rank i % R alone, as row i // R; all columns are of this rank's rows. Each process is a rank here, also
    under tensor parallelism, where those that train the same samples have other rows each, and one of them records.

    What a rank records stays with it until :meth:`merge` gives it to the owners: loss, confidence, correctness and the place of the row,
    10 bytes a record. Memory: 11 bytes for each of N / R rows and those of ``columns``, and up to 13 for each record since the last merge.

    Args:
        num_samples: N.
        ranks: the R ranks that share the rows.
        columns: what a method keeps beside loss, confidence and correctness.
    """

    def __init__(self, num_samples: int, ranks: Collectives, columns: Iterable[Column] = ()) -> None:
        super().__init__(len(range(ranks.rank, num_samples, ranks.size)), columns=columns)
        self._touched = torch.zeros(0, dtype=torch.bool)  # a row has one writer
        self.ranks, self.spread = ranks, Share(ranks, num_samples)
        self._pieces: list[Piece] = []
        self._filled = 0  # records in the last piece
        self._writing: tuple[Observer, Any] | None = None  # what the records are to be written by

    @property
    def indices(self) -> Tensor:
        """``int64[n]``: the data set indices of the rows here."""
        return torch.arange(self.ranks.rank, self.total, self.ranks.size)

    @property
    def epoch_seen(self) -> Tensor:
        """``int16[n]``: the epoch in which each row here was last measured, -1 where never."""
        for indices in self._pending:
            self._epoch_seen.index_fill_(0, indices, self._pending_epoch)
        self._pending.clear()
        return self._epoch_seen

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that one row here takes; each sample has a row on one rank only."""
        return sum(column.element_size() for column in self._columns().values())

    def to(self, device: torch.device | str) -> SampleStatistics:
        """Move every column to ``device``, in place; what the ranks exchange goes through there too."""
        self.ranks.device = torch.device(device)
        return super().to(device)

    def subset(self, rows: Tensor | slice) -> SampleStatistics:
        """Not available here, because rows of one rank are no part of the data set by themselves; :meth:`without` is."""
        raise NotImplementedError("statistics that are sharded have no subset; use without(protected)")

    def without(self, protected: Sequence[int]) -> tuple[SampleStatistics, Tensor | None]:
        """Statistics of all samples but ``protected``, for reading, and which rows here they are (``int64[n]``; ``None``: all)."""
        if not protected:
            return self, None
        free = torch.ones(len(self), dtype=torch.bool)
        rank, size = self.ranks.rank, self.ranks.size
        free[[index // size for index in protected if index % size == rank]] = False
        rows = free.nonzero().squeeze(1)
        part = super().subset(rows)
        part.spread = Share(self.ranks, self.total, rows, self.total - len(set(protected)))
        return part, rows

    # --- what is recorded

    def write(self, observe: Observer, indices: Tensor, values: Mapping[str, Tensor], epoch: Any) -> None:
        """Keep what this rank has measured until :meth:`merge`; no host synchronisation.

        Raises:
            RuntimeError: records of another epoch wait for a merge.
        """
        if self._writing is not None and self._pieces and self._writing[1].index != epoch.index:
            raise RuntimeError(f"records of epoch {self._writing[1].index} were not merged before those of epoch {epoch.index}")
        self._writing = observe, epoch
        known = {"index": indices, **{name: values[name] for name in VALUES if name in values}}
        done = 0
        while done < len(indices):
            piece = self._open_piece(known)
            count = min(PIECE - self._filled, len(indices) - done)
            for name, value in known.items():
                piece[name][self._filled : self._filled + count] = value[done : done + count]
            self._filled += count
            done += count

    def _open_piece(self, values: Mapping[str, Tensor]) -> Piece:
        """The piece that records are written to, with room for one at least."""
        if not self._pieces or self._filled == PIECE or self._pieces[-1].keys() != values.keys():
            if self._pieces:
                self._pieces[-1] = {name: value[: self._filled] for name, value in self._pieces[-1].items()}
            size, self._filled = min(PIECE, self.total), 0
            kinds = {name: torch.bool if name == "correct" else torch.float32 for name in values}
            kinds["index"] = torch.int32 if index_dtype(self.total) is np.int32 else torch.int64
            self._pieces.append({name: torch.empty(size, dtype=kind, device=self.device) for name, kind in kinds.items()})
        return self._pieces[-1]

    def merge(self, records: bool = True) -> None:
        """Give every record since the last merge to the owner of its row, which writes it.

        Args:
            records: what this process recorded counts; not so where another one records for its data-parallel rank.
        """
        pieces, self._pieces = self._pieces if records else [], []
        if pieces:
            pieces[-1] = {name: value[: self._filled] for name, value in pieces[-1].items()}
        self._filled = 0
        most = max(self.ranks.gather_objects(len(pieces)))
        for _ in range(most):
            for rows, values in self._exchange(pieces.pop(0) if pieces else {}):
                assert self._writing is not None, "each rank makes as many steps as the others"
                observe, epoch = self._writing
                observe(self, rows, values, epoch)
                self.record(rows, values, epoch.index)
            self._columns()  # writes what is pending
        self._writing = None

    def _exchange(self, piece: Piece) -> Iterator[tuple[Tensor, Piece]]:
        """Give the records of ``piece`` to their owners; what the ranks have for this one: rows and their values."""
        ranks = self.ranks
        columns = {name: value.cpu().numpy() for name, value in piece.items()}
        index = columns.pop("index", np.empty(0, dtype=np.int64))
        rows = index // ranks.size
        owner, blocks = index - rows * ranks.size, -(-self.total // ranks.size // BLOCK) + 1
        key = owner.astype(np.int64) * blocks + rows // BLOCK
        if ranks.size * blocks <= 1 << 16:
            key = key.astype(np.uint16)  # sorted in linear time
        order = np.argsort(key, kind="stable")
        counts = np.bincount(key, minlength=ranks.size * blocks).reshape(ranks.size, blocks)
        ends = counts.sum(1).cumsum()
        parts = []
        for end, each in zip(ends.tolist(), counts, strict=True):
            mine = order[end - int(each.sum()) : end]
            parts.append(packed({name: column[mine] for name, column in columns.items()}, rows[mine], each))
        for data in ranks.exchange(parts):
            there, values = unpacked(data, blocks)
            if len(there):
                place = torch.from_numpy(there).to(self.device)
                yield place, {name: torch.from_numpy(value).to(self.device) for name, value in values.items()}

    # --- state

    def collected(self) -> dict[str, Tensor]:
        """The columns of all samples, on rank 0; nothing on the others. A million rows of each rank go at a time. Collective."""
        ranks, found = self.ranks, {}
        for name, column in self._columns().items():
            whole = torch.empty(self.total if ranks.rank == 0 else 0, dtype=column.dtype)
            for begin in range(0, -(-self.total // ranks.size), PIECE):
                mine = column[begin : begin + PIECE].cpu().contiguous().numpy().view(np.uint8)
                parts = ranks.exchange([mine, *[mine[:0]] * (ranks.size - 1)])
                for rank, data in enumerate(parts if ranks.rank == 0 else []):
                    values = torch.from_numpy(data.copy()).view(column.dtype)
                    first = begin * ranks.size + rank
                    whole[first :: ranks.size][: len(values)] = values
            if ranks.rank == 0:
                found[name] = whole
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take this rank's rows of the saved columns of all samples, in place of what waits for a merge too.

        Raises:
            ValueError: they are of another data set length.
        """
        rank, size = self.ranks.rank, self.ranks.size
        if len(state["loss"]) != self.total:
            raise ValueError(f"the saved statistics are of {len(state['loss'])} samples, this data set has {self.total}")
        self._pieces, self._filled, self._writing = [], 0, None
        for name, column in self._columns().items():
            column.copy_(state[name][rank::size])


def packed(columns: Mapping[str, np.ndarray], rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Records as ``uint8[n]``: which columns there are, how many rows of each block, their places in it, and the columns, bools as bits.

    Args:
        columns: the recorded values by their name in :data:`VALUES`, each ``[k]``.
        rows: ``int64[k]``, of blocks that ascend.
        counts: ``int64[blocks]``, of the rows.
    """
    mask = sum(1 << VALUES.index(name) for name in columns)
    parts = [np.array([mask], dtype=np.uint8), counts.astype(np.uint32), (rows % BLOCK).astype(np.uint16)]
    for name in VALUES:
        if name in columns:
            parts.append(np.packbits(columns[name]) if columns[name].dtype == bool else columns[name])
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts])


def unpacked(data: np.ndarray, blocks: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rows, ``int64[k]``, and the columns of what :func:`packed` has made."""
    mask, done = int(data[0]), 1

    def take(dtype: type[np.generic], count: int) -> np.ndarray:
        nonlocal done
        size = count * np.dtype(dtype).itemsize
        found = data[done : done + size].copy().view(dtype)
        done += size
        return found

    counts = take(np.uint32, blocks)
    total = int(counts.sum())
    rows = np.repeat(np.arange(blocks) * BLOCK, counts) + take(np.uint16, total)
    columns = {}
    for place, name in enumerate(VALUES):
        if mask >> place & 1:
            bits = name == "correct"
            found = take(np.uint8, -(-total // 8)) if bits else take(np.float32, total)
            columns[name] = np.unpackbits(found, count=total).view(bool) if bits else found
    return rows, columns
