"""Forks the ranks: ``main(FOLDER)`` runs the cases that ``FOLDER/groups.json`` lists.

``groups.json`` is a list of ``[world_size, [case, ...]]``. All ranks of a group run its cases one after another in one
process group. A rank writes what a case returned to ``CASE.RANK.pt``, and everything it prints to ``CASE.RANK.log``. A
case that fails or hangs ends its process group; the cases after it get a new one.
"""

import faulthandler
import gc
import json
import os
import sys
import traceback

import backprop_cases  # noqa: F401  (registers its cases)
import flow_cases  # noqa: F401  (likewise)
import fsdp_cases  # noqa: F401  (likewise)
import key_cases  # noqa: F401  (likewise)
import pod_cases  # noqa: F401  (likewise)
import share_cases  # noqa: F401  (likewise)
import torch
from cases import CASES

from recipes.benchmarks.forked import free_port, renew_threads

CASE_SECONDS = 60


def main(folder):
    gc.freeze()  # no rank looks for garbage among what it was forked with
    for world_size, names in json.loads((folder / "groups.json").read_text()):
        while names:
            run_group(folder, world_size, names)
            failed = [n for n, name in enumerate(names) if not is_done(folder, name, world_size)]
            names = names[failed[0] + 1 :] if failed else []


def is_done(folder, name, world_size):
    return all((folder / f"{name}.{rank}.pt").exists() for rank in range(world_size))


def run_group(folder, world_size, names):
    """Fork the ranks and wait for all of them."""
    port, ranks = free_port(), []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            run_rank(folder, names, rank, world_size, port)
        ranks.append(pid)
    for pid in ranks:
        os.waitpid(pid, 0)


def run_rank(folder, names, rank, world_size, port):
    """Run the cases as one rank, launched as by ``torchrun`` or a cluster; does not return."""
    renew_threads()
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        NODE_RANK="0",
    )
    for name in names:
        log = os.open(folder / f"{name}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        try:
            scratch = folder / f"{name}.scratch"
            scratch.mkdir(exist_ok=True)
            torch.save(CASES[name](scratch), folder / f"{name}.{rank}.pt")
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            # at once: the other ranks see the connection close instead of waiting
            os._exit(1)
    os._exit(0)
