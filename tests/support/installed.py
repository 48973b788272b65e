"""Packages installed beside the environment, without network, and programs that find them there."""

import os
import subprocess
import sys
from pathlib import Path

from processes import REPOSITORY, program


def run(*command, cwd, site=None, fails=False):
    """Run a program in a process of its own, with ``site`` (a folder, or several) on its path."""
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    if site is not None:
        folders = site if isinstance(site, (list, tuple)) else [site]
        environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done


def beside(site, target, *arguments, cwd):
    """What a module or script prints with ``site`` on its path, that imports Lightning: it does so at once."""
    return program(target, *arguments, cwd=cwd, PYTHONPATH=os.pathsep.join(map(str, site)))


def install(*packages, into, cwd):
    """What ``pip install FOLDER`` (or a wheel) does, but without network and beside the environment."""
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", into)
    run(sys.executable, "-m", "pip", "install", *options, *packages, cwd=cwd)


def built_wheel(folder):
    """Build the wheel of this repository, with the hatchling that is installed; its path."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=REPOSITORY)
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


def editable_paths():
    """The folders that an editable install puts on the path."""
    lines = (REPOSITORY / "pyproject.toml").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("dev-mode-dirs"))
    return [REPOSITORY / name.strip('" ') for name in line.partition("[")[2].rstrip("]").split(",")]
