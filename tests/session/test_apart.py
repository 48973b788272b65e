"""What is said of a training in processes of its own, whose totals end with them."""

import warnings

import pytest
from flavoured import FLAVOURS, run_apart
from helpers import Net, fit, loader

from kakurenbo_lightning import SampleSelection
from recipes.benchmarks.forked import printed, run_ranks

SAMPLES = 61


@pytest.mark.slow_cases("ddp_notebook")  # another name of it
@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_it_is_said_that_totals_are_not_there_after_the_fit(flavour, strategy, tmp_path):
    log = tmp_path / "log"
    assert run_ranks(run_apart, (flavour, strategy), log=log) == [0], printed(log, 1)
    said = printed(log, 1, 20_000)
    assert said.count("so totals, statistics and plan are not there in the process that called fit") == 1
    assert "totals here: 0 statistics here: None" in said


def test_nothing_of_the_kind_is_said_where_they_are_there():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(Net(), loader(SAMPLES), SampleSelection("kakurenbo"))
    assert not [warning for warning in said if "processes of its own" in str(warning.message)]
