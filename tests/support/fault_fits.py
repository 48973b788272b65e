"""Trainings in which something goes wrong, for processes of their own; needs no pytest.

:func:`told` runs one of them and writes down the error it ends with.
"""

import contextlib
import json
import os
import resource
import signal
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import torch
from helpers import Net, Points, trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset

from kakurenbo_lightning import Choice, HideMethod, SampleSelection
from recipes.benchmarks.fault_run import train

SAMPLES, BATCH_SIZE = 40, 8
BROKEN = 7  # index of the sample that fails
HIDDEN = tuple(range(10))  # in every epoch but the first


class BrokenSampleError(ValueError):
    """What the user's data set raises."""


@dataclass(frozen=True)
class HideTheFirst(HideMethod):
    """Hides :data:`HIDDEN` in every epoch but the first and looks at them afterwards."""

    name: ClassVar[str] = "first"
    summary: ClassVar[str] = "hides the first ten samples"
    reads: ClassVar[tuple[str, ...]] = ("loss",)
    refresh_mode: ClassVar[str] = "eval"

    def choose(self, statistics, epoch):
        mask = torch.zeros(len(statistics), dtype=torch.bool)
        mask[list(HIDDEN) if epoch.index else []] = True
        return Choice(mask)


class FailingPoints(Dataset):
    """:data:`BROKEN` fails from ``epoch`` on, in whichever worker; from epoch 1 on only the refresh pass asks for it.

    Args:
        how: ``"raise"``, or ``"die"`` to end the process.
        epoch: the first in which it fails.
    """

    def __init__(self, how, epoch):
        self.points, self.how, self.fails_from = Points(SAMPLES), how, epoch
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch):
        self.epoch.fill_(epoch)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        if index == BROKEN and self.epoch >= self.fails_from:
            if self.how == "die":
                os._exit(3)
            raise BrokenSampleError(f"sample {index} cannot be read")
        return self.points[index]


def broken_sample(how, epoch, workers):
    """A sample that fails."""
    train = DataLoader(FailingPoints(how, epoch), BATCH_SIZE, shuffle=True, num_workers=workers)
    trainer(SampleSelection(HideTheFirst(), seed=1)).fit(Net(), train)


class Absent(Net):
    """Rank 1 stops for good in the refresh pass after epoch 1, or in the step after ``training`` steps.

    Args:
        training: ``None`` for the refresh pass.
    """

    def __init__(self, training):
        super().__init__()
        self.stops = training

    def training_step(self, batch, batch_idx):
        refresh = not torch.is_grad_enabled() and self.current_epoch > 0  # the first step is run again, too
        here = refresh if self.stops is None else self.trainer.global_step == self.stops
        if here and self.global_rank == 1:
            signal.pause()
        return super().training_step(batch, batch_idx)


def absent_rank(training, seconds):
    """A rank that never arrives at a collective: ours when ``training`` is ``None``, else DDP's."""
    made = trainer(SampleSelection(HideTheFirst(), seed=1), devices=2, strategy=DDPStrategy(timeout=timedelta(seconds=seconds)))
    made.fit(Absent(training), DataLoader(Points(SAMPLES), BATCH_SIZE // 2, shuffle=True))


class FillDisk(Callback):
    """After batch 3 of epoch 1 nothing more can be written to ``folder``.

    Args:
        how: ``"fill"`` the disk to the last byte, or ``"limit"`` the size of this process's files to half a checkpoint.
    """

    def __init__(self, folder, how):
        self.folder, self.how = folder, how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) != (1, 3):
            return
        if self.how == "limit":
            size = (self.folder / "last.ckpt").stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return
        with open(self.folder / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))


def disk_that_fills(folder, method, how):
    """A run that saves after each step, on a disk that is full at some time."""
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_last=True)
    train(folder, method, callbacks=(FillDisk(folder, how), saving))


def told(file, function, *args):
    """Run ``function(*args)`` and write the error it ends with to ``<file>.<rank>.json``."""
    try:
        function(*args)
    except Exception as error:
        end = {"type": type(error).__name__, "text": str(error), "notes": getattr(error, "__notes__", [])}
        file.with_suffix(f".{os.environ.get('RANK', 0)}.json").write_text(json.dumps(end))
        raise
