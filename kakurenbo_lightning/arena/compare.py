""":func:`compare` compares methods on the user's module and data."""

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

# arguments of the Trainer, with defaults, that would end a training, or validate it, elsewhere than after its last whole epoch
ENDS = {"max_steps": -1, "max_time": None, "fast_dev_run": False, "check_val_every_n_epoch": 1}
# switched off unless the user sets them
QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
Method = str | tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """The result of a comparison; ``print`` it for the table.

    Attributes:
        comparison: which trainings were compared.
        rows: results of all trainings by name: ``score``, ``cost`` (seconds, see :attr:`Totals.steady_seconds`) and the counts of
            samples.
        higher_is_better: whether a higher score is better.
    """

    comparison: Comparison
    rows: Mapping[str, Row]
    higher_is_better: bool = True

    @cached_property
    def standings(self) -> list[Standing]:
        """The result of each method, the baseline first."""
        return standings(self.comparison, self.rows, self.higher_is_better)

    def plot(self, target: str | Path) -> None:
        """Write a picture of the scores against time: PNG (with ``NAME-dark.png`` for dark pages), SVG or PDF by the ending.

        It needs ``pip install kakurenbo-lightning[report]``.
        """
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
    """Train a module with each method and with each method's two controls, and return the table of results.

    The controls are a random choice of the same share, and a baseline that takes as long as the method. The latter has another
    ``Trainer(max_epochs=...)``, so let the learning-rate schedule end with the training (use ``trainer.max_epochs`` or
    ``trainer.estimated_stepping_batches``).

    Args:
        make_model: returns an untrained module; the seed is set before it is called.
        make_data: returns a ``LightningDataModule``, the training and the validation ``DataLoader`` as a pair, or the training one
            alone if the module has a ``val_dataloader``.
        methods: names of methods, or pairs of a name and settings, ``("kakurenbo", {"max_fraction": 0.5})``.
        monitor: name of the logged metric that is the score, read after the last validation.
        mode: ``"max"`` if a higher score is better, ``"min"`` for a loss or an error.
        seeds: number of seeds, counted from 0, or the seeds themselves.
        max_epochs: epochs of each training, except of those of equal time.
        folder: keeps one file for each training, so that a comparison that was killed continues when it is called again, and several
            processes can share the work; ``None`` for a temporary folder. Use one folder for one module and data set: whether
            ``make_model`` and ``make_data`` are the same is not checked.
        trainer: further arguments of the ``Trainer``. Each training gets copies, so that callbacks start in their original state.

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
        bar = bar_settings(desc="compare", unit=" training")

        def run(training: Training) -> Row:
            return _trained(training, make_model, make_data, monitor, trainer)

        rows = _with_bar(Folder(Path(path), common), comparison, run, bar)
    return Outcome(comparison, rows, mode == "max")


def _entries(methods: Sequence[Method]) -> list[Entry]:
    """Convert the ``methods`` argument of ``compare`` to entries."""
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
    """Raise ``ValueError`` for Trainer arguments that would make a comparison meaningless."""
    for name, usual in ENDS.items():
        if (given := trainer.get(name, usual)) != usual:
            raise ValueError(
                f"compare: {name}={given!r} is not allowed; trainings end, and are scored, after max_epochs whole epochs: leave {name} out"
            )
    if any(isinstance(callback, SampleSelection) for callback in _callbacks(trainer)):
        raise ValueError("compare: callbacks has a SampleSelection, but each training gets its own; name its method in methods")


def _callbacks(trainer: Mapping[str, Any]) -> list[Any]:
    """Return the Trainer's ``callbacks`` argument as a list; it may be a list, one callback, or missing."""
    given = trainer.get("callbacks") or []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _check_makes(name: str, given: object, made: str) -> None:
    """Refuse an object in place of a function that makes one, because all trainings would share it. (A module is callable, too.)"""
    if callable(given) and not isinstance(given, torch.nn.Module):
        return
    kind = type(given).__name__
    instead = "lambda: (train_loader, val_loader)" if isinstance(given, (DataLoader, tuple, list)) else f"{kind}, not {kind}()"
    raise ValueError(
        f"compare: {name} is an object of {kind}; it must be a function that makes a {made} for each training: pass {instead}"
    )


def _described(value: object) -> str:
    """Describe an argument of the Trainer the same way in every process: an object by its class and plain attributes."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_described, value))}]"
    if type(value).__repr__ is not object.__repr__:
        return repr(value)
    plain = {name: each for name, each in sorted(vars(value).items()) if isinstance(each, (bool, int, float, str, type(None)))}
    return f"{type(value).__name__}({', '.join(f'{name}={each!r}' for name, each in plain.items())})"


def _with_bar(folder: Folder, comparison: Comparison, run: Callable[[Training], Row], bar: Mapping[str, Any]) -> dict[str, Row]:
    """Train what is missing, with a progress bar that counts the trainings of this call: a shared folder may hold others."""
    from tqdm import tqdm  # a dependency of Lightning

    with tqdm(**bar) as shown:

        def counted(training: Training) -> Row:
            shown.total = shown.n + comparison.left(folder.rows())
            shown.set_postfix_str(training.name)
            row = run(training)
            shown.update()
            return row

        rows = folder.train(comparison, counted)
        shown.total = shown.n  # other processes may have run what was left
        shown.refresh()
        return rows


def _trained(
    training: Training,
    make_model: Callable[[], pl.LightningModule],
    make_data: Callable[[], Any],
    monitor: str,
    options: Mapping[str, Any],
) -> Row:
    """Run one training and return its score, its cost and its counts of samples."""
    pl.seed_everything(training.seed, workers=True, verbose=False)
    selection = SampleSelection(training.entry.method, **training.entry.settings)
    # a callback object may keep state from an earlier training
    settings: dict[str, Any] = dict.fromkeys(QUIET, False) | deepcopy(dict(options))
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
    score = float(trainer.callback_metrics[monitor])  # NaN is a valid result: the training diverged
    totals = selection.totals
    return {
        "score": score,
        "cost": totals.steady_seconds,
        **{name: each for name, each in totals.as_dict().items() if "samples" in name},
    }
