"""Test processes share the cores: one thread each, for those they start too."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repository", deadline=None, derandomize=True)  # no timed test, fixed seeds
settings.load_profile("repository")
