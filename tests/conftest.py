"""Test processes share the cores, one thread each, and print as wide everywhere; those they start do too."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "120"  # tables and help wrap at the width of the terminal that the tests were started from

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repository", deadline=None, derandomize=True)  # no timed test, fixed seeds
settings.load_profile("repository")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked `quick("a", "b")`, only the cases with "a" or "b" in their id are fast; the others are slow (`make test-all`)."""
    for item in items:
        mark = item.get_closest_marker("quick")
        parts = item.callspec.id.split("-") if hasattr(item, "callspec") else []
        if mark is not None and parts and not any(name in parts for name in mark.args):
            item.add_marker(pytest.mark.slow)
