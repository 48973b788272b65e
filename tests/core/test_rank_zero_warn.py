"""Warnings of the package: from one process, and with the user's line."""

import warnings

import pytest
import torch.distributed as dist

from kakurenbo_lightning.core.distributed import rank_zero_warn
from kakurenbo_lightning.methods import PLB


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


def test_the_line_of_the_user_is_shown():
    with pytest.warns(UserWarning, match="nothing is drawn") as caught:
        PLB(pretrain_epochs=3).check_run(2, 100)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("environment", "warns"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "3"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "2"}, False),
        ({"LOCAL_RANK": "0", "SLURM_PROCID": "2"}, True),
    ],
)
def test_one_process_warns(environment, warns, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rank_zero_warn("a warning")
    assert [str(each.message) for each in caught] == ["a warning"] * warns


def test_the_process_group_knows_the_rank_best(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.warns(UserWarning, match="a warning"):
            rank_zero_warn("a warning")
    finally:
        dist.destroy_process_group()
