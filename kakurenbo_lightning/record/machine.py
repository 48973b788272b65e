"""Where a run happens, of what code, and by which command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch

import kakurenbo_lightning

SECRET = re.compile(r"(^|[._-])(key|apikey|token|password|passwd|secret)$", re.IGNORECASE)
ADDRESS = re.compile(r"(://)[^/@\s]+@")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Device, processor, cores and threads; ``device`` is ``"cpu"`` or ``"cuda"``."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Versions by name."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "kakurenbo-lightning": kakurenbo_lightning.__version__,
    }


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit(folder: Path) -> str | None:
    """The commit of the repository around ``folder``, ending in -dirty when it has changes; ``None`` outside of one."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of the repository around ``folder`` and whether it has changes; ``None`` outside of one."""
    found = commit(folder)
    return None if found is None else {"commit": found.removesuffix("-dirty"), "dirty": found.endswith("-dirty")}


def typed_command() -> str:
    """The command line of this process, without secrets."""
    words = sys.orig_argv or sys.argv or [""]
    return shlex.join(_masked(word) for word in [Path(words[0]).name, *words[1:]])


def without_secrets(value: Any, name: str = "") -> Any:
    """Settings with HIDDEN in the place of passwords: of values of keys like ``api_key``, and in addresses."""
    if isinstance(value, Mapping):
        return {key: without_secrets(part, str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part, name) for part in value]
    if isinstance(value, str):
        return "HIDDEN" if value and SECRET.search(name) else ADDRESS.sub(r"\1HIDDEN@", value)
    return value


def _masked(word: str) -> str:
    name, equals, _ = word.partition("=")
    return f"{name}=HIDDEN" if equals and SECRET.search(name) else ADDRESS.sub(r"\1HIDDEN@", word)
