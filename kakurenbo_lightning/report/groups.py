"""Groups of runs that differ in their seed only, their names, and the baseline that each is compared with."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from kakurenbo_lightning.report.reading import Run, mapping

BASELINE = "baseline"
# leaves of the Hydra configuration that say nothing about the training, or what a setting of the method says too
ONCE = ("F", "tau", "seed", "compare", "ckpt_path", "debug", "trainer.max_epochs")
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
DATA = ("num_samples", "class_names", "fingerprint")  # of run.json: they differ where the same configuration read other data
READ = tuple(f"data.{name}" for name in DATA)
TASK = ("data", "model", "task")  # what runs must have in common to be compared
SPEED = ("batch_size", "eval_batch_size", "num_workers")  # of these, what may differ
LONG = 40  # characters of a value in a group's name


@dataclass(eq=False)
class Group:
    """Runs that differ in their seed only, and are shown as one.

    Attributes:
        name: the method, and the settings in which the group differs from the others.
        runs: ordered by seed.
        leaves: the conditions of the runs that are not the same in all groups, by their paths.
        baseline: the runs of the method `baseline` that the group is compared with.
    """

    name: str
    runs: list[Run]
    leaves: Mapping[str, Any]
    baseline: Group | None = None

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def metric(self) -> str | None:
        return self.runs[0].metric

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.status == "finished"]

    @property
    def counted(self) -> list[Run]:
        """The runs that figures are of: the finished ones, all while none has finished."""
        return self.finished or self.runs

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per run that counts: its seed and figures, and as text where it was trained and how long."""
        rows = []
        unseeded = (f"unseeded {number}" for number in itertools.count())  # a run without seed counts as a seed of its own
        for run in self.counted:
            machine = mapping(run.info.get("machine"))
            place = key([machine.get("device"), machine.get("processor"), run.info.get("world_size")])
            seed = next(unseeded) if run.seed is None else run.seed
            rows.append({"seed": seed, "place": place, "epochs": key(run.info.get("epochs")), **run.figures})
        return pd.DataFrame(rows).astype({"seed": object})

    @cached_property
    def seeds(self) -> pd.DataFrame:
        """The figures by seed, the mean where runs share one."""
        figures: Any = self.frame.drop(columns=["place", "epochs"])
        return figures.groupby("seed", sort=False).mean()

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """The figures by seed beside those of the baseline (`score_baseline`), for the seeds that both have."""
        other = self.seeds.iloc[:0] if self.baseline is None else self.baseline.seeds
        return self.seeds.join(other.add_suffix("_baseline"), how="inner")

    def unlike(self, column: str) -> list[Any]:
        """The seeds of `pairs` of which not all runs have the same value in a column of `frame`."""
        if self.baseline is None:
            return []
        both = pd.concat([self.frame, self.baseline.frame])
        values = both[both["seed"].isin(self.pairs.index)].groupby("seed", sort=False)[column].nunique()
        return values.index[values > 1].tolist()


def make_groups(runs: list[Run]) -> list[Group]:
    """The groups of runs, baselines first, else in the order of the runs."""
    around: list[Mapping[str, Any]] = [conditions(run) for run in runs]
    outer = differing(around)
    named = needed(outer, around)
    methods = dict.fromkeys(run.method for run in runs)
    inner = [name for method in methods for name in differing([run.settings for run in runs if run.method == method])]
    several_metrics = len({run.metric for run in runs}) > 1
    groups: dict[str, Group] = {}
    for run, condition in zip(runs, around, strict=True):
        leaves = {leaf: condition.get(leaf) for leaf in outer}
        identity = key([run.method, run.settings, run.metric, leaves])
        if identity not in groups:
            parts = [f"{name}={shown(run.settings[name])}" for name in dict.fromkeys(inner) if name in run.settings]
            parts += [f"{short(leaf, named)}={shown(condition[leaf])}" for leaf in named if condition.get(leaf) is not None]
            parts += [f"by {run.metric}"] if several_metrics else []
            groups[identity] = Group(" ".join(", ".join([run.method, *parts]).split()), [], leaves)
        groups[identity].runs.append(run)
    found = sorted(groups.values(), key=lambda group: group.method != BASELINE)
    for name, alike in itertools.groupby(sorted(found, key=lambda group: group.name), key=lambda group: group.name):
        for number, group in enumerate(list(alike)[1:], start=2):
            group.name = f"{name} ({number})"
    for group in found:
        group.runs.sort(key=lambda run: (run.seed is None, run.seed or 0))
    for group in found:
        group.baseline = baseline_of(group, found)
    return found


def baseline_of(group: Group, groups: list[Group]) -> Group | None:
    """The baseline under the same conditions, else the only one of the same data, network and metric."""
    if group.method == BASELINE:
        return None
    task = task_leaves(group)
    possible = [
        other
        for other in groups
        if (other.method, other.metric, bool(other.finished)) == (BASELINE, group.metric, bool(group.finished))
        and not task & set(unlike(group, other))
    ]
    same = [other for other in possible if not unlike(group, other)]
    return same[0] if same else possible[0] if len(possible) == 1 else None


def task_leaves(group: Group) -> set[str]:
    """The conditions that runs must have in common to be compared."""
    return {leaf for leaf in group.leaves if leaf.split(".")[0] in TASK and leaf.split(".")[-1] not in SPEED}


def task_of(group: Group) -> str:
    """Text that is equal for groups of the same data and network."""
    return key({leaf: group.leaves[leaf] for leaf in task_leaves(group)})


def unlike(group: Group, other: Group) -> list[str]:
    """The conditions in which two groups differ."""
    return [leaf for leaf, value in group.leaves.items() if key(value) != key(other.leaves[leaf])]


# --- conditions


def conditions(run: Run) -> dict[str, Any]:
    """What a run trained on and how, without its method: leaves of its configuration, and the data, processes and epochs of run.json."""
    found = {leaf: value for leaf, value in leaves(run.config).items() if not is_noise(leaf)}
    if "weights" in found:  # each seed may begin with weights of its own
        found["weights"] = None if found["weights"] is None else "given"
    found |= {f"data.{name}": run.info[name] for name in DATA if run.info.get(name) is not None}
    asked = mapping(run.config.get("trainer")).get("max_epochs")  # static methods add epochs to what was asked for
    return {**found, "world_size": run.info.get("world_size"), "max_epochs": asked or run.info.get("max_epochs")}


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their paths; a list is one value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return found


def is_noise(leaf: str) -> bool:
    """Whether a leaf of the configuration says nothing about the training."""
    parts = leaf.split(".")
    return leaf in ONCE or parts[0] in WITHIN or parts[-1] in PLACES


def key(value: Any) -> str:
    """A text by which values compare: equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def differing(values: list[Mapping[str, Any]]) -> list[str]:
    """The names, in order, that have several values; a missing one is null, but for what a run that ended early did not say of its data."""
    names = dict.fromkeys(name for one in values for name in one)
    return [name for name in names if len({key(one.get(name)) for one in values if name in one or name not in READ}) > 1]


def needed(names: list[str], values: list[Mapping[str, Any]]) -> list[str]:
    """The names without those whose value follows from the others' of the same configuration group (`data.*`)."""
    kept: list[str] = []
    for name in sorted(names, key=lambda name: (not name.endswith("_target_"), name in READ)):
        same = [other for other in kept if other.split(".")[0] == name.split(".")[0]]
        pairs = {(tuple(key(one.get(other)) for other in same), key(one.get(name))) for one in values}
        if len(pairs) > len({known for known, _ in pairs}):
            kept.append(name)
    return kept


# --- names


def short(leaf: str, others: list[str]) -> str:
    """The last part of a path, or all of it when another ends alike."""
    parts = [part for part in leaf.split(".") if part != "_target_"]
    alike = [other for other in others if other != leaf and other.split(".")[-1] == parts[-1]]
    return ".".join(parts) if alike else parts[-1]


def shown(value: Any) -> str:
    """A value as a group's name has it: of a list or a long word its beginning."""
    if isinstance(value, str):
        text = value.split(".")[-1] if value.replace(".", "").replace("_", "").isalnum() else value
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = json.dumps(value, default=str) if isinstance(value, list | dict | bool) or value is None else str(value)
    return f"{text[:LONG]}…" if len(text) > LONG and (isinstance(value, list) or " " not in text) else text
