"""Test processes share the cores, one thread each, and print as wide everywhere; those they start do too."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "120"  # tables and help wrap at the width of the terminal that the tests were started from

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repository", deadline=None, derandomize=True)  # no timed test, fixed seeds
settings.load_profile("repository")
