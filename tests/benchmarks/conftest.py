"""Every benchmark's test leaves the number of threads and Lightning's log level as they were."""

import pytest
from bench_helpers import as_before


@pytest.fixture(autouse=True)
def settings_put_back():
    with as_before():
        yield
