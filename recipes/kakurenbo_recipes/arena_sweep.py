"""`kakurenbo-train sweep=arena`: every method beside a random choice of the same share and a baseline of equal time, seed by seed."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from kakurenbo_lightning import available_methods
from kakurenbo_lightning.cli.text_table import terminal_width
from kakurenbo_recipes.log import say
from kakurenbo_recipes.settings import MACHINE, check_setting

if TYPE_CHECKING:
    from kakurenbo_lightning.arena.runs import Comparison

NEED_MORE = {  # methods that cannot run by name alone
    "rho_loss": "irreducible losses or a trained module",
    "weighted": "your weights",
}
WIDTH = 140
ONLY = {  # what is compared is trained for whole epochs, scored after the last one, and leaves out what its method does
    **{"trainer.max_steps": -1, "trainer.max_time": None, "trainer.fast_dev_run": False, "trainer.check_val_every_n_epoch": 1},
    **{"save": None, "guard": None},
}
MODULE = "hydra_plugins.kakurenbo_arena"  # Hydra only accepts a sweeper whose class is in a package of this name


class ArenaSweeper(Sweeper):
    """Trains all runs of a comparison into one folder. Killed and started again it continues; several processes share the work.

    Args:
        params: `method` and `seed` as on the command line, which has the last word; no `method` is every method.
        variants: methods with settings, `kakurenbo:max_fraction=0.5,tau=0.5`, beside those of `method`; alone, in their place.
    """

    def __init__(self, params: dict[str, str] | None = None, variants: Sequence[str] | None = None) -> None:
        self._params, self._variants = dict(params or {}), list(variants or [])
        self._jobs = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the arguments from which the runs are made."""
        self._config = config
        self._parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Train what is missing in `hydra.sweep.dir`, print the table, draw it, and return the rows by name of the training."""
        from kakurenbo_lightning.arena.runs import Comparison, Entry, Folder, Training
        from kakurenbo_lightning.arena.verdict import standings, table

        choices, fixed = self._read([*(f"{name}={value}" for name, value in self._params.items() if value), *arguments])
        methods = choices["method"] or ([] if self._variants else every_method())
        entries = [Entry(name) for name in methods if name != "baseline"] + [Entry.of(text) for text in self._variants]
        seeds, epochs = [int(seed) for seed in choices["seed"]] or [0], self._config.trainer.max_epochs
        check_arena(self._config)
        comparison = Comparison(entries, seeds, epochs)
        same = sorted(text for name, text in fixed.items() if not f"{name}.".startswith(MACHINE))
        folder = Folder(Path(self._config.hydra.sweep.dir), {"max_epochs": epochs, "settings": same})

        def run(training: Training) -> dict[str, Any]:
            return self._run(training, list(fixed.values()), folder.path)

        rows = folder.train(comparison, run)
        say(f"\n{epochs} epochs, {len(seeds)} seeds; time and trained samples are those of the baseline x")
        say("\n".join(table(standings(comparison, rows), terminal_width(WIDTH))))
        chosen = self._config.hydra.runtime.choices
        title = f"Data {chosen.data}, model {chosen.model}, {epochs} epochs"
        if picture := write_picture(comparison, rows, folder.path / "arena.png", title):
            say(f"picture: {picture}")
        return rows

    def _read(self, arguments: list[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Return the methods and seeds, and all other overrides as typed, by setting. The last override of a setting counts."""
        choices: dict[str, list[str]] = {"method": [], "seed": []}
        fixed: dict[str, str] = {}
        for override in self._parser.parse_overrides(arguments):
            name, several = override.get_key_element().lstrip("+~"), override.is_sweep_override()
            values = list(override.sweep_string_iterator()) if several else [override.get_value_element_as_str()]
            if name in choices:
                choices[name] = values
                continue
            hint = "Write hydra.sweeper.variants=['kakurenbo:tau=0.5','kakurenbo:tau=0.7']."
            check_setting(name, ",".join(values), not several, "one value with sweep=arena, but for method and seed", hint)
            fixed[name] = str(override.input_line)
        return choices, fixed

    def _run(self, training: Any, fixed: list[str], folder: Path) -> dict[str, Any]:
        """Run one training and return the figures to keep."""
        # remove what an interrupted training has left; this process holds its lock
        shutil.rmtree(folder / training.name, ignore_errors=True)
        own = {name: json.dumps(value) for name, value in training.entry.settings.items()}
        words = [f"method={training.entry.method}", *(f"method.{name}={value}" for name, value in own.items())]
        words += [f"seed={training.seed}", f"trainer.max_epochs={training.epochs}", "compare=null"]
        done = self._launcher.launch([[*fixed, *words, f"hydra.sweep.subdir='{training.name}'"]], initial_job_idx=self._jobs)[0]
        self._jobs += 1
        _ = done.return_value  # raises the error that ended the run, if any
        (result,) = json.loads((folder / training.name / "results.json").read_text())
        totals = result["totals"]
        counts = {name: value for name, value in totals.items() if "samples" in name}
        return {"score": result["score"], "metric": result["metric"], "cost": totals["steady_seconds"], **counts}


def every_method() -> list[str]:
    """Return the methods that run by their name alone, and say which are left out."""
    left_out = " and ".join(f"{name} ({needed})" for name, needed in NEED_MORE.items())
    say(f"Every method but {left_out}. To add one: hydra.sweeper.variants=['weighted:weights=weights.pt'].")
    return [name for name in available_methods() if name not in NEED_MORE]


def write_picture(comparison: Comparison, rows: Mapping[str, dict[str, Any]], target: Path, title: str) -> Path | None:
    """Draw scores against time, for light pages and beside it for dark ones; None if every training diverged."""
    from kakurenbo_lightning.arena.plot import draw

    metrics = [row["metric"] for row in rows.values() if math.isfinite(row["score"])]
    if not metrics:
        return None
    draw(comparison, rows, target, score=f"validation {metrics[0]}", title=title)
    return target


def check_arena(config: DictConfig) -> None:
    """Raise a ValueError for settings that would make a comparison meaningless."""
    epochs, validated = config.trainer.max_epochs, config.trainer.limit_val_batches
    check_setting("trainer.max_epochs", epochs, isinstance(epochs, int) and epochs > 0, "an int >= 1 with sweep=arena", "")
    check_setting(
        "trainer.limit_val_batches", validated, validated != 0, "above 0 with sweep=arena", "The score is the validation's."
    )
    for name, usual in ONLY.items():
        value = OmegaConf.select(config, name)
        why = "Trainings end, and are scored, after whole epochs." if "." in name else "It would change the controls too."
        said = "null" if usual is None else str(usual).lower()
        check_setting(name, value, value == usual or not (value or usual), f"{said} with sweep=arena", why)


def register() -> None:
    """Register the sweeper as an option of the group hydra/sweeper."""
    ArenaSweeper.__module__, sys.modules[MODULE] = MODULE, sys.modules[__name__]
    Plugins.instance().register(ArenaSweeper)
    node = {"_target_": f"{MODULE}.{ArenaSweeper.__name__}", "params": {"method": None, "seed": "0,1,2"}, "variants": []}
    ConfigStore.instance().store(
        group="hydra/sweeper", name="kakurenbo_arena", node=OmegaConf.create(node), provider="kakurenbo-train"
    )
