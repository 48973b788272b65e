"""What a recorder reads of a selection besides its public attributes; nothing else in ``record/`` reaches into the session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from kakurenbo_lightning import SampleSelection, SampleStatistics
from kakurenbo_lightning.core.class_labels import targets_of
from kakurenbo_lightning.core.distributed import Ranks, rank_zero_warn
from kakurenbo_lightning.core.plan import Plan
from kakurenbo_lightning.core.random import rng_state, set_rng_state
from kakurenbo_lightning.core.statistics import NoStatistics
from kakurenbo_lightning.methods.settings import require as check
from kakurenbo_lightning.record.sample_counts import SampleCounts
from kakurenbo_lightning.record.schema import JUDGED, Thumbnails
from kakurenbo_lightning.record.thumbnails import thumbnails_of
from kakurenbo_lightning.session.session import Session


class SelectionView:
    """The session of a selection, as far as a recorder needs it.

    Args:
        selection: ``None`` for the one that :meth:`find` finds.

    Attributes:
        selection: whose session it is; known from :meth:`find` on.
        method: name, settings and family of the method, as plain values.
        seed: seed of the order and of what methods draw.
        fingerprint: a hash of the data set; None before it is known.
        dataset: the train data set; None before it is known.
        statistics: the statistics of every sample, there from the start of training on.
        plan: the plan of the epoch, there from its start on.
        step: number of the batch that is trained, in its epoch.
        metrics: what the selection logs of the planned epoch.
        last_metrics: what it logged of the last epoch that ended.
    """

    def __init__(self, selection: SampleSelection | None) -> None:
        self._selection, self._is_given = selection, selection is not None

    def find(self, recorder: L.Callback, callbacks: Sequence[L.Callback]) -> None:
        """Take the first selection of a Trainer's ``callbacks``, unless one was given.

        Raises:
            ValueError: the recorder does not come after it.
        """
        if not self._is_given:
            self._selection = next((callback for callback in callbacks if isinstance(callback, SampleSelection)), None)
        order = [callback for callback in callbacks if callback is recorder or callback is self._selection]
        names, is_so = [type(callback).__name__ for callback in order], order == [self._selection, recorder]
        hint = (
            "Write callbacks=[selection, RunRecorder(selection, folder)]; in a config of callbacks write the recorder below the "
            "selection, with its folder alone."
        )
        allowed = "a list with the selection and, after it, its RunRecorder"
        check(is_so, type(recorder).__name__, "callbacks", names, allowed, hint)

    @property
    def selection(self) -> SampleSelection:
        assert self._selection is not None, "the recorder's setup has found it"
        return self._selection

    @property
    def _session(self) -> Session:
        session = self.selection.session
        assert session is not None, "the Trainer's setup has made one"
        return session

    @property
    def method(self) -> dict[str, Any]:
        return {**self._session.keeper.described, "family": self.selection.method.family}

    @property
    def seed(self) -> int:
        return self._session.seed

    @property
    def fingerprint(self) -> str | None:
        return self._session.data.fingerprint if self._session.loader.is_known else None

    @property
    def dataset(self) -> Any:
        return self._session.data.loader.dataset if self._session.loader.is_known else None

    @property
    def statistics(self) -> SampleStatistics:
        known = self._session.data.statistics
        return NoStatistics() if known.grows else known  # samples of streams have no index

    @property
    def plan(self) -> Plan:
        return self._session.state.plan

    @property
    def step(self) -> int:
        return self._session.state.step

    @property
    def metrics(self) -> Mapping[str, float]:
        return self._session.state.metrics

    @property
    def last_metrics(self) -> Mapping[str, float]:
        return self._session.state.ended_metrics

    @property
    def ranks(self) -> Ranks:
        return self._session.adapter.ranks

    def done_batches(self) -> int:
        """Batches of the epoch that a run resumed from a checkpoint of this moment does not train again."""
        return self._session.adapter.done_batches()

    def call_on_trained(self, function: Callable[[Tensor], None] | None) -> None:
        """Call ``function`` in each training step with the indices that this rank trains in it, ``int64[b]`` on the device."""
        if self._selection is not None and self._selection.session is not None:  # an exception may come before them
            self._selection.session.on_trained = function

    def columns(self, trained: Tensor, counts: SampleCounts) -> dict[str, Tensor]:
        """The columns of samples.parquet but for the index, ``[N]`` each, and where ``correct`` is known, ``judged``.

        Args:
            trained: how often each sample was, on all ranks.
            counts: of the recorder.
        """
        statistics, known = self.statistics, targets_of(self.dataset)
        unknown = torch.full((len(statistics),), -1, dtype=torch.int32)
        return {
            "loss": statistics.loss,
            "confidence": statistics.confidence,
            "correct": statistics.correct,
            JUDGED: statistics.judged,
            "target": unknown if known is None else known,
            "epoch_seen": statistics.epoch_seen,
            "times_trained": trained,
            "times_hidden": counts.hidden,
            "last_change": counts.changed,
            **counts.figures.columns(),
            **statistics.extra,
        }

    def thumbnails(self, columns: Mapping[str, np.ndarray]) -> Thumbnails | None:
        """Images of some samples; ``None``, after a warning, when the data set cannot be read in this process."""
        streams = rng_state()
        try:
            return thumbnails_of(self.dataset, columns)
        except Exception as error:  # of the user's data set, which workers could read: no reason to fail at the end of a run
            rank_zero_warn(f"RunRecorder: there are no thumbnails, the data set could not be read here ({error})")
            return None
        finally:
            set_rng_state(streams)
