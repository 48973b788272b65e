"""RCAP: classes keep more samples where their loss is high, and of a class those of high loss are drawn more often.

Atif Hassan, Swanand Khare, Jiaul H. Paik: "RCAP: Robust, Class-Aware, Probabilistic Dynamic Dataset Pruning", UAI 2025.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.base import Epoch
from kakurenbo_lightning.methods.hide.base import Choice, HideMethod
from kakurenbo_lightning.methods.hide.shares import clipped_losses
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import choice, number, optional, proportion, setting
from kakurenbo_lightning.methods.topk import as_decimal, lowest

FARTHEST = -1e30  # a key of the samples of lowest loss, finite however small beta is


@register_method("rcap")
@dataclass(frozen=True)
class RCAP(HideMethod):
    """RCAP (Hassan et al., UAI 2025).

    ``balance="rcap"`` says how many samples of each class an epoch keeps. They are drawn without replacement, with probabilities
    proportional to exp(loss / ``beta``), losses above that of a guess counting as it.
    """

    max_fraction: float = setting(
        0.3,
        proportion(),
        "F, the share of the data set that is hidden in every epoch; read as a decimal, 0.29 of 100 is 29",
        fix="For example: 0.3 hides 30 %.",
    )
    beta: float = setting(
        1.0,
        number(0, above=True),
        "temperature of the draw within a class; the lower, the more samples of high loss; published 1/3 to 3",
    )
    _: KW_ONLY
    balance: Literal["class", "rcap"] | None = setting(
        "rcap",
        optional(choice("class", "rcap")),
        "`'rcap'`: each class keeps in proportion to sqrt(its mean loss x its share of all samples); `'class'`: each the same share of its "
        "samples; None: one draw from all",
        fix="'rcap' is the published method.",
    )

    summary: ClassVar[str] = "keeps more of the classes of high loss, and draws samples of high loss more often"
    paper: ClassVar[str] = "Hassan et al., UAI 2025"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    needs_all_rows: ClassVar[str] = "it draws from the samples of each class, by the losses of all of its samples"
    needs_classes: ClassVar[bool] = True  # also for the loss of a guess

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance != "rcap":
            object.__setattr__(self, "summary", "draws samples of high loss more often")

    @property
    def largest_fraction(self) -> Fraction:
        """F, the setting ``max_fraction``, as a decimal."""
        return as_decimal(self.max_fraction)

    def choose(self, statistics: SampleStatistics, epoch: Epoch) -> Choice:
        """A draw from the epoch's own stream, by keys whose order is that of drawing one sample after the other (Gumbel)."""
        loss = torch.from_numpy(clipped_losses(statistics.loss.cpu().numpy(), epoch.classes))
        logits = ((loss - loss.max()) / self.beta).clamp_(min=FARTHEST)
        uniform = torch.rand(len(loss), dtype=torch.float64, generator=epoch.generator())
        keys = logits - (-(-uniform).log1p()).log()
        return Choice(lowest(keys, self.hidden_count(len(loss), epoch), torch.ones(len(loss), dtype=torch.bool)))
