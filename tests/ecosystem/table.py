"""Tries every case with every method and writes the table of docs/ecosystem.md.

In the environment of ``make test-ecosystem``, in the folder of the repository::

    PYTHONPATH=. .venv-ecosystem/bin/python tests/ecosystem/table.py docs/ecosystem.md
"""

import importlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from foreign import GRADIENT_TOLERANCE, METHODS, TOLERANCE, Case, Outcome, outcome

import kakurenbo_lightning

LIBRARIES = ("chemprop", "geometric", "monai", "smp", "tabular", "timm", "torchgeo", "transformers")
LONGEST = 420  # characters of what was said
BEGIN = "<!-- written by tests/ecosystem/table.py -->\n"
HEAD = "| case | methods | trained untouched | what was said | values exact | gradients exact |\n| --- | --- | --- | --- | --- | --- |"


def brief(text: str) -> str:
    """What was said, without its examples, short enough for a cell."""
    text = re.sub(r"\s+", " ", text.partition("\n")[0]).replace("|", "\\|").replace("][", "]\\[")  # else a link in Markdown
    text = re.sub(r"^(per-sample values|SampleSelection): ", "", text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def tried(case: Case, method: str) -> tuple[str, str, Outcome]:
    """Whether it trained, what was said, and what came of it at a learning rate of 0."""
    made = outcome(case, method)
    own = outcome(case, method, still=False) if made.error is None else made
    if own.error is not None:
        said = f"{type(own.error).__name__}: {brief(str(own.error))}"
    else:
        said = "; ".join(dict.fromkeys(map(brief, made.warned + own.warned))) or (
            "it is not refused" if method in case.refused else "-"
        )
    return "yes" if own.error is None else "no", said if as_expected(case, method, own) else f"**to be mended**: {said}", made


def as_expected(case: Case, method: str, made: Outcome) -> bool:
    """Whether the tests expect it."""
    said = str(made.error) if made.error is not None else " ".join(made.warned)
    words = case.refused.get(method) if made.error is not None else case.warned.get(method)
    if words is None:
        return method not in case.refused and not said
    return re.search(words, said, re.DOTALL) is not None


def exact(errors: list[float | None], tolerance: float) -> str:
    """Whether the largest of the errors is small enough."""
    known = [error for error in errors if error is not None]
    if not known:
        return "-"
    return f"{'yes' if max(known) <= tolerance else '**no**'} ({max(known):.0e})"


def rows(case: Case) -> Iterator[str]:
    """One row for all methods of which the same was said."""
    groups: dict[tuple[str, str], dict[str, Outcome]] = {}
    for method in METHODS:
        trained, said, made = tried(case, method)
        said = re.sub(r"(shape|of|each) \[\d+(, \d+)*\]", r"\1 [...]", said)  # shapes differ by the batch that came first
        groups.setdefault((trained, said), {})[method] = made
    for (trained, said), made in groups.items():
        values = exact([one.difference if one.measured else None for one in made.values()], TOLERANCE)
        gradients = exact([one.gradient for one in made.values()], GRADIENT_TOLERANCE)
        yield f"| {case.name} | {', '.join(made)} | {trained} | {said} | {values} | {gradients} |"


def main(path: Path) -> None:
    """Write the tables, one for each library, into the file at ``path``."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = path.resolve()
    modules = [importlib.import_module(f"test_{name}") for name in LIBRARIES]
    for name in ("lightning.pytorch", "pytorch_lightning", "pytorch_tabular"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.chdir(tempfile.mkdtemp())  # pytorch-tabular writes lightning_logs
    tables = []
    for module in modules:
        package = module.CASES[0].package
        print(package, flush=True)
        made = [row for case in module.CASES for row in rows(case)]
        tables.append("\n".join([f"\n## {package} {version(package)}\n", HEAD, *made, ""]))
    source = Path(kakurenbo_lightning.__file__).parent
    commit = subprocess.run(["git", "-C", source, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    others = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "torchmetrics"))
    text = path.read_text().partition(BEGIN)[0]
    path.write_text(f"{text}{BEGIN}\nAt commit {commit}, with {others}.\n{''.join(tables)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
