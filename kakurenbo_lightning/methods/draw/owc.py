"""OWC, LB and NLB: draw by stored probabilities that every step changes and normalises.

Piotr Duda, Maciej Jaworski, Andrzej Cader, Lipo Wang: "On Training Deep Neural Networks Using a Streaming Approach" (OWC, LB, NLB), JAISCR
10(1), 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kakurenbo_lightning.core.lazy_torch import torch
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.methods.draw.base import StreamMethod
from kakurenbo_lightning.methods.registry import register_method
from kakurenbo_lightning.methods.settings import checker, number, optional, setting

if TYPE_CHECKING:
    from torch import Tensor


@register_method("owc")
@dataclass(frozen=True)
class OWC(StreamMethod):
    """OWC (Duda et al., 2020).

    All p_i start at 1 / N; p_i += alpha for the drawn samples that were misclassified, then all are normalised to a sum of 1. A sample
    that was drawn twice in a step counts once. The real values that ``diagnose`` compares with are 1 for samples that are misclassified
    now, else 0.
    """

    alpha: float | None = setting(
        None,
        optional(number(0, above=True)),
        "what a misclassified sample's probability gains; `None`: 1 / N, which doubles the initial probability",
        fix="None is 1 / N.",
    )

    summary: ClassVar[str] = "draws misclassified samples more often"
    paper: ClassVar[str] = "Duda et al., JAISCR 2020"
    reads: ClassVar[tuple[str, ...]] = ("loss", "correct")
    observes: ClassVar[str] = "wrong"
    normalised: ClassVar[bool] = True
    scores_first: ClassVar[bool] = False

    def check_settings(self) -> None:
        """Refuse settings that act on base values, because OWC has none."""
        super().check_settings()
        check = checker(self)
        for name in ("temperature", "cap_quantile"):
            check(getattr(self, name) == 1, name, "1, because owc has no base values", "Use alpha, or another method.")
        check(not self.start_pass, "start_pass", "False, because owc starts with equal probabilities", "Leave it out.")

    def all_values(self, statistics: SampleStatistics) -> Tensor:
        """The same value for every sample, because OWC starts with equal probabilities."""
        return torch.ones(len(statistics))

    def written(self, observed: Tensor, stored: Tensor, cap: float, num_samples: int) -> Tensor:
        """Return ``p + alpha`` for misclassified samples, and ``p`` for all others."""
        return stored + (1 / num_samples if self.alpha is None else self.alpha) * observed


@register_method("lb")
@dataclass(frozen=True)
class LB(StreamMethod):
    """LB, loss based (Duda et al., 2020).

    p_i = loss_i for the drawn samples, then all are normalised to a sum of 1. A raw loss beside normalised values is on another scale: that
    is the published behaviour, and it makes the drawn samples of the last steps far more probable than all others.
    """

    summary: ClassVar[str] = (
        "draws by the loss, written raw beside normalised probabilities (for comparison: it hardly learns without mix)"
    )
    paper: ClassVar[str] = "Duda et al., JAISCR 2020"
    normalised: ClassVar[bool] = True


@register_method("nlb")
@dataclass(frozen=True)
class NLB(StreamMethod):
    """NLB, normalised loss based (Duda et al., 2020).

    p_i = tanh(loss_i) for the drawn samples, then all are normalised to a sum of 1.
    """

    summary: ClassVar[str] = (
        "draws by tanh of the loss, beside normalised probabilities (for comparison: it hardly learns without mix)"
    )
    paper: ClassVar[str] = "Duda et al., JAISCR 2020"
    normalised: ClassVar[bool] = True

    def base(self, observed: Tensor) -> Tensor:
        """The base value is ``tanh(loss)``, ``float32[n]`` in [0, 1]."""
        return observed.tanh()
