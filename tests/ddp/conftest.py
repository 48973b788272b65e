"""``ranks``: what each rank of a case returned. All cases that the selected tests ask for are run by one launch."""

import fcntl
import functools
import os
from pathlib import Path

import pytest
import torch
from launch import launch, read

from kakurenbo_lightning import available_methods


def pytest_collection_modifyitems(items):
    """The first test waits for all cases; a launch that stands still ends by itself."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The tests beside us use the other cores, and tiny tensors gain nothing from threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def launched(request, tmp_path_factory):
    """Results by name of case, of every case that a selected test asks for; pytest-xdist's workers share one launch."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "ddp"
    folder.mkdir(exist_ok=True)
    here = [item for item in request.session.items if item.path.is_relative_to(Path(__file__).parent)]
    calls = [item.callspec for item in here if hasattr(item, "callspec")]
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            names = {call.params["ranks"] for call in calls if "ranks" in call.params}
            names |= {
                name.replace("tensor", "data", 1)
                for name in names
                if name.removeprefix("tensor_parallel_") in available_methods()
            }
            launch(folder, names)
            (folder / "done").touch()
    return functools.cache(functools.partial(read, folder))


@pytest.fixture
def ranks(request, launched):
    """A list with one entry per rank; parametrize it (``indirect=True``) with the name of a case."""
    return launched(request.param)
