"""Libraries that only an extra of this package installs."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from kakurenbo_lightning.errors import MissingExtraError

REPORT = ("pandas", "pyarrow", "matplotlib", "jinja2")
RECIPES = (*REPORT, "datasets", "torchvision", "timm", "PIL", "sklearn", "tensorboard", "h5py")


def require(user: str, extra: str, *modules: str) -> None:
    """Raise unless all modules can be found; nothing is imported, so asking costs no time.

    Args:
        user: what needs them, as the error names it.
        extra: the extra of ``kakurenbo-lightning`` that installs them.
        *modules: top-level modules.

    Raises:
        MissingExtraError: names the modules that are missing and the command that installs them.
    """
    missing = [module for module in modules if not _is_there(module)]
    if missing:
        raise MissingExtraError(f'{user} needs {", ".join(missing)}: pip install "kakurenbo-lightning[{extra}]"')


def require_or_exit(program: str, extra: str, *modules: str) -> None:
    """:func:`require` for a console script: a missing module is printed, and the program ends with exit code 2."""
    try:
        require(program, extra, *modules)
    except MissingExtraError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a finder that refuses it; a module without __spec__
        return False
