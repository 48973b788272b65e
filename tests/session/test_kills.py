"""Killed at random, and restarted by ``torchrun``."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from cuts import on_ranks
from processes import PATHS, REPOSITORY

from kakurenbo_lightning import available_methods
from recipes.benchmarks import faults
from recipes.benchmarks.fault_record import MOMENTS
from recipes.benchmarks.fault_run import SAMPLES, differences

pytestmark = pytest.mark.slow
SCRIPT = REPOSITORY / "tests" / "support" / "elastic_script.py"
RESTART_SECONDS = 240


@pytest.mark.timeout(900)
def test_sixty_random_kills_are_sixty_exact_resumes(tmp_path):
    result = faults.main(["--kills", "60", "--seed", "0", "--json", str(tmp_path / "faults.json")])
    assert (result["kills"], result["exact"], result["failures"]) == (60, 60, 0)
    rows = result["trainings"]
    assert {row["method"] for row in rows} == set(available_methods())
    assert {row["world_size"] for row in rows} == {1, 2, 3}
    assert {moment for row in rows for moment in row["moments"]} == set(MOMENTS)


def run_torchrun(*arguments):
    """Exit code and output; ``torchrun`` ends its ranks itself, and they end themselves when it cannot."""
    command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    # else a restart of plain PyTorch on gloo hangs in most runs, too: https://github.com/pytorch/pytorch/issues/135712
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([PATHS, environment.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=RESTART_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, output


def test_torchrun_restarts_a_killed_rank_and_the_run_ends_as_if_nothing_had_been(tmp_path):
    code, output = run_torchrun("--nproc-per-node", "2", "--max-restarts", "1", "--standalone", str(SCRIPT), str(tmp_path))
    assert code == 0, output
    assert (tmp_path / "killed.json").exists() and not list(tmp_path.glob("life0.*.pt")), "the first life ended in mid-epoch"
    results = [torch.load(tmp_path / f"life1.{rank}.pt", weights_only=True) for rank in (0, 1)]
    whole = on_ranks(tmp_path / "whole", "kakurenbo", 2)
    for rank in (0, 1):
        assert differences(whole[rank], results[rank]) == []
    start = results[0]["resumed"]
    assert (start["epoch"], start["step"]) == (1, 2), "from the checkpoint after batch 8"
    for epoch in range(4):
        before = [r["batches"][epoch][b] for r in whole for b in r["batches"][epoch] if (epoch, b) < (1, 2)]
        after = [rows for r in results for rows in r["batches"].get(epoch, {}).values()]
        trained = torch.cat([*before, *after])
        kept = SAMPLES - len(whole[0]["plans"][epoch]["hidden"])
        assert len(trained) == len(trained.unique()) == kept
    totals = results[0]["totals"]
    assert totals["samples_trained"] + totals["samples_hidden"] == 4 * SAMPLES
