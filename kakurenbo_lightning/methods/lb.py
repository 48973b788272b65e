"""LB: the loss is the probability of being drawn, brought back to a sum of 1 after every step.

Source: :mod:`kakurenbo_lightning.methods.owc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kakurenbo_lightning.methods.pod import StreamMethod
from kakurenbo_lightning.methods.registry import register_method


@register_method("lb")
@dataclass(frozen=True)
class LB(StreamMethod):
    """LB, loss based (Duda et al., 2020).

    p_i = loss_i for the drawn samples, then all are normalised to a sum of 1. A raw loss beside normalised values is on another scale: that
    is the published behaviour, and it makes the drawn samples of the last steps far more probable than all others.

    Raises:
        ValueError: a setting out of range.
    """

    summary: ClassVar[str] = (
        "draws by the loss, written raw beside normalised probabilities (for comparison: it hardly learns without mix)"
    )
    paper: ClassVar[str] = "Duda et al., JAISCR 2020"
    normalised: ClassVar[bool] = True
