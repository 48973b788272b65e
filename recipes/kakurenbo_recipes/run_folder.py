"""The folder of a run holds one run: a second one gets a number, or is refused where the folder was typed. A callback of Hydra."""

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

STARTED = "KAKURENBO_STARTED"  # the default folder of a run; the ranks that Lightning starts inherit it
LEFT = ("results.json", "*/run.json", "*/metrics.csv", "*/checkpoints/*.ckpt")  # files of a run, finished or interrupted
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")  # a restarted job may use its folder again


class OneRun(Callback):
    """Checks the run's folder before Hydra writes into it. Hydra turns errors of a callback into warnings, so SystemExit is raised."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check that `hydra.run.dir` does not hold another run."""
        self._check(config, "run", "")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check that `hydra.sweep.dir`, which holds a folder per run, is free. An arena continues in its own folder."""
        if not str(OmegaConf.select(config, "hydra.sweeper._target_")).endswith(".ArenaSweeper"):
            self._check(config, "sweep", "*/")

    def _check(self, config: DictConfig, mode: str, runs: str) -> None:
        if any(os.environ.get(name, "0") != "0" for name in RANKS):
            return  # rank 0 has reserved the folder already
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
            refuse(name, folder, "a folder that holds no run yet", "delete it, or continue its run with ckpt_path=last")


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
            os.environ[STARTED] = f"{started}-{number}"  # configs/train.yaml reads it whenever hydra.run.dir is resolved
            if Path(config.hydra[mode].dir) == folder:  # a user's config may set a folder without this variable
                return folder


def refuse(name: str, folder: Path, allowed: str, other: str = "") -> None:
    """End the program with a sentence about the folder."""
    fix = f"Choose another by {name}=FOLDER" + (f", {other}" if other else "")
    raise SystemExit(f"{name}={str(folder)!r} is not possible: it must be {allowed}. {fix}.")
