"""Where a run happens, and of what code."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import lightning
import torch

import kakurenbo_lightning


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describe the machine; `device` is "cpu" or "cuda"."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Return versions by name."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "kakurenbo-lightning": kakurenbo_lightning.__version__,
    }


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit(folder: Path) -> str | None:
    """Return the commit of the repository around `folder`, ending in -dirty when it has changes; None outside of one."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the repository around `folder` and whether it has changes; None outside of one."""
    found = commit(folder)
    return None if found is None else {"commit": found.removesuffix("-dirty"), "dirty": found.endswith("-dirty")}
