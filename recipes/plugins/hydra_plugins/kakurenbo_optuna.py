"""The Hydra sweeper of `sweep=optuna`: Optuna chooses each run by the scores of those before it.

Its settings have the names of hydra-optuna-sweeper, whose latest release (1.3.0) takes Optuna 2 only. Two things differ: `n_trials`
counts the runs of the whole study, so a killed search goes on until it has that many; and `range` ends before its stop, as in
any other sweep. The folder has no `__init__.py`: Hydra finds its plugins in all packages of the name hydra_plugins.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from kakurenbo_recipes.settings import check_setting, is_count
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

# What two parts of one search may say differently: none of it changes a score. A name stands for all below it, too.
MACHINE = ("launcher", "logger", "data.root", "data.num_workers", "trainer.accelerator", "trainer.enable_progress_bar")


@dataclass
class OptunaConfig:
    """The settings of `hydra/sweeper=kakurenbo_optuna`; configs/sweep/optuna.yaml says what they are."""

    _target_: str = "hydra_plugins.kakurenbo_optuna.OptunaSweeper"
    _recursive_: bool = False  # the sampler is made by the sweeper, which gives it its seed
    params: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=lambda: {"_target_": "optuna.samplers.TPESampler", "seed": 0})
    direction: str = "maximize"
    n_trials: int = 20
    n_jobs: int = 1
    max_failure_rate: float = 0.0
    storage: str | None = "${hydra.sweep.dir}/study.journal"
    study_name: str = "search"


ConfigStore.instance().store(group="hydra/sweeper", name="kakurenbo_optuna", node=OptunaConfig, provider="kakurenbo_optuna")


def load_optuna() -> ModuleType:
    """Import Optuna, which only a search needs."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError('sweep=optuna needs Optuna: pip install "kakurenbo-lightning[sweeps]"') from error
    return optuna


def plain(said: str) -> str | int | float | bool:
    """Return a value as Optuna tells numbers from names: anything but a number or a truth value stays as it was written."""
    value = OverridesParser.create().parse_override(f"x={said}").value()
    return value if isinstance(value, int | float | bool) else said


def distribution(override: Override) -> Any:
    """Return the Optuna distribution of what Hydra would sweep over.

    `interval(a,b)` is a float from a to b, `int(interval(a,b))` an integer, `tag(log,interval(a,b))` either of them on a
    logarithmic scale; `range(a,b,step)` are numbers in order; `choice(...)`, `a,b` and `glob(...)` are values without one.
    """
    kinds, name, sweep = load_optuna().distributions, override.get_key_element(), override.value()
    if isinstance(sweep, IntervalSweep):
        is_log, low, high = "log" in sweep.tags, sweep.start, sweep.end
        rises = low < high and (low > 0 or not is_log)
        hint = f"Write {name}: tag(log,interval(0.001,0.1))." if is_log else f"Write {name}: interval(0.1,0.5)."
        check_setting(
            f"hydra.sweeper.params.{name}", override.input_line, rises, "an interval that rises, with log from above 0", hint
        )
        kind = kinds.IntDistribution if isinstance(low, int) and isinstance(high, int) else kinds.FloatDistribution
        return kind(low, high, log=is_log)
    values = list(override.sweep_iterator() if override.is_range_sweep() else map(plain, override.sweep_string_iterator()))
    check_setting(
        f"hydra.sweeper.params.{name}", override.input_line, len(values) > 0, "a sweep over values", f"Write {name}: choice(1,2)."
    )
    if not override.is_range_sweep():
        return kinds.CategoricalDistribution(values)
    numbers = sorted(values)
    kind = kinds.IntDistribution if all(isinstance(number, int) for number in numbers) else kinds.FloatDistribution
    return kind(numbers[0], numbers[-1], step=abs(override.value().step))


def search_space(arguments: list[str], config_loader: Any = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the distributions by setting, and the other overrides by setting; the last one of a setting counts."""
    space, fixed = {}, {}
    for override in OverridesParser.create(config_loader=config_loader).parse_overrides(arguments):
        name = override.get_key_element()
        space.pop(name, None)
        fixed.pop(name, None)
        if override.is_sweep_override():
            space[name] = distribution(override)
        else:
            fixed[name] = override.input_line
    return space, fixed


def score_of(job: JobReturn) -> float | None:
    """Return what the run returned; None when it failed, or returned no finite number."""
    score = job.return_value if job.status is JobStatus.COMPLETED else None
    is_score = isinstance(score, int | float) and math.isfinite(score)
    return float(score) if is_score else None


def in_a_row(trials: list[Any]) -> list[list[Any]]:
    """Cut trials where their numbers have a gap: another machine has taken numbers in between."""
    groups: list[list[Any]] = []
    for trial in trials:
        if groups and groups[-1][-1].number + 1 == trial.number:
            groups[-1].append(trial)
        else:
            groups.append([trial])
    return groups


class OptunaSweeper(Sweeper):
    """Asks Optuna for the settings of the next runs, launches them, and tells it their scores, until the study has `n_trials`.

    Args: see configs/sweep/optuna.yaml.
    """

    def __init__(
        self,
        params: DictConfig,
        sampler: DictConfig,
        direction: str,
        n_trials: int,
        n_jobs: int,
        max_failure_rate: float,
        storage: str | None,
        study_name: str,
    ) -> None:
        is_direction = direction in ("maximize", "minimize")
        check_setting("hydra.sweeper.direction", direction, is_direction, "maximize or minimize", "An accuracy is maximized.")
        check_setting("hydra.sweeper.n_trials", n_trials, is_count(n_trials, 1), "an int >= 1", "Try 20.")
        check_setting("hydra.sweeper.n_jobs", n_jobs, is_count(n_jobs, 1), "an int >= 1", "Use 1 without a cluster.")
        is_rate = 0 <= max_failure_rate <= 1
        check_setting(
            "hydra.sweeper.max_failure_rate", max_failure_rate, is_rate, "a number in [0, 1]", "Use 0 to stop at the first."
        )
        self.params, self.sampler, self.direction = params, sampler, direction
        self.n_trials, self.n_jobs, self.max_failure_rate = n_trials, n_jobs, max_failure_rate
        self.storage, self.study_name = storage, study_name

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has composed, and make the launcher."""
        self.config, self.config_loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search; `arguments` are the overrides of the command line."""
        load_optuna()
        space, fixed = search_space([*(f"{name}={value}" for name, value in self.params.items()), *arguments], self.config_loader)
        hint = "Write 'F=interval(0.1,0.5)', for example."
        check_setting("hydra.sweeper.params", dict(self.params), bool(space), "settings with values to search over", hint)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        study = self.open_study(fixed)
        while (left := self.n_trials - sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))) > 0:
            trials = [study.ask(space) for _ in range(min(left, self.n_jobs))]
            self.tell(study, trials, [job for some in in_a_row(trials) for job in self.launch(some, fixed)])
        self.report(study, folder)

    def launch(self, trials: list[Any], fixed: dict[str, str]) -> Sequence[JobReturn]:
        """Run trials whose numbers follow each other; the number of a trial is the folder of its run."""
        overrides = [[*fixed.values(), *(f"{name}={value}" for name, value in trial.params.items())] for trial in trials]
        return self.launcher.launch(overrides, initial_job_idx=trials[0].number)

    def open_study(self, fixed: dict[str, str]) -> Any:
        """Begin the study, or go on with the one that is in `storage`; one that searched with other settings is refused."""
        optuna, storage = load_optuna(), self.storage
        if storage is not None and "://" not in storage:
            path = Path(storage).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        study = optuna.create_study(storage=storage, study_name=self.study_name, direction=self.direction, load_if_exists=True)
        found = study.direction.name.lower()
        hint = "Give it as before, or another hydra.sweeper.study_name for a new search."
        check_setting("hydra.sweeper.direction", self.direction, found == self.direction, f"{found}, as in the study", hint)
        said = sorted(line for name, line in fixed.items() if not any(f"{name}.".startswith(f"{part}.") for part in MACHINE))
        before = study.user_attrs.get("settings", said)
        check_setting(
            "hydra.sweeper.storage", self.storage, said == before, f"one of a study of the settings {said}, not of {before}", hint
        )
        study.set_user_attr("settings", said)
        seed = self.sampler.get("seed")
        if seed is not None:  # else a search that goes on would draw its first settings once more
            self.sampler.seed = seed + len(study.get_trials(deepcopy=False))
        study.sampler = instantiate(self.sampler)
        return study

    def tell(self, study: Any, trials: list[Any], jobs: list[JobReturn]) -> None:
        """Tell the study the scores; stop the search when too many runs have failed."""
        failed = []
        for trial, job in zip(trials, jobs, strict=True):
            score = score_of(job)
            trial.set_user_attr("folder", job.hydra_cfg.hydra.runtime.output_dir)
            if score is None:
                study.tell(trial, state=load_optuna().trial.TrialState.FAIL)
                log.warning(f"run {trial.number} failed: {trial.params}")
                failed.append(job)
            else:
                study.tell(trial, score)
                log.info(f"run {trial.number}: {score:.4f} with {trial.params}")
        if len(failed) / len(jobs) > self.max_failure_rate:
            score = failed[0].return_value  # raises the error of the run, if it had one
            raise ValueError(
                f"a run returned {score!r} in place of a score: the search goes by the validation metric, which needs data to "
                "validate on. Leave trainer.limit_val_batches and trainer.check_val_every_n_epoch as they are."
            )

    def report(self, study: Any, folder: Path) -> None:
        """Say which run was the best, and leave it in optimization_results.yaml."""
        completed = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
        if not completed:
            log.warning("no run has a score")
            return
        best = study.best_trial
        log.info(f"best of {len(completed)} runs: {best.value:.4f} with {best.params} in {best.user_attrs['folder']}")
        result = {
            "name": "optuna",
            "best_params": best.params,
            "best_value": best.value,
            "best_folder": best.user_attrs.get("folder"),
        }
        OmegaConf.save(OmegaConf.create(result), folder / "optimization_results.yaml")
