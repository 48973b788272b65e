"""One process of an FSDP2 training, for test_killed_fsdp.py: ``killed_fsdp.py FOLDER kill`` or ``killed_fsdp.py FOLDER resume``."""

import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from fits import SaveAt
from fsdp_cases import course, fsdp2

SAVED, KILLED = (1, 1), (1, 3)  # epoch and batch


class KillAt(pl.Callback):
    """Kills the process of the second rank between the forward pass and the end of a batch; the first one waits for it then."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        batch = trainer.fit_loop.epoch_loop.batch_idx
        if (trainer.current_epoch, batch) == KILLED and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, way):
    rank = os.environ["RANK"]
    if way == "kill":
        torch.save(course("kakurenbo", fsdp2()), folder / f"uncut.{rank}.pt")
        course("kakurenbo", fsdp2(), [SaveAt(folder / "at.ckpt", *SAVED), KillAt()])
    else:
        torch.save(course("kakurenbo", fsdp2(), ckpt_path=folder / "at.ckpt"), folder / f"resumed.{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
