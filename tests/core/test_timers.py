"""Seconds of phases, by a clock that the test turns."""

import time

import pytest
import torch

from kakurenbo_lightning.core.timers import PhaseTimer, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """``clock[0]`` is the time in seconds, for the CPU's clock and for the events of a pretended GPU."""
    now = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = now[0]

        def elapsed_time(self, end):
            return 1000 * (end.at - self.at)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return now


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_phases_add_up_until_they_are_taken(clock, device):
    timer = PhaseTimer(torch.device(device))
    for _ in range(2):
        with timer.during("forward"):
            clock[0] += 3
        clock[0] += 10  # between phases
    timer.start("data")
    timer.start("backward")
    clock[0] += 5
    timer.drop("data")
    timer.stop("backward")
    timer.stop("data")
    timer.stop("never begun")
    timer.start("open")
    assert timer.take() == {"forward": 6.0, "backward": 5.0}
    timer.stop("open")
    assert timer.take() == {}


def test_a_phase_ends_when_its_block_raises(clock):
    timer = PhaseTimer(torch.device("cpu"))
    with pytest.raises(KeyError), timer.during("forward"):
        clock[0] += 2
        raise KeyError
    assert timer.take() == {"forward": 2.0}


def test_a_stopwatch_counts_while_it_runs(clock):
    watch = Stopwatch(running=True)
    clock[0] += 1
    watch.start()  # it runs already
    clock[0] += 2
    watch.pause()
    watch.pause()
    clock[0] += 10
    watch.start()
    clock[0] += 4
    assert watch.take() == 7
    clock[0] += 5
    assert watch.take() == 0
