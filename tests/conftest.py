"""Test processes share the cores, one thread each, and print as wide everywhere; those they start do too."""

import functools
import gc
import importlib.metadata
import logging
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "120"  # tables and help wrap at the width of the terminal that the tests were started from

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
gc.disable()  # until the tests are collected: what they import is a million objects that stay
settings.register_profile("repository", deadline=None, derandomize=True)  # no timed test, fixed seeds
settings.load_profile("repository")

_entry_points = importlib.metadata.entry_points


@functools.cache
def _found_on(path, **group):
    return _entry_points(**group)


def once_for_each_path(**group):
    """Every Trainer asks for entry points, which reads a file of each installed package: a tenth of a small fit."""
    return _found_on(tuple(sys.path), **group)


importlib.metadata.entry_points = once_for_each_path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Make cases of a test slow (`make test-all`): all but those named in `quick(...)`, or those named in `slow_cases(...)`."""
    for item in items:
        parts = item.callspec.id.split("-") if hasattr(item, "callspec") else []
        quick, slow = item.get_closest_marker("quick"), item.get_closest_marker("slow_cases")
        if (quick is not None and not set(parts) & set(quick.args)) or (slow is not None and set(parts) & set(slow.args)):
            item.add_marker(pytest.mark.slow)


def pytest_configure(config):
    if getattr(config.option, "numprocesses", None):
        gc.enable()  # this process hands the tests out, and collects none


def pytest_collection_finish(session):
    """Collect garbage from here on, among what tests make: not among what was imported, nor in a worker's copy of it."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_seed_of_an_earlier_test():
    """``seed_everything`` leaves its seed in the environment, where a ``SampleSelection`` without one takes it from."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def levels_of_lightnings_logs():
    """A command that a test calls in this process, or a benchmark, may have made them quiet."""
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning")]
    levels = [log.level for log in logs]
    yield
    for log, level in zip(logs, levels, strict=True):
        log.setLevel(level)
