"""The console script ``kakurenbo-check``: what the first batch of a module and its data proves, and which methods could train it."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from kakurenbo_lightning.cli.text_table import show

ABOUT = "Say, without training, where the loss of each sample comes from, whether it is the loss that is trained, and which methods work."

EXAMPLES = """\
examples:
  kakurenbo-check my_project.model:Net my_project.data:DigitsData
  kakurenbo-check train:make_model train:make_loader --precision bf16-mixed
  kakurenbo-check train:model train:data --sample-outputs train:values_of

A name is MODULE:NAME, as in an import: `from MODULE import NAME`. It may be an object, or a function or class that makes one without
arguments. Modules of the current folder are found. MODEL is a LightningModule, DATA a LightningDataModule or a train DataLoader.

One batch is run forward, in every way that a method may need; nothing is trained and nothing is saved. What it prints:
  values come from         the dict that training_step returns, sample_outputs, or the calls in the step that made its loss
  share of the loss        how much of the loss the values of the samples add up to
  decomposes over samples  whether the loss depends on parameters through these values alone
  attribution              verified: the value of a sample does not change with the other samples of its batch, in eval mode
  loss weights             exact: methods that weigh samples reach the gradient exactly

The same from Python: print(SampleSelection.check(model, data)). The exit code is 1 where the loss of each sample cannot be had."""


def found(name: str) -> Any:
    """The object ``MODULE:NAME``, made where it is a function or a class.

    Raises:
        ValueError: there is none, with the reason.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{name!r} is not of the form MODULE:NAME, for example my_project.model:Net")
    try:
        made = import_module(module)
        for part in attribute.split("."):
            made = getattr(made, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}") from None
    return made


def object_of(name: str) -> Any:
    """As :func:`found`; a class or a plain function is called.

    Raises:
        ValueError: also when it needs arguments.
    """
    made = found(name)
    if not isinstance(made, type) and type(made).__name__ not in ("function", "method", "partial"):
        return made
    needed = _needed(made)
    if needed:
        what = getattr(made, "__name__", name)
        raise ValueError(
            f"{name!r} cannot be made without arguments: {what} needs {', '.join(needed)}. Write a function that makes one, "
            f"`def make(): return {what}({', '.join(f'{n}=...' for n in needed)})`, and give its name, {name.partition(':')[0]}:make"
        )
    return made()


def _needed(made: Any) -> list[str]:
    """Names of the arguments that a class or function cannot do without."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # it has no signature
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the first batch proves; a name that leads to no object ends with exit code 2."""
    parser = argparse.ArgumentParser(
        "kakurenbo-check", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="MODULE:NAME of a LightningModule, or of what makes one")
    parser.add_argument(
        "data", metavar="DATA", help="MODULE:NAME of a LightningDataModule or a train DataLoader, or of what makes one"
    )
    parser.add_argument(
        "--sample-outputs", metavar="FUNCTION", help="MODULE:NAME of a function of a batch that returns a dict of values"
    )
    parser.add_argument("--precision", default="32-true", help="of the Trainer (default: 32-true)")
    parser.add_argument("--accelerator", default="auto", help="of the Trainer (default: auto)")
    asked = parser.parse_args(arguments)
    from kakurenbo_lightning import SampleSelection  # here, because --help shall not wait for Lightning

    sys.path.insert(0, "")  # as for python -m: modules of the current folder
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)  # devices and strategies are of no interest
    try:
        model, data = object_of(asked.model), object_of(asked.data)
        if not callable(getattr(model, "training_step", None)):
            raise ValueError(f"{asked.model!r} is an object of class {type(model).__name__}; MODEL must be a LightningModule")
        function = found(asked.sample_outputs) if asked.sample_outputs else None
        report = SampleSelection.check(
            model, data, sample_outputs=function, precision=asked.precision, accelerator=asked.accelerator
        )
    except ValueError as error:
        parser.error(str(error))
    show(str(report))
    sys.exit(0 if report.values is not None else 1)


if __name__ == "__main__":
    main()
