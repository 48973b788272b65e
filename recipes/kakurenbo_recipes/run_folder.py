"""The folder of a run holds one run: a second one gets a number, or is refused where the folder was typed. A callback of Hydra."""

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

STARTED = "KAKURENBO_STARTED"  # the default folder of a run; the ranks that Lightning starts inherit it
LEFT = ("results.json", "*/run.json", "*/metrics.csv", "*/checkpoints/*.ckpt")  # what a run leaves, whole or not
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")  # a job that was started again may begin again in its folder


class OneRun(Callback):
    """Looks at the folder before Hydra writes into it; Hydra turns a callback's errors into warnings, but not a SystemExit."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check `hydra.run.dir`."""
        self._check(config, "run", "")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check `hydra.sweep.dir`, in which each run has a folder; an arena goes on in its own."""
        if not str(OmegaConf.select(config, "hydra.sweeper._target_")).endswith(".ArenaSweeper"):
            self._check(config, "sweep", "*/")

    def _check(self, config: DictConfig, mode: str, runs: str) -> None:
        if any(os.environ.get(name, "0") != "0" for name in RANKS):
            return  # rank 0 has made it
        name = f"hydra.{mode}.dir"
        typed = any(word.lstrip("+").startswith(f"{name}=") for word in config.hydra.overrides.hydra)
        again = config.ckpt_path is not None if "ckpt_path" in config else False
        folder = Path(config.hydra[mode].dir)
        try:
            if not typed and STARTED in os.environ:
                folder = reserved(config, mode)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            refuse(name, folder, f"a folder that can be made ({error.strerror})")
        if not os.access(folder, os.W_OK):
            refuse(name, folder, "a folder that can be written to")
        restarted = any(os.environ.get(variable, "0") != "0" for variable in RESTARTS)
        if not (again or restarted) and any(next(folder.glob(runs + left), None) for left in LEFT):
            refuse(name, folder, "a folder that holds no run yet", "delete it, or go on with its run by ckpt_path=last")


def reserved(config: DictConfig, mode: str) -> Path:
    """Make the folder of a run that begins now, and return it; one that another run made in the same second gets a number."""
    started, number = os.environ[STARTED], 1
    while True:
        folder = Path(config.hydra[mode].dir)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise
            number += 1
            os.environ[STARTED] = f"{started}-{number}"  # the config reads it each time
            if Path(config.hydra[mode].dir) == folder:  # a config whose folder does not follow it
                return folder


def refuse(name: str, folder: Path, allowed: str, other: str = "") -> None:
    """End the program with a sentence about the folder."""
    fix = f"Choose another by {name}=FOLDER" + (f", {other}" if other else "")
    raise SystemExit(f"{name}={str(folder)!r} is not possible: it must be {allowed}. {fix}.")
