"""Groups of runs that differ in their seed only, their names, and the baseline that each is compared with."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from recipes.report.reading import Run

BASELINE = "baseline"
# leaves of the Hydra configuration that say nothing about the training, or what a setting of the method says too
ONCE = ("F", "tau", "seed", "compare", "ckpt_path", "debug")
WITHIN = ("checkpoint", "hydra", "launcher", "logger", "method", "record", "small", "sweep")
PLACES = (
    "root",
    "dir",
    "folder",
    "path",
    "default_root_dir",
    "save_dir",
    "enable_progress_bar",
    "enable_model_summary",
    "_partial_",
)
TASK = ("data", "model", "task")  # what runs must have in common to be compared
SPEED = ("batch_size", "eval_batch_size", "num_workers")  # of them, what may differ


@dataclass
class Group:
    """Runs that differ in their seed only.

    Attributes:
        name: the method and what tells the group from the others.
        runs: ordered by seed; those that have finished, when any of the report has.
        baseline: the runs of the method `baseline` that it is compared with.
    """

    name: str
    runs: list[Run]
    leaves: Mapping[str, Any]
    baseline: "Group | None" = None

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.runs[0].method

    @property
    def metric(self) -> str | None:
        """Name of the validation metric, as it was logged."""
        return self.runs[0].metric

    @property
    def finished(self) -> list[Run]:
        """The runs that have finished."""
        return [run for run in self.runs if run.status == "finished"]

    def by_seed(self, value: Callable[[Run], float], finished: bool = True) -> pd.Series:
        """Return a value of each seed, the mean where runs share one; the k-th run without seed counts as a seed of its own."""
        seeds, values = [], []
        for run in self.finished if finished else self.runs:
            unseeded = sum(isinstance(seed, str) for seed in seeds)
            seeds.append(f"unseeded {unseeded}" if run.seed is None else run.seed)
            values.append(value(run))
        return pd.Series(values, pd.Index(seeds, dtype=object), dtype="float64").groupby(level=0).mean().dropna()


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their paths; a list is one value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def is_noise(leaf: str) -> bool:
    """Tell whether a leaf of the configuration says nothing about the training."""
    parts = leaf.split(".")
    return leaf in ONCE or parts[0] in WITHIN or parts[-1] in PLACES or leaf == "trainer.max_epochs"


def conditions(run: Run) -> dict[str, Any]:
    """Return what a run trained on and how, without its method: leaves of its configuration, and what run.json says of it."""
    found = {leaf: value for leaf, value in leaves(run.config).items() if not is_noise(leaf)}
    if not found:
        found = {name: run.info.get(name) for name in ("num_samples", "world_size")}
    trainer = run.config.get("trainer")  # static methods add epochs to what was asked for
    asked = trainer.get("max_epochs") if isinstance(trainer, dict) else None
    return {**found, "max_epochs": asked or run.info.get("max_epochs")}


def key(value: Any) -> str:
    """Return text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def differing(values: list[dict[str, Any]]) -> list[str]:
    """Return the names, in order, that have several values among those that have them at all."""
    names = dict.fromkeys(name for one in values for name in one)
    return [name for name in names if len({key(one[name]) for one in values if name in one}) > 1]


def needed(names: list[str], values: list[dict[str, Any]]) -> list[str]:
    """Return the names without those whose value follows from the others' of the same configuration group (`data.*`)."""
    kept: list[str] = []
    for name in sorted(names, key=lambda name: not name.endswith("_target_")):
        same = [other for other in kept if other.split(".")[0] == name.split(".")[0]]
        pairs = {(tuple(key(one.get(other)) for other in same), key(one[name])) for one in values if name in one}
        if len(pairs) > len({known for known, _ in pairs}):
            kept.append(name)
    return kept


def short(leaf: str, others: list[str]) -> str:
    """Return the last part of a path, or all of it when another ends alike."""
    parts = [part for part in leaf.split(".") if part != "_target_"]
    alike = [other for other in others if other != leaf and other.split(".")[-1] == parts[-1]]
    return ".".join(parts) if alike else parts[-1]


def shown(value: Any) -> str:
    """Return a value as a group's name has it."""
    if isinstance(value, str):
        return value.split(".")[-1] if value.replace(".", "").replace("_", "").isalnum() else value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, default=str) if isinstance(value, list | dict | bool) or value is None else str(value)


def make_groups(runs: list[Run]) -> list[Group]:
    """Return the groups of runs, baselines first, else in the order of the runs."""
    around = [conditions(run) for run in runs]
    outer = differing(around)
    named = needed(outer, around)
    inner = [setting for method in dict.fromkeys(run.method for run in runs) for setting in settings_of(method, runs)]
    several_metrics = len({run.metric for run in runs}) > 1
    groups: dict[str, Group] = {}
    for run, condition in zip(runs, around, strict=True):
        identity = key([run.method, run.settings, run.metric, {leaf: condition.get(leaf) for leaf in outer}])
        if identity not in groups:
            parts = [f"{name}={shown(run.settings[name])}" for name in dict.fromkeys(inner) if name in run.settings]
            parts += [f"{short(leaf, named)}={shown(condition[leaf])}" for leaf in named if leaf in condition]
            parts += [f"by {run.metric}"] if several_metrics else []
            name = " ".join(", ".join([run.method, *parts]).split())
            groups[identity] = Group(name, [], {leaf: condition.get(leaf) for leaf in outer})
        groups[identity].runs.append(run)
    found = sorted(groups.values(), key=lambda group: group.method != BASELINE)
    for group in found:
        group.runs.sort(key=lambda run: (run.seed is None, run.seed or 0))
        group.baseline = baseline_of(group, found)
    return with_own_names(found)


def settings_of(method: str, runs: list[Run]) -> list[str]:
    """Return the settings that differ between the runs of one method."""
    return differing([run.settings for run in runs if run.method == method])


def with_own_names(groups: list[Group]) -> list[Group]:
    """Number the groups whose names are equal."""
    counts: dict[str, int] = {}
    for group in groups:
        counts[group.name] = counts.get(group.name, 0) + 1
        if counts[group.name] > 1:
            group.name += f" ({counts[group.name]})"
    return groups


def baseline_of(group: Group, groups: list[Group]) -> Group | None:
    """Return the baseline under the same conditions, else the only one of the same data, network and metric."""
    if group.method == BASELINE:
        return None
    task = [leaf for leaf in group.leaves if leaf.split(".")[0] in TASK and leaf.split(".")[-1] not in SPEED]
    possible = [
        other
        for other in groups
        if other.method == BASELINE
        and other.metric == group.metric
        and other.runs[0].info.get("num_samples") == group.runs[0].info.get("num_samples")
        and all(key(other.leaves[leaf]) == key(group.leaves[leaf]) for leaf in task)
    ]
    same = [other for other in possible if key(other.leaves) == key(group.leaves)]
    if same:
        return same[0]
    return possible[0] if len(possible) == 1 else None
