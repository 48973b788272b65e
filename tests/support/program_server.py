"""A process that has imported the large libraries, and becomes the programs it is asked to run, each in a fork of its own."""

import gc
import importlib
import json
import os
import runpy
import sys
from pathlib import Path

import torch

LIBRARIES = (
    *("lightning.pytorch", "torchmetrics", "torchvision.transforms.v2", "timm", "datasets", "sklearn.datasets", "h5py"),
    *("pandas", "pyarrow.parquet", "matplotlib.pyplot", "hydra", "rich.table", "tensorboard.summary"),
)


def next_program():
    """Answer each line, a program, with its exit code; returns in the fork that becomes the program, and at the end None."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(code, flush=True)
    return None


def become(target, arguments, cwd, environment, output):
    """Be ``python target``, for a script, or ``python -m target``, started in ``cwd`` with ``environment``.

    What it prints goes to the file ``output``.
    """
    for number, file in ((0, os.devnull), (1, output), (2, output)):
        os.dup2(os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(torch.get_num_threads())  # see recipes.benchmarks.forked.renew_threads, which is not importable yet
    sys.argv = [target, *arguments]
    script = target.endswith(".py")
    sys.path[:1] = [str(Path(target).parent) if script else cwd, *environment["PYTHONPATH"].split(os.pathsep)]
    importlib.invalidate_caches()
    if script:
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # no program looks for garbage among the libraries
    program = next_program()
    if program is not None:
        become(**program)
