"""``torchrun node_script.py FOLDER NAME``: trains on two nodes, from the newest checkpoint in FOLDER if there is one.

With the name ``cut`` rank 0 takes the link between the nodes down in mid-epoch.
"""

import faulthandler
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from fault_fits import told
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from recipes.benchmarks.fault_run import train_to_file
from recipes.benchmarks.faults import newest

TIMEOUT_SECONDS = 10  # of a collective
CUT = (1, 3)  # the epoch, and the batch that begins when the link is cut
OPTIONS = {"batch_size": 4}  # of the uncut training too
LIFE_SECONDS = 230


class CutLink(Callback):
    """Rank 0 takes its node's interface down when batch :data:`CUT` begins, and leaves the file ``cut`` at that time."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.is_global_zero and (trainer.current_epoch, batch_idx) == CUT:
            subprocess.run(["ip", "link", "set", "link0", "down"], check=True)
            (self.folder / "cut").touch()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIFE_SECONDS, exit=True)
    folder, name = Path(sys.argv[1]), sys.argv[2]

    def fit():
        train_to_file(
            folder,
            name,
            "kakurenbo",
            every=4,
            resume=newest(folder) if list(folder.glob("*.ckpt")) else None,
            callbacks=(CutLink(folder),) if name == "cut" else (),
            num_nodes=2,
            strategy=DDPStrategy(timeout=timedelta(seconds=TIMEOUT_SECONDS), find_unused_parameters=True),
            **OPTIONS,
        )

    told(folder / name, fit)
