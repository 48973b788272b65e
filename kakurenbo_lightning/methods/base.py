"""What selection methods of all families share: frozen settings, and a pure function that plans each epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from kakurenbo_lightning.core.index_set import IndexSet
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import Plan, SetPlan
from kakurenbo_lightning.core.random import stream_generator
from kakurenbo_lightning.core.statistics import Column, SampleStatistics
from kakurenbo_lightning.core.universe import Universe
from kakurenbo_lightning.methods.settings import settings_of

if TYPE_CHECKING:
    from torch import Tensor

RefreshMode = Literal["eval", "train"]


@dataclass(frozen=True)
class Epoch:
    """The epoch that is planned, with what a method may need to know about it.

    Attributes:
        index: counted from 0.
        max_epochs: length of the training in epochs, or ``None`` if it has no end.
        seed: seed of the training; the same on every rank.
        part: the part of the data set to choose from: 1 + the class if classes are balanced (0: class unknown), else -1.
        batch_size: samples per step and rank; ``None`` if not known.
        fraction: the share of this part to hide, as ``balance="rcap"`` assigns it; ``None`` for the method's own share.
        classes: number of classes in the data set, if the method needs classes; ``None``: not known.
        scoring: number of epochs before the restart of a static method; ``None`` for the method's own number.
    """

    index: int
    max_epochs: int | None = None
    seed: int = 0
    part: int = -1
    scoring: int | None = None
    batch_size: int | None = None
    fraction: Fraction | None = None
    classes: int | None = None

    def generator(self, number: int | None = None) -> torch.Generator:
        """A random stream of the method's own, the same on every rank, for this epoch or for another ``number``."""
        stream = "method" if self.part < 0 else f"method:{self.part}"
        return stream_generator(self.seed, self.index if number is None else number, stream)


@dataclass(frozen=True)
class Method(ABC):
    """Base class of all methods. A method is a frozen dataclass whose fields are its settings.

    Fields made by :func:`~kakurenbo_lightning.methods.settings.setting` are converted to plain Python values and checked; then
    :meth:`check_settings` is called.

    Attributes:
        name: name in the registry.
        family: ``"hide"``, ``"backprop"`` or ``"draw"``.
        summary: one line for tables and the log.
        paper: authors, venue and year of the paper it comes from.
        reads: values that it needs of each sample, of ``loss``, ``confidence``, ``correct``, ``el2n``, ``entropy``, ``target``.
        columns: further columns that it keeps for each sample.
        refresh_mode: mode (train or eval) of the forward pass that scores hidden samples after an epoch; ``None`` for no pass.
        weighs: whether its steps may carry loss weights.
        needs_classes: whether the class of each sample must be known.
        needs_index: whether each sample must be known by its index in a data set; if not, the method takes iterable data too.
        without_index: the setting with which a method that needs an index does without; empty if there is none.
        changes_batches: whether its batches differ from those that the loader gives without the selection.
        needs_all_rows: why planning needs the rows of all samples on every rank; empty if a share is enough (``statistics="sharded"``).
        presets: sets of settings by name, which ``preset=`` gives together; settings given beside it win over them.
        needs_places: why samples that come by themselves, each with a key, are not enough (``key=``); empty if they are.
        unforeseen: why the values of one moment do not say how much it hides; empty if they do.
    """

    name: ClassVar[str] = "unregistered"
    family: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = "-"
    reads: ClassVar[tuple[str, ...]] = ("loss", "confidence", "correct")
    columns: ClassVar[tuple[Column, ...]] = ()
    refresh_mode = None  # some methods make it a setting
    weighs = False
    needs_classes = False
    needs_index = True
    without_index: ClassVar[str] = ""
    draws_ahead: ClassVar[int | None] = None  # batches that may be drawn ahead of training; None: any number
    changes_batches: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    unforeseen: ClassVar[str] = ""
    needs_all_rows: ClassVar[str] = "its choice was not written for rows that are spread over the ranks"
    needs_places: ClassVar[str] = ""
    ends_short = False  # whether an epoch ends with one more step, for samples that still wait

    def __post_init__(self) -> None:
        for name, declared in settings_of(type(self)).items():
            if declared is not None:
                object.__setattr__(self, name, declared.checked(self.name, name, getattr(self, name)))
        self.check_settings()

    def check_settings(self) -> None:  # noqa: B027
        """Raise ``ValueError`` if settings do not fit each other or the method. Each setting alone has been checked before.

        Call ``super().check_settings()`` first.
        """

    @abstractmethod
    def plan(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None = None) -> Plan:
        """Return what ``epoch`` trains. Pure: equal inputs give equal plans on every rank and device.

        Args:
            statistics: statistics of all N samples, the same on every rank.
            epoch: the epoch to plan.
            previous: the plan of the epoch before, which some methods keep for several epochs.
        """

    def within(self, universe: Universe) -> Method:
        """Return the same method for the samples of ``universe``, with settings that name samples translated to positions in it."""
        return self

    def rows_to_score(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None) -> Tensor | IndexSet:
        """Samples (``int64[n]`` on the CPU, ascending, or a set) to score before ``epoch``: the hidden ones if it makes a new choice.

        Args:
            statistics: statistics of all samples; the same on every rank if a sample may be trained more than once in an epoch.
            epoch: the epoch that comes next.
            previous: the plan of the epoch before, ``None`` before the first.
        """
        if previous is None or self.refresh_mode is None or not self.chooses_in(epoch):
            return torch.empty(0, dtype=torch.int64)
        return previous.kept.complement() if isinstance(previous, SetPlan) else previous.hidden

    @property
    def scoring_mode(self) -> RefreshMode | None:
        """Mode in which ``training_step`` may have to run on samples without training them; ``None`` if it never has to."""
        return self.refresh_mode

    def chooses_in(self, epoch: Epoch) -> bool:
        """Whether the plan of ``epoch`` depends on the recorded values, so that hidden samples must be scored before it."""
        return False

    @final
    def record(self, statistics: SampleStatistics, indices: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:
        """Store the measured values of some samples, after passing them to :meth:`observe`; no device synchronisation.

        Args:
            statistics: statistics of all samples, see :meth:`SampleStatistics.record`.
            indices: ``int64[b]``, data set indices of the samples.
            values: their values, each ``[b]``: ``loss`` and what the method reads.
            epoch: the epoch in which they were measured.
        """
        statistics.write(self.observe, indices, values, epoch)

    def observe(self, statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:  # noqa: B027
        """Update :attr:`columns` before ``statistics`` takes over the new values; no device synchronisation.

        Args:
            statistics: statistics of all samples; ``extra`` holds the columns.
            rows: ``int64[b]``, the measured samples. If one comes twice (draw family only), its last row counts.
            values: their values, each ``[b]``: ``loss`` and what the method reads.
            epoch: the epoch in which they were measured.
        """

    def scoring_epochs(self, max_epochs: int | None) -> int:
        """Number of epochs that a static method trains on everything before it chooses once and starts ``max_epochs`` again; 0 for
        other methods.
        """
        return 0

    def stream_samples(self, num_samples: int, batch_size: int) -> int | None:
        """Number of draws in an epoch that is drawn while it is trained; ``None`` if every epoch is a fixed set."""
        return None

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:  # noqa: B027
        """Raise ``ValueError`` if the settings do not fit a training of this many epochs or a data set of this length."""

    def check_data(self, fingerprint: str) -> None:  # noqa: B027
        """Raise ``ValueError`` if a setting belongs to another data set than the one with this fingerprint."""

    def contents(self) -> dict[str, str]:
        """Hashes of what settings refer to by name (files), which a resumed session compares with those in the checkpoint."""
        return {}

    def check_classes(self, targets: Tensor) -> None:  # noqa: B027
        """Warn if a setting names classes that are not among ``targets`` (``int64[N]``)."""
