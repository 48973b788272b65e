"""The draw family (PoD): every sample has a probability of being drawn, and batches are drawn by it, with replacement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from math import ceil
from typing import TYPE_CHECKING, ClassVar

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import EpochPlan, Plan, StreamPlan
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch, Method, RefreshMode
from kakurenbo_lightning.methods.settings import checker, flag, integer, number, optional, proportion, setting
from kakurenbo_lightning.methods.topk import as_decimal, lowest

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST, LARGEST = 1e-37, 1e37  # allowed range of a value, in float32


@dataclass(frozen=True)
class DrawMethod(Method):
    """A method that draws samples with probability ``p_i = (1 - mix) * v_i / sum(v) + mix / N``.

    The value ``v_i = min(b_i, cap) ** temperature`` comes from the base value ``b_i``, which :meth:`base` computes from what was last
    observed of the sample (:attr:`observes`).

    Attributes:
        observes: which value of a sample is observed: ``loss``, ``entropy`` or ``wrong`` (1 if misclassified, else 0); "" for none.
        column: the column of the statistics that holds it.
        repeats: whether a sample may be drawn more than once in an epoch.
    """

    _: KW_ONLY
    unbiased: bool = setting(
        False,
        flag(),
        "a drawn sample gets the loss weight 1 / (N p_i), where p_i is the probability it was drawn with, so that the "
        "expected gradient of each step is that of the full data set; with `mix` the weight is at most 1 / `mix`",
        fix="True adds weights.",
    )
    min_value: float = setting(
        1e-6,
        number(0, 1, above=True),
        "lower bound of a written value, as a share of the mean of all values, so that every sample can be drawn again",
        fix="It is a share of the mean value.",
    )
    temperature: float = setting(
        1.0,
        number(0),
        "T of p ~ b ^ T: 0 draws uniformly (where values are never normalised), above 1 sharpens",
        fix="1 is p ~ b.",
    )
    mix: float = setting(0.0, number(0, 1), "share of the draws that are uniform", fix="0.1 draws a tenth uniformly.")
    cap_quantile: float = setting(
        1.0,
        number(0, 1, above=True),
        "base values above this quantile over all samples are reduced to the quantile, so that the hardest samples, "
        "which are often mislabelled, do not dominate; computed when an epoch is planned",
        fix="1 caps nothing.",
    )

    family: ClassVar[str] = "draw"
    needs_places: ClassVar[str] = "it draws samples by their index, and those of iterable data come by themselves"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    repeats: ClassVar[bool] = True
    observes: ClassVar[str] = "loss"

    def check_settings(self) -> None:
        """Check that the observed value is among the values that are read."""
        super().check_settings()
        known = ("loss", "confidence", "correct", *(column.name for column in self.columns))
        read = "correct" if self.observes == "wrong" else self.observes
        if read and (read not in known or read not in self.reads):
            raise ValueError(
                f"{self.name}: observes={self.observes!r} is not allowed; it must be loss, confidence, correct, wrong (reads correct) "
                "or the name of one of its columns, and what it reads must be among `reads`, as in reads = ('loss', 'correct')"
            )

    @property
    def weighs(self) -> bool:
        """Whether drawn samples carry loss weights, which is the setting ``unbiased``."""
        return self.unbiased

    def observed(self, values: Mapping[str, Tensor]) -> Tensor:
        """Compute what is observed of samples, ``float32[n]``, from their ``values``."""
        return (~values["correct"] if self.observes == "wrong" else values[self.observes]).float()

    def known(self, statistics: SampleStatistics) -> Tensor:
        """What was last observed of every sample, ``float32[N]`` on the CPU; NaN if it never was."""
        own = {name: getattr(statistics, name) for name in ("loss", "confidence", "correct")}
        columns = {**own, **statistics.extra}
        return torch.where(statistics.measured, self.observed(columns), float("nan")).cpu()

    def base(self, observed: Tensor) -> Tensor:
        """Convert observations to base values, both ``float32[n]``."""
        return observed

    def cap(self, statistics: SampleStatistics) -> float:
        """The upper limit of base values, computed from those of all samples."""
        if self.cap_quantile == 1:
            return float("inf")
        known = self.known(statistics)
        base = self.base(known[known.isfinite()]).numpy()
        if not len(base):
            return float("inf")
        # as_decimal, because 0.07 * 100 is 7.000000000000001 in floating point, which ceil would make 8
        place = ceil(as_decimal(self.cap_quantile) * len(base)) - 1
        base.partition(place)
        return max(0.0, float(base[place]))

    def values(self, observed: Tensor, cap: float = float("inf")) -> Tensor:
        """``min(base, cap) ** temperature``, ``float32[n]``; not finite where the observation is not finite."""
        base = self.base(observed)
        if base.shape != observed.shape:
            raise ValueError(
                f"{self.name}: base(observed) returned the shape {list(base.shape)} for {list(observed.shape)}; it must return one value "
                "for each sample, >= 0"
            )
        known = observed.isfinite().logical_and_(base.isfinite())
        return torch.where(known, (base.clamp(min=0, max=cap) ** self.temperature).clamp(max=LARGEST), float("nan"))

    def all_values(self, statistics: SampleStatistics) -> Tensor:
        """The values of all samples, ``float32[N]`` on the CPU, finite and positive. A sample without a finite value gets the mean of
        the others.
        """
        values = self.values(self.known(statistics), self.cap(statistics))
        finite = values.isfinite()
        mean = float(values[finite].double().mean()) if finite.any() else 1.0
        # all values are 0, or their sum overflows: draw uniformly
        if not 0 < mean < float("inf"):
            return torch.ones_like(values)
        return torch.where(finite, values, mean).clamp(min=max(SMALLEST, self.min_value * mean))

    def rows_to_score(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None) -> Tensor:
        """Samples (``int64[n]`` on the CPU, ascending) that a scoring pass scores before ``epoch``."""
        return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class StreamMethod(DrawMethod):
    """A method whose epoch is a stream: each batch is drawn when it is needed, and after each step the observations of the drawn
    samples update their values.

    Attributes:
        normalised: whether stored values are probabilities that are rescaled to a sum of 1 after every step. Newly written values are
            not rescaled before.
        scores_first: whether a scoring pass comes before the first drawn epoch.
    """

    _: KW_ONLY
    epoch_length: int | None = setting(
        None,
        optional(integer(1)),
        "number of batches of an epoch, over all ranks; `None`: ceil(N / batch size)",
        unit="batches",
        fix="It counts batches.",
    )
    pretrain_epochs: int = setting(
        0,
        integer(),
        "number of ordinary epochs before the stream, which starts with their losses",
        unit="epochs",
        fix="For example: 1.",
    )
    start_pass: bool = setting(
        False,
        flag(),
        "score every sample before the stream starts, even those trained in pretraining epochs; samples that were not "
        "trained are scored in any case",
        fix="True scores everything once.",
    )
    max_staleness: int | None = setting(
        None,
        optional(integer()),
        "largest number of steps between a draw and the newest values it used, at least `exchange_every` - 1; `None`: "
        "as many as workers prefetch",
        unit="steps",
        fix="0 draws in the main process, one batch at a time.",
    )
    exchange_every: int = setting(
        1,
        integer(1),
        "number of steps between two exchanges of observations among ranks: a larger number means less traffic and "
        "staler values; a single rank writes them after each step",
        unit="steps",
        fix="1 exchanges after every step.",
    )
    refresh_share: float = setting(
        0.0,
        proportion(),
        "share r of all forward passes that is spent on scoring the stalest samples: r / (1 - r) for each draw of an "
        "epoch, N at most",
        fix="0.1 spends a tenth of the forward passes.",
    )
    diagnose: int = setting(
        0,
        integer(),
        "number of samples to score before each drawn epoch, only to report how accurate the stored values are; it "
        "advances the random streams of workers that augment (except with `SeededDataset`)",
        unit="samples",
        fix="1000 are enough to see a trend.",
    )

    normalised: ClassVar[bool] = False
    scores_first: ClassVar[bool] = True

    def check_settings(self) -> None:
        """Check that values may be as stale as ``exchange_every`` makes them."""
        super().check_settings()
        least = self.exchange_every - 1
        checker(self)(
            self.max_staleness is None or self.max_staleness >= least,
            "max_staleness",
            f"None or an integer >= exchange_every - 1 = {least}",
            "Raise it, or lower exchange_every.",
        )

    @property
    def refresh_mode(self) -> RefreshMode | None:
        """Eval mode if there may be a scoring pass, else ``None``."""
        return "eval" if self.scores_first or self.refresh_share or self.diagnose else None

    @property
    def draws_ahead(self) -> int | None:
        """Number of batches that may be drawn before they are trained; ``None`` for any number."""
        return None if self.max_staleness is None else self.max_staleness - (self.exchange_every - 1)

    def streams(self, epoch: Epoch) -> bool:
        """Whether ``epoch`` is drawn as a stream, instead of being an ordinary pretraining epoch."""
        return epoch.index >= self.pretrain_epochs

    def written(self, observed: Tensor, stored: Tensor, cap: float, num_samples: int) -> Tensor:
        """Compute the new values of drawn samples.

        Args:
            observed: ``float32[n]``, observations of their training step.
            stored: ``float64[n]``, their previous values (probabilities if :attr:`normalised`).
            cap: upper limit of base values.
            num_samples: N.

        Returns:
            ``float[n]``, on the scale of ``stored``. Values that are not finite are not written.
        """
        return self.values(observed, cap)

    def epoch_batches(self, num_samples: int, batch_size: int) -> int:
        """Number of batches in an epoch, over all ranks."""
        return self.epoch_length or -(-num_samples // batch_size)

    def stream_samples(self, num_samples: int, batch_size: int) -> int:
        """Number of samples drawn in an epoch: that of its batches times the batch size, because every drawn batch is full."""
        return self.epoch_batches(num_samples, batch_size) * batch_size

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """Warn if all epochs are pretraining epochs, so that nothing is ever drawn."""
        if max_epochs is not None and self.pretrain_epochs >= max_epochs:
            rank_zero_warn(
                f"{self.name}: pretrain_epochs={self.pretrain_epochs} with max_epochs={max_epochs}: every epoch is an ordinary one and "
                "nothing is drawn; pretrain for fewer epochs, or train for more"
            )

    def plan(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None = None) -> Plan:
        """Return a stream, or, for a pretraining epoch, a plan that trains every sample once."""
        total = len(statistics)
        if not self.streams(epoch):
            return EpochPlan.everything(total)
        return StreamPlan(total, self.stream_samples(total, epoch.batch_size or 1))

    def rows_to_score(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None) -> Tensor:
        """Samples never seen, or before the first drawn epoch all with ``start_pass``, before later ones also the stalest."""
        if epoch.index < self.pretrain_epochs:
            return super().rows_to_score(statistics, epoch, previous)
        seen, total = statistics.epoch_seen.cpu(), len(statistics)
        rows = (seen < 0).logical_and_(torch.tensor(self.scores_first))
        if epoch.index == self.pretrain_epochs:
            rows |= self.start_pass
        elif self.refresh_share:
            share = as_decimal(self.refresh_share)
            drawn = total if epoch.batch_size is None else self.epoch_batches(total, epoch.batch_size) * epoch.batch_size
            count = min(total, int(share / (1 - share) * drawn))
            rows |= lowest(seen.float(), count, torch.ones(total, dtype=torch.bool), epoch.generator())
        return rows.nonzero().squeeze(1)
