"""A network with heads for many losses, and three batches for it."""

import pytest
from losses import BATCH, Heads


@pytest.fixture
def heads():
    return Heads()


@pytest.fixture
def batches(heads):
    return [heads.batch(start) for start in (0, BATCH, 2 * BATCH)]
