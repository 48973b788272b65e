"""Prints the table of docs/ecosystem.md: ``python tests/ecosystem/table.py``, in the environment of ``make test-ecosystem``."""

import importlib
import logging
import os
import re
import tempfile
import warnings
from importlib.metadata import version

import torch
from foreign import GRADIENT_TOLERANCE, METHODS, TOLERANCE, Case, Outcome, outcome

LIBRARIES = ("chemprop", "geometric", "smp", "tabular", "torchgeo", "transformers")


def first_sentence(text: str) -> str:
    """What was said, without its examples, short enough for a cell."""
    text = re.sub(r"\s+", " ", text.partition("\n")[0]).replace("|", "\\|")
    return text if len(text) <= 160 else f"{text[:157]}..."


def cells(case: Case, method: str) -> list[str]:
    """One row of the table."""
    made = outcome(case, method)
    if made.error is not None:
        return [method, "no", f"{type(made.error).__name__}: {first_sentence(str(made.error))}", "-", "-"]
    own = outcome(case, method, still=False)
    said = "; ".join(map(first_sentence, made.warned + own.warned)) or "-"
    if own.error is not None:
        said = f"at its own learning rate {type(own.error).__name__}: {first_sentence(str(own.error))}"
    return [method, "yes" if own.error is None else "no", said, values(case, made), gradients(made)]


def values(case: Case, made: Outcome) -> str:
    """Whether the recorded losses are those of the samples alone."""
    if not made.measured:
        return "none recorded"
    if made.difference is None:
        return "BatchNorm: not comparable" if not case.comparable else "-"
    return f"{'yes' if made.difference <= TOLERANCE else '**no**'} ({made.difference:.0e})"


def gradients(made: Outcome) -> str:
    """Whether the gradients are the weighted sums of those of the samples."""
    if made.gradient is None:
        return "-"
    return f"{'yes' if made.gradient <= GRADIENT_TOLERANCE else '**no**'} ({made.gradient:.0e})"


def main() -> None:
    """Try every case with every method."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning", "pytorch_tabular"):
        logging.getLogger(name).setLevel(logging.ERROR)
    modules = [importlib.import_module(f"test_{name}") for name in LIBRARIES]
    os.chdir(tempfile.mkdtemp())  # pytorch-tabular writes lightning_logs
    print(
        "| case | method | trained untouched | what was said | values exact | gradient exact |\n| --- | --- | --- | --- | --- | --- |"
    )
    for module in modules:
        for case in module.CASES:
            for method in METHODS:
                print(f"| {case.package} {version(case.package)}: {case.name} | {' | '.join(cells(case, method))} |", flush=True)


if __name__ == "__main__":
    main()
