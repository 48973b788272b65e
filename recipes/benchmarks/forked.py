"""Real processes that start at once: forked from a server that has imported torch and Lightning, and killed as a group."""

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

GRACE_SECONDS = 10  # time between a rank's own end at its limit, when it prints its stack, and the kill
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["recipes.benchmarks.fault_run"])


class TimeLimitError(RuntimeError):
    """A rank was still running at its time limit."""


def run_ranks(
    function: Callable[..., Any], args: tuple, world_size: int = 1, *, log: Path, seconds: float = 60, all_alone: bool = False
) -> list[int]:
    """Run `function(*args)` in `world_size` new processes, set up as by `torchrun`, and wait for them.

    Args:
        function: importable by name, as are the types of `args`.
        args: arguments of the function.
        world_size: number of ranks.
        log: output of rank r goes to `<log>.<r>.log`.
        seconds: time limit; a rank that takes longer prints its stack and is killed.
        all_alone: let the other ranks run on if one fails; otherwise they are killed, as on a cluster.

    Returns:
        Exit codes by rank, negative for a signal. Every process of every rank, also its data loader workers, has ended.

    Raises:
        TimeLimitError: with what the ranks printed.
    """
    port, ranks = free_port(), []
    for rank in range(world_size):
        arguments = (function, args, rank, world_size, port, f"{log}.{rank}.log", seconds)
        ranks.append(FORKSERVER.Process(target=_run_rank, args=arguments))
    try:
        for process in ranks:
            process.start()  # the first start waits until the server has imported everything, which is slow on a busy machine
        running, deadline = list(ranks), time.monotonic() + seconds + GRACE_SECONDS
        while running:
            wait([process.sentinel for process in running], max(0.0, deadline - time.monotonic()))
            ended = [process for process in running if process.exitcode is not None]
            if not ended:
                raise TimeLimitError(f"{function.__name__} was not done after {seconds} s\n{printed(log, world_size)}")
            running = [process for process in running if process not in ended]
            if not all_alone and any(process.exitcode for process in ended):
                break
    finally:
        for process in ranks:
            _kill_group(process)
    return [process.exitcode for process in ranks]


def printed(log: Path, world_size: int, characters: int = 4000) -> str:
    """Return the end of what each rank printed."""
    files = [Path(f"{log}.{rank}.log") for rank in range(world_size)]
    return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-characters:]}" for file in files if file.exists())


def renew_threads() -> None:
    """Make this forked process ready to compute in several threads; to be called first, while it has only one.

    PyTorch notes at a fork that the threads of its pool are gone and makes a new pool at the next use, without a lock. The
    first backward pass of a process with DTensors starts eight threads at once, which all use the pool; where one of them
    found the old pool removed and the new one not yet made, the process aborted ("Invalid thread pool!"). Seen with torch
    2.14.1.
    """
    torch.set_num_threads(torch.get_num_threads())


def _kill_group(process: multiprocessing.Process) -> None:
    """Kill a rank and all processes it started. SIGKILL, because Lightning traps SIGTERM."""
    if process.pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # also by pid, because it may not lead its process group yet
    process.join()


def free_port() -> int:
    """Return a port for `MASTER_PORT`, which nobody holds until rank 0 listens on it.

    It is not among the ports that the system gives to whoever asks for any (32768 and up on Linux): every rank's Gloo takes
    several of those, and one would now and then be this one.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1_000):  # not seeded: other processes choose too
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("1,000 ports between 20,000 and 32,000 were all in use.")


def _run_rank(function: Callable[..., Any], args: tuple, rank: int, world_size: int, port: int, log: str, seconds: float) -> None:
    """Run as one rank: leader of a process group, with a log and a time limit of its own. Never returns."""
    gc.freeze()  # what the server has imported is no garbage
    renew_threads()
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # the start method of data loader workers
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.dump_traceback_later(seconds, exit=True)
    if world_size > 1:
        names = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    try:
        function(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # exit at once, so that other ranks see a closed connection instead of waiting
