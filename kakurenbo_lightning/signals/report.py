"""What was verified about the sample values on the first batch."""

from __future__ import annotations

from dataclasses import dataclass

from kakurenbo_lightning.signals.attribution import ALIKE, ONE_SAMPLE


@dataclass(frozen=True)
class Report:
    """What is known about the values that are recorded.

    Attributes:
        way: where values come from: ``"returned"``, ``"function"``, ``"captured"``, ``"batch"`` (the loss of batches, see
            ``batch_loss.py``) or ``"none"``.
        source: one line for the log that says where values come from.
        calls: the calls that the loss was found to be made of, if it is captured.
        gives: names of the values, ``loss`` first.
        share: fraction of the returned loss that the values make up; ``None``: not known.
        complete: whether the loss depends on parameters through the values alone; ``None``: not known.
        attribution: ``"verified"``, ``"off"``, ``"skipped: ..."`` or ``"not tested: ..."`` with the reason, or ``"batch"``: returned values
            that depend on the rest of the batch.
        weights: ``"exact"`` if loss weights reach the gradient exactly, else a text that says why not.
    """

    way: str
    source: str
    calls: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    share: float | None = None
    complete: bool | None = None
    attribution: str = "off"
    weights: str = "exact"

    @property
    def had_one_sample(self) -> bool:
        """Whether the batch had one sample, which cannot show how a loss is made from several."""
        return self.attribution == f"skipped: {ONE_SAMPLE}"

    @property
    def is_open(self) -> bool:
        """Whether a later batch may still show whose value is whose."""
        return self.had_one_sample or self.attribution == f"skipped: {ALIKE.reason}"

    @property
    def decomposes(self) -> bool | None:
        """Whether the loss is the sum of what its samples add to it; ``None``: not known."""
        return None if self.share is None or self.complete is None else self.complete

    def lines(self) -> list[str]:
        """The report as text, one fact per line."""
        shown = {True: "yes", False: "no", None: "not known"}
        return [
            f"values come from: {self.source}",
            f"values: {', '.join(self.gives) or 'none'}",
            f"share of the loss: {'not known' if self.share is None else f'{self.share:.1%}'}",
            f"decomposes over samples: {shown[self.decomposes]}",
            f"attribution: {self.attribution}{' (in eval mode)' if self.attribution == 'verified' else ''}",
            f"loss weights: {self.weights}",
        ]
