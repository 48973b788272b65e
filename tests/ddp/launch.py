"""Run cases on several real processes, see ``worker.py``, and read what each rank returned."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import PATHS

LIMIT_SECONDS = 240  # without a new result; a launch has dozens of cases, and a busy machine may need long for all of them
# of the cases that do not take two ranks
WORLD_SIZES = dict.fromkeys(
    (
        "merge",
        "deal",
        "four_ranks",
        "lopsided_four",
        "lopsided_carry_four",
        "plb_four",
        "merge_repeats",
        "meet_four",
        "share_group_four",
    ),
    4,
)
_HERE = Path(__file__).parent


def world_size(name):
    """How many processes the case ``name`` takes."""
    return WORLD_SIZES.get(name, 4 if name.startswith("tensor_parallel_") and name != "tensor_parallel_alone" else 2)


def launch(folder, names):
    """Run the cases ``names``; kills every process it started, also the data loaders' workers, before it returns."""
    groups = {}
    for name in sorted(names):
        groups.setdefault(world_size(name), []).append(name)
    (folder / "groups.json").write_text(json.dumps(list(groups.items())))
    env = {key: value for key, value in os.environ.items() if key not in ("PL_GLOBAL_SEED", "GROUP_RANK")}
    env.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=f"{PATHS}{os.pathsep}{env.get('PYTHONPATH', '')}")
    with open(folder / "worker.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, str(_HERE / "worker.py"), str(folder)], env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            results = -1
            while process.poll() is None and results < (results := len(list(folder.glob("*.pt")))):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LIMIT_SECONDS)
            if process.poll() is None:
                log.write(f"\nkilled after {LIMIT_SECONDS} s in which no rank has finished a case")
        finally:
            # Lightning traps SIGTERM
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read(folder, name):
    """What each rank returned from the case ``name``, by rank; fails the test with the ranks' output when one did not."""
    files = [folder / f"{name}.{rank}.pt" for rank in range(world_size(name))]
    if all(file.exists() for file in files):
        return [torch.load(file, weights_only=True) for file in files]
    logs = [folder / "worker.log", *sorted(folder.glob(f"{name}.*.log"))]
    text = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}" for log in logs if log.exists())
    pytest.fail(f"case {name!r} did not finish on every one of {len(files)} ranks\n{text}", pytrace=False)
