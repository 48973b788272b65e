"""Figures of each sample over the epochs: average loss, confidence in its label and margin, and how often it was forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kakurenbo_lightning import SampleStatistics

AVERAGED = ("loss", "label_confidence", "margin")
LEAST = 1e-7  # probability of another class: 1 - confidence has no smaller one in float32


class SampleFigures:
    """Sums over the epochs that measured a sample, by data set index; 17 bytes per sample on the host.

    Args:
        count: N; 0 before it is known.
    """

    def __init__(self, count: int) -> None:
        self._through = -1  # the last epoch that is in the sums
        self._sums = {name: torch.zeros(count) for name in AVERAGED}
        self._times_measured = torch.zeros(count, dtype=torch.int16)
        self._times_forgotten = torch.zeros(count, dtype=torch.int16)
        self._was_correct = torch.zeros(count, dtype=torch.bool)  # when it was judged last

    def add(self, statistics: SampleStatistics, epoch: int) -> None:
        """Add what ``epoch`` measured, once it is over and merged; a second call for the same epoch adds nothing.

        A loss that is not finite is no measurement. Once an epoch measured a sample without saying whether it was predicted correctly
        (a regression), its label confidence and margin stay NaN.
        """
        if epoch <= self._through:
            return
        self._through = epoch
        loss, confidence, correct = statistics.loss.cpu(), statistics.confidence.cpu(), statistics.correct.cpu()
        judged, measured = statistics.judged.cpu(), (statistics.epoch_seen == epoch).cpu() & loss.isfinite()
        in_label = label_log_probability(loss, confidence, correct)
        in_label.masked_fill_(~judged, torch.nan)
        values = {"loss": loss, "label_confidence": in_label.exp(), "margin": margin(in_label, confidence, correct)}
        for name, value in values.items():
            self._sums[name] += value.masked_fill(~measured, 0)
        judged &= measured
        self._times_measured += measured
        self._times_forgotten += judged & self._was_correct & ~correct
        self._was_correct = torch.where(judged, correct, self._was_correct)

    def columns(self) -> dict[str, Tensor]:
        """The columns of samples.parquet that are of all epochs, ``[N]`` each; averages are NaN where no epoch measured a sample."""
        averages = {f"average_{name}": total / self._times_measured for name, total in self._sums.items()}
        return {"times_measured": self._times_measured, "times_forgotten": self._times_forgotten, **averages}

    def state_dict(self) -> dict[str, Any]:
        """Copies of the sums, 17 bytes per sample."""
        return {"through": self._through, **{name: column.clone() for name, column in self._saved().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._through = state["through"]
        for name, column in self._saved().items():
            column.copy_(state[name])

    def _saved(self) -> dict[str, Tensor]:
        counts = {"measured": self._times_measured, "forgotten": self._times_forgotten, "was_correct": self._was_correct}
        return {**self._sums, **counts}


def label_log_probability(loss: Tensor, confidence: Tensor, correct: Tensor) -> Tensor:
    """The logarithm of the probability that the network gave to the label, float ``[N]``.

    It is not recorded, but follows from what is: where the prediction is correct, the probability is the confidence, whatever the loss.
    Elsewhere it is exp(-loss) for a cross-entropy; with label smoothing or another loss that is a guess, which is held within what is
    possible beside a more probable class.

    Args:
        loss: float ``[N]``.
        confidence: the largest probability, float ``[N]``.
        correct: whether it is that of the label, bool ``[N]``.
    """
    largest = confidence.log()
    rest = (1 - confidence).clamp_min(LEAST).log()
    return torch.where(correct, largest, (-loss).minimum(largest).minimum(rest))


def margin(in_label: Tensor, confidence: Tensor, correct: Tensor) -> Tensor:
    """The logit of the label less the largest of the others, float ``[N]``: its mean over the epochs is the area under the margin.

    Logits differ by as much as the logarithms of their probabilities. Where the prediction is wrong this is as exact as ``in_label``. Where
    it is correct the second largest probability is not known: it is taken to be as large as it can be, so that this is the least margin
    possible, and the exact one for two classes. At most 16.

    The area under the margin: Pleiss et al., Identifying Mislabeled Data using the Area Under the Margin Ranking, NeurIPS 2020.

    Args:
        in_label: what :func:`label_log_probability` returned.
        confidence: the largest probability, float ``[N]``.
        correct: whether it is that of the label, bool ``[N]``.
    """
    other = torch.where(correct, confidence.minimum(1 - confidence), confidence)
    return in_label - other.clamp_min(LEAST).log()
