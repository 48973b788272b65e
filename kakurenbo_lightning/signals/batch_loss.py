"""Batch loss score (BLS): the loss of whole batches as the values of their samples, for losses that have no value per sample.

Qing Zhou, Bingxuan Zhao, Tao Yang, Hongyuan Zhang, Junyu Gao, Qi Wang: "Batch Loss Score for Dynamic Data Pruning", CVPR 2026. What it
does, and what to expect of it, is in batch_loss.md beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.core.statistics import SampleStatistics
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals import refusals
from kakurenbo_lightning.signals.outputs import Replay, SampleOutputs, Scoring
from kakurenbo_lightning.signals.predictions import Values
from kakurenbo_lightning.signals.report import Report
from kakurenbo_lightning.signals.returned import check_ranges, from_returned, loss_of, with_loss


class BatchLoss(SampleOutputs):
    """Gives every sample of a batch the batch's loss L, and keeps a moving mean of these for each sample.

    ``score_i = alpha * score_i + (1 - alpha) * L`` each time that sample i is in a batch, from 0 on. Nothing is seen inside of the step,
    which may make its loss as it likes; nothing claims that a score is the loss of its sample. What a method reads beside the loss comes
    from what the step returns beside it, or from ``sample_outputs(batch)``.

    Args:
        reads: names of the values that the method needs, as for :class:`SampleOutputs`.
        sample_outputs: ``sample_outputs(batch) -> dict`` with what the method reads beside the loss; under manual optimization a scoring
            pass takes its ``loss`` too.
        weighs: whether there may be loss weights. A batch's loss is multiplied by the mean of the weights of its samples.
        manual: whether the module uses manual optimization.
        alpha: decay of the moving mean, in [0, 1).
    """

    def __init__(
        self,
        reads: tuple[str, ...],
        sample_outputs: Callable[[Any], Mapping[str, Tensor]] | None = None,
        weighs: bool = False,
        manual: bool = False,
        alpha: float = 0.7,
    ) -> None:
        super().__init__(reads, sample_outputs, weighs, manual)
        self._alpha = alpha

    def observe(
        self,
        step: Callable[[], Any],
        batch: Any,
        size: int,
        scoring: Scoring,
        weights: Tensor | None = None,
        replay: Replay | None = None,
        kept: Scoring = nullcontext,
        frozen: Scoring = nullcontext,
    ) -> tuple[Any, Values | None]:
        """Run one training step; see :meth:`SampleOutputs.observe`.

        Raises:
            OutputsError: a step that optimizes by itself returns no loss, or what the method reads beside it is missing.
        """
        outputs = step()
        loss = loss_of(outputs)
        if not isinstance(loss, Tensor) or (loss.requires_grad and loss.is_leaf):  # the user skips this batch
            if self._needs.manual and self.report is None:
                raise OutputsError(refusals.NO_BATCH_LOSS)
            return outputs, None
        values = self._values(loss, outputs, batch, size, scoring)
        if weights is not None:
            outputs = with_loss(outputs, loss * weights.mean().to(loss.dtype))
        return outputs, values

    def score(
        self,
        step: Callable[[], Any],
        batch: Any,
        size: int,
        replay: Replay | None = None,
        kept: Scoring = nullcontext,
        frozen: Scoring = nullcontext,
    ) -> Values:
        """Values of a batch in a scoring pass, which is not trained; see :meth:`SampleOutputs.score`.

        Raises:
            OutputsError: there is no loss, or what the method reads beside it is missing.
        """
        function = self._sample_outputs if self._needs.manual else None  # training_step would train
        outputs: Any = step() if function is None else function(batch)
        loss = loss_of(outputs)
        if loss is None and isinstance(outputs, Mapping):
            loss = outputs.get("sample_loss")
        if not isinstance(loss, Tensor):
            raise OutputsError(refusals.NO_BATCH_LOSS)
        return self._values(loss, outputs, batch, size, nullcontext)

    def averaged(self, statistics: SampleStatistics, rows: Tensor, values: Values) -> Values:
        """The scores of the samples ``rows`` (``int64[b]``) after this batch; no device synchronisation.

        A score that is not finite, because a batch's loss was not, starts again at the next loss itself: started at 0, the sample would
        look easier than all others.
        """
        loss, seen = values["loss"], statistics.epoch_seen[rows] >= 0
        before = torch.where(seen, statistics.loss[rows], 0.0)
        score = self._alpha * before + (1 - self._alpha) * loss
        return {**values, "loss": torch.where(before.isfinite(), score, loss)}

    def _values(self, loss: Tensor, outputs: Any, batch: Any, size: int, scoring: Scoring) -> Values:
        """The batch's loss for each of its samples, and what is returned beside it; verified on the first batch."""
        rows = loss.detach().float().mean().expand(size)  # mean: the user may return a loss per sample
        given = outputs if isinstance(outputs, Mapping) else {}
        values = from_returned({**given, "sample_loss": rows}, size, reads=self._needs.reads)
        if self._sample_outputs is not None and not set(self._needs.reads) <= set(values):
            with scoring():
                given = self._sample_outputs(batch)
            values = from_returned({**given, "sample_loss": rows}, size, "sample_outputs", self._needs.reads)
        self._needs.check_all(values, lambda names: refusals.missing_beside_batch_loss(names, size))
        if self.report is None:
            check_ranges(given, "training_step")
            self.report = self._reported(values)
        self._needs.check(values, size, str(self.source))
        return values

    def _reported(self, values: Values) -> Report:
        if self._needs.weighs:
            rank_zero_warn(refusals.WEIGHED_BY_THE_BATCH)
        return Report(
            "batch",
            f"the loss of each batch, as a moving mean over the batches a sample was in (values='bls', bls_alpha={self._alpha}); they are "
            "no losses of samples",
            (),
            tuple(values),
            attribution="not tested: a value is of a batch",
            weights="the mean of a batch's weights multiplies its loss",
        )
