"""Compare methods on a module and data of the user's: :func:`compare`."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.arena.runs import BASELINE, Comparison, Entry, Folder, Row, Training
from kakurenbo_lightning.arena.verdict import Standing, standings, table
from kakurenbo_lightning.cli.text_table import terminal_width
from kakurenbo_lightning.core.flavour import is_instance, package_of
from kakurenbo_lightning.core.progress import bar_settings

# arguments of the Trainer by which a training does not end, or is not scored, after its last whole epoch; with their defaults
ENDS = {"max_steps": -1, "max_time": None, "fast_dev_run": False, "check_val_every_n_epoch": 1}
QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")  # off, unless the user sets them
Method = str | tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What a comparison came to; printed it is the table.

    Attributes:
        comparison: what was compared.
        rows: of all trainings, by name: ``score``, ``cost`` (seconds, see :attr:`Totals.steady_seconds`) and the counts of samples.
        higher_is_better: whether a higher score is better.
    """

    comparison: Comparison
    rows: Mapping[str, Row]
    higher_is_better: bool = True

    @cached_property
    def standings(self) -> list[Standing]:
        """How each method did, the baseline first."""
        return standings(self.comparison, self.rows, self.higher_is_better)

    def plot(self, target: str | Path) -> None:
        """Write a picture of error against time, PNG; it needs ``pip install kakurenbo-lightning[report]``."""
        from kakurenbo_lightning.arena.plot import draw

        draw(self.comparison, self.rows, Path(target), self.higher_is_better)

    def __str__(self) -> str:
        shares = all(0 <= row["score"] <= 1 for row in self.rows.values() if math.isfinite(row["score"]))
        return "\n".join(table(self.standings, terminal_width(120), percent=shares and self.higher_is_better))


def compare(
    make_model: Callable[[], pl.LightningModule],
    make_data: Callable[[], Any],
    methods: Sequence[Method] = ("kakurenbo", "infobatch"),
    *,
    monitor: str,
    mode: str = "max",
    seeds: int | Sequence[int] = 3,
    max_epochs: int,
    folder: str | Path | None = None,
    **trainer: Any,
) -> Outcome:
    """Train a module with each method, and beside each with its two controls, and return the table of them.

    The controls are a random choice of the same share and a baseline that takes as long: its ``Trainer(max_epochs=...)`` is another one,
    so let the learning rate's schedule end with the training (``trainer.max_epochs``, ``trainer.estimated_stepping_batches``).

    Args:
        make_model: makes an untrained module; the seed is set before.
        make_data: makes a ``LightningDataModule``, the training and the validation ``DataLoader`` as a pair, or the training one alone
            where the module has ``val_dataloader``.
        methods: their names, or pairs of a name and settings, ``("kakurenbo", {"max_fraction": 0.5})``.
        monitor: the logged metric that is the score, after the last validation.
        mode: ``"max"`` when a higher score is better, ``"min"`` for a loss or an error.
        seeds: how many, from 0 on, or which.
        max_epochs: of a training that is not of equal time.
        folder: keeps one file for each training, so that a comparison that was killed goes on when it is called again, and several
            processes may share one; ``None`` for a temporary one. It is for one module and data: what ``make_model`` and ``make_data``
            make is not compared.
        trainer: further arguments of the ``Trainer``; each training has copies of them, so that callbacks begin as they were given.

    Raises:
        ValueError: a setting is not allowed, ``monitor`` was not logged, or the folder holds trainings of another comparison.
    """
    _check_makes("make_model", make_model, "module")
    _check_makes("make_data", make_data, "LightningDataModule, or a pair of DataLoaders")
    if mode not in ("max", "min"):
        raise ValueError(f"compare: mode={mode!r} is not allowed; mode must be 'max' or 'min', as for ModelCheckpoint")
    _check_trainer(trainer)
    entries = [entry for entry in _entries(methods) if entry.method != BASELINE]
    comparison = Comparison(entries, range(seeds) if isinstance(seeds, int) else tuple(seeds), max_epochs)
    common = {
        "monitor": monitor,
        "mode": mode,
        "max_epochs": max_epochs,
        "trainer": {name: _described(each) for name, each in trainer.items()},
    }
    place = tempfile.TemporaryDirectory() if folder is None else nullcontext(folder)
    with place as path:
        bar = bar_settings(desc="compare", unit="training")

        def run(training: Training) -> Row:
            return _trained(training, make_model, make_data, monitor, trainer)

        rows = _with_bar(Folder(Path(path), common), comparison, run, bar)
    return Outcome(comparison, rows, mode == "max")


def _entries(methods: Sequence[Method]) -> list[Entry]:
    """What ``compare`` was given as its methods."""
    if isinstance(methods, str):
        raise ValueError(f"compare: methods={methods!r} is not allowed; methods must be a list: [{methods!r}]")
    found = []
    for one in methods:
        name, settings = (
            (one, {}) if isinstance(one, str) else one if isinstance(one, (tuple, list)) and len(one) == 2 else ("", one)
        )
        if not name or not isinstance(settings, Mapping):
            raise ValueError(
                f"compare: methods has {one!r}, which is not allowed; it must be a name, or a pair of a name and settings: "
                "('kakurenbo', {'max_fraction': 0.5})"
            )
        found.append(Entry(name, dict(settings)))
    return found


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for arguments of the Trainer with which a comparison means nothing."""
    for name, usual in ENDS.items():
        if (given := trainer.get(name, usual)) != usual:
            raise ValueError(
                f"compare: {name}={given!r} is not allowed; trainings end, and are scored, after max_epochs whole epochs: leave {name} out"
            )
    if any(isinstance(callback, SampleSelection) for callback in _callbacks(trainer)):
        raise ValueError(
            "compare: callbacks has a SampleSelection, which each training gets by itself; name its method in methods"
        )


def _callbacks(trainer: Mapping[str, Any]) -> list[Any]:
    """Those given to the Trainer, as a list, as one, or not at all."""
    given = trainer.get("callbacks") or []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _check_makes(name: str, given: object, made: str) -> None:
    """Refuse what is made already, which all trainings would share; a module can be called, but that is its forward pass."""
    if callable(given) and not isinstance(given, torch.nn.Module):
        return
    kind = type(given).__name__
    instead = "lambda: (train_loader, val_loader)" if isinstance(given, (DataLoader, tuple, list)) else f"{kind}, not {kind}()"
    raise ValueError(
        f"compare: {name} is an object of {kind}; it must be a function that makes a {made} for each training: pass {instead}"
    )


def _described(value: object) -> str:
    """What tells an argument of the Trainer from another one, the same in each process: of an object its class and plain attributes."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_described, value))}]"
    if type(value).__repr__ is not object.__repr__:
        return repr(value)
    plain = {name: each for name, each in sorted(vars(value).items()) if isinstance(each, (bool, int, float, str, type(None)))}
    return f"{type(value).__name__}({', '.join(f'{name}={each!r}' for name, each in plain.items())})"


def _with_bar(folder: Folder, comparison: Comparison, run: Callable[[Training], Row], bar: Mapping[str, Any]) -> dict[str, Row]:
    """Train what is missing, with a bar that counts the trainings."""
    from tqdm import tqdm  # Lightning needs it

    with tqdm(**bar) as shown:

        def counted(training: Training) -> Row:
            shown.set_postfix_str(training.name)
            row = run(training)
            shown.update()
            return row

        return folder.train(comparison, counted)


def _trained(
    training: Training,
    make_model: Callable[[], pl.LightningModule],
    make_data: Callable[[], Any],
    monitor: str,
    options: Mapping[str, Any],
) -> Row:
    """Train once."""
    pl.seed_everything(training.seed, workers=True, verbose=False)
    selection = SampleSelection(training.entry.method, **training.entry.settings)
    settings: dict[str, Any] = dict.fromkeys(QUIET, False) | deepcopy(dict(options))  # callbacks remember the training before
    settings["callbacks"] = [*_callbacks(settings), selection]
    model, data = make_model(), make_data()
    trainer = import_module(package_of(model, "LightningModule")).Trainer(max_epochs=training.epochs, **settings)
    if is_instance(data, pl.LightningDataModule):
        trainer.fit(model, datamodule=data)
    elif isinstance(data, DataLoader) or (isinstance(data, (tuple, list)) and len(data) == 2):
        trainer.fit(model, *(data if isinstance(data, (tuple, list)) else (data,)))
    else:
        raise ValueError(
            f"compare: make_data made an object of {type(data).__name__}; it must make a LightningDataModule, or the training and the "
            "validation DataLoader as a pair: return train_loader, val_loader"
        )
    if monitor not in trainer.callback_metrics:
        logged = [name for name in sorted(trainer.callback_metrics) if not name.startswith("selection/")]
        raise ValueError(
            f"compare: monitor={monitor!r} was not logged; logged were {logged}. Log it in validation_step: self.log(...)"
        )
    score = float(trainer.callback_metrics[monitor])  # NaN, of a training that diverged, is a result too
    totals = selection.totals
    return {
        "score": score,
        "cost": totals.steady_seconds,
        **{name: each for name, each in totals.as_dict().items() if "samples" in name},
    }
