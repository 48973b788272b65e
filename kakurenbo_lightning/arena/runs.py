"""The trainings of a comparison, the two controls of each method, and the folder that keeps one result file per training."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout  # a dependency of torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kakurenbo_lightning.methods.registry import get_method, method_class

BASELINE, RANDOM = "baseline", "random"
ORDER = "comparison.json"  # file that holds what all trainings of a folder have in common
LONGEST = 150  # characters of method and settings in a file name; file systems allow 255 in all
NEEDED = ("method", "settings", "epochs", "seed", "score", "cost", "samples_trained")  # keys that every row must have
SEEDS = range(2**32)  # the range that Lightning accepts
PATIENCE = 5.0  # seconds between two checks of what other processes have trained
Row = dict[str, Any]  # the result of one training


@dataclass(frozen=True)
class Entry:
    """A method with settings that takes part in a comparison.

    Attributes:
        method: name of the method.
        settings: its settings; all others have their defaults.

    Raises:
        ValueError: there is no such method, or a setting is not allowed.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        get_method(self.method, **self.settings)
        try:
            json.dumps(dict(self.settings))
        except TypeError as error:
            raise ValueError(
                f"{self.method}: its settings name the files of a comparison, so numbers, strings and lists of them can be compared: "
                f"{error}. Give a list (array.tolist()) or a path in its place"
            ) from None

    @classmethod
    def of(cls, text: str) -> Entry:
        """Parse ``kakurenbo:max_fraction=0.5,tau=0.5``; values are YAML.

        Raises:
            ValueError: it cannot be read, there is no such method, or a setting is not allowed.
        """
        method, _, settings = text.partition(":")
        try:
            found: Any = OmegaConf.to_container(OmegaConf.create(f"{{{settings.replace('=', ': ')}}}"))
        except (YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f"{text} cannot be read as METHOD:SETTING=VALUE,SETTING=VALUE: {error}") from None
        if nameless := [name for name in found if not isinstance(name, str)]:
            raise ValueError(f"{text} cannot be read as METHOD:SETTING=VALUE,SETTING=VALUE: {nameless[0]} is no setting's name")
        return cls(method, found)

    @property
    def name(self) -> str:
        """The method and its settings, for names of files and for what is kept: it stays the same when a preset changes."""
        return " ".join([self.method, *self._written(self.settings)])

    @property
    def title(self) -> str:
        """The method and its settings as tables and pictures show them: those of a preset by its name, ``kakurenbo preset="fast"``."""
        return " ".join([self.method, *self.parts])

    @property
    def parts(self) -> list[str]:
        """The settings as the title has them, one by one, a preset first."""
        mine = get_method(self.method, **self.settings)
        for preset, together in method_class(self.method).presets.items():
            if all(getattr(mine, name) == value for name, value in together.items()):
                others = {name: value for name, value in self.settings.items() if name not in {*together, "preset"}}
                return self._written({"preset": preset}) + self._written(others)
        return self._written(self.settings)

    @staticmethod
    def _written(settings: Mapping[str, Any]) -> list[str]:
        return [f"{name}={json.dumps(value)}" for name, value in sorted(settings.items())]


@dataclass(frozen=True)
class Training:
    """One training of a comparison.

    Attributes:
        entry: the method and settings that choose the samples.
        seed: seed of the weights and of the order of samples.
        epochs: number of epochs.
    """

    entry: Entry
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        """Name that is unique in the comparison. It is also the name of the file, so characters that file systems refuse are
        replaced.
        """
        entry, rest = self.entry.name, f"epochs={self.epochs}-seed={self.seed}"
        name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", entry)
        # shortened or changed names may collide, so a checksum makes them unique
        if name != entry.replace(" ", "-") or len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{hashlib.blake2b(entry.encode(), digest_size=4).hexdigest()}"
        return f"{name}-{rest}"


@dataclass(frozen=True)
class Comparison:
    """Which methods are compared, and over which seeds.

    Attributes:
        entries: the methods, each once; the baseline is always among them.
        seeds: each method is trained once with each seed; a repeated seed counts once.
        epochs: epochs of each training, except of those of equal time.

    Raises:
        ValueError: there is no seed, one is not allowed, or a training has no epoch.
    """

    entries: Sequence[Entry]
    seeds: Sequence[int]
    epochs: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple({entry.name: entry for entry in self.entries}.values()))
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(self.seeds)))
        if not self.seeds or not all(type(seed) is int and seed in SEEDS for seed in self.seeds):
            raise ValueError(f"seeds={list(self.seeds)} is not allowed; they must be one or more ints from 0 to {SEEDS[-1]}")
        if type(self.epochs) is not int or self.epochs < 1:
            raise ValueError(f"max_epochs={self.epochs!r} is not allowed; trainings are compared after whole epochs: an int >= 1")

    def baseline(self, seed: int, epochs: int | None = None) -> Training:
        """The training on all samples; ``epochs`` overrides the number of epochs, for a baseline of equal time."""
        return Training(Entry(BASELINE), seed, epochs or self.epochs)

    def of(self, entry: Entry, seed: int) -> Training:
        """The training of a method with a seed."""
        return Training(entry, seed, self.epochs)

    def controls(self, row: Row, baseline: Row) -> tuple[Training, Training]:
        """The controls that a method must beat: hiding the same share at random, and a baseline that takes the same time.

        The share is how much less the method trained than the baseline, rounded to whole percent so that methods share controls. A method
        that hid nothing has the baseline as its control. Equal time is rounded to whole epochs, so that a learning rate that follows
        the epochs decays completely.
        """
        share = min(0.99, round(1 - row["samples_trained"] / baseline["samples_trained"], 2))
        seed, epochs = row["seed"], max(1, round(self.epochs * row["cost"] / baseline["cost"]))
        alike = self.of(Entry(RANDOM, {"max_fraction": share}), seed) if share > 0 else self.baseline(seed)
        return alike, self.baseline(seed, epochs)

    def missing(self, rows: Mapping[str, Row]) -> Iterator[Training]:
        """Yield the trainings that can be done now, seed by seed, each once. Those of equal time follow when that time is known.

        Args:
            rows: results of finished trainings, by name.
        """
        found: dict[str, Training] = {}
        for seed in self.seeds:
            wanted = [self.baseline(seed), *(self.of(entry, seed) for entry in self.entries)]
            baseline = rows.get(wanted[0].name)
            for training in list(wanted[1:]):
                if baseline is not None and training.name in rows:
                    wanted += self.controls(rows[training.name], baseline)
            found |= {training.name: training for training in wanted if training.name not in rows}
        yield from found.values()

    def left(self, rows: Mapping[str, Row]) -> int:
        """How many of its trainings are still to do, if no two controls that are not known yet are one. ``rows`` as in :meth:`missing`."""
        unknown = sum(
            self.baseline(seed).name not in rows or self.of(entry, seed).name not in rows
            for seed in self.seeds
            for entry in self.entries
            if entry.method != BASELINE
        )
        return sum(1 for _ in self.missing(rows)) + 2 * unknown


class Folder:
    """Keeps the results of a comparison, one JSON file per training. Any number of processes may use it at the same time.

    Args:
        path: path of the folder, which is created.
        common: settings that all its trainings share, as JSON values. A folder with other settings is refused.

    Raises:
        ValueError: the folder holds trainings with other settings, or is a file.
    """

    def __init__(self, path: Path, common: Mapping[str, Any]) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise ValueError(f"folder={path} is a file. Name a folder.")
        path.mkdir(parents=True, exist_ok=True)
        order, text = path / ORDER, json.dumps(common, indent=1, sort_keys=True)
        with FileLock(path / f"{ORDER}.lock"):
            if not order.exists():
                _write(order, text)
        old, new = json.loads(order.read_text()), json.loads(text)
        if unlike := [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]:
            said = ", ".join(f"{name}={new.get(name)!r} (there: {old.get(name)!r})" for name in unlike)
            raise ValueError(f"folder={path} holds trainings that cannot be compared with these: {said}. Name another folder.")

    def take(self, rows: Iterable[Row], common: Mapping[str, Any]) -> None:
        """Copy rows of another folder (as its :meth:`rows` returned them), except of trainings that are here already.

        Args:
            rows: each with ``method``, ``settings``, ``epochs`` and ``seed``.
            common: settings that their trainings share.

        Raises:
            ValueError: these settings differ from those of this folder.
        """
        Folder(self.path, common)
        for row in rows:
            training = Training(Entry(row["method"], row["settings"]), row["seed"], row["epochs"])
            self._trained(training, lambda _, row=row: row)

    def rows(self) -> dict[str, Row]:
        """Results of all finished trainings, by name.

        Raises:
            ValueError: a file does not hold a result.
        """
        return {path.stem: _read(path) for path in sorted(self.path.glob("*seed=*.json"))}

    def train(self, comparison: Comparison, run: Callable[[Training], Row], until: float = float("inf")) -> dict[str, Row]:
        """Run the trainings that are missing and that no other process is running, and return all rows.

        A training that was interrupted leaves nothing behind and is started again by the next call.

        Args:
            comparison: the trainings to do.
            run: runs a training and returns ``score``, ``cost``, ``samples_trained`` and whatever else is to be kept.
            until: no training starts after this time of ``time.monotonic()``, in seconds.
        """
        while time.monotonic() < until:
            missing = list(comparison.missing(self.rows()))
            if not missing:
                break
            if not any(self._trained(training, run) for training in missing):
                time.sleep(PATIENCE)  # other processes run what is left; more may become possible when they are done
        return self.rows()

    def _trained(self, training: Training, run: Callable[[Training], Row]) -> bool:
        """Take a training and run it, unless another process has it; returns whether it was run."""
        file, lock = self.path / f"{training.name}.json", FileLock(self.path / f"{training.name}.lock")
        try:
            lock.acquire(timeout=0)  # a file lock, which the system releases if the process is killed
        except Timeout:
            return False
        try:
            if not file.exists():
                about = {"method": training.entry.method, "settings": dict(training.entry.settings), "epochs": training.epochs}
                _write(file, json.dumps({**about, "seed": training.seed, **run(training)}))
        finally:
            lock.release()
        return True


def _read(file: Path) -> Row:
    try:
        row = json.loads(file.read_text())
        missing = ", ".join(name for name in NEEDED if name not in row)
    except (ValueError, TypeError) as error:  # not JSON, or a bare number
        row, missing = None, str(error)
    if missing or not isinstance(row, dict):
        raise ValueError(
            f"{file} does not hold the result of a training ({missing or 'a list'}). Remove it; the training is then repeated."
        )
    return row


def _write(file: Path, text: str) -> None:
    """Write a file atomically, so that a kill leaves either the old file or the complete new one."""
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)
