"""Writes run folders as a `RunRecorder` does, with made-up figures, for the tests of the report."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from kakurenbo_lightning.record.schema import FORMAT, FORMAT_1, LOSS_EDGES
from kakurenbo_lightning.report import Group, make_groups, read_runs

SETTINGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "kakurenbo": {"max_fraction": 0.3, "tau": 0.7, "start_epoch": 1},
    "random": {"max_fraction": 0.3, "start_epoch": 0},
    "selective_backprop": {"beta": 1.0},
    "plb": {"mix": 0.0},
}
FAMILIES = {"selective_backprop": "backprop", "plb": "draw"}
ANIMALS = ("cat", "dog", "frog", "horse", "ship", "truck", "deer", "bird", "plane", "car")


@dataclass
class RunFolder:
    """A run to write; what is not given is made up from the method and the seed.

    Attributes:
        changes: replaces entries of run.json.
        left_out: files that are not written.
        format: of the folder; 1 has other names of columns and of a family.
        flipped: how many samples, the first ones, have a wrong label in the figures over the epochs, and the last one none; 0 leaves these
            figures out, as older versions did.
    """

    method: str = "kakurenbo"
    seed: int | None = 0
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    score: float | None = 0.9
    epochs: int = 6
    samples: int = 200
    class_names: tuple[str, ...] = ANIMALS
    seconds: float = 10.0
    image_size: int | None = 16
    changes: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    format: int = FORMAT
    flipped: int = 0
    steady: tuple[float, float] | None = None  # seconds of training without stalls, and their standard error

    def write(self, folder: Path) -> Path:
        """Write the four files and return the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0 if self.seed is None else self.seed)
        history = self.history(random)
        samples = self.sample_columns(random) | (figures_over_epochs(self.samples, self.flipped) if self.flipped else {})
        info = {**self.description(history), **self.changes}
        if self.format == 1:
            history, info["totals"] = with_old_names(history), with_old_names(info["totals"])
            info["family"] = info["family"].replace("draw", "pod")
        written = {
            "run.json": lambda path: path.write_text(json.dumps(info)),
            "selection.parquet": lambda path: write_table(path, history, {"loss_edges": LOSS_EDGES.tolist()}),
            "samples.parquet": lambda path: write_table(path, samples, {"epochs": self.epochs}),
            "thumbnails.npz": lambda path: self.write_thumbnails(path, samples, random),
        }
        for name, write in written.items():
            if name not in self.left_out:
                write(folder / name)
        return folder

    @property
    def family(self) -> str:
        """Family of the method."""
        return FAMILIES.get(self.method, "hide")

    def history(self, random: np.random.Generator) -> dict[str, Any]:
        """the columns of selection.parquet."""
        epochs, shape = np.arange(self.epochs), self.epochs
        later = epochs > 0
        share = {"baseline": 0.0, "plb": 0.0, "selective_backprop": 0.0}.get(
            self.method, self.all_settings.get("max_fraction", 0)
        )
        hidden = np.round(later * share * self.samples * (0.6 + 0.4 * epochs / max(1, shape - 1))).astype(int)
        scored = np.where(later & (self.family == "backprop"), self.samples, 0)
        rejected = scored // 2
        train = np.full(shape, self.seconds / max(1, shape)) * np.where(hidden > 0, 0.9, 1.0)
        measured = self.family != "hide"
        accuracy = (self.score or 0.5) * (1 - 0.8 * np.exp(-1.0 - epochs)) / (1 - 0.8 * np.exp(-float(shape)))
        losses = np.exp(random.normal(-epochs[:, None] * 0.6 - 0.3, 1.2, (shape, self.samples)))
        counts = np.stack([np.histogram(np.clip(row, LOSS_EDGES[0], LOSS_EDGES[-1]), LOSS_EDGES)[0] for row in losses])
        columns = {
            "epoch": epochs,
            "hidden_fraction": hidden / self.samples,
            "lr_factor": 1 / (1 - hidden / self.samples),
            "lr": np.full(shape, 0.1),
            "nonfinite": np.zeros(shape),
            "refresh_seconds": np.where(hidden > 0, 0.05, 0.0) * train,
            "select_seconds": np.full(shape, 0.01) * train,
            "train_seconds": train,
            "score_seconds": train * 0.2 * (scored > 0),
            "forward_seconds": train * 0.25 * measured,
            "backward_seconds": train * 0.4 * measured,
            "data_seconds": train * 0.1 * measured,
            "samples_trained": self.samples - hidden - rejected,
            "samples_hidden": hidden,
            "samples_refreshed": np.where(hidden > 0, hidden, 0),
            "samples_scored": scored,
            "samples_rejected": rejected,
            "val/accuracy": accuracy if self.score is not None else np.full(shape, np.nan),
            "train/loss": np.exp(-epochs / 3.0),
            "threshold": np.where(hidden > 0, np.quantile(losses, 0.3, axis=1), np.nan),
            "loss_histogram": list(counts),
        }
        if self.family == "backprop":
            columns["scored"] = scored.astype(float)
        if self.all_settings.get("diagnose"):
            columns |= {"ordered_share": 0.5 + 0.4 * epochs / shape, "distribution_distance": 0.9 - 0.8 * epochs / shape}
        if self.method == "kakurenbo":
            columns["moved_back"] = np.where(later, 5.0 - epochs % 4, 0.0)
        columns["elapsed_seconds"] = np.cumsum(columns["train_seconds"] + columns["refresh_seconds"] + columns["select_seconds"])
        return columns

    @property
    def all_settings(self) -> dict[str, Any]:
        """Settings of the method, with what was given in place of the usual."""
        return {**SETTINGS.get(self.method, {}), **self.settings}

    def description(self, history: dict[str, Any]) -> dict[str, Any]:
        """run.json."""
        counts = ("samples_trained", "samples_hidden", "samples_refreshed", "samples_scored", "samples_rejected")
        phases = ("train", "refresh", "select", "score", "forward", "backward", "data")
        totals: dict[str, Any] = {name: int(history[name].sum()) for name in counts}
        totals |= {f"{name}_seconds": float(history[f"{name}_seconds"].sum()) for name in phases}
        if self.steady is not None:
            totals |= {
                "steady_train_seconds": self.steady[0],
                "steady_error_seconds": self.steady[1],
                "steady_refresh_seconds": 0.0,
            }
        totals |= {"moved_back": 0, "scoring_epochs": 0, "saved_seconds": 1.0}
        return {
            "format": self.format,
            "name": self.method,
            "status": "finished",
            "error": None,
            "method": self.method,
            "family": self.family,
            "settings": self.all_settings,
            "seed": self.seed,
            "config": self.config,
            "metric": None if self.score is None else "val/accuracy",
            "score": self.score,
            "num_samples": self.samples,
            "class_names": list(self.class_names),
            "world_size": 1,
            "epochs": self.epochs,
            "max_epochs": self.epochs,
            "totals": totals,
            "seconds": sum(totals[f"{name}_seconds"] for name in ("train", "refresh", "select")),
            "fit_seconds": 12.0,
            "versions": {"python": "3.11.7", "torch": "2.13.0", "lightning": "2.6.6", "kakurenbo-lightning": "0.1.0"},
            "machine": {"processor": "a processor", "cores": 2, "device": "cpu", "threads": 1},
            "git": {"commit": "0123456789abcdef", "dirty": True},
            "started": "2026-01-31T12:00:00+00:00",
            "ended": "2026-01-31T12:01:00+00:00",
            "command": f"kakurenbo-train method={self.method}",
        }

    def sample_columns(self, random: np.random.Generator) -> dict[str, Any]:
        """the columns of samples.parquet; a sample of class c is hidden the more often the greater c is."""
        index = np.arange(self.samples)
        target = (index % len(self.class_names)).astype(np.int32)
        hides = self.all_settings.get("max_fraction", 0) > 0
        chance = (target + 1) / (len(self.class_names) + 1)
        left_out = random.binomial(self.epochs, chance * (0.6 if hides or self.family == "backprop" else 0.0)).astype(np.int32)
        return {
            "index": index,
            "loss": np.exp(random.normal(-1, 1.5, self.samples)).astype(np.float32),
            "confidence": random.random(self.samples).astype(np.float32),
            "correct": random.random(self.samples) < 0.9,
            "target": target,
            "epoch_seen": np.full(self.samples, self.epochs - 1, np.int16),
            "times_trained": (self.epochs - left_out).astype(np.int32),
            "times_hidden": left_out if self.family == "hide" else np.zeros(self.samples, np.int32),
            "last_change": np.full(self.samples, -1, np.int16),
        }

    def write_thumbnails(self, path: Path, samples: dict[str, Any], random: np.random.Generator) -> None:
        """Write the most and least hidden samples' pictures: smooth patterns with the noise of a photograph."""
        if self.image_size is None:
            return
        order = np.lexsort((samples["loss"], samples["times_trained"], -samples["times_hidden"]))
        most, least = order[:24], order[::-1][:24]
        indices = np.unique(np.concatenate([most, least]))
        size = self.image_size
        row, column = np.mgrid[0:size, 0:size] / size
        waves = random.uniform(1, 6, (len(indices), 3, 2, 1, 1))
        images = (
            128 + 80 * np.sin(waves[:, :, 0] * 3 * row + waves[:, :, 1] * 3 * column) + random.normal(0, 6, (1, 1, size, size))
        )
        pictures = np.clip(images, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        np.savez_compressed(path, indices=indices, images=pictures, most_hidden=most, least_hidden=least)


def figures_over_epochs(count: int, flipped: int) -> dict[str, Any]:
    """Columns of `count` samples, of which the first `flipped` have a low margin and the last one was never measured."""
    measured = np.arange(count) < count - 1
    margin = np.where(np.arange(count) < flipped, -3 - np.arange(count) / count, 1 + np.arange(count) / count)
    probability = np.exp(margin) / (1 + np.exp(margin))
    columns = {"loss": -np.log(probability), "label_confidence": probability, "margin": margin}
    return {
        "correct": [bool(one) if known else None for one, known in zip(margin > 0, measured, strict=True)],
        "times_measured": (6 * measured).astype(np.int16),
        "times_forgotten": (np.arange(count) % 3 * measured).astype(np.int16),
        **{f"average_{name}": np.where(measured, values, np.nan).astype(np.float32) for name, values in columns.items()},
    }


def with_old_names(values: dict[str, Any]) -> dict[str, Any]:
    """The values by their names in format 1."""
    old = {new: name for name, new in FORMAT_1.items()}
    return {old.get(name, name): value for name, value in values.items()}


def write_table(path: Path, columns: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Write a parquet file with JSON values in its schema's metadata."""
    table = pa.table({name: pa.array(list(values)) if isinstance(values, list) else values for name, values in columns.items()})
    parquet.write_table(table.replace_schema_metadata({name: json.dumps(value) for name, value in metadata.items()}), path)


def write_sweep(folder: Path, runs: list[RunFolder]) -> Path:
    """Write runs as the jobs of a multirun, FOLDER/N/METHOD, and return the folder."""
    for number, run in enumerate(runs):
        run.write(folder / str(number) / run.method)
    return folder


def groups_of(folder: Path) -> list[Group]:
    """Read a folder in which nothing is broken."""
    runs, problems = read_runs([folder])
    assert not problems
    return make_groups(runs)


def grid_runs(seeds=(0,), **options) -> list[RunFolder]:
    """A 2 x 2 sweep of F and tau beside its baseline."""
    runs = [RunFolder("baseline", seed, score=0.9, seconds=20.0, **options) for seed in seeds]
    for fraction, tau, score in ((0.2, 0.5, 0.91), (0.2, 0.7, 0.92), (0.3, 0.5, 0.93), (0.3, 0.7, 0.94)):
        settings = {"max_fraction": fraction, "tau": tau}
        runs += [
            RunFolder("kakurenbo", seed, settings, score=score, seconds=20 + 5 * fraction * tau, **options) for seed in seeds
        ]
    return runs
