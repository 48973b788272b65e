"""Programs in processes of their own, as a user starts them."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import program_server

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGINS = REPOSITORY / "kakurenbo_lightning" / "hydra_support" / "plugins"
PATHS = os.pathsep.join(map(str, (REPOSITORY, PLUGINS, REPOSITORY / "recipes", REPOSITORY / "tests" / "support")))


def environment(home, **more):
    """The environment of a user who has this repository on the path and nothing else of ours."""
    return {"PYTHONPATH": PATHS, "PATH": "/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1", **more}


def program(target, *arguments, cwd, fails=False, timeout=240, **more):
    """Run ``python -m target``, or a script, and return what it printed, errors included; `program_server` starts it at once.

    ``more`` is for its environment.
    """
    server = started_server()
    with tempfile.NamedTemporaryFile() as output:
        order = {"target": str(target), "arguments": list(map(str, arguments)), "cwd": str(cwd)}
        order.update(environment=environment(cwd, **more), output=output.name)
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], timeout)[0]:
            os.killpg(server.pid, signal.SIGKILL)  # the server, the program and what it started
            started_server.cache_clear()
            raise TimeoutError(f"{target} was not done after {timeout} s\n{Path(output.name).read_text(errors='replace')}")
        code, printed = int(server.stdout.readline()), Path(output.name).read_text(errors="replace")
    assert (code != 0) is fails, printed
    return printed


@cache
def started_server():
    """The process of this test process that runs its programs; it ends when its input does."""
    return subprocess.Popen(
        [sys.executable, program_server.__file__],
        env=environment(tempfile.gettempdir(), PYTHONPATH=""),  # a program's is put before its libraries'
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
