"""NLB: as LB, with the hyperbolic tangent of the loss. Source: :mod:`kakurenbo_lightning.methods.owc`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kakurenbo_lightning.methods.pod import StreamMethod
from kakurenbo_lightning.methods.registry import register_method


@register_method("nlb")
@dataclass(frozen=True)
class NLB(StreamMethod):
    """NLB, normalised loss based (Duda et al., 2020).

    p_i = tanh(loss_i) for the drawn samples, then all are normalised to a sum of 1.

    Raises:
        ValueError: a setting out of range.
    """

    summary: ClassVar[str] = (
        "draws by tanh of the loss, beside normalised probabilities (for comparison: it hardly learns without mix)"
    )
    paper: ClassVar[str] = "Duda et al., JAISCR 2020"
    normalised: ClassVar[bool] = True

    def base(self, observed: Tensor) -> Tensor:
        """``tanh(loss)``."""
        return observed.tanh()
