"""What `kakurenbo-train` and `kakurenbo_recipes.irreducible` read of a config, with types: Hydra refuses other values when it composes.

The values are in configs/train.yaml and configs/irreducible.yaml, whose defaults lists begin with these schemas.
"""

from dataclasses import dataclass, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class TrainSchema:
    """The groups of `kakurenbo-train`, whose own keys the signature of their `_target_` tells, and its own settings."""

    data: Any = MISSING
    model: Any = MISSING
    task: Any = MISSING
    method: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    record: Any = MISSING
    checkpoint: Any = MISSING
    F: float = MISSING
    tau: float = MISSING
    lr_batch_size: int | None = MISSING
    debug: bool = MISSING
    small: Any = MISSING
    test: bool = MISSING
    seed: int = MISSING
    compare: Any = MISSING  # a list of methods, or null; the program says more of a wrong one than a type would
    ckpt_path: str | None = MISSING
    weights: str | None = MISSING


@dataclass
class IrreducibleSchema:
    """The same for `python -m kakurenbo_recipes.irreducible`."""

    data: Any = MISSING
    model: Any = MISSING
    optimizer: Any = MISSING
    trainer: Any = MISSING
    folds: int = MISSING
    output: str = MISSING
    seed: int = MISSING


def names_of(schema: type) -> list[str]:
    """The names of a schema's groups and settings."""
    return [each.name for each in fields(schema)]


ConfigStore.instance().store("train_schema", TrainSchema)
ConfigStore.instance().store("irreducible_schema", IrreducibleSchema)
