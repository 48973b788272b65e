"""What a selection method of any family is: frozen settings and a pure plan of each epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Literal, final

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.random import stream_generator
from kakurenbo_lightning.core.statistics import Column, SampleStatistics
from kakurenbo_lightning.core.universe import Universe
from kakurenbo_lightning.methods.settings import settings_of

if TYPE_CHECKING:
    from torch import Tensor

RefreshMode = Literal["eval", "train"]


@dataclass(frozen=True)
class Epoch:
    """Which epoch is planned.

    Attributes:
        index: counted from 0.
        max_epochs: length of the run in epochs, or ``None`` when it has no end.
        seed: of the run; the same on every rank.
        part: which part of the data set is chosen from: 1 + the class where classes are balanced (0: unknown), else -1.
        batch_size: samples of a step, per rank, where that is known.
        fraction: the share of this part to hide, where ``balance="rcap"`` says it; ``None``: the method's own.
        classes: how many classes the data set has, where the method needs classes; ``None``: not known.
        scoring: how many epochs of the run come before a static method's restart; ``None``: as many as the method says.
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
        """A random stream of the method's own, the same on every rank: of this epoch, or of ``number``, whatever that counts."""
        stream = "method" if self.part < 0 else f"method:{self.part}"
        return stream_generator(self.seed, self.index if number is None else number, stream)


@dataclass(frozen=True)
class Method(ABC):
    """What methods of every family have. A method is a frozen dataclass whose fields are its settings.

    Fields made by :func:`~kakurenbo_lightning.methods.settings.setting` are converted to plain Python values and checked; then
    :meth:`check_settings` is called.

    Attributes:
        name: as registered.
        family: ``"hide"``, ``"backprop"`` or ``"draw"``.
        summary: one line for tables and the log.
        paper: where it is from.
        reads: the values it needs of each sample: of ``loss``, ``confidence``, ``correct``, ``el2n``, ``entropy``, ``target``.
        columns: what it keeps of each sample beside them.
        refresh_mode: mode of the forward-only pass over the hidden samples after the epoch, ``None`` for no pass.
        weighs: whether its steps may carry loss weights.
        needs_classes: whether the class of each sample must be known.
        changes_batches: whether epochs have other batches than a loader without the selection would give.
        unforeseen: why no values of one moment say how much it leaves out; empty where they do.
    """

    name: ClassVar[str] = "unregistered"
    family: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = "-"
    reads: ClassVar[tuple[str, ...]] = ("loss", "confidence", "correct")
    columns: ClassVar[tuple[Column, ...]] = ()
    refresh_mode = None  # a setting of some methods
    weighs = False
    needs_classes = False
    draws_ahead: ClassVar[int | None] = None  # how many batches may be drawn before they are trained; None: any number
    changes_batches: ClassVar[bool] = False
    unforeseen: ClassVar[str] = ""
    ends_short = False  # whether an epoch ends with one more step, for what is left

    def __post_init__(self) -> None:
        for name, declared in settings_of(type(self)).items():
            if declared is not None:
                object.__setattr__(self, name, declared.checked(self.name, name, getattr(self, name)))
        self.check_settings()

    def check_settings(self) -> None:  # noqa: B027
        """Raise ``ValueError`` when settings do not fit each other or the method; each of them alone is allowed already.

        Call ``super().check_settings()`` first.
        """

    @abstractmethod
    def plan(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None = None) -> Plan:
        """What ``epoch`` trains. Pure: equal inputs give equal plans on every rank and device.

        Args:
            statistics: of all N samples, the same on every rank.
            epoch: which epoch.
            previous: the plan of the epoch before, which some epochs keep.
        """

    def within(self, universe: Universe) -> Method:
        """The same method for the samples of ``universe``, known by their place in it: settings that name samples are translated."""
        return self

    def rows_to_score(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None) -> Tensor:
        """Which samples (``int64[n]`` on the CPU, ascending) a forward-only pass looks at before ``epoch``: the hidden ones, if it chooses.

        Args:
            statistics: of all samples; where a sample may be trained more than once in an epoch, the same on every rank.
            epoch: which epoch.
            previous: the plan of the epoch before, ``None`` before the first.
        """
        if previous is None or self.refresh_mode is None or not self.chooses_in(epoch):
            return torch.empty(0, dtype=torch.int64)
        return previous.hidden

    def chooses_in(self, epoch: Epoch) -> bool:
        """Whether the plan of ``epoch`` goes by what was last recorded of the samples, so that the hidden ones are scored before."""
        return False

    @final
    def record(self, statistics: SampleStatistics, indices: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:
        """Write what was measured of some samples, after :meth:`observe` has seen it; no device synchronisation.

        Args:
            statistics: of all samples, see :meth:`SampleStatistics.record`.
            indices: ``int64[b]``, the samples.
            values: of them, each ``[b]``: ``loss`` and what the method reads.
            epoch: in which they were measured.
        """
        self.observe(statistics, indices, values, epoch)
        statistics.record(indices, values, epoch.index)

    def observe(self, statistics: SampleStatistics, rows: Tensor, values: Mapping[str, Tensor], epoch: Epoch) -> None:  # noqa: B027
        """Bring :attr:`columns` up to date, before the last values in ``statistics`` are replaced; no device synchronisation.

        Args:
            statistics: of all samples; its ``extra`` holds the columns.
            rows: ``int64[b]``, the samples that were recorded; of one that comes twice (draw family only) the last row counts.
            values: of them, each ``[b]``: ``loss`` and what the method reads.
            epoch: which epoch.
        """

    def scoring_epochs(self, max_epochs: int | None) -> int:
        """A static method trains so many epochs on everything, chooses once, and starts a training of ``max_epochs`` again; else 0."""
        return 0

    def stream_samples(self, num_samples: int, batch_size: int) -> int | None:
        """How many draws an epoch has that is drawn while it is trained; ``None`` when every epoch is a fixed set."""
        return None

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:  # noqa: B027
        """Raise ``ValueError`` when the settings do not fit a run of this many epochs or a data set of this length."""

    def check_data(self, fingerprint: str) -> None:  # noqa: B027
        """Raise ``ValueError`` when a setting is of another data set than the one with this fingerprint."""

    def contents(self) -> dict[str, str]:
        """Hashes of what settings only name (files), by name; a resumed run compares them with the checkpoint's."""
        return {}

    def check_classes(self, targets: Tensor) -> None:  # noqa: B027
        """Warn when a setting names classes that are not among ``targets`` (``int64[N]``)."""
