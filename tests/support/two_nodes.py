"""Two nodes of a cluster on this machine: network namespaces with addresses of their own, joined by a link that can be cut."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
from processes import PATHS

NETWORK = "192.0.2"  # reserved for examples (RFC 5737), and inside the namespaces only
LINK = "link{}"  # the interface of node 0 and of node 1
PORT = 29500


@dataclass(frozen=True)
class Nodes:
    """The nodes that :func:`two_nodes` makes.

    Attributes:
        names: of the network namespaces.
    """

    names: tuple[str, str]

    def restore_link(self):
        """Bring node 0's interface up again."""
        ip("-netns", self.names[0], "link", "set", LINK.format(0), "up")

    def torchrun(self, *arguments, ranks=2, seconds=240):
        """Start ``torchrun`` on both nodes, for ``ranks`` ranks on each, and return their exit codes and what they printed."""
        processes = [self._start(node, ranks, arguments) for node in (0, 1)]
        try:
            printed = [process.communicate(timeout=seconds)[0] for process in processes]
        finally:
            for name in self.names:
                kill_all(name)
            for process in processes:
                process.wait()
        return [process.returncode for process in processes], "\n".join(printed)

    def _start(self, node, ranks, arguments):
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", str(ranks)]
        master = ["--master-addr", f"{NETWORK}.1", "--master-port", str(PORT)]
        variables = {
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "GLOO_SOCKET_IFNAME": LINK.format(node),
            "PYTHONPATH": os.pathsep.join([PATHS, os.environ.get("PYTHONPATH", "")]),
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[node], sys.executable, *launcher, *master, *map(str, arguments)],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def ip(*arguments):
    """Run ``ip`` and return what it printed."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def kill_all(name):
    """Kill every process in the namespace ``name``: the ranks are in sessions of their own, which end with no launcher."""
    for process in ip("netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


@contextlib.contextmanager
def two_nodes():
    """Make two joined network namespaces, and delete them with everything that runs there; skips the test where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the program ip (iproute2)")
    names = tuple(f"kakurenbo-{os.getpid()}-{node}" for node in (0, 1))
    with contextlib.ExitStack() as made:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no right to make a network namespace: {error.stderr.strip()}")
            made.callback(ip, "netns", "delete", name)
            made.callback(kill_all, name)
        try:
            ip("-netns", names[0], "link", "add", LINK.format(0), "type", "veth", "peer", LINK.format(1), "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no veth pair can be made here: {error.stderr.strip()}")
        for node, name in enumerate(names):
            ip("-netns", name, "address", "add", f"{NETWORK}.{node + 1}/24", "dev", LINK.format(node))
            for interface in ("lo", LINK.format(node)):
                ip("-netns", name, "link", "set", interface, "up")
        yield Nodes(names)
