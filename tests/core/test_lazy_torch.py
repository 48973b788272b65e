"""torch as the modules of methods have it: not imported before it is used, and then torch itself."""

import subprocess
import sys

import pytest
import torch

from kakurenbo_lightning.core.statistics import Column

PROGRAM = """
import sys
from kakurenbo_lightning.core import lazy_torch, plan
from kakurenbo_lightning.methods import get_method, topk
from kakurenbo_lightning.methods.registry import method_class

assert method_class("forget").columns[0].bytes_per_sample == 2
assert "torch" not in sys.modules
try:
    topk.torch.wher
except AttributeError as error:
    assert str(error) == "module 'torch' has no attribute 'wher'"
import torch
from kakurenbo_lightning.methods.hide import random
assert {torch} == {lazy_torch.torch, plan.torch, topk.torch, random.torch}
assert len(plan.EpochPlan.everything(3).indices) == 3
"""


def test_torch_is_imported_at_its_first_use_and_then_torch_itself():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "size"), [("float32", 4), ("int32", 4), ("int16", 2), ("int8", 1), ("uint8", 1), ("bool", 1)])
def test_a_column_takes_a_dtype_or_its_name(name, size):
    dtype = getattr(torch, name)
    for column in (Column("events", name, 1), Column("events", dtype, 1)):
        made = column.full(3, "cpu")
        assert (made.dtype, made.tolist(), column.bytes_per_sample) == (dtype, [1, 1, 1], size)
