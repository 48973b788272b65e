"""The fingerprint of a loader's data set."""

import pytest
import torch
from file_data import RawFile, open_file, points
from torch.utils.data import DataLoader

from kakurenbo_lightning.core.fingerprint import fingerprint, loader_fingerprint


@pytest.fixture
def path(tmp_path):
    """A file of 64 samples."""
    (tmp_path / "x.bin").write_bytes(points(64).tobytes())
    return tmp_path / "x.bin"


def test_the_fingerprint_is_the_same_whoever_reads(path):
    expected = fingerprint(RawFile(path, 64))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for settings in ({}, {"num_workers": 1}, {"num_workers": 3, "persistent_workers": True, "timeout": 60}):
        assert loader_fingerprint(DataLoader(RawFile(path, 64), 8, **settings)) == expected, settings
    assert torch.equal(torch.get_rng_state(), before)
    other = DataLoader(RawFile(path, 63), 8, num_workers=1)
    assert loader_fingerprint(other) != expected


def test_the_users_worker_init_fn_prepares_the_worker_that_reads_for_the_fingerprint(path):
    train = DataLoader(RawFile(path, 64, by_init=True), 8, num_workers=1, worker_init_fn=open_file)
    assert loader_fingerprint(train) == fingerprint(RawFile(path, 64))
