"""Where a run happens, of what code, and by which command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import torch

import kakurenbo_lightning

_NAMES = "(?:api|access)?[_-]?key(?:[_-]?id)?|token|password|passwd|passphrase|secret|authorization|credentials?"
SECRET = re.compile(rf"(?:^|[._-])(?:{_NAMES})$", re.IGNORECASE)
IN_TEXT = (  # each with what stays in front of a secret
    re.compile(r"(://)[^/@\s]+(?=@)"),
    re.compile(r"(\bBearer\s+)[^\s'\"]+", re.IGNORECASE),
    re.compile(rf"([{{,]\s*['\"]?(?:[\w.-]*[._-])?(?:{_NAMES})['\"]?\s*:\s*)[^,}}]+", re.IGNORECASE),  # a dict on a command line
)


def machine(device: str = "cpu") -> dict[str, Any]:
    """Device, processor, cores and threads; ``device`` is ``"cpu"`` or ``"cuda"``."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, torch, Lightning and this package, by name."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "kakurenbo-lightning": kakurenbo_lightning.__version__,
    }


def processor() -> str:
    """Name of the processor, as the system gives it."""
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
    pairs = pairwise(words)  # an option's value may be the word after it
    masked = ["HIDDEN" if before.startswith("-") and _is_secret(before) else _masked(word) for before, word in pairs]
    return shlex.join([Path(words[0]).name, *masked])


def without_secrets(value: Any, name: str = "") -> Any:
    """Settings with HIDDEN in the place of passwords: of text under a name like ``api_key``, and in addresses.

    Args:
        value: settings made of dicts, lists, text and numbers.
        name: under which it stands.
    """
    if isinstance(value, Mapping):
        return {key: without_secrets(part, name if _is_secret(name) else str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part, name) for part in value]
    if isinstance(value, str):
        return "HIDDEN" if value and _is_secret(name) else _masked_text(value)
    return value


def _is_secret(name: str) -> bool:
    return SECRET.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)) is not None  # accessKeyId is access_Key_Id


def _masked(word: str) -> str:
    name, equals, _ = word.partition("=")
    return f"{name}=HIDDEN" if equals and _is_secret(name) else _masked_text(word)


def _masked_text(text: str) -> str:
    for pattern in IN_TEXT:
        text = pattern.sub(r"\1HIDDEN", text)
    return text
