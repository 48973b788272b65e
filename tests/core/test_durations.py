"""How long steps take, by a clock that the test turns."""

import random
import statistics
import time

import pytest
import torch

from kakurenbo_lightning.core.durations import Durations, StepTimes


@pytest.fixture
def clock(monkeypatch):
    """``clock[0]`` is the time in seconds; events of a pretended GPU come to pass at ``clock[1]``."""
    now = [0.0, 0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = now[0]

        def query(self):
            return self.at <= now[1]

        def synchronize(self):
            raise AssertionError("the host must not wait for the device")

        def elapsed_time(self, end):
            return 1000 * (end.at - self.at)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", Event.synchronize)
    return now


def step(times, clock, seconds, wait=0.0, kind="trained"):
    times.wait()
    clock[0] += wait
    times.begin()
    clock[0] += seconds
    times.end(kind)
    clock[0] += 5  # what comes between steps: a validation, a checkpoint


def test_quantiles_and_the_error_of_the_median_are_those_of_the_values():
    generator = random.Random(0)
    values = [generator.lognormvariate(-3, 0.5) for _ in range(2001)]
    durations = Durations()
    for value in values:
        durations.add(value)
    lower, median, upper = statistics.quantiles(values, n=4)
    assert durations.count == 2001
    assert durations.median == pytest.approx(median, rel=0.006)
    assert durations.quantile(0.25) == pytest.approx(lower, rel=0.011)
    assert durations.median_error == pytest.approx(1.253 * (upper - lower) / 1.349 / 2001**0.5, rel=0.05)


def test_memory_does_not_grow_with_the_number_of_durations():
    durations = Durations()
    for number in range(20_000):
        durations.add(1.01 ** (number % 5000 - 2500))
    durations.add(0.0)
    assert len(durations.state()) <= 3000 and durations.count == 20_001
    assert Durations(durations.state()).state() == durations.state()


def test_no_durations_are_zeros():
    assert (Durations().median, Durations().median_error, Durations().usual_sum) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_stall_changes_nothing_and_what_comes_between_steps_is_no_step(clock, device):
    times = StepTimes()
    times.use(torch.device(device))
    for number in range(100):
        step(times, clock, 600.0 if number == 50 else 0.1, wait=300.0 if number == 10 else 0.02)
    clock[1] = clock[0]
    found = times.figures()
    assert found["step_seconds"] == pytest.approx(0.1, rel=0.006)
    assert found["wait_seconds"] == pytest.approx(100 * 0.02, rel=0.006)
    assert found["steady_train_seconds"] == pytest.approx(100 * 0.12, rel=0.006)


def test_waits_that_come_in_bursts_are_added_up_not_taken_at_their_median(clock):
    """With 4 workers each fourth batch is waited for."""
    times = StepTimes()
    for number in range(100):
        step(times, clock, 0.1, wait=0.4 if number % 4 == 0 else 0.0)
    assert times.figures()["wait_seconds"] == pytest.approx(10.0, rel=0.06)


def test_steps_that_do_different_things_have_medians_of_their_own(clock):
    times = StepTimes()
    for number in range(90):
        step(times, clock, *((0.4, 0.0, "scored trained") if number % 3 == 0 else (0.1, 0.0, "scored")))
    assert times.figures()["steady_train_seconds"] == pytest.approx(30 * 0.4 + 60 * 0.1, rel=0.006)


def test_the_host_never_waits_for_events_that_have_not_come_to_pass(clock):
    times = StepTimes()
    times.use(torch.device("cuda"))
    for _ in range(3):
        step(times, clock, 0.1)
        clock[1] = clock[0] - 10  # the device lags behind
    assert [count for _, bins in times.state_dict()["steps"] for _, count in bins] == [2]
    clock[1] = clock[0]
    assert times.figures()["steady_train_seconds"] == pytest.approx(0.3, rel=0.006)


def test_a_scoring_pass_counts_by_its_samples(clock):
    times = StepTimes()
    step(times, clock, 0.1)
    for seconds, samples in ((1.0, 100), (2.0, 200), (50.0, 90)):  # the last one was disturbed
        times.scored(seconds, samples)
    assert times.figures()["steady_refresh_seconds"] == pytest.approx(390 * 0.01, rel=0.006)


def test_they_go_on_from_a_state_and_are_unknown_from_one_without(clock):
    times, again, unknown = StepTimes(), StepTimes(), StepTimes()
    step(times, clock, 0.1, wait=0.1)
    times.scored(1.0, 10)
    again.load_state_dict(times.state_dict())
    assert again.figures() == times.figures() and again.state_dict() == times.state_dict()
    step(again, clock, 0.1, wait=0.1)
    assert again.figures()["steady_train_seconds"] == pytest.approx(0.4, rel=0.006)
    unknown.load_state_dict(None)
    step(unknown, clock, 0.1)
    assert unknown.figures() == {} and not unknown.state_dict()["complete"]


def test_a_step_that_was_dropped_counts_for_nothing(clock):
    times = StepTimes()
    times.wait()
    times.begin()
    times.drop()
    times.end("trained")
    assert times.figures() == {}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_share_of_the_forward_pass_counts_the_wait_for_data_on_both_sides(clock, device):
    times, again = StepTimes(), StepTimes()
    times.use(torch.device(device))
    times.measure_forwards(True)
    for number in range(100):
        times.wait()
        clock[0] += 0.1
        times.begin()
        clock[0] += 30.0 if number == 0 else 0.2  # the first step is verified
        times.end_forward()
        clock[0] += 0.5
        times.end_forward()  # of a second loss
        times.end("trained")
    clock[1] = clock[0]
    assert times.forward_share == pytest.approx((0.1 + 0.2) / (0.1 + 0.7), rel=0.01)
    again.load_state_dict(times.state_dict())
    assert again.forward_share == times.forward_share


def test_forward_passes_are_timed_only_when_asked_for(clock):
    times = StepTimes()
    for wanted in (False, True, False):
        times.measure_forwards(wanted)
        times.wait()
        times.begin()
        clock[0] += 0.1
        times.end_forward()
        times.end("trained")
    assert [count for _, count in times.state_dict()["forwards"]] == [1]
    assert StepTimes().forward_share is None and "forwards" not in StepTimes().state_dict()
