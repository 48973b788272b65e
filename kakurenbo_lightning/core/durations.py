"""How long the steps of a training take, so that a stall, or load beside less than half of them, does not change the answer:
:class:`StepTimes`."""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kakurenbo_lightning.core.lazy_torch import torch

SHORTEST, BIN, BINS = 1e-8, math.log(1.01), 3000  # seconds of bin 0, the distance of two bins as a logarithm, and their number
STATED_FORWARD = 1 / 3  # of a trained sample's cost, where it was not measured: a backward pass counts as two forward passes
OUTLIERS = 0.01  # share of the longest waits that count for nothing: workers being started, a machine that stood still


class Durations:
    """A histogram of durations with bins 1 % apart: 3,000 numbers, however many durations there were.

    Args:
        counts: how many durations lie in each bin.
    """

    def __init__(self, counts: Iterable[Sequence[int]] = ()) -> None:
        self._counts = array("q", bytes(8 * BINS))
        for number, count in counts:
            self._counts[number] = count

    def add(self, seconds: float, count: int = 1) -> None:
        """Count a duration, ``count`` times; one that is shorter or longer than any bin goes into the nearest."""
        number = round(math.log(max(seconds, SHORTEST) / SHORTEST) / BIN)
        self._counts[min(number, BINS - 1)] += count

    @property
    def count(self) -> int:
        """How many durations there were."""
        return sum(self._counts)

    def _bins(self) -> Iterator[tuple[int, int]]:
        """Bins that hold durations and their counts, from the shortest on."""
        return ((number, count) for number, count in enumerate(self._counts) if count)

    def quantile(self, share: float) -> float:
        """The duration that ``share`` of them do not exceed, at most 0.5 % off; 0 without durations."""
        left = share * self.count
        for number, count in self._bins():
            left -= count
            if left <= 0:
                return _seconds(number)
        return 0.0

    @property
    def median(self) -> float:
        """The duration that half of them do not exceed."""
        return self.quantile(0.5)

    @property
    def median_error(self) -> float:
        """The standard error of the median, as that of a normal distribution with the same quartiles; 0 without durations."""
        deviation = (self.quantile(0.75) - self.quantile(0.25)) / 1.349
        return 1.253 * deviation / math.sqrt(max(1, self.count))

    @property
    def usual_sum(self) -> float:
        """Their sum, with the longest 1 % counted as the mean of the others."""
        kept = self.count - math.ceil(OUTLIERS * self.count)
        left, total = kept, 0.0
        for number, count in self._bins():
            taken = min(count, left)
            total += taken * _seconds(number)
            left -= taken
        return total / kept * self.count if kept else 0.0

    def state(self) -> list[list[int]]:
        """Bins and their counts, from the shortest on."""
        return [[number, count] for number, count in self._bins()]


def _seconds(number: int) -> float:
    """The duration that stands for all of a bin: its middle, in seconds."""
    return SHORTEST * math.exp(number * BIN)


def moment(cuda: bool) -> Any:
    """Now: seconds of the clock, or with ``cuda`` an event on the device's stream."""
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class StepTimes:
    """Durations of a training's steps, of the waits for their batches, and of scoring passes per sample.

    On the CPU they are of the clock. On a GPU they are the device's, between events on its stream: the host runs ahead there, and nothing
    ever waits for the device, as events are read when they have come to pass.
    """

    def __init__(self) -> None:
        self._steps: dict[str, Durations] = {}  # by what a step did
        self._waits, self._passes, self._forwards = Durations(), Durations(), Durations()
        self._measures_forwards = False
        self._complete = True  # since the training began: a checkpoint of an older release does not hold them
        self._cuda = False
        self._waiting: Any = None  # since when for a batch: seconds of the clock, or a torch.cuda.Event
        self._begun: Any = None
        self._is_forward_over = False
        self._open: deque[tuple[Durations, torch.cuda.Event, torch.cuda.Event]] = deque()

    def use(self, device: torch.device) -> None:
        """Time on ``device``, the one that trains: by the clock for a CPU, by events for a GPU."""
        self._cuda = device.type == "cuda"

    def wait(self) -> None:
        """Note that the next batch is asked for, so the wait for it begins."""
        self._waiting = moment(self._cuda)

    def begin(self) -> None:
        """Note that the batch is there, so its step begins."""
        self._begun, self._is_forward_over = moment(self._cuda), False

    def measure_forwards(self, wanted: bool) -> None:
        """Whether steps are also timed up to their first backward pass, from now on."""
        self._measures_forwards = wanted

    def end_forward(self) -> None:
        """Note that the step's forward pass is over; of several in one step only the first counts."""
        if self._measures_forwards and self._begun is not None and not self._is_forward_over:
            self._is_forward_over = True
            self._add(self._forwards, self._begun, moment(self._cuda))

    def end(self, kind: str) -> None:
        """The step is done; ``kind`` says what it did, as steps that only score take another time than those that train."""
        if self._begun is not None and self._waiting is not None:
            self._add(self._waits, self._waiting, self._begun)
            self._add(self._steps.setdefault(kind, Durations()), self._begun, moment(self._cuda))
        self.drop()

    def drop(self) -> None:
        """Forget a wait or a step that has begun."""
        self._waiting = self._begun = None

    def scored(self, seconds: float, samples: int) -> None:
        """A scoring pass over so many samples is over."""
        self._passes.add(seconds / samples, samples)

    def _add(self, durations: Durations, begun: Any, ended: Any) -> None:
        if not self._cuda:
            durations.add(ended - begun)
            return
        self._open.append((durations, begun, ended))
        self._read_events()

    def _read_events(self) -> None:
        while self._open and self._open[0][2].query():
            durations, begun, ended = self._open.popleft()
            durations.add(begun.elapsed_time(ended) / 1000)

    def figures(self) -> dict[str, float]:
        """Sums and medians under the names of ``session/totals.py``; empty where the times of the beginning are missing."""
        self._read_events()
        steps = sum(one.count for one in self._steps.values())
        if not self._complete or not steps:
            return {}
        spent, waited = sum(one.count * one.median for one in self._steps.values()), self._waits.usual_sum
        return {
            "step_seconds": spent / steps,
            "wait_seconds": waited,
            "steady_train_seconds": spent + waited,
            "steady_error_seconds": math.hypot(*(one.count * one.median_error for one in self._steps.values())),
            "steady_refresh_seconds": self._passes.count * self._passes.median,
        }

    @property
    def forward_share(self) -> float | None:
        """A forward pass and its wait for data as a share of a whole step and its wait; ``None`` where no step was measured."""
        self._read_events()
        steps = sum(one.count for one in self._steps.values())
        if not self._forwards.count or not steps:
            return None
        wait = self._waits.usual_sum / steps
        step = sum(one.count * one.median for one in self._steps.values()) / steps
        return min(1.0, (wait + self._forwards.median) / (wait + step))

    def state_dict(self) -> dict[str, Any]:
        """The histograms as plain numbers, without the step that is under way."""
        self._read_events()
        steps = [[kind, durations.state()] for kind, durations in self._steps.items()]
        forwards = {"forwards": self._forwards.state()} if self._forwards.count else {}
        kept = {"steps": steps, "waits": self._waits.state(), "passes": self._passes.state(), "complete": self._complete}
        return {**kept, **forwards}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take over ``state_dict``; ``None``, of a checkpoint of an older release, leaves them incomplete."""
        if state is None:
            self._complete = False
            return
        self._steps = {kind: Durations(counts) for kind, counts in state["steps"]}
        self._waits, self._passes = Durations(state["waits"]), Durations(state["passes"])
        self._forwards = Durations(state.get("forwards", ()))
        self._complete = state["complete"]


def time_factor(totals: Mapping[str, float]) -> float:
    """The factor by which forward-only passes lengthen the time of the trained samples; 1 without any, NaN where totals are
    missing.

    Args:
        totals: the totals of a run, under the names of ``session/totals.py``; a forward-only pass counts as measured in it, or, where no
            time was measured, as a third of training the sample.
    """

    def total(name: str) -> float:
        return totals.get(name, math.nan)

    forwards = total("samples_refreshed") + total("samples_scored")
    measured = total("refresh_seconds") + total("score_seconds")
    trained, training = total("samples_trained"), total("train_seconds") - total("score_seconds")
    if not training > 0 or (forwards > 0 and measured == 0):
        return 1 + STATED_FORWARD * forwards / trained if trained else 1.0
    refresh, steady = total("refresh_seconds") / training, totals.get("steady_train_seconds", 0.0)
    if steady > 0:  # the share of scoring within steps is the same on a busy machine
        refresh = totals.get("steady_refresh_seconds", 0.0) / (steady * training / total("train_seconds"))
    return 1 + refresh + total("score_seconds") / training
