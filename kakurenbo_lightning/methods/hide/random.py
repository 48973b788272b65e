"""Hide a random part: the first control of every comparison."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.permutation import shuffled
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, proportion, setting
from kakurenbo_lightning.methods.topk import as_decimal, mask_of

if TYPE_CHECKING:
    from torch import Tensor


@register_method("random")
@dataclass(frozen=True)
class RandomHiding(HideMethod):
    """Each epoch hides a uniform ``floor(max_fraction * N)`` of the samples."""

    max_fraction: float = setting(
        0.3,
        proportion(),
        "F, the share of the data set that is hidden in every epoch; read as a decimal, 0.29 of 100 is 29",
        fix="For example: 0.3 hides 30 %.",
    )

    summary: ClassVar[str] = "hides a uniformly drawn part of the samples"
    reads: ClassVar[tuple[str, ...]] = ()
    knows_keep_probability: ClassVar[bool] = True
    needs_all_rows: ClassVar[str] = ""

    @property
    def largest_fraction(self) -> Fraction:
        """F, the setting ``max_fraction``, as a decimal."""
        return as_decimal(self.max_fraction)

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Draw from the epoch's own random stream."""
        total = statistics.total
        hidden = self.hidden_count(total, epoch)
        everyone = torch.ones(len(statistics), dtype=torch.bool)
        return Choice(statistics.spread.some(everyone, hidden, epoch.generator()), keep_probability=(total - hidden) / total)


@register_method("random_cycle")
@dataclass(frozen=True)
class RandomCycle(RandomHiding):
    """Epoch after epoch takes the next ``N - floor(max_fraction * N)`` samples of a permutation, then of a new one.

    No sample is trained a second time before every other one was. An epoch that ends one permutation begins the next with samples it
    has not had yet, so that none comes twice in it.
    """

    summary: ClassVar[str] = "takes the next part of one random permutation after another"
    paper: ClassVar[str] = "Okanovic et al., ICLR 2024 (RS2)"
    needs_all_rows: ClassVar[str] = "it goes on in one permutation of all samples from epoch to epoch"

    def check_settings(self) -> None:
        """Refuse ``balance="rcap"``: the lengths of all epochs must be known beforehand."""
        super().check_settings()
        checker(self)(
            self.balance != "rcap",
            "balance",
            "None or 'class', because the place in a permutation goes by the lengths of all epochs, and with 'rcap' losses decide them",
            "Use random, or balance='class'.",
        )

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """Hide all but the next part of the permutation; the same whenever it is asked for."""
        total = len(statistics)
        ends = self._ends(total, epoch)
        rounds, number = divmod((epoch.index - self.start_epoch) // self.every_n_epochs, len(ends) - 1)
        taken = ends[number + 1] - ends[number]
        cycle, place = divmod(rounds * ends[-1] + ends[number], max(1, total))
        rows = self._permutation(cycle, total, ends, epoch)[place : place + taken]
        if len(rows) < taken:
            rows = torch.cat([rows, self._permutation(cycle + 1, total, ends, epoch)[: taken - len(rows)]])
        return Choice(~mask_of(rows, total), keep_probability=taken / max(1, total))

    def _ends(self, total: int, epoch: Epoch) -> tuple[int, ...]:
        """Where the epochs of a round of ``fraction_schedule`` end, in samples trained since its start; the first number is 0."""
        epochs = self._round(epoch)[0] if self.fraction_schedule else [epoch]
        return 0, *accumulate(total - self.hidden_count(total, each) for each in epochs)

    @cached_property
    def _made(self) -> dict[Any, dict[int, Tensor]]:
        """The last two permutations of each part, by number: only to save making them again."""
        return {}

    def _permutation(self, cycle: int, total: int, ends: tuple[int, ...], epoch: Epoch) -> Tensor:
        """Permutation number ``cycle``; each is made from the one before, so a resumed run makes all of them, once."""
        made = self._made.setdefault((total, ends, epoch.seed, epoch.part), {})
        if cycle not in made:
            first = max((number for number in made if number < cycle), default=-1)
            for number in range(first + 1, cycle + 1):
                since = number * total % ends[-1]  # samples of this round that were trained before this permutation
                had = since - ends[bisect_right(ends, since) - 1]
                made[number] = _following(made.get(number - 1), total, had, epoch.generator(number))
                made.pop(number - 2, None)
        return made[cycle]


def _following(before: Tensor | None, total: int, had: int, generator: torch.Generator) -> Tensor:
    """A permutation in which the last ``had`` of the one before, which its first epoch has had already, come last."""
    order = shuffled(torch.arange(total), generator)
    if before is None or had == 0:
        return order
    late = mask_of(before[total - had :], total)[order]
    return torch.cat([order[~late], order[late]])
