"""The error of a dying loader worker may come anywhere; where errors are taken for those of something else it waits."""

import signal

import pytest

from kakurenbo_lightning.core import distributed
from kakurenbo_lightning.core.distributed import collective
from kakurenbo_lightning.core.worker_errors import explain_worker_errors, worker_errors_wait

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="there are no such signals")
TEXT = "DataLoader worker (pid 7) is killed by signal: Killed."


def as_torch_does(number, frame):
    raise RuntimeError(TEXT)


class Explaining:
    def __init__(self):
        self.errors = []

    def explain(self, error):
        self.errors.append(error)


@pytest.fixture
def explaining():
    before = signal.signal(signal.SIGCHLD, as_torch_does)
    made = Explaining()
    explain_worker_errors(made.explain)
    yield made
    signal.signal(signal.SIGCHLD, before)


def test_it_is_no_other_ranks_fault(explaining, monkeypatch):
    """That of a collective says that the others did not come."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    done = []
    with pytest.raises(RuntimeError) as caught, collective("merge the statistics", "rank 1"):
        signal.raise_signal(signal.SIGCHLD)
        done.append("merged")
    assert str(caught.value) == TEXT and done == ["merged"]
    assert explaining.errors == [caught.value]
    assert signal.getsignal(signal.SIGCHLD) is as_torch_does


def test_it_is_raised_at_the_end_of_the_outermost_block(explaining):
    done = []
    with pytest.raises(RuntimeError, match="pid 7"), worker_errors_wait():
        with worker_errors_wait():
            signal.raise_signal(signal.SIGCHLD)
        done.append("outer")
    assert done == ["outer"]
    with worker_errors_wait():
        done.append("once")
    assert done == ["outer", "once"]


def test_another_error_of_the_block_stays_what_it_is(explaining):
    with pytest.raises(ValueError, match="the user's"), worker_errors_wait():
        signal.raise_signal(signal.SIGCHLD)
        raise ValueError("the user's")
    assert len(explaining.errors) == 1


def test_elsewhere_it_is_raised_at_once(explaining):
    with pytest.raises(RuntimeError, match="pid 7"):
        signal.raise_signal(signal.SIGCHLD)
    assert len(explaining.errors) == 1


def test_without_a_handler_of_ours_nothing_waits():
    before = signal.signal(signal.SIGCHLD, as_torch_does)
    try:
        with pytest.raises(RuntimeError, match="pid 7"), worker_errors_wait():
            signal.raise_signal(signal.SIGCHLD)
            raise AssertionError("not reached")
    finally:
        signal.signal(signal.SIGCHLD, before)
