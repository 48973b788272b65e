"""The user's settings of the callback, in the form that the session needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor

from kakurenbo_lightning.core.key_filter import KeyFilter
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.session.guard import SelectionGuard
from kakurenbo_lightning.session.saving import Saving
from kakurenbo_lightning.signals.batch_loss import BatchLoss
from kakurenbo_lightning.signals.outputs import SampleOutputs


@dataclass(frozen=True)
class SessionSettings:
    """The user's settings of the callback, see :class:`~kakurenbo_lightning.SampleSelection`.

    Attributes:
        seed: seed of the order and the choice of samples; ``None`` for ``default_seed``, or the checkpoint's when resuming.
        default_seed: used when ``seed`` is ``None``.
        align_schedules: whether step schedules keep pace with shortened epochs.
        on_mismatch: what to do with a checkpoint of another data set, method or setting.
        scorer: a small network that scores in place of the module.
        check_attribution: whether a value that depends on other samples of the batch is an error.
        unweighted_rest: whether loss weights may leave a part of the loss unweighted.
        values: ``"sample_loss"``, or ``"bls"`` for a moving mean of the losses of the batches that a sample was in.
        bls_alpha: decay of that moving mean.
        mean_over_samples: whether a step's gradient is the mean over the samples of all its accumulated batches; ``None``: only if the
            method changes batches.
        save: share of the training time to save by setting the method's share; ``None`` leaves the share unchanged.
        statistics: ``"replicated"``, or ``"sharded"``: each rank has the statistics of a share of the samples.
        keep: lets an epoch's samples through, where they are known by keys; ``None``: by index, or not at all.
        max_hidden_epochs: with keys, for how many epochs in a row a sample may be hidden by a method that refreshes.
        guard: lets epochs train on everything if a validated metric falls.
    """

    seed: int | None = None
    default_seed: int = 0
    align_schedules: bool = True
    on_mismatch: Literal["error", "reset"] = "error"
    scorer: pl.LightningModule | None = None
    check_attribution: bool = True
    unweighted_rest: bool = False
    mean_over_samples: bool | None = None
    values: Literal["sample_loss", "bls"] = "sample_loss"
    bls_alpha: float = 0.7
    save: Saving | None = None
    guard: SelectionGuard | None = None
    statistics: Literal["replicated", "sharded"] = "replicated"
    keep: KeyFilter | None = None
    max_hidden_epochs: int = 3

    @property
    def source(self) -> dict[str, Any]:
        """Settings beside the method's that a checkpoint must share; empty if samples have losses of their own, and no keys."""
        values = {"values": self.values, "bls_alpha": self.bls_alpha} if self.values == "bls" else {}
        return (
            values
            if self.keep is None
            else {"key": self.keep.field.setting, "max_hidden_epochs": self.max_hidden_epochs, **values}
        )

    def outputs_of(
        self, method: Method, function: Callable[[Any], Mapping[str, Tensor]] | None, module: pl.LightningModule
    ) -> SampleOutputs:
        """Create the source of sample values of ``module``. ``function`` is the user's ``sample_outputs``, or ``None``."""
        manual = not module.automatic_optimization
        if self.values == "bls":
            return BatchLoss(method.reads, function, method.weighs, manual, self.bls_alpha)
        return SampleOutputs(
            method.reads,
            function,
            weighs=method.weighs,
            manual=manual,
            check_attribution=self.check_attribution,
            unweighted_rest=self.unweighted_rest,
            scores=method.scoring_mode == "eval" and self.scorer is None and self.keep is None,  # by keys, none are made
        )
