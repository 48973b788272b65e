"""FSDP2 whose processes are killed by SIGKILL within an epoch goes on from its folder, in other processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killed_fsdp import KILLED, SAVED
from test_ddp_fsdp import assert_goes_on, pytestmark  # noqa: F401  (skipped with the same releases of torch)

from recipes.benchmarks.forked import free_port

SCRIPT, LIMIT_SECONDS = Path(__file__).with_name("killed_fsdp.py"), 400


def start(folder, way):
    """Two processes, as torchrun starts them; their output is in the folder."""
    world = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    world |= {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }  # sys.path: where this process found the tests' modules
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), way],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=(folder / f"{way}.{rank}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]


def ended(folder, way):
    """The exit statuses of two processes; the first one is killed once the second one has ended by a signal."""
    processes = start(folder, way)
    try:
        second = processes[1].wait(LIMIT_SECONDS)
        if second < 0:
            processes[0].kill()
        return [processes[0].wait(LIMIT_SECONDS), second]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT_SECONDS)
def test_killed_within_an_epoch_it_ends_as_the_uncut_run(tmp_path):
    assert SAVED < KILLED and SAVED[0] == KILLED[0]
    codes = ended(tmp_path, "kill")
    assert codes == [-signal.SIGKILL] * 2, (tmp_path / "kill.1.log").read_text()[-4000:]
    assert (tmp_path / "at.ckpt").is_dir()
    assert ended(tmp_path, "resume") == [0, 0], (tmp_path / "resume.0.log").read_text()[-4000:]
    for rank in range(2):
        uncut, resumed = (torch.load(tmp_path / f"{name}.{rank}.pt", weights_only=True) for name in ("uncut", "resumed"))
        assert sorted(resumed["epochs"]) == [1, 2, 3] and len(uncut["epochs"]) == 4
        for epoch in (1, 2, 3):
            assert torch.equal(resumed["epochs"][epoch]["hidden"], uncut["epochs"][epoch]["hidden"])
        assert any(len(resumed["epochs"][epoch]["hidden"]) for epoch in (2, 3))
        assert_goes_on(uncut, resumed)
