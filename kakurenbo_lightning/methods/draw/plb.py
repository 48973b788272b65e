"""PLB and PEB: the base value is the loss or the entropy, and the probability is its share of the sum of all.

From a talk by Mateusz Wojtulewicz, 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kakurenbo_lightning.core.statistics import Column
from kakurenbo_lightning.methods.draw.base import StreamMethod
from kakurenbo_lightning.methods.registry import register_method


@register_method("plb")
@dataclass(frozen=True)
class PLB(StreamMethod):
    """PLB (Wojtulewicz, 2024).

    b_i = loss_i for the drawn samples; p_i = b_i / sum(b). Base values are never normalised.
    """

    summary: ClassVar[str] = "draws in proportion to the last loss"
    paper: ClassVar[str] = "Wojtulewicz, 2024 (talk)"


@register_method("peb")
@dataclass(frozen=True)
class PEB(StreamMethod):
    """PEB (Wojtulewicz, 2024).

    b_i = H(softmax(z_i)) in nats for the drawn samples; p_i = b_i / sum(b). Base values are never normalised.
    """

    summary: ClassVar[str] = "draws in proportion to the entropy of the last prediction"
    paper: ClassVar[str] = "Wojtulewicz, 2024 (talk)"
    reads: ClassVar[tuple[str, ...]] = ("loss", "entropy")
    columns: ClassVar[tuple[Column, ...]] = (Column("entropy", "float32", float("nan")),)
    observes: ClassVar[str] = "entropy"
