"""The hide family: one pure function of the statistics says what an epoch leaves out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.core.key_plan import KeyPlan
from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.plan import EpochPlan, Plan, SetPlan, StreamPlan
from kakurenbo_lightning.core.spread import ALONE, Spread
from kakurenbo_lightning.core.statistics import TARGET, SampleStatistics
from kakurenbo_lightning.core.universe import Universe
from kakurenbo_lightning.methods.base import Epoch, Method
from kakurenbo_lightning.methods.hide.shares import alternated, clipped_losses, number_of, parts_of, rcap_fractions
from kakurenbo_lightning.methods.settings import (
    checker,
    choice,
    flag_or_choice,
    integer,
    number,
    optional,
    proportion,
    setting,
    several,
)
from kakurenbo_lightning.methods.topk import as_decimal, exact_floor

if TYPE_CHECKING:
    from torch import Tensor


def refresh_setting() -> Any:
    """The setting ``refresh_mode`` of the methods whose hidden samples are refreshed."""
    return setting(
        "eval",
        choice("eval", "train"),
        "mode of the scoring pass over the hidden samples; `'train'`, as in published code, changes BatchNorm's running statistics",
        fix="Use 'eval' unless you reproduce the paper's code.",
    )


@dataclass(frozen=True)
class Choice:
    """What a method chose for an epoch, or for one part of its samples.

    Attributes:
        hidden: ``bool[n]``, the samples to leave out.
        keep_probability: ``float[n]``, or one number: with which probability a sample was kept, where that is known.
        metrics: counts to log, as ``selection/<key>``.
    """

    hidden: Tensor
    keep_probability: Tensor | float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HideMethod(Method):
    """A method of the hide family: an epoch trains on a part of the samples.

    A method is a frozen dataclass that derives from this one: its fields are its settings, and :meth:`choose` says what to hide.

    Attributes:
        knows_keep_probability: whether its choices carry :attr:`Choice.keep_probability`.
        share_setting: name of the one setting in proportion to which it hides, where it has that: ``save`` sets it.

    Raises:
        ValueError: a setting out of range.
    """

    _: KW_ONLY
    start_epoch: int = setting(
        0, integer(), "the first epoch that may hide; static methods count from the restart", fix="For example: 2."
    )
    end_fraction: float = setting(
        0.0,
        proportion(),
        "the last epochs train on everything, so many as this share of `max_epochs`",
        fix="For example: 0.1 leaves the last tenth.",
    )
    every_n_epochs: int = setting(
        1,
        integer(1),
        "a choice is kept for so many epochs; the refresh comes only before a new one",
        unit="epochs",
        fix="1 chooses in each epoch.",
    )
    protected: tuple[int, ...] = setting(
        (),
        several(integer(), "a list of data set indices"),
        "samples that are never hidden; the method chooses from the others, and its fraction is of them",
        fix="For example: [0, 17].",
    )
    protected_classes: tuple[int, ...] = setting(
        (),
        several(integer(), "a list of classes"),
        "classes that are never hidden; the method chooses from the others, and its fraction is of them",
        fix="For example: [0, 17].",
    )
    balance: Literal["class", "rcap"] | None = setting(
        None,
        optional(choice("class", "rcap")),
        "the method chooses from each class by itself; `'class'`: its fraction holds in each; `'rcap'`: each class keeps in proportion to "
        "sqrt(its mean loss x its share of all samples), and the fraction holds in all together",
        fix="'class' holds the fraction in each class.",
    )
    fraction_schedule: tuple[float, ...] = setting(
        (),
        several(number(0), "a list of numbers >= 0"),
        "factors, one choice after the other, again and again, on the mean hidden fraction of their round (milestones are averaged over "
        "it); their mean is 1, so that a round hides as much as without them; empty: the fraction stays",
        fix="For example: [1.5, 1.5, 0.5, 0.5].",
    )
    unbiased: bool | Literal["epoch", "step"] = setting(
        False,
        flag_or_choice("epoch", "step"),
        "`'epoch'`, or True: kept samples carry the loss weight 1 / (probability of being kept), so that an epoch's gradients add up to "
        "those of the full data set, in expectation, and each of its fewer steps has 1 / (share kept) times that of an ordinary one; "
        "`'step'`: these weights times the share kept, so that each step's expected gradient is that of the full data set; only for "
        "methods that draw",
        fix="True adds weights.",
    )

    family: ClassVar[str] = "hide"
    changes_batches: ClassVar[bool] = True
    knows_keep_probability: ClassVar[bool] = False
    share_setting: ClassVar[str | None] = "max_fraction"

    @property
    def largest_fraction(self) -> Fraction | None:
        """The largest share of the samples that an epoch may hide, where the settings say it; ``None`` where no fraction does.

        A method that has one asks :meth:`hidden_count` or :meth:`hidden_share` how much it is in an epoch.
        """
        return None

    def check_settings(self) -> None:
        """Refuse ``unbiased`` without a probability of being kept, and settings of the fraction without a fraction."""
        super().check_settings()
        self._check_fraction()
        checker(self)(
            self.knows_keep_probability or not self.unbiased,
            "unbiased",
            f"False, because {self.name} hides by a rule and no sample has a known probability of being kept",
            "Use unbiased=False, or a method that draws: infobatch, random, random_cycle.",
        )

    def _check_fraction(self) -> None:
        check, schedule, largest = checker(self), self.fraction_schedule, self.largest_fraction
        why = f"because no fraction says how much {self.name} hides"
        known = "Use a method that has one, for example kakurenbo, random, infobatch, orderdp or forget_online."
        check(largest is not None or not schedule, "fraction_schedule", f"empty, {why}", known)
        check(largest is not None or self.balance != "rcap", "balance", f"None or 'class', {why}", known)
        if largest is None or not schedule:
            return
        factors = [as_decimal(factor) for factor in schedule]
        check(
            sum(factors) == len(factors),
            "fraction_schedule",
            "a list of numbers >= 0 whose mean is 1",
            "For example: [1.5, 1.5, 0.5, 0.5].",
        )
        check(
            largest * max(factors) < 1,
            "fraction_schedule",
            f"factors below {float(1 / largest) if largest else math.inf:g}, with which the fraction {float(largest):g} stays below 1",
            "Something must be left to train.",
        )

    def fixed_fraction(self, epoch: Epoch) -> Fraction:
        """The share of the samples that ``epoch`` may hide, without ``fraction_schedule``."""
        return self.largest_fraction or Fraction(0)

    def fixed_count(self, total: int, epoch: Epoch) -> int:
        """How many of ``total`` samples :meth:`fixed_fraction` is, rounded down."""
        return exact_floor(self.fixed_fraction(epoch), total)

    def hidden_share(self, epoch: Epoch) -> Fraction:
        """The share of the samples that ``epoch`` may hide, in all of them or in the part that is chosen from."""
        if epoch.fraction is not None:
            return epoch.fraction
        if not self.fraction_schedule:
            return self.fixed_fraction(epoch)
        epochs, place = self._round(epoch)
        return sum(map(self.fixed_fraction, epochs), Fraction(0)) / len(epochs) * as_decimal(self.fraction_schedule[place])

    def hidden_count(self, total: int, epoch: Epoch) -> int:
        """How many of the ``total`` samples of a part ``epoch`` may hide; a round of a schedule hides exactly as many as without."""
        if epoch.fraction is not None:
            return exact_floor(epoch.fraction, total)
        if not self.fraction_schedule:
            return self.fixed_count(total, epoch)
        epochs, place = self._round(epoch)
        return alternated([self.fixed_count(total, each) for each in epochs], self.fraction_schedule, place)

    def _round(self, epoch: Epoch) -> tuple[list[Epoch], int]:
        """The epochs of the choices of a round of ``fraction_schedule``, and which of them the choice of ``epoch`` is."""
        number, length = (epoch.index - self.start_epoch) // self.every_n_epochs, len(self.fraction_schedule)
        choices = range(number - number % length, number - number % length + length)
        return [replace(epoch, index=self.start_epoch + k * self.every_n_epochs) for k in choices], number % length

    @abstractmethod
    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Choose what ``epoch`` hides. Pure: equal inputs give equal choices on every rank and device.

        Args:
            statistics: of the samples to choose from, n of them: all, or without the protected ones, or those of a class. Where each rank
                has the rows of a share (see ``needs_all_rows``), n are this rank's, and ``statistics.spread`` knows of all of them.
            epoch: which epoch; its :meth:`~Epoch.generator` is the only source of randomness.
        """

    def lr_factor(self, statistics: SampleStatistics, epoch: Epoch, hidden_share: Fraction) -> float:
        """Factor on the learning rate of an epoch that hides ``hidden_share`` of the data set."""
        return 1.0

    def within(self, universe: Universe) -> HideMethod:
        """The method for ``universe``: protected samples become places in it; those outside are never trained."""
        if universe.indices is None or not self.protected:
            return self
        protected = torch.tensor(self.protected)
        inside = protected[torch.isin(protected, universe.indices)]
        return replace(self, protected=tuple(universe.places(inside).tolist()))

    def check_run(self, max_epochs: int | None, num_samples: int) -> None:
        """Raise ``ValueError`` when the settings do not fit a run of this many epochs or a data set of this length."""
        check = checker(self)
        check(
            self.end_fraction == 0 or max_epochs is not None,
            "end_fraction",
            "0 in a run without an end",
            "Set Trainer(max_epochs=...), of which it is a share.",
        )
        check(
            all(index < num_samples for index in self.protected),
            "protected",
            f"data set indices below {num_samples}",
            "They count from 0.",
        )

    def check_classes(self, targets: Tensor) -> None:
        """Warn of a protected class that there is not."""
        known = targets.unique().tolist()
        if absent := sorted(set(self.protected_classes) - set(known)):
            rank_zero_warn(
                f"{self.name}: protected_classes={absent} are not among the {len(known)} classes of the data set"
                + (f" ({known[0]} to {known[-1]})" if known else "")
            )

    @property
    def weighs(self) -> bool:
        """Whether steps carry loss weights: when the method shall be unbiased."""
        return bool(self.unbiased)

    @property
    def needs_classes(self) -> bool:
        """Whether classes must be known, to balance or to protect them."""
        return self.balance is not None or bool(self.protected_classes)

    def chooses_in(self, epoch: Epoch) -> bool:
        """Whether a new choice is made in ``epoch``, rather than kept, or everything trained."""
        index = self._since_restart(epoch).index - self.start_epoch
        is_due = index == 0 if self._scoring(epoch) else index % self.every_n_epochs == 0
        return self._hides_in(epoch) and is_due

    def _since_restart(self, epoch: Epoch) -> Epoch:
        return replace(epoch, index=epoch.index - self._scoring(epoch))

    def _scoring(self, epoch: Epoch) -> int:
        return self.scoring_epochs(epoch.max_epochs) if epoch.scoring is None else epoch.scoring

    def _hides_in(self, epoch: Epoch) -> bool:
        index = self._since_restart(epoch).index
        if index < self.start_epoch:
            return False
        if not self.end_fraction or epoch.max_epochs is None:
            return True
        return index < int((1 - as_decimal(self.end_fraction)) * epoch.max_epochs)

    def plan(self, statistics: SampleStatistics, epoch: Epoch, previous: Plan | None = None) -> EpochPlan | SetPlan | KeyPlan:
        """Choose what ``epoch`` trains, or keep the choice of the epoch before.

        Args:
            statistics: of all N samples, the same on every rank.
            epoch: which epoch.
            previous: the plan of the epoch before, which some epochs keep.
        """
        if not self._hides_in(epoch):
            return statistics.spread.everything(statistics.total)
        kept = None if isinstance(previous, StreamPlan) or self.chooses_in(epoch) else previous
        scoring, epoch = self._scoring(epoch), self._since_restart(epoch)
        # a static method's is the same whenever it is made
        of_choice = replace(epoch, index=self.start_epoch) if scoring else epoch
        choose = self._chosen if statistics.spread is ALONE else self._chosen_of_share
        plan = choose(statistics, of_choice) if kept is None else kept
        return plan.with_lr_factor(self.lr_factor(statistics, epoch, Fraction(plan.hidden_count, max(1, statistics.total))))

    def _chosen_of_share(self, statistics: SampleStatistics, epoch: Epoch) -> EpochPlan | SetPlan:
        """:meth:`_chosen` where each rank has the rows of a share of the samples; without classes, which need all rows."""
        spread, hidden = statistics.spread, torch.zeros(len(statistics), dtype=torch.bool)
        weights = torch.ones(len(statistics), dtype=torch.float64) if self.unbiased else None
        among, rows = statistics.without(self.protected)
        if not among.total:
            return spread.everything(statistics.total)
        choice, place = self.choose(among, epoch), slice(None) if rows is None else rows
        hidden[place] = self._checked(choice, len(among))
        if weights is not None and choice.keep_probability is not None:
            weights[place] = 1 / torch.as_tensor(choice.keep_probability, dtype=torch.float64, device="cpu")
        return spread.plan(hidden, dict(choice.metrics), self._for_step(weights, hidden, spread))

    def _chosen(self, statistics: SampleStatistics, epoch: Epoch) -> EpochPlan:
        classes = statistics.extra[TARGET.name].cpu().numpy() if self.needs_classes else None
        epoch = replace(epoch, classes=None if classes is None else number_of(classes))
        rows, parts = parts_of(len(statistics), classes, self.protected, self.protected_classes, self.balance is not None)
        among = statistics if rows is None else statistics.subset(rows)
        fractions: Sequence[Fraction | None] = [None] * len(parts)
        if self.balance == "rcap" and parts:
            kept = len(among) - self.hidden_count(len(among), epoch)
            fractions = rcap_fractions(clipped_losses(among.loss.cpu().numpy(), epoch.classes), parts, kept)
        hidden = torch.zeros(len(among), dtype=torch.bool)
        weights = torch.ones(len(among), dtype=torch.float64) if self.unbiased else None
        metrics: Counter[str] = Counter()
        for (part, place), fraction in zip(parts, fractions, strict=True):
            epoch_of_part = replace(epoch, part=part, fraction=fraction)
            choice = self.choose(among if len(parts) == 1 else among.subset(place), epoch_of_part)
            hidden[place] = self._checked(choice, len(hidden[place]))
            if weights is not None and choice.keep_probability is not None:
                weights[place] = 1 / torch.as_tensor(choice.keep_probability, dtype=torch.float64, device="cpu")
            metrics.update(choice.metrics)
        if rows is not None:
            hidden = torch.zeros(len(statistics), dtype=torch.bool).index_copy_(0, rows, hidden)
            weights = None if weights is None else weights.new_ones(len(statistics)).index_copy_(0, rows, weights)
        return EpochPlan.hide(hidden, metrics=dict(metrics), weights=self._for_step(weights, hidden))

    def _for_step(self, weights: Tensor | None, hidden: Tensor, spread: Spread = ALONE) -> Tensor | None:
        """Loss weights as steps carry them, ``float32[N]`` or ``None`` for 1, of those by which an epoch is unbiased, ``float64[N]``."""
        if weights is None:
            return None
        if self.unbiased == "step":
            weights = weights * (spread.count(~hidden) / spread.total(len(hidden)))
        weights = weights.float()
        return weights if spread.count(weights != 1) else None

    def _checked(self, choice: Choice, count: int) -> Tensor:
        """Check that ``choice`` is one, and return what it hides: ``bool[count]`` on the CPU."""
        hidden = getattr(choice, "hidden", choice)
        if (
            isinstance(choice, Choice)
            and isinstance(hidden, torch.Tensor)
            and hidden.dtype is torch.bool
            and hidden.shape == (count,)
        ):
            return hidden.cpu()
        found = f"{hidden.dtype}{list(hidden.shape)}" if isinstance(hidden, torch.Tensor) else type(hidden).__name__
        what = f"Choice({found})" if isinstance(choice, Choice) else found
        raise TypeError(
            f"{self.name}: choose(...) must return Choice(hidden) with hidden a torch.bool[{count}] tensor, it returned {what}"
        )
