"""``torchrun elastic_script.py FOLDER``: trains from the newest checkpoint there; in the first life rank 1 kills itself in mid-epoch."""

import faulthandler
import os
import sys
from pathlib import Path

from recipes.benchmarks.fault_record import Kill
from recipes.benchmarks.fault_run import train_to_file
from recipes.benchmarks.faults import newest

LIFE_SECONDS = 120

if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIFE_SECONDS, exit=True)
    folder, life = Path(sys.argv[1]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    kill = Kill("inside a step", tick=9, rank=1) if life == 0 else None
    train_to_file(folder, f"life{life}", "kakurenbo", every=4, kill=kill, resume=newest(folder) if life else None, seed=life)
