"""What the benchmarks' and the tests' forked processes need before they compute."""

import os
import subprocess
import sys

PROGRAM = """
import os
import sys
import torch
from torch._subclasses import FakeTensorMode
from recipes.benchmarks.forked import renew_threads

torch.set_num_threads(64)  # a large pool takes long to make again, so that the threads below meet it unmade
torch.ones(10**6).mul(2)
pid = os.fork()
if pid == 0:
    renew_threads()
    with FakeTensorMode():
        pass  # after it, as after the first DTensor, a backward pass starts eight threads
    torch.ones(3, requires_grad=True).sum().backward()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0)
"""


def test_a_forked_process_starts_threads_that_compute():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
