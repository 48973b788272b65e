"""PLB: the loss is the base value, and the probability its share of all base values.

Michal Wojtulewicz, Piotr Duda: "Accelerating Neural Network Training with Probabilistic Data Selection" (PLB, PEB), PMLR 263, 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kakurenbo_lightning.methods.pod import StreamMethod
from kakurenbo_lightning.methods.registry import register_method


@register_method("plb")
@dataclass(frozen=True)
class PLB(StreamMethod):
    """PLB (Wojtulewicz & Duda, PMLR 263, 2024).

    b_i = loss_i for the drawn samples; p_i = b_i / sum(b). Base values are never normalised.

    Raises:
        ValueError: a setting out of range.
    """

    summary: ClassVar[str] = "draws in proportion to the last loss"
    paper: ClassVar[str] = "Wojtulewicz & Duda, PMLR 263, 2024"
