"""The console script ``kakurenbo-advise``: forecasts what each method would save in the user's own training."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from kakurenbo_lightning.cli.check import add_model_and_data, object_of, training_errors
from kakurenbo_lightning.cli.text_table import show

ABOUT = "Profile a few steps of a training and forecast for each method how much training time it would save, and where it will not pay."

EXAMPLES = """\
examples:
  kakurenbo-advise my_project.model:Net my_project.data:DigitsData --max-epochs 30
  kakurenbo-advise train:make_model train:make_loader --max-epochs 90 --devices 8 --precision bf16-mixed

A name is MODULE:NAME, as in an import: `from MODULE import NAME`. It may be an object, or a function or class that makes one without
arguments. Modules of the current folder are found. MODEL is a LightningModule, DATA a LightningDataModule or a train DataLoader.

A few steps are trained and some samples scored on one device; nothing of that is kept. What it prints:
  saves now    the share of the training time (without validation) if the samples stay as they are after these steps
  all sure     the share if every sample is predicted correctly and confidently, as most are late in a training
  memory       what each rank keeps about the samples; sent an epoch: what it sends to the other ranks
What a method does to accuracy is not forecast; kakurenbo_lightning.compare and `kakurenbo-train sweep=arena` measure it.

The same from Python: print(kakurenbo_lightning.advise(trainer, model, data))."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table. An unusable MODEL or DATA ends with a one-sentence error and exit code 1."""
    parser = argparse.ArgumentParser(
        "kakurenbo-advise", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_and_data(parser)
    parser.add_argument("--max-epochs", type=_count, required=True, help="length of the training in epochs, for example 90")
    parser.add_argument(
        "--devices", type=_count, default=1, help="number of ranks of the training, for example 8; one is profiled (default: 1)"
    )
    parser.add_argument("--steps", type=_count, default=50, help="number of steps to profile (default: 50)")
    parser.add_argument("--sample", type=_count, default=1000, help="number of samples to score (default: 1000)")
    asked = parser.parse_args(arguments)
    sys.path.insert(0, "")  # as `python -m` does, so that modules of the current folder are found
    try:
        text = _advice(asked)
    except ValueError as error:
        parser.exit(1, f"kakurenbo-advise: error: {error}\n")
    show(text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be an int >= 1")
    return int(text)


def _advice(asked: argparse.Namespace) -> str:
    """Return the table for the model and data named on the command line.

    Raises:
        ValueError: one of them is not usable, or they do not fit each other.
    """
    import lightning.pytorch as pl

    from kakurenbo_lightning import advise

    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)  # hide Lightning's lines about devices and strategies
    model, data = object_of("MODEL", asked.model), object_of("DATA", asked.data)
    with training_errors(asked):
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        settings = {"precision": asked.precision, "accelerator": asked.accelerator, "devices": 1}
        trainer = pl.Trainer(max_epochs=asked.max_epochs, **settings, **quiet)
        return str(advise(trainer, model, data, steps=asked.steps, sample=asked.sample, world_size=asked.devices))


if __name__ == "__main__":
    main()
