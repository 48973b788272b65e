"""Groups of runs that differ in their seed only, their names, and the baseline that each is compared with."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kakurenbo_lightning.report.reading import Run

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
DATA = ("num_samples", "class_names", "fingerprint")  # of run.json: where the same configuration read other data
FINGERPRINT = "data.fingerprint"  # runs of before there was one fit any
TASK = ("data", "model", "task")  # what runs must have in common to be compared
LONG = 40  # characters of a value in a group's name
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

    @property
    def counted(self) -> list[Run]:
        """The runs that figures are of: the finished ones, all while none has finished."""
        return self.finished or self.runs

    def by_seed(self, value: Callable[[Run], float], finished: bool = True) -> pd.Series:
        """Return a value of each seed, the mean where runs share one."""
        runs = self.finished if finished else self.runs
        values = pd.Series([value(run) for run in runs], pd.Index(seeds_of(runs), dtype=object), dtype="float64")
        return values.groupby(level=0).mean().dropna()


def seeds_of(runs: list[Run]) -> list[int | str]:
    """Return the seed of each run; the k-th run without seed counts as a seed of its own."""
    unseeded = itertools.count()
    return [f"unseeded {next(unseeded)}" if run.seed is None else run.seed for run in runs]


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
    if "weights" in found:  # each seed may begin with weights of its own
        found["weights"] = None if found["weights"] is None else "given"
    found |= {f"data.{name}": run.info[name] for name in DATA if run.info.get(name) is not None}
    trainer = run.config.get("trainer")  # static methods add epochs to what was asked for
    asked = trainer.get("max_epochs") if isinstance(trainer, dict) else None
    return {**found, "world_size": run.info.get("world_size"), "max_epochs": asked or run.info.get("max_epochs")}


def key(value: Any) -> str:
    """Return text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def home(leaf: str) -> str:
    """Return the configuration group of a leaf, with a point: `data.`; nothing for a leaf outside of groups."""
    group, point, _ = leaf.partition(".")
    return group + point if point else ""


def differing(values: list[dict[str, Any]]) -> list[str]:
    """Return the names, in order, that have several values.

    Who lacks a name has the value null of it if someone else of the same configuration group and `_target_` has the name;
    of other groups it is not asked.
    """
    names = dict.fromkeys(name for one in values for name in one)
    homes = [{home(name): key(one.get(f"{home(name)}_target_")) for name in one} for one in values]
    found = []
    for name in names:
        place = home(name)
        own = {key(one[name]) for one in values if name in one}
        targets = {known[place] for one, known in zip(values, homes, strict=True) if name in one}
        lacking = (
            place in known and known[place] in targets and name not in one for one, known in zip(values, homes, strict=True)
        )
        if name != FINGERPRINT and any(lacking):
            own.add(key(None))
        if len(own) > 1:
            found.append(name)
    return found


def with_fingerprints(around: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the conditions, those without a fingerprint of the data with the only one of runs that are equal otherwise."""
    outer = [leaf for leaf in differing(around) if leaf != FINGERPRINT]
    others = [key({leaf: one.get(leaf) for leaf in outer}) for one in around]
    known: dict[str, dict[str, Any]] = {}
    for other, one in zip(others, around, strict=True):
        if FINGERPRINT in one:
            known.setdefault(other, {})[key(one[FINGERPRINT])] = one[FINGERPRINT]
    only = {other: next(iter(values.values())) for other, values in known.items() if len(values) == 1}
    return [
        {**one, FINGERPRINT: only[other]} if FINGERPRINT not in one and other in only else one
        for other, one in zip(others, around, strict=True)
    ]


def needed(names: list[str], values: list[dict[str, Any]]) -> list[str]:
    """Return the names without those whose value follows from the others' of the same configuration group (`data.*`)."""
    kept: list[str] = []
    read = [f"data.{name}" for name in DATA]
    for name in sorted(names, key=lambda name: (not name.endswith("_target_"), name in read)):
        same = [other for other in kept if other.split(".")[0] == name.split(".")[0]]
        pairs = {(tuple(key(one.get(other)) for other in same), key(one.get(name))) for one in values}
        if len(pairs) > len({known for known, _ in pairs}):
            kept.append(name)
    return kept


def short(leaf: str, others: list[str]) -> str:
    """Return the last part of a path, or all of it when another ends alike."""
    parts = [part for part in leaf.split(".") if part != "_target_"]
    alike = [other for other in others if other != leaf and other.split(".")[-1] == parts[-1]]
    return ".".join(parts) if alike else parts[-1]


def shown(value: Any) -> str:
    """Return a value as a group's name has it: of a list or a long word its beginning."""
    text = written(value)
    return f"{text[:LONG]}…" if len(text) > LONG and (isinstance(value, list) or " " not in text) else text


def written(value: Any) -> str:
    """Return a value as text."""
    if isinstance(value, str):
        return value.split(".")[-1] if value.replace(".", "").replace("_", "").isalnum() else value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, default=str) if isinstance(value, list | dict | bool) or value is None else str(value)


def make_groups(runs: list[Run]) -> list[Group]:
    """Return the groups of runs, baselines first, else in the order of the runs."""
    around = with_fingerprints([conditions(run) for run in runs])
    outer = differing(around)
    named = needed(outer, around)
    inner = [setting for method in dict.fromkeys(run.method for run in runs) for setting in settings_of(method, runs)]
    several_metrics = len({run.metric for run in runs}) > 1
    groups: dict[str, Group] = {}
    for run, condition in zip(runs, around, strict=True):
        identity = key([run.method, run.settings, run.metric, {leaf: condition.get(leaf) for leaf in outer}])
        if identity not in groups:
            parts = [f"{name}={shown(run.settings[name])}" for name in dict.fromkeys(inner) if name in run.settings]
            parts += [f"{short(leaf, named)}={shown(condition[leaf])}" for leaf in named if condition.get(leaf) is not None]
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
        if other.method == BASELINE and other.metric == group.metric and not set(task) & set(unlike(group, other))
    ]
    same = [other for other in possible if not unlike(group, other)]
    if same:
        return same[0]
    return possible[0] if len(possible) == 1 else None


def unlike(group: Group, other: Group) -> list[str]:
    """Return the conditions that differ between two groups; a fingerprint that one of them lacks does not."""
    return [
        leaf
        for leaf, value in group.leaves.items()
        if key(value) != key(other.leaves[leaf]) and not (leaf == FINGERPRINT and None in (value, other.leaves[leaf]))
    ]
