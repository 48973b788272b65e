"""What a selection method is: frozen settings and one pure function of the statistics."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from kakurenbo_lightning.plan import EpochPlan
from kakurenbo_lightning.seeding import stream_generator
from kakurenbo_lightning.statistics import SampleStatistics

RefreshMode = Literal["eval", "train"]


@dataclass(frozen=True)
class Epoch:
    """Which epoch is planned.

    Attributes:
        index: counted from 0.
        max_epochs: length of the run in epochs, or ``None`` when it has no end.
        seed: of the run; the same on every rank.
    """

    index: int
    max_epochs: int | None = None
    seed: int = 0

    def generator(self) -> torch.Generator:
        """The method's own random stream of this epoch, the same on every rank."""
        return stream_generator(self.seed, self.index, "method")


@runtime_checkable
class HideMethod(Protocol):
    """A method of the hide family: an epoch trains on a part of the samples.

    Implementations are frozen dataclasses: the fields are the settings, checked in ``__post_init__``.

    Attributes:
        name: as registered.
        family: ``"hide"``.
        summary: one line for tables and the log.
        paper: where it is from.
        reads: the statistics columns it needs (of ``loss``, ``confidence``, ``correct``).
        refresh_mode: mode of the forward-only pass over the hidden samples after the epoch, ``None`` for no pass.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    refresh_mode: RefreshMode | None

    def check_run(self, max_epochs: int | None) -> None:
        """Raise ``ValueError`` when the settings do not fit a run of this many epochs."""

    def plan(self, statistics: SampleStatistics, epoch: Epoch) -> EpochPlan:
        """Select what ``epoch`` trains. Pure: equal inputs give equal plans on every rank and device."""


def exact_floor(fraction: float | Fraction, count: int) -> int:
    """``floor(fraction * count)`` with the fraction read as the decimal it is written as (0.29 of 100 is 29)."""
    return int(as_decimal(fraction) * count)


def as_decimal(value: float | Fraction) -> Fraction:
    """``value`` as the decimal it is written as: 0.3 is 3/10."""
    return value if isinstance(value, Fraction) else Fraction(str(value))


def lowest(values: Tensor, count: int, eligible: Tensor) -> Tensor:
    """Mask (``bool[N]``) of the ``count`` eligible samples of lowest finite ``values`` (``float[N]``); ties: lower index first.

    Fewer are marked when fewer are eligible. Linear in N, no sort.
    """
    infinity = float("inf")
    eligible = (values < infinity).logical_and_(values > -infinity).logical_and_(eligible)
    count = min(count, int(eligible.count_nonzero()))
    if count <= 0:
        return torch.zeros_like(eligible)
    threshold = _kth_smallest(torch.where(eligible, values, infinity), count)
    chosen = (values < threshold).logical_and_(eligible)
    missing = count - int(chosen.count_nonzero())
    ties = (values == threshold).logical_and_(eligible).nonzero().squeeze(1)
    chosen[ties[:missing]] = True
    return chosen


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest of ``values``, counted from 1; may reorder them."""
    if values.device.type == "cpu":  # NumPy's partition is 18 times as fast as torch.kthvalue there
        values.numpy().partition(k - 1)
        return values[k - 1].clone()
    # not kthvalue, which torch 2.6 refuses on CUDA under deterministic algorithms
    return values.topk(k, largest=False, sorted=False).values.max()


def require(condition: bool, method: str, setting: str, value: object, allowed: str, fix: str) -> None:
    """Raise the ``ValueError`` every bad setting gets: the setting, its value, what is allowed, the fix."""
    if not condition:
        raise ValueError(f"{method}: {setting}={value!r} is not allowed; {setting} must be {allowed}. {fix}")


def require_fraction(method: str, setting: str, value: object) -> None:
    """A share of the data set: a number in [0, 1)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    require(number and 0 <= value < 1, method, setting, value, "a number in [0, 1)", "For example: 0.3 hides 30 %.")
