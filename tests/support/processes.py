"""Programs in processes of their own, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGINS = REPOSITORY / "kakurenbo_lightning" / "hydra_support" / "plugins"
PATHS = os.pathsep.join(map(str, (REPOSITORY, PLUGINS, REPOSITORY / "recipes", REPOSITORY / "tests" / "support")))


def environment(home, **more):
    """The environment of a user who has this repository on the path and nothing else of ours."""
    return {"PYTHONPATH": PATHS, "PATH": "/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1", **more}


def program(module, *arguments, cwd, fails=False, timeout=240):
    """Run ``python -m module`` and return what it printed, errors included."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment(cwd), capture_output=True, text=True, timeout=timeout)
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr
