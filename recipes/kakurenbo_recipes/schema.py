"""Typed schemas of the configs of `kakurenbo-train` and `kakurenbo_recipes.irreducible`. Hydra refuses other types when it composes.

The values are in configs/train.yaml and configs/irreducible.yaml, whose defaults lists begin with these schemas.
"""

from dataclasses import dataclass, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


@dataclass
class Groups:
    """Groups that both programs read. The keys of a group are those in the signature of its `_target_`."""

    data: Any = MISSING
    model: Any = MISSING
    optimizer: Any = MISSING
    trainer: Any = MISSING


@dataclass
class TrainSchema(Groups):
    """The further groups of `kakurenbo-train`, and its own settings."""

    scorer: Any = MISSING
    task: Any = MISSING
    method: Any = MISSING
    schedule: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    record: Any = MISSING
    checkpoint: Any = MISSING
    guard: Any = MISSING
    F: float = MISSING
    save: float | None = MISSING
    tau: float = MISSING
    lr_batch_size: int | None = MISSING
    debug: bool = MISSING
    small: Any = MISSING
    test: bool = MISSING
    seed: int = MISSING
    compare: Any = MISSING  # a list of methods, or null; untyped, because the program's own error says more
    ckpt_path: str | None = MISSING
    weights: str | None = MISSING


@dataclass
class IrreducibleSchema(Groups):
    """The settings of `python -m kakurenbo_recipes.irreducible`."""

    folds: int = MISSING
    output: str = MISSING
    seed: int = MISSING


def names_of(schema: type) -> list[str]:
    """The names of a schema's groups and settings."""
    return [each.name for each in fields(schema)]


# open, because a user's config may have helper keys that are interpolated; config_check.py refuses keys that nothing reads
for name, schema in (("train_schema", TrainSchema), ("irreducible_schema", IrreducibleSchema)):
    ConfigStore.instance().store(name, OmegaConf.structured(schema, flags={"struct": False}))
