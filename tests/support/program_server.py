"""A process that has imported the large libraries, and becomes the programs it is asked to run, each in a fork of its own."""

import importlib
import json
import os
import runpy
import sys

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


def become(module, arguments, cwd, environment, output):
    """Be ``python -m module``, started in ``cwd`` with ``environment``; what it prints goes to the file ``output``."""
    for number, file in ((0, os.devnull), (1, output), (2, output)):
        os.dup2(os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    sys.path[0] = cwd  # as `python -m` does
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in LIBRARIES:
        importlib.import_module(name)
    program = next_program()
    if program is not None:
        become(**program)
