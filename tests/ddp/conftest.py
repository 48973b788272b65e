"""``ranks``: what each rank of a case returned. All cases that the selected tests ask for are run by one launch."""

import functools

import pytest
from launch import launch, read


@pytest.fixture(scope="session")
def launched(request, tmp_path_factory):
    """Results by name of case, of every case that a selected test asks for."""
    folder = tmp_path_factory.mktemp("ddp")
    calls = [item.callspec for item in request.session.items if hasattr(item, "callspec")]
    launch(folder, {call.params["ranks"] for call in calls if "ranks" in call.params})
    return functools.cache(functools.partial(read, folder))


@pytest.fixture
def ranks(request, launched):
    """A list with one entry per rank; parametrize it (``indirect=True``) with the name of a case."""
    return launched(request.param)
