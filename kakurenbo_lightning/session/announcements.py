"""What a selection says of itself in the log: where its values come from, and in the end what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from torch import nn

from kakurenbo_lightning.core.distributed import rank_zero_info
from kakurenbo_lightning.core.flavour import AnyTrainer
from kakurenbo_lightning.methods.base import Method
from kakurenbo_lightning.session.control import Control
from kakurenbo_lightning.session.plain_values import brief, is_same
from kakurenbo_lightning.session.settings import SessionSettings
from kakurenbo_lightning.session.totals import Totals
from kakurenbo_lightning.trainer.compatibility import warn_of_batch_hooks
from kakurenbo_lightning.trainer.progress import has_bar

OPTIONS = {"keep": "key"}  # fields of SessionSettings whose option of the callback has another name


class Announcements:
    """Says each thing once, on rank 0.

    Args:
        method: the selection method.
        trainer: the Trainer of the session.
    """

    def __init__(self, method: Method, trainer: AnyTrainer) -> None:
        self._method, self._trainer = method, trainer
        self._described = False

    def describe(self, source: str | None) -> None:
        """Say which method selects, and that its sample values come from ``source``; nothing while that is not known."""
        if source and not self._described:
            self._described = True
            rank_zero_info(
                f"SampleSelection: {with_settings(self._method)} {self._method.summary}. Per-sample values come from {source}."
            )
            warn_of_batch_hooks(self._trainer, source)

    def conclude(self, totals: Totals, control: Control, epochs: int, count: int) -> None:
        """Say what the fit came to: a small table if there is a progress bar, else one line.

        Args:
            totals: sums over the epochs.
            control: what ``save`` and ``guard`` add.
            epochs: number of epochs trained.
            count: number of samples that can be trained.
        """
        name, family = self._method.name, self._method.family
        more = control.summary(epochs, count)
        if not has_bar(self._trainer):
            said = f"{name} {totals.summary(family)}{more}"
        else:
            said = "\n  ".join([name, *totals.table(family), *filter(None, [more.removeprefix("; ")])])
        rank_zero_info(f"SampleSelection: {said}")


def with_settings(method: Method) -> str:
    """Return the method with its settings that differ from their defaults: ``kakurenbo(max_fraction=0.5)``."""
    return f"{method.name}({', '.join(_changed(method))})"


def with_options(method: Method, options: SessionSettings) -> str:
    """Return the callback in one line: its method, as :func:`with_settings` does, and its options that differ from their defaults."""
    return f"SampleSelection({', '.join([with_settings(method), *_changed(options)])})"


def _changed(settings: Any) -> Iterator[str]:
    """The fields of a dataclass that differ from their defaults, ``name=value``."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not is_same(value, field.default):
            said = type(value).__name__ if isinstance(value, nn.Module) else brief(value)  # a network would fill pages
            yield f"{OPTIONS.get(field.name, field.name)}={said}"
