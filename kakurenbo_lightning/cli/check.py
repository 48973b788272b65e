"""The console script ``kakurenbo-check``: what a module's first batch proves, and which methods could train it."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kakurenbo_lightning.cli.text_table import show

if TYPE_CHECKING:  # Lightning is imported only when there is something to check, so --help is fast
    from kakurenbo_lightning import SampleSelection
    from kakurenbo_lightning.session.trial import TrialReport

ABOUT = (
    "Find out, without training, where the loss of each sample comes from, whether it is what is trained, and which methods work."
)

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

The same from Python: print(SampleSelection.check(model, data)). The exit code is 1 if the loss of each sample is not available, or if
MODEL or DATA is not usable."""


def found(option: str, name: str) -> Any:
    """Import the object ``MODULE:NAME`` that was given as ``option``.

    Raises:
        ValueError: it cannot be imported; the message says why.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{option}={name!r} is not of the form MODULE:NAME, for example my_project.model:Net")
    try:
        made = import_module(module)
        for part in attribute.split("."):
            made = getattr(made, part)
    except Exception as error:  # the import runs the user's code, which may fail in any way
        raise ValueError(
            f"{option}={name!r} cannot be imported: {in_words(error)}; it must be MODULE:NAME such that `from MODULE import NAME` works "
            "in this folder"
        ) from None
    return made


def object_of(option: str, name: str) -> Any:
    """Import an object like :func:`found`, and call it if it is a class or a plain function.

    Raises:
        ValueError: it cannot be imported, needs arguments, or raises an error.
    """
    made = found(option, name)
    if not isinstance(made, type) and type(made).__name__ not in ("function", "method", "partial"):
        return made
    needed, what = _needed(made), getattr(made, "__name__", name)
    if needed:
        raise ValueError(
            f"{option}={name!r} cannot be made without arguments: {what} needs {', '.join(needed)}. Write a function that makes one, "
            f"`def make(): return {what}({', '.join(f'{n}=...' for n in needed)})`, and give its name, {name.partition(':')[0]}:make"
        )
    try:
        return made()
    except Exception as error:
        module, _, attribute = name.partition(":")
        root = attribute.partition(".")[0]
        raise ValueError(
            f"{option}={name!r} cannot be made: {what}() raised {in_words(error)}; it must return the object without an error. To see "
            f'where it fails: python -c "from {module} import {root}; {attribute}()"'
        ) from None


def in_words(error: Exception) -> str:
    """Class and message of an error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _needed(made: Any) -> list[str]:
    """Names of the required arguments of a class or function."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have no signature
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def add_model_and_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the module, the data and the Trainer's settings."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="MODULE:NAME of a LightningModule, or of a function or class that makes one, for example train:Net",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="MODULE:NAME of a LightningDataModule or a train DataLoader, or of a function that makes one, for example train:loader",
    )
    parser.add_argument(
        "--precision", default="32-true", help="precision of the Trainer, for example bf16-mixed (default: 32-true)"
    )
    parser.add_argument("--accelerator", default="auto", help="accelerator of the Trainer, for example cpu (default: auto)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the first batch proves. An unusable MODEL or DATA ends with a one-sentence error and exit code 1."""
    parser = argparse.ArgumentParser(
        "kakurenbo-check", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_and_data(parser)
    parser.add_argument(
        "--sample-outputs",
        metavar="FUNCTION",
        help="MODULE:NAME of a function that takes a batch and returns a dict of values, for example train:values_of",
    )
    asked = parser.parse_args(arguments)
    from kakurenbo_lightning import SampleSelection

    sys.path.insert(0, "")  # as `python -m` does, so that modules of the current folder are found
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)  # hide Lightning's lines about devices and strategies
    try:
        report = _report(SampleSelection, asked)
    except ValueError as error:
        parser.exit(1, f"kakurenbo-check: error: {error}\n")
    show(str(report))
    sys.exit(0 if report.values is not None else 1)


@contextmanager
def training_errors(asked: argparse.Namespace) -> Iterator[None]:
    """Turn any error inside this context, which trains ``asked.model`` on ``asked.data``, into one sentence.

    Raises:
        ValueError: with that sentence as its message.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"MODEL={asked.model!r}, DATA={asked.data!r}: {error}") from None
    except Exception as error:  # from the user's step, the data set or the Trainer
        raise ValueError(
            f"MODEL={asked.model!r} cannot train the first batch of DATA={asked.data!r}: {in_words(error)}; training_step must take what "
            "the train DataLoader gives. To see where it fails: Trainer(fast_dev_run=True).fit(MODEL, DATA) in Python"
        ) from None


def _report(selection: type[SampleSelection], asked: argparse.Namespace) -> TrialReport:
    """Return what the first batch proves about the model and data named on the command line.

    Raises:
        ValueError: one of them is not usable, or they do not fit each other.
    """
    model, data = object_of("MODEL", asked.model), object_of("DATA", asked.data)
    function = found("--sample-outputs", asked.sample_outputs) if asked.sample_outputs else None
    with training_errors(asked):
        return selection.check(model, data, sample_outputs=function, precision=asked.precision, accelerator=asked.accelerator)


if __name__ == "__main__":
    main()
