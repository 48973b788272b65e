"""A training of thousands of epochs holds no more in its last ones than in its first."""

import gc
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
from helpers import Net, fit, loader
from lightning.pytorch.callbacks import ModelCheckpoint

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import RunRecorder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads open files and memory in /proc"),
    pytest.mark.timeout(900),
]
EPOCHS = 2000
PAGE = os.sysconf("SC_PAGE_SIZE")


class Holding(pl.Callback):
    """Writes down what the process holds after each of ``epochs``.

    Attributes:
        files: that are open.
        objects: that the garbage collector knows, tensors among them.
        blocks: of memory that Python has allocated, one for each small object.
        resident: bytes of the process, memory of tensors among them.
    """

    def __init__(self, *epochs):
        self._epochs = epochs
        self.files, self.objects, self.blocks, self.resident = [], [], [], []

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch + 1 in self._epochs:
            gc.collect()
            self.files.append(len(os.listdir("/proc/self/fd")))
            self.objects.append(len(gc.get_objects()))
            self.blocks.append(sys.getallocatedblocks())
            self.resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE)


def grown(held):
    first, last = held
    return last - first


@pytest.mark.parametrize("method", ["kakurenbo", "selective_backprop", "plb"])
def test_memory_and_open_files_are_constant_over_2000_epochs(method):
    """In the second half, when all that is made once is there: less than an object in ten epochs, a block in five, a page in one."""
    holding = Holding(EPOCHS // 2, EPOCHS)
    fit(Net(), loader(8, batch_size=4), SampleSelection(method), holding, max_epochs=EPOCHS)
    assert grown(holding.files) == 0
    assert grown(holding.objects) < EPOCHS // 2 / 10
    assert grown(holding.blocks) < EPOCHS // 2 / 5
    assert grown(holding.resident) < EPOCHS // 2 * PAGE


def test_workers_checkpoints_and_a_recorder_leave_no_file_open(tmp_path):
    selection, holding = SampleSelection("kakurenbo"), Holding(*range(6, 11), *range(56, 61))
    callbacks = [selection, RunRecorder(selection, tmp_path / "record"), ModelCheckpoint(tmp_path, save_last=True), holding]
    train = loader(8, batch_size=4, num_workers=1)
    fit(Net(), train, *callbacks, max_epochs=60, enable_checkpointing=True)
    assert min(holding.files[5:]) <= min(holding.files[:5])  # the recorder's thread may be writing one in each of the first
