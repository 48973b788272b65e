"""Run cases on several real processes, see ``worker.py``, and read what each rank returned."""

import contextlib
import json
import multiprocessing
import os
import signal

import pytest
import torch

from recipes.benchmarks.forked import FORKSERVER

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


def world_size(name):
    """How many processes the case ``name`` takes."""
    return WORLD_SIZES.get(name, 4 if name.startswith("tensor_parallel_") and name != "tensor_parallel_alone" else 2)


def launch(folder, names):
    """Run the cases ``names``; kills every process it started, also the data loaders' workers, before it returns."""
    groups = {}
    for name in sorted(names):
        groups.setdefault(world_size(name), []).append(name)
    (folder / "groups.json").write_text(json.dumps(list(groups.items())))
    process = FORKSERVER.Process(target=_work, args=(folder,))
    process.start()
    try:
        results = -1
        while process.is_alive() and results < (results := len(list(folder.glob("*.pt")))):
            process.join(LIMIT_SECONDS)
        if process.is_alive():
            with open(folder / "worker.log", "a") as log:
                log.write(f"\nkilled after {LIMIT_SECONDS} s in which no rank has finished a case")
    finally:
        # Lightning traps SIGTERM
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _work(folder):
    """Run the cases in this process, which leads the group of all ranks and of their data loaders' workers."""
    from worker import main  # with all cases, which the tests' process does without

    os.setsid()
    log = os.open(folder / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    for name in ("PL_GLOBAL_SEED", "GROUP_RANK"):
        os.environ.pop(name, None)
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of data loaders' workers
    main(folder)
    os._exit(0)


def read(folder, name):
    """What each rank returned from the case ``name``, by rank; fails the test with the ranks' output when one did not."""
    files = [folder / f"{name}.{rank}.pt" for rank in range(world_size(name))]
    if all(file.exists() for file in files):
        return [torch.load(file, weights_only=True) for file in files]
    logs = [folder / "worker.log", *sorted(folder.glob(f"{name}.*.log"))]
    text = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}" for log in logs if log.exists())
    pytest.fail(f"case {name!r} did not finish on every one of {len(files)} ranks\n{text}", pytrace=False)
